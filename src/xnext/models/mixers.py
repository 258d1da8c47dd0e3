"""Spatial convolutions of which a separable convolution or a MetaNeXt block is made: the token mixers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xnext.models._config import ConfigError, check_odd, check_positive

BRANCHES = ("square", "horizontal", "vertical")
MOST_RATIO = {"inception": 1 / 3, "partial": 1.0}
"""The largest part of the channels that a branch can have, by mixer; the others have no branches."""


def check_ratio(mixer: str, ratio: float, dims: tuple[int, ...]) -> None:
    """Raise a ``ConfigError`` unless each branch of a mixer has a channel at every width."""
    most = MOST_RATIO.get(mixer)
    if most and (not 0 < ratio <= most or int(min(dims) * ratio) < 1):
        raise ConfigError(
            f"branch_ratio={ratio!r} must be at most {most:.3g}, "
            f"and large enough for one channel of {min(dims)}"
        )


def depthwise_conv(
    channels: int, kernel_size: tuple[int, int], dilation: int = 1, bias: bool = True, **dd: Any
) -> nn.Conv2d:
    """Return a depthwise convolution that keeps the size; a side of one is not dilated."""
    rates = (dilation if kernel_size[0] > 1 else 1, dilation if kernel_size[1] > 1 else 1)
    padding = (rates[0] * (kernel_size[0] - 1) // 2, rates[1] * (kernel_size[1] - 1) // 2)
    return nn.Conv2d(
        channels, channels, kernel_size, padding=padding, dilation=rates, groups=channels, bias=bias, **dd
    )


class SegmentedConv2d(nn.Module):
    """Spatial convolution that sees each channel-space segment alone (Xception, section 1.2).

    One segment is a regular convolution, one a channel a depthwise one; in between lies the spectrum
    that the paper leaves open. Segments are equal where they divide the channels; otherwise the first
    ones are a channel wider.

    Args:
        channels: Input and output channels.
        kernel_size: Odd side of the square kernel; the padding keeps the size.
        segments: Number of segments; None, or more than ``channels``, means one a channel.
    """

    def __init__(self, channels: int, kernel_size: int, segments: int | None = None, **dd: Any):
        super().__init__()
        segments = channels if segments is None else min(segments, channels)
        narrow, wider = divmod(channels, segments)
        # At most two grouped convolutions: `wider` segments of one channel more, then the others.
        groups = [wider, segments - wider] if wider else [segments]
        self.widths = [wider * (narrow + 1), (segments - wider) * narrow] if wider else [channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(w, w, kernel_size, padding=kernel_size // 2, groups=g, bias=False, **dd)
            for w, g in zip(self.widths, groups, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to the same shape."""
        parts = x.split(self.widths, dim=1)
        return torch.cat([conv(parts[i]) for i, conv in enumerate(self.convs)], dim=1)


class InceptionDWConv2d(nn.Module):
    """Inception depthwise convolution (InceptionNeXt, section 3.2): a part of the channels a branch.

    The channels are, in this order, the identity, the square kernel, the horizontal and the vertical
    band, as in the published code and weights; the paper's algorithm 1 writes the identity last.

    In sequence, both bands run over the channels of the vertical branch and those of the horizontal one
    join the identity: as many convolutions on as many channels as in parallel, which fits the equal
    throughput of table 8.

    Args:
        channels: Input and output channels C.
        square_kernel_size: Side of the square kernel.
        band_kernel_size: Length of the bands.
        branch_ratio: Part of the channels that a branch convolves.
        branches: Those that convolve; the channels of the others pass.
        bands: Whether the bands are ``parallel`` or ``sequential``.
        dilation: Dilation of the kernels.
        bias: Whether the convolutions have one.
    """

    def __init__(
        self,
        channels: int,
        square_kernel_size: int = 3,
        band_kernel_size: int = 11,
        branch_ratio: float = 1 / 8,
        *,
        branches: tuple[str, ...] = BRANCHES,
        bands: Literal["parallel", "sequential"] = "parallel",
        dilation: int = 1,
        bias: bool = True,
        **dd: Any,
    ):
        super().__init__()
        width = int(channels * branch_ratio)

        def conv(branch: str, height: int, length: int) -> nn.Module:
            if branch not in branches:
                return nn.Identity()
            return depthwise_conv(width, (height, length), dilation, bias, **dd)

        self.dwconv_hw = conv("square", square_kernel_size, square_kernel_size)
        self.dwconv_w = conv("horizontal", 1, band_kernel_size)
        self.dwconv_h = conv("vertical", band_kernel_size, 1)
        if bands == "sequential":
            self.dwconv_h = nn.Sequential(self.dwconv_w, self.dwconv_h)
            self.dwconv_w = nn.Identity()
        self.widths = [channels - 3 * width, width, width, width]

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, C, H, W) over space to the same shape."""
        x, hw, w, h = x.split(self.widths, dim=1)
        return torch.cat([x, self.dwconv_hw(hw), self.dwconv_w(w), self.dwconv_h(h)], dim=1)


class PartialDWConv2d(nn.Module):
    """Depthwise convolution of the last part of the channels; the others pass (InceptionNeXt, table 1).

    Args:
        channels: Input and output channels.
        kernel_size: Side of the kernel.
        branch_ratio: Part of the channels that is convolved.
        dilation: Dilation of the kernel.
        bias: Whether the convolution has one.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        branch_ratio: float,
        *,
        dilation: int = 1,
        bias: bool = True,
        **dd: Any,
    ):
        super().__init__()
        width = int(channels * branch_ratio)
        self.conv = depthwise_conv(width, (kernel_size, kernel_size), dilation, bias, **dd)
        self.widths = [channels - width, width]

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, C, H, W) over space to the same shape."""
        x, partial = x.split(self.widths, dim=1)
        return torch.cat([x, self.conv(partial)], dim=1)


@dataclass(frozen=True, kw_only=True)
class SpatialConfig:
    """The spatial convolution of separable ones: what the configs of their networks have in common."""

    mixer: Literal["depthwise", "partial", "inception"] = "depthwise"
    """Spatial convolution: of all channels, of a part, or of three parts as InceptionNeXt has them."""
    branch_ratio: float = 1 / 8
    """Part of the channels that the partial mixer, or a branch of the Inception mixer, convolves."""
    band_kernel_size: int = 11
    """Length of the Inception mixer's 1xk and kx1 kernels."""
    segments: int | None = None
    """Channel-space segments of the depthwise mixer: 1 is regular, None depthwise (Xception, section 1.2)."""

    def check_spatial(self, dims: tuple[int, ...]) -> None:
        """Raise a ``ConfigError`` unless there is such a convolution for each number of channels."""
        check_odd("band_kernel_size", self.band_kernel_size)
        check_ratio(self.mixer, self.branch_ratio, dims)
        if self.segments is not None:
            check_positive("segments", self.segments)
            if self.mixer != "depthwise":
                raise ConfigError(f"segments={self.segments!r} needs mixer='depthwise', not {self.mixer!r}")

    def build_spatial(self, channels: int, kernel_size: int, **dd: Any) -> nn.Module:
        """Return the convolution, without a bias, for so many channels; it keeps shape and size."""
        return _SPATIAL[self.mixer](self, channels, kernel_size, **dd)


def _depthwise(config: SpatialConfig, channels: int, kernel_size: int, **dd: Any) -> nn.Module:
    if config.segments is None or config.segments >= channels:
        return depthwise_conv(channels, (kernel_size, kernel_size), bias=False, **dd)
    return SegmentedConv2d(channels, kernel_size, config.segments, **dd)


def _partial(config: SpatialConfig, channels: int, kernel_size: int, **dd: Any) -> nn.Module:
    return PartialDWConv2d(channels, kernel_size, config.branch_ratio, bias=False, **dd)


def _inception(config: SpatialConfig, channels: int, kernel_size: int, **dd: Any) -> nn.Module:
    return InceptionDWConv2d(
        channels, kernel_size, config.band_kernel_size, config.branch_ratio, bias=False, **dd
    )


_SPATIAL: dict[str, Callable[..., nn.Module]] = {
    "depthwise": _depthwise,
    "partial": _partial,
    "inception": _inception,
}
