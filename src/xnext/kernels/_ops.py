"""The operators as PyTorch knows them: shapes without data, gradients, autocast.

So torch.compile, export, checkpointing and CUDA graphs take them like its own. Second derivatives are not
there. Each is computed by Triton; who calls them has asked ``takes_triton`` before.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xnext.kernels._geometry import MAX_BLUR, Geometry, empty_like


def _geometry(kernel: Sequence[int], *pairs: Sequence[int]) -> Geometry:
    return Geometry(*((pair[0], pair[1]) for pair in (kernel, *pairs)))


@torch.library.custom_op("xnext::depthwise_conv2d", mutates_args=())
def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolve x [N, C, H, W] with a weight [C, 1, kH, kW]."""
    from xnext.kernels import _launch

    return _launch.forward(x, weight, bias, _geometry(weight.shape[2:], stride, padding, dilation))


@depthwise_conv2d.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, *moves: Sequence[int]) -> Tensor:
    return empty_like(x, _geometry(weight.shape[2:], *moves).output_size(x.shape[2:]))


@torch.library.custom_op("xnext::depthwise_conv2d_backward_input", mutates_args=())
def backward_input(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the gradient of an input of this height and width."""
    from xnext.kernels import _launch

    geometry = _geometry(weight.shape[2:], stride, padding, dilation)
    return _launch.backward_input(grad, weight, size, geometry)


@backward_input.register_fake
def _(grad: Tensor, weight: Tensor, size: Sequence[int], *moves: Sequence[int]) -> Tensor:
    return empty_like(grad, size)


@torch.library.custom_op("xnext::depthwise_conv2d_backward_weight", mutates_args=())
def backward_weight(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight [C, 1, kH, kW] and of the bias [C], in the input's type."""
    from xnext.kernels import _launch

    return _launch.backward_weight(grad, x, _geometry(kernel, stride, padding, dilation))


@backward_weight.register_fake
def _(grad: Tensor, x: Tensor, kernel: Sequence[int], *moves: Sequence[int]) -> tuple[Tensor, Tensor]:
    return x.new_empty((x.shape[1], 1, *kernel)), x.new_empty(x.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.moves = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = None, None, None
    if ctx.needs_input_grad[0]:
        of_x = backward_input(grad, weight, x.shape[2:], *ctx.moves)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        of_weight, of_bias = backward_weight(grad, x, weight.shape[2:], *ctx.moves)
    return of_x, of_weight, of_bias if ctx.needs_input_grad[2] else None, None, None, None


depthwise_conv2d.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("xnext::mix", mutates_args=())
def mix(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Convolve the last groups of channels of x [N, C, H, W] with a weight each, and pass the others on."""
    from xnext.kernels import _launch

    return _launch.mix(x, weights, biases, back=False)


@mix.register_fake
def _(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    return empty_like(x, x.shape[2:])


@torch.library.custom_op("xnext::mix_into", mutates_args=("y",))
def mix_into(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], y: Tensor) -> None:
    """Fill y, which shares no memory with x [N, C, H, W], with what ``mix`` returns; for inference alone."""
    from xnext.kernels import _launch

    _launch.mix(x, weights, biases, y, back=False)


@torch.library.custom_op("xnext::mix_backward_input", mutates_args=())
def mix_backward_input(grad: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return the gradient of the input of ``mix``."""
    from xnext.kernels import _launch

    return _launch.mix(grad, weights, (), back=True)


@mix_backward_input.register_fake
def _(grad: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return empty_like(grad, grad.shape[2:])


def _save_mix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, biases = inputs
    ctx.save_for_backward(x, *weights)
    ctx.has_bias = bool(biases)


def _differentiate_mix(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, *weights = ctx.saved_tensors
    of_x = mix_backward_input(grad, weights) if ctx.needs_input_grad[0] else None
    of_weights, of_biases = [], []
    first = x.shape[1] - sum(map(len, weights))
    for weight in weights:
        part = slice(first, first + len(weight))
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        of_weight, of_bias = backward_weight(
            grad[:, part], x[:, part], weight.shape[2:], (1, 1), padding, (1, 1)
        )
        of_weights.append(of_weight)
        of_biases.append(of_bias)
        first += len(weight)
    return of_x, of_weights, of_biases if ctx.has_bias else []


mix.register_autograd(_differentiate_mix, setup_context=_save_mix)


@torch.library.custom_op("xnext::max_blur_pool2d", mutates_args=())
def max_blur_pool2d(x: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """Pool x [N, C, H, W]; if wanted, keep which values the maxima are, for the gradient."""
    from xnext.kernels import _launch

    return _launch.max_blur(x, save)


@max_blur_pool2d.register_fake
def _(x: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    shape = (images, height, width, channels) if save else (0,)
    return empty_like(x, MAX_BLUR.output_size((height, width))), x.new_empty(shape, dtype=torch.uint8)


@torch.library.custom_op("xnext::max_blur_pool2d_backward_input", mutates_args=())
def max_blur_backward_input(grad: Tensor, codes: Tensor) -> Tensor:
    """Return the gradient of the input of ``max_blur_pool2d``."""
    from xnext.kernels import _launch

    return _launch.max_blur_backward_input(grad, codes)


@max_blur_backward_input.register_fake
def _(grad: Tensor, codes: Tensor) -> Tensor:
    return empty_like(grad, codes.shape[1:3])


def _save_codes(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _differentiate_max_blur(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    return max_blur_backward_input(grad, *ctx.saved_tensors), None


max_blur_pool2d.register_autograd(_differentiate_max_blur, setup_context=_save_codes)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return a tensor, or a list of them, in another type; anything else as it is."""
    if isinstance(value, list | tuple):
        return [_cast(item, dtype) for item in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype != torch.float64 else value


def _under_autocast(operator: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Return the operator on inputs of the type that autocast has, as it treats convolutions."""

    def run(*inputs: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return operator(*(_cast(value, dtype) for value in inputs))

    return run


_library = torch.library.Library("xnext", "FRAGMENT")
for _device, _key in (("cuda", "AutocastCUDA"), ("cpu", "AutocastCPU")):
    for _operator in (depthwise_conv2d, mix, max_blur_pool2d):
        _library.impl(_operator._qualname, _under_autocast(_operator, _device), _key)
