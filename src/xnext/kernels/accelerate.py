"""The operators in place of the layers of any network, whose weights and names stay as they are."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.layers import BlurPool2d as TimmBlurPool2d
from timm.models import inception_next
from torch import Tensor, nn

from xnext.kernels.functional import (
    depthwise_conv2d,
    inception_dwconv2d,
    max_blur_pool2d,
    partial_depthwise_conv2d,
)
from xnext.models.layers import BlurPool2d
from xnext.models.mixers import InceptionDWConv2d, PartialDWConv2d

# Layers change their class and nothing else: hooks, parameters, copies and pickles go on as before.

# A symbolic trace keeps them as they are, since they look at sizes.
for _name in ("_convolve", "inception_dwconv2d", "max_blur_pool2d", "partial_depthwise_conv2d"):
    torch.fx.wrap(_name)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise ``nn.Conv2d`` that ``depthwise_conv2d`` computes."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve each channel of (B, C, H, W), or of a single image, with its own kernel."""
        assert not isinstance(self.padding, str), "a layer with padding in words is not taken"
        return _convolve(x, self.weight, self.bias, self.stride, self.padding, self.dilation)


class _OnePass(nn.Module):
    """The way of an Inception mixer with three convolutions."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """Mix (B, C, H, W) over space to the same shape."""
        hw, w, h = self.dwconv_hw, self.dwconv_w, self.dwconv_h
        return inception_dwconv2d(x, hw.weight, hw.bias, w.weight, w.bias, h.weight, h.bias)


class FusedInceptionDWConv2d(_OnePass, InceptionDWConv2d):
    """The Inception mixer in one pass."""


class FusedTimmInceptionDWConv2d(_OnePass, inception_next.InceptionDWConv2d):
    """timm's Inception mixer in one pass."""


class FusedPartialDWConv2d(PartialDWConv2d):
    """The partial depthwise convolution in one pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, C, H, W) over space to the same shape."""
        return partial_depthwise_conv2d(x, self.conv.weight, self.conv.bias)


class MaxBlurPool2d(nn.Sequential):
    """Max pooling and blur pooling in one pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve (B, C, H, W), rounding odd sides up."""
        return max_blur_pool2d(x)


def _convolve(x: Tensor, *rest: Any) -> Tensor:
    """Convolve an image batch, or as ``nn.Conv2d`` does a single image (C, H, W)."""
    return depthwise_conv2d(x, *rest) if x.dim() != 3 else depthwise_conv2d(x[None], *rest)[0]


def accelerate(model: nn.Module) -> dict[str, str]:
    """Let ``xnext.kernels`` compute the depthwise convolutions and blur poolings of any network, in place.

    Nothing else changes: parameters, their names, hooks and training go on. Who computes them is up to
    ``use_backend``; with ``auto``, and where nothing was measured to be faster, it is PyTorch as before. A
    mixer becomes one pass unless its layers have hooks or weights that are computed; those that are added
    later to layers inside it do not run. TorchScript does not take accelerated networks.

    Args:
        model: This project's, timm's, torchvision's or any other; also one that is accelerated already.

    Returns:
        For each replaced layer its name in the model, and what it is: ``depthwise 7x7``, ``inception`` ...
    """
    replaced = {}
    for name, module in _outermost(model, ""):
        for stock, fits, fused, describe in _LAYERS:
            if type(module) is stock and fits(module):
                module.__class__ = fused
                replaced[name] = describe(module)
    return replaced


def _outermost(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a network, but for what is inside a layer that is taken as a whole."""
    yield name, module
    if not isinstance(module, _OnePass | FusedPartialDWConv2d | MaxBlurPool2d):
        for child, inner in module.named_children():
            yield from _outermost(inner, f"{name}.{child}" if name else child)


def _is_depthwise(module: Any) -> bool:
    """Return whether a layer is a convolution of each channel by itself, with zeros around."""
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels > 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _is_untouched(module: Any) -> bool:
    """Return whether calling a layer does nothing but what its class says, from its own weights."""
    return (
        not module._forward_hooks
        and not module._forward_pre_hooks
        and all(name in module._parameters for name in ("weight", "bias") if hasattr(module, name))
    )


def _keeps_size(module: Any) -> bool:
    """Return whether a layer inside a mixer is such a convolution, untouched, which changes no size."""
    return (
        type(module) in (nn.Conv2d, DepthwiseConv2d)
        and _is_depthwise(module)
        and _is_untouched(module)
        and module.stride == module.dilation == (1, 1)
        and all(side % 2 for side in module.kernel_size)
        and module.padding == tuple(side // 2 for side in module.kernel_size)
    )


def _is_inception(mixer: Any) -> bool:
    """Return whether a mixer is the published one: a square kernel and two bands side by side."""
    square, across, down = mixer.dwconv_hw, mixer.dwconv_w, mixer.dwconv_h
    return (
        all(map(_keeps_size, (square, across, down)))
        and square.kernel_size[0] == square.kernel_size[1]
        and across.kernel_size[0] == down.kernel_size[1] == 1
        and across.kernel_size[1] == down.kernel_size[0]
    )


def _is_partial(mixer: Any) -> bool:
    return _keeps_size(mixer.conv)


def _is_max_blur(layers: Any) -> bool:
    """Return whether layers are a 3x3 max pooling and a blur of stride 2, of this project or timm's."""
    if len(layers) != 2 or type(layers[0]) is not nn.MaxPool2d or not all(map(_is_untouched, layers)):
        return False
    pool, blur = layers
    sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    if pool.ceil_mode or pool.return_indices or sizes != (3, 1, 1, 1):
        return False
    if type(blur) is TimmBlurPool2d:
        return (blur.filt_size, blur.stride, blur.pad_mode) == (3, 2, "reflect")
    return type(blur) is BlurPool2d


def _describe(module: Any) -> str:
    return "depthwise {}x{}".format(*module.kernel_size)


_LAYERS: tuple[tuple[type, Callable[..., bool], type, Callable[..., str]], ...] = (
    (nn.Conv2d, _is_depthwise, DepthwiseConv2d, _describe),
    (InceptionDWConv2d, _is_inception, FusedInceptionDWConv2d, lambda _: "inception"),
    (inception_next.InceptionDWConv2d, _is_inception, FusedTimmInceptionDWConv2d, lambda _: "inception"),
    (PartialDWConv2d, _is_partial, FusedPartialDWConv2d, lambda _: "partial"),
    (nn.Sequential, _is_max_blur, MaxBlurPool2d, lambda _: "max-blur pool"),
)
