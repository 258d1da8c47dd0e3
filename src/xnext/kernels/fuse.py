"""A network for inference with fewer passes over memory: norms folded, activations inside convolutions."""

import copy
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.autograd import forward_ad

from xnext.errors import UserError
from xnext.kernels.accelerate import (
    DepthwiseConv2d,
    FusedInceptionDWConv2d,
    FusedPartialDWConv2d,
    MaxBlurPool2d,
    accelerate,
)
from xnext.kernels.functional import depthwise_conv2d, mix_last, takes_mixer
from xnext.models._network import Network
from xnext.models.layers import ClassifierHead, SeparableBlock, SeparableConv2d, SqueezeExcite
from xnext.models.metanext import MetaNeXtBlock

Activation = Literal["none", "relu", "gelu"]

_CACHE = 6 * 2**20
"""Bytes of what is computed in between that a core's share of the caches is taken to hold."""

_ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}
_NAMES: dict[type, Activation] = {nn.ReLU: "relu", nn.GELU: "gelu"}


class FusedConv2d(nn.Conv2d):
    """A convolution and what follows it place by place, in one call where PyTorch's CPU library has it.

    Elsewhere, and where a graph is recorded for a compiler or an export, it is a convolution and an
    activation.

    Args:
        conv: The convolution, whose weights are copied.
        activation: What follows.
    """

    def __init__(self, conv: nn.Conv2d, activation: Activation = "none"):
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            conv.groups, bias=True, device=conv.weight.device, dtype=conv.weight.dtype,
        )  # fmt: skip
        with torch.no_grad():
            self.weight.copy_(conv.weight)
            self.bias.zero_() if conv.bias is None else self.bias.copy_(conv.bias)  # type: ignore[union-attr]
        self.activation = activation
        self.is_depthwise = isinstance(conv, DepthwiseConv2d)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        if not _is_plain_cpu(x):
            return _ACTIVATIONS[self.activation](self._convolve(x))
        if self.activation == "none":
            return super().forward(x)
        if self.activation == "relu":  # that of the library makes 0 of what is no number
            return super().forward(x).relu_()
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, self.activation,
            [], "none",
        )  # fmt: skip

    def _convolve(self, x: Tensor) -> Tensor:
        if self.is_depthwise:
            return depthwise_conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)  # type: ignore[arg-type]
        return super().forward(x)


class _InParts(nn.Module):
    """What computes each image by itself: on a CPU a few at once, so that caches hold what is in between."""

    _between = 0.0  # numbers that are in between, for each place of the input

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        if not _is_plain_cpu(x):
            return self._compute(x)
        room = _CACHE * torch.get_num_threads()
        image = max(1, int(self._between * x.shape[2] * x.shape[3] * x.element_size()))
        if len(x) * image <= 2 * room:
            return self._compute(x)
        parts = map(self._compute, x.split(max(1, room // image)))
        return _join(next(parts), parts, len(x))

    def _compute(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def _join(first: Tensor, others: Iterable[Tensor], images: int) -> Tensor:
    """Return the outputs of parts of a batch as one, each written where it belongs while caches hold it."""
    by_channel = first.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if by_channel else torch.contiguous_format
    whole = torch.empty((images, *first.shape[1:]), dtype=first.dtype, memory_format=layout)
    done = 0
    for part in chain([first], others):
        whole[done : done + len(part)] = part
        done += len(part)
    return whole


def _count_between(layers: Iterable[nn.Module]) -> float:
    """Return how many numbers there are at most after one of the layers, for each place of the input."""
    widest, places = 0.0, 1.0
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            places /= math.prod(layer.stride)
            widest = max(widest, places * layer.out_channels)
    return widest


class FusedLayers(_InParts):
    """Layers one after the other, as few as will do.

    Args:
        layers: What they are made of.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.Sequential(*fuse_layers(layers))
        self._between = _count_between(self.layers)

    def _compute(self, x: Tensor) -> Tensor:
        return self.layers(x)


class FixedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that could not be folded, and that never learns statistics again."""

    def train(self, mode: bool = True) -> "FixedBatchNorm2d":
        """Stay as it is."""
        return super().train(False)


class FusedMixer(nn.Module):
    """A mixer of a part of the channels: in one pass by Triton, or each group by itself on a CPU.

    Where the memory of its input is free, the channels that pass are neither read nor written.

    Args:
        mixer: One that ``accelerate`` has taken.
        convs: Its convolutions, each for the next group of channels at the end.
    """

    def __init__(self, mixer: nn.Module, convs: Sequence[nn.Module]):
        super().__init__()
        self.mixer = mixer
        self._names = [name for conv in convs for name, inner in mixer.named_children() if inner is conv]

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, C, H, W) over space to the same shape."""
        if _is_plain_cpu(x) and not self._by_triton(x):
            return self._mix(x, x.clone())
        return self.mixer(x)

    def works_in_place(self, x: Tensor) -> bool:
        """Return whether ``mix_in_place`` takes such an image here and now."""
        return _is_plain_cpu(x) or (_is_plain(x) and self._by_triton(x))

    def mix_in_place(self, x: Tensor) -> Tensor:
        """Mix (B, C, H, W) where it lies, so that channels which pass are left alone.

        Returns:
            The last channels as they were before, (B, as many as are mixed, H, W).
        """
        if self._by_triton(x):
            return mix_last(x, self._weights, [conv.bias for conv in self._convs])
        before = x[:, -sum(map(len, self._weights)) :].clone()
        self._mix(x, x)
        return before

    def _by_triton(self, x: Tensor) -> bool:
        return takes_mixer(x, self._weights)

    @property
    def _convs(self) -> list[Any]:
        return [self.mixer.get_submodule(name) for name in self._names]

    @property
    def _weights(self) -> list[Tensor]:
        return [conv.weight for conv in self._convs]

    def _mix(self, x: Tensor, y: Tensor) -> Tensor:
        """Write the mixed groups of x into y, which may be the same."""
        first = x.shape[1] - sum(map(len, self._weights))
        for conv in self._convs:
            part = slice(first, first + conv.in_channels)
            y[:, part] = conv(x[:, part])
            first += conv.in_channels
        return y


def _fuse_mixer(mixer: Any) -> nn.Module:
    """Return a mixer that takes no more passes than it must."""
    if isinstance(mixer, FusedInceptionDWConv2d):
        return FusedMixer(mixer, [mixer.dwconv_hw, mixer.dwconv_w, mixer.dwconv_h])
    if isinstance(mixer, FusedPartialDWConv2d):
        return FusedMixer(mixer, [mixer.conv])
    return mixer


class FusedMetaNeXtBlock(_InParts):
    """A MetaNeXt block whose norm and LayerScale are in its pointwise convolutions.

    Args:
        block: The block.
        in_place: Whether nobody else has the memory of its input, which it may then use again.
    """

    def __init__(self, block: Any, in_place: bool):
        super().__init__()
        self.mixer = _fuse_mixer(block.mixer)
        self.in_place = in_place and isinstance(self.mixer, FusedMixer)
        fc2 = copy.deepcopy(block.mlp.fc2)
        if block.gamma is not None:
            with torch.no_grad():
                fc2.weight.mul_(block.gamma.reshape(-1, 1, 1, 1))
                fc2.bias.mul_(block.gamma)
        self.layers = nn.Sequential(*fuse_layers([block.norm, block.mlp.fc1, block.mlp.act, fc2]))
        self._between = _count_between(self.layers)

    def _compute(self, x: Tensor) -> Tensor:
        if not (self.in_place and self.mixer.works_in_place(x)):  # type: ignore[operator]
            return _add(self.layers(self.mixer(x)), x)
        before = self.mixer.mix_in_place(x)  # type: ignore[operator]
        y = self.layers(x)
        passing = x.shape[1] - before.shape[1]
        y[:, :passing] += x[:, :passing]
        y[:, passing:] += before
        return y


class FusedSeparableBlock(_InParts):
    """A block of separable convolutions; squeeze-and-excitation and the shortcut take one pass together."""

    def __init__(self, block: Any):
        super().__init__()
        layers = list(block.layers)
        last = layers.pop() if isinstance(layers[-1], SqueezeExcite) else None
        self.layers = nn.Sequential(*fuse_layers(layers))
        self._between = _count_between(self.layers)
        self.scale: nn.Module | None = None
        if isinstance(last, SqueezeExcite):
            pooled = [nn.AdaptiveAvgPool2d(1), last.fc1, last.norm, last.act, last.fc2, nn.Sigmoid()]
            self.scale = nn.Sequential(*fuse_layers(pooled))
        self.shortcut = nn.Sequential(*fuse_layers([block.shortcut])) if block.residual else None

    def _compute(self, x: Tensor) -> Tensor:
        branch = self.layers(x)
        if self.shortcut is None:
            return branch if self.scale is None else branch * self.scale(branch)
        if self.scale is None:
            return _add(branch, self.shortcut(x))
        return torch.addcmul(self.shortcut(x), branch, self.scale(branch))


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy of a network that infers the same in fewer passes over memory.

    Batch norm is folded into the convolution before it, or into the one after it if that has no padding, and
    LayerScale into the second pointwise convolution. On a CPU activations run inside the convolution before
    them.

    Args:
        model: A network of this project, fused or not.

    Returns:
        A network in evaluation mode, to be called, exported and compiled like any other. It cannot be
        trained, its weights have other names, and hooks on its layers may see memory that is used again.

    Raises:
        UserError: It is another network.
    """
    if not isinstance(model, Network):
        raise UserError(f"fuse takes networks of xnext.create_model, not {type(model).__name__}")
    fused = copy.deepcopy(model).eval()
    if any(isinstance(module, FusedConv2d) for module in fused.modules()):
        return fused
    accelerate(fused)
    _fuse_children(fused)
    for module in fused.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = FixedBatchNorm2d
    return fused.requires_grad_(False)


def _fuse_children(module: nn.Module) -> nn.Module:
    """Replace what can be fused below a module."""
    for name, child in module.named_children():
        if isinstance(child, MetaNeXtBlock):
            # What comes into the first block of a stage may be a feature map that somebody keeps.
            setattr(module, name, FusedMetaNeXtBlock(child, in_place=name != "0"))
        elif isinstance(child, SeparableBlock):
            setattr(module, name, FusedSeparableBlock(child))
        elif isinstance(child, nn.Sequential) and not any(_holds_blocks(inner) for inner in child.modules()):
            setattr(module, name, FusedLayers([child]))
        elif not isinstance(child, ClassifierHead):
            _fuse_children(child)
    return module


def _holds_blocks(module: nn.Module) -> bool:
    return isinstance(module, MetaNeXtBlock | SeparableBlock)


def fuse_layers(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Return layers that compute the same one after the other as these do, and are fewer."""
    fused: list[nn.Module] = []
    for layer in _flatten(layers):
        last = fused[-1] if fused else None
        if isinstance(last, FusedConv2d) and last.activation == "none":
            if isinstance(layer, nn.BatchNorm2d):
                _fold_after(last, layer)
                continue
            if type(layer) in _NAMES and getattr(layer, "approximate", "none") == "none":
                last.activation = _NAMES[type(layer)]
                continue
        if (
            isinstance(layer, nn.Conv2d)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        ):
            conv = FusedConv2d(layer)
            if isinstance(last, nn.BatchNorm2d) and not any(map(int, layer.padding)):
                _fold_before(fused.pop(), conv)
            fused.append(conv)
        else:
            fused.append(_fuse_mixer(layer))
    return fused


def _flatten(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Return all layers in the order in which they run, without those that do nothing in inference."""
    flat: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, MaxBlurPool2d):
            flat.append(layer)
        elif isinstance(layer, nn.Sequential):
            flat += _flatten(list(layer))
        elif isinstance(layer, SeparableConv2d):
            flat += _flatten([layer.conv_dw, layer.act, layer.conv_pw])
        elif not isinstance(layer, nn.Identity | nn.Dropout | DropPath):
            flat.append(layer)
    return flat


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return the factor and the offset of a batch norm in evaluation, float64 [C]."""
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.double()
    offset = -norm.running_mean.double() * factor
    return factor, offset if norm.bias is None else offset + norm.bias.double()


@torch.no_grad()
def _fold_after(conv: Any, norm: nn.Module) -> None:
    """Let a convolution do what the batch norm after it does."""
    factor, offset = _affine(norm)
    conv.weight.copy_(conv.weight.double() * factor.reshape(-1, 1, 1, 1))
    conv.bias.copy_(conv.bias.double() * factor + offset)


@torch.no_grad()
def _fold_before(norm: nn.Module, conv: Any) -> None:
    """Let a convolution without padding do what the batch norm before it does."""
    factor, offset = (values.reshape(conv.groups, 1, -1, 1, 1) for values in _affine(norm))
    weight = conv.weight.double().reshape(conv.groups, -1, *conv.weight.shape[1:])
    conv.bias.add_((weight * offset).sum(dim=(2, 3, 4)).flatten())
    conv.weight.copy_((weight * factor).reshape(conv.weight.shape))


def _add(x: Tensor, other: Tensor) -> Tensor:
    """Return the sum, in the memory of the first where nobody records what happens to it."""
    return x.add_(other) if _is_plain(x) else x + other


def _is_plain(x: Tensor) -> bool:
    """Return whether a call is a plain inference, of which nobody records what happens to its memory."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch.amp.is_autocast_available(x.device.type)
        and not torch.is_autocast_enabled(x.device.type)
        and forward_ad._current_level < 0
    )


def _is_plain_cpu(x: Tensor) -> bool:
    """Return whether it is one on a CPU, in a type that its library's fused calls have there."""
    if x.device.type != "cpu" or not _is_plain(x) or not torch.backends.mkldnn.is_available():
        return False
    if x.dtype == torch.bfloat16:  # which takes instructions that not every CPU has
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return x.dtype == torch.float32
