"""Parts that two lineages share: norms, activations, separable convolutions, their block, the head."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, SelectAdaptivePool2d, make_divisible
from torch import Tensor, nn

from xnext.models.mixers import SpatialConfig

# Every constructor passes **dd, the keywords ``device`` and ``dtype``, on to the layers it makes.


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W), eps 1e-6 as in ConvNeXt."""

    def __init__(self, channels: int, eps: float = 1e-6, device: Any = None, dtype: Any = None):
        super().__init__(channels, eps=eps, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each position; keeps the shape and a channels-last layout."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "celu": nn.CELU,
}
NORMS: dict[str, Callable[..., nn.Module]] = {"batch": nn.BatchNorm2d, "layer": LayerNorm2d}


class SeparableConv2d(nn.Module):
    """Spatial convolution a channel (or segment), then a pointwise one; nothing between by default.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd side of the spatial kernel; the padding keeps the size.
        inner_act: Activation between the two (Xception, section 4.7), or None.
        spatial: Which spatial convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        inner_act: str | None = None,
        spatial: SpatialConfig = SpatialConfig(),  # noqa: B008 - it is frozen
        **dd: Any,
    ):
        super().__init__()
        self.conv_dw = spatial.build_spatial(in_channels, kernel_size, **dd)
        self.act = ACTIVATIONS[inner_act]() if inner_act else nn.Identity()
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W)."""
        return self.conv_pw(self.act(self.conv_dw(x)))


class BlurPool2d(nn.Module):
    """Binomial 1-2-1 blur with stride 2 and reflected borders (Zhang, 2019); needs sides of 2 or more.

    Args:
        channels: Channels of input and output.
        device: Device of the kernel.
        dtype: Type of the kernel.
    """

    kernel: Tensor

    def __init__(self, channels: int, device: Any = None, dtype: Any = None):
        super().__init__()
        self.channels = channels
        kernel = torch.empty(channels, 1, 3, 3, device=device, dtype=dtype)
        self.register_buffer("kernel", kernel, persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the kernel, which no checkpoint holds; to be called after ``to_empty``, as timm does."""
        taps = torch.tensor([0.25, 0.5, 0.25])
        with torch.no_grad():
            self.kernel.copy_(torch.outer(taps, taps).expand_as(self.kernel))

    def forward(self, x: Tensor) -> Tensor:
        """Halve (B, C, H, W), rounding odd sides up."""
        x = F.pad(x, [1, 1, 1, 1], mode="reflect")
        return F.conv2d(x, self.kernel, stride=2, groups=self.channels)


def _max_pool(channels: int, **dd: Any) -> nn.Module:
    return nn.MaxPool2d(3, stride=2, padding=1)


def _conv_pool(channels: int, **dd: Any) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False, **dd)


def _max_blur_pool(channels: int, **dd: Any) -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BlurPool2d(channels, **dd))


POOLS: dict[str, Callable[..., nn.Module]] = {"max": _max_pool, "conv": _conv_pool, "blur": _max_blur_pool}


class SqueezeExcite(nn.Module):
    """Channel attention as in NEXcepTion: 1/16 of the channels, a norm between the two layers.

    Args:
        channels: Channels of input and output.
        act: Name in ``ACTIVATIONS``.
        norm: Name in ``NORMS``.
    """

    def __init__(self, channels: int, act: str, norm: str, **dd: Any):
        super().__init__()
        reduced = make_divisible(channels / 16, 8, round_limit=0.0)
        self.fc1 = nn.Conv2d(channels, reduced, 1, **dd)
        self.norm = NORMS[norm](reduced, **dd)
        self.act = ACTIVATIONS[act]()
        self.fc2 = nn.Conv2d(reduced, channels, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Rescale the channels of (B, C, H, W)."""
        scale = self.fc2(self.act(self.norm(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * scale.sigmoid()


class SeparableBlock(nn.Module):
    """Residual block of separable convolutions: every block of Xception and NEXcepTion is one.

    (activation?, separable convolution, norm?) for each pair of widths, pool?, squeeze-and-excitation?,
    drop path, plus the shortcut: identity, or a strided 1x1 convolution and norm where the shape changes.

    Args:
        widths: Channels at the input and after each separable convolution.
        kernel_size: Side of all spatial kernels.
        act: Activation, a name in ``ACTIVATIONS``.
        norm: Normalisation, a name in ``NORMS``.
        acts_before: The convolutions, counted from 0, that an activation precedes.
        norms_after: The convolutions, counted from 0, that a norm follows.
        pool: Name in ``POOLS`` that halves the size, or None.
        squeeze_excite: Whether channel attention ends the branch.
        residual: Whether there is a shortcut.
        inner_act: Activation between depthwise and pointwise, or None.
        spatial: Which spatial convolutions.
        drop_path: Probability that a training sample skips the branch.
    """

    def __init__(
        self,
        widths: Sequence[int],
        kernel_size: int,
        *,
        act: str = "relu",
        norm: str = "batch",
        acts_before: Sequence[int] = (),
        norms_after: Sequence[int] = (),
        pool: str | None = None,
        squeeze_excite: bool = False,
        residual: bool = True,
        inner_act: str | None = None,
        spatial: SpatialConfig = SpatialConfig(),  # noqa: B008 - it is frozen
        drop_path: float = 0.0,
        **dd: Any,
    ):
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (before, after) in enumerate(pairwise(widths)):
            if i in acts_before:
                layers[f"act{i + 1}"] = ACTIVATIONS[act]()
            layers[f"conv{i + 1}"] = SeparableConv2d(before, after, kernel_size, inner_act, spatial, **dd)
            if i in norms_after:
                layers[f"norm{i + 1}"] = NORMS[norm](after, **dd)
        if pool:
            layers["pool"] = POOLS[pool](widths[-1], **dd)
        if squeeze_excite:
            layers["se"] = SqueezeExcite(widths[-1], act, norm, **dd)
        self.layers = nn.Sequential(layers)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.residual = residual
        self.shortcut: nn.Module = nn.Identity()
        if residual and (pool or widths[0] != widths[-1]):
            conv = nn.Conv2d(widths[0], widths[-1], 1, stride=2 if pool else 1, bias=False, **dd)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=NORMS[norm](widths[-1], **dd)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W'), half the size (rounded up) if the block pools."""
        branch = self.drop_path(self.layers(x))
        return branch + self.shortcut(x) if self.residual else branch


class ClassifierHead(nn.Module):
    """Global pooling, a norm?, fully connected hidden layers?, dropout, linear classifier.

    Without pooling (``pool_type=""``) the same layers run at every position and give a map of logits.

    Args:
        in_features: Channels of the features.
        num_classes: Size of the classifier; 0 leaves it out.
        pool_type: What timm's ``SelectAdaptivePool2d`` takes, or "" for none.
        norm: Normalisation of the pooled features, a name in ``NORMS``, or None.
        hidden_widths: Units of the hidden layers.
        hidden_act: Their activation, a name in ``ACTIVATIONS``.
        hidden_norm: Whether LayerNorm (eps 1e-6) follows each activation.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        pool_type: str = "avg",
        norm: str | None = None,
        hidden_widths: Sequence[int] = (),
        hidden_act: str = "relu",
        hidden_norm: bool = False,
        drop_rate: float = 0.0,
        **dd: Any,
    ):
        super().__init__()
        self.global_pool = SelectAdaptivePool2d(pool_type=pool_type)
        self.pooled = bool(pool_type)
        pooled_width = in_features * self.global_pool.feat_mult()
        self.norm = NORMS[norm](pooled_width, **dd) if norm else nn.Identity()
        hidden: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (before, after) in enumerate(pairwise((pooled_width, *hidden_widths)), start=1):
            hidden[f"fc{i}"] = nn.Linear(before, after, **dd)
            hidden[f"act{i}"] = ACTIVATIONS[hidden_act]()
            if hidden_norm:
                hidden[f"norm{i}"] = nn.LayerNorm(after, eps=1e-6, **dd)
        self.hidden = nn.Sequential(hidden)
        self.in_features = in_features
        self.num_features = hidden_widths[-1] if hidden_widths else pooled_width
        self.drop = nn.Dropout(drop_rate)
        self.fc = self._classifier(num_classes, **dd)

    def _classifier(self, num_classes: int, **dd: Any) -> nn.Module:
        return nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()

    def reset(
        self,
        num_classes: int,
        pool_type: str | None = None,
        in_features: int | None = None,
        reset_other: bool = False,
        **dd: Any,
    ) -> None:
        """Make a new classifier; change the pooling if one is named. A refused call changes nothing.

        Args:
            num_classes: As in the constructor.
            pool_type: New pooling, or None to keep it.
            in_features: New channels of the features; the norm and the hidden layers, made for the old
                ones, go.
            reset_other: Let the norm and the hidden layers go in any case.
            **dd: Device and dtype of the new layer.

        Raises:
            ValueError: The pooling changes the width that the norm or the hidden layers were made for.
        """
        pool = self.global_pool if pool_type is None else SelectAdaptivePool2d(pool_type=pool_type)
        width = (in_features or self.in_features) * pool.feat_mult()
        old_width = self.in_features * self.global_pool.feat_mult()
        bare = isinstance(self.norm, nn.Identity) and len(self.hidden) == 0
        if in_features is not None or reset_other:
            self.norm, self.hidden, bare = nn.Identity(), nn.Sequential(), True
        elif width != old_width and not bare:
            raise ValueError(
                f"pooling {pool_type!r} gives {width} features, but the head was made for {old_width}; "
                "use reset_other=True to drop its norm and hidden layers"
            )
        self.global_pool = pool
        self.pooled = bool(pool.pool_type)
        self.in_features = in_features or self.in_features
        if bare:
            self.num_features = width
        self.fc = self._classifier(num_classes, **dd)
        self.train(self.training)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, C, H, W) to logits (B, K), or (B, K, H, W) without pooling.

        Args:
            x: Features.
            pre_logits: Return what enters the classifier instead.
        """
        x = self.norm(self.global_pool(x))
        x = x.flatten(1) if self.pooled else x.permute(0, 2, 3, 1)
        x = self.drop(self.hidden(x))
        if not pre_logits:
            x = self.fc(x)
        return x if self.pooled else x.permute(0, 3, 1, 2)
