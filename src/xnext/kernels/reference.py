"""What each operator computes, in plain PyTorch: the definition that the kernels are compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """Convolve each channel with its own kernel; shapes as in ``xnext.kernels.depthwise_conv2d``."""
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])


def inception_dwconv2d(
    x: Tensor,
    weight_hw: Tensor,
    bias_hw: Tensor | None,
    weight_w: Tensor,
    bias_w: Tensor | None,
    weight_h: Tensor,
    bias_h: Tensor | None,
) -> Tensor:
    """Mix the last three groups of channels; shapes as in ``xnext.kernels.inception_dwconv2d``."""
    branches = [(weight_hw, bias_hw), (weight_w, bias_w), (weight_h, bias_h)]
    widths = [len(weight) for weight, _ in branches]
    identity, *parts = x.split([x.shape[1] - sum(widths), *widths], dim=1)
    mixed = [
        F.conv2d(part, weight, bias, padding=same_padding(weight), groups=len(weight))
        for part, (weight, bias) in zip(parts, branches, strict=True)
    ]
    return torch.cat([identity, *mixed], dim=1)


def partial_depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve the last channels; shapes as in ``xnext.kernels.partial_depthwise_conv2d``."""
    identity, part = x.split([x.shape[1] - len(weight), len(weight)], dim=1)
    mixed = F.conv2d(part, weight, bias, padding=same_padding(weight), groups=len(weight))
    return torch.cat([identity, mixed], dim=1)


def max_blur_pool2d(x: Tensor) -> Tensor:
    """Take 3x3 maxima, then a 1-2-1 blur of stride 2 over reflected borders."""
    taps = torch.tensor([0.25, 0.5, 0.25], device=x.device, dtype=x.dtype)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
    x = F.pad(F.max_pool2d(x, 3, stride=1, padding=1), [1, 1, 1, 1], mode="reflect")
    return F.conv2d(x, kernel, stride=2, groups=x.shape[1])


def same_padding(weight: Tensor) -> tuple[int, int]:
    """Return the padding with which a kernel ``[C, 1, kH, kW]`` of odd sides keeps the size."""
    return weight.shape[2] // 2, weight.shape[3] // 2
