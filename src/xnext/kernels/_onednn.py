"""The gradient of depthwise weights on a CPU, in pieces that oneDNN has a fast kernel for.

On CPUs with AVX2 or AVX-512 that kernel takes rows of at most three taps, and images that are no smaller
than the taps reach. What else is asked for goes to another one, several times as slow
(``benchmarks/depthwise_cpu.py``). So the image gets its border beforehand, and the taps learn three columns
at a time: the same sums.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from xnext.kernels import _backend
from xnext.kernels._geometry import Geometry, Pair

_COLUMNS = 3
_FEWEST = 2**16  # values in an image batch, from which on several calls were not slower than one
_MEASURED = "AVX2", "AVX512"
_IS_SLOW = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in _MEASURED


def takes_columns(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Return whether the gradient of a weight was measured to be faster in pieces."""
    (height, width), (rows, columns) = x.shape[2:], geometry.kernel
    return (
        _IS_SLOW
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _backend.is_auto()
        and x.device.type == "cpu"
        and weight.requires_grad
        and torch.is_grad_enabled()
        and _backend.effective_dtype(x) == torch.float32
        and geometry.stride == geometry.dilation == (1, 1)
        and min(rows, columns) >= _COLUMNS
        and (columns > _COLUMNS or rows > height or columns > width)
        and x.numel() >= _FEWEST
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair) -> Tensor:
    """Convolve x [N, C, H, W] with a weight [C, 1, kH, kW] that learns."""
    return _InColumns.apply(x, weight, bias, padding)


class _InColumns(torch.autograd.Function):
    """The convolution as PyTorch has it, but for the gradient of its weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = None, None, None
        if ctx.needs_input_grad[0]:
            of_x = _backward(grad, x, weight, ctx.padding, (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(grad, x, weight, ctx.padding)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None


def _of_weight(grad: Tensor, x: Tensor, weight: Tensor, padding: Pair) -> Tensor:
    """Return the gradient of a weight from those of the outputs."""
    (rows, columns), last = padding, torch.channels_last
    # An image as tall as the kernel gets the rows of its border from the convolution.
    before = rows if weight.shape[2] > x.shape[2] else 0
    x = F.pad(x.contiguous(memory_format=last), (columns, columns, before, before))
    grad = grad.contiguous(memory_format=last)
    pieces, first = [], 0
    for taps in weight.split(_COLUMNS, dim=3):
        part = x[..., first : first + grad.shape[3] + taps.shape[3] - 1]
        pieces.append(_backward(grad, part, taps, (rows - before, 0), (False, True, False))[1])
        first += _COLUMNS
    return torch.cat(pieces, dim=3)


def _backward(grad: Tensor, x: Tensor, weight: Tensor, padding: Pair, of: tuple[bool, ...]) -> Any:
    """Return those gradients of a depthwise convolution that are wanted: of x, weight and bias."""
    moves = (1, 1), padding, (1, 1)
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *moves, False, (0, 0), len(weight), of)
