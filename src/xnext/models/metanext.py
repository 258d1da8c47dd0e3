"""MetaNeXt: ConvNeXt, InceptionNeXt, the isotropic and the attention networks are choices of token mixer.

`InceptionNeXt: When Inception Meets ConvNeXt <https://arxiv.org/abs/2303.16900>`_, with the ConvNeXt
variants of its table 1, the isotropic networks of its table 5 and the ablations of its table 8.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from xnext._types import check_types
from xnext.models._config import ConfigError, check_choice, check_odd, check_positive, check_stages
from xnext.models._network import Network, build_pyramid
from xnext.models._registry import register_variants, weights
from xnext.models.layers import ACTIVATIONS, NORMS, ClassifierHead
from xnext.models.mixers import InceptionDWConv2d, PartialDWConv2d, check_ratio, depthwise_conv


@dataclass(frozen=True, kw_only=True)
class MetaNeXtConfig:
    """A network of the MetaNeXt lineage; the defaults are InceptionNeXt-T's."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    """Blocks a stage."""
    dims: tuple[int, ...] = (96, 192, 384, 768)
    """Channels a stage."""
    strides: tuple[int, ...] = (4, 2, 2, 2)
    """Patch size of the stem, then the stride before each further stage; (16, 1, 1, 1) is isotropic."""
    mixer: Literal["inception", "depthwise", "partial", "attention", "identity"] = "inception"
    """Token mixer."""
    kernel_size: int = 7
    """Kernel side of the depthwise and the partial mixer."""
    branch_ratio: float = 1 / 8
    """Part of the channels that a branch of the Inception mixer, or the partial mixer, convolves."""
    square_kernel_size: int = 3
    """Kernel side of the Inception mixer's square branch."""
    band_kernel_size: int = 11
    """Length of the Inception mixer's 1xk and kx1 kernels."""
    branches: tuple[Literal["square", "horizontal", "vertical"], ...] = ("square", "horizontal", "vertical")
    """Branches of the Inception mixer that convolve; the channels of the others pass unchanged."""
    bands: Literal["parallel", "sequential"] = "parallel"
    """Whether the two bands have channels of their own, or the same channels pass one after the other."""
    num_heads: int = 6
    """Heads of the attention mixer."""
    norm: Literal["batch", "layer"] = "batch"
    """Normalisation."""
    stem_norm: bool = True
    """Whether a norm follows the stem's convolution."""
    act: Literal["relu", "gelu", "elu", "celu"] = "gelu"
    """Activation of the blocks' MLPs."""
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 3)
    """Width of the MLPs in multiples of the channels, a stage."""
    layer_scale: float = 1e-6
    """First value of the learnt scale of each branch; 0 for no scale."""
    head: Literal["mlp", "norm"] = "mlp"
    """One hidden layer of three times the width before the classifier, or LayerNorm alone."""

    @property
    def num_levels(self) -> int:
        """Feature levels: the stages."""
        return len(self.depths)

    def __post_init__(self) -> None:
        check_types(self, ConfigError)
        if not 0 <= self.layer_scale < math.inf:
            raise ConfigError(f"layer_scale={self.layer_scale!r} must be 0, for no scale, or more")
        for field in ("kernel_size", "square_kernel_size", "band_kernel_size"):
            check_odd(field, getattr(self, field))
        check_stages(self, "depths", "dims", "strides", "mlp_ratios")
        check_ratio(self.mixer, self.branch_ratio, self.dims)
        check_positive("num_heads", self.num_heads)
        if self.mixer == "attention" and any(dim % self.num_heads for dim in self.dims):
            raise ConfigError(f"num_heads={self.num_heads!r} does not divide dims={self.dims!r}")
        if self.bands == "sequential" and not {"horizontal", "vertical"} <= set(self.branches):
            raise ConfigError(f"bands='sequential' needs both bands in branches={self.branches!r}")


class Attention2d(nn.Module):
    """Multi-head self-attention over the positions of a map (MetaNeXt-Attn, table 5).

    Args:
        channels: Input and output channels.
        config: Gives the number of heads.
        dilation: Taken for the other mixers' sake; attention has none.
    """

    def __init__(self, channels: int, config: MetaNeXtConfig, dilation: int = 1, **dd: Any):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(channels, 3 * channels, **dd)
        self.proj = nn.Linear(channels, channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, C, H, W) over space to the same shape."""
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(batch, -1, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        tokens = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, channels)
        return self.proj(tokens).transpose(1, 2).reshape(batch, channels, height, width)


def _inception(channels: int, config: MetaNeXtConfig, dilation: int = 1, **dd: Any) -> nn.Module:
    return InceptionDWConv2d(
        channels, config.square_kernel_size, config.band_kernel_size, config.branch_ratio,
        branches=config.branches, bands=config.bands, dilation=dilation, **dd,
    )  # fmt: skip


def _depthwise(channels: int, config: MetaNeXtConfig, dilation: int = 1, **dd: Any) -> nn.Module:
    return depthwise_conv(channels, (config.kernel_size, config.kernel_size), dilation, **dd)


def _partial(channels: int, config: MetaNeXtConfig, dilation: int = 1, **dd: Any) -> nn.Module:
    return PartialDWConv2d(channels, config.kernel_size, config.branch_ratio, dilation=dilation, **dd)


def _identity(channels: int, config: MetaNeXtConfig, dilation: int = 1, **dd: Any) -> nn.Module:
    return nn.Identity()


MIXERS: dict[str, Callable[..., nn.Module]] = {
    "inception": _inception,
    "depthwise": _depthwise,
    "partial": _partial,
    "attention": Attention2d,
    "identity": _identity,
}


class MetaNeXtBlock(nn.Module):
    """Token mixer, norm, MLP, LayerScale, drop path, plus the shortcut.

    Args:
        channels: Input and output channels C.
        config: Gives the mixer and the rest.
        mlp_ratio: Width of the MLP in multiples of C.
        dilation: Dilation of the mixer.
        drop_path: Probability that a training sample skips the branch.
    """

    def __init__(
        self,
        channels: int,
        config: MetaNeXtConfig,
        mlp_ratio: int,
        dilation: int,
        drop_path: float,
        **dd: Any,
    ):
        super().__init__()
        self.mixer = MIXERS[config.mixer](channels, config, dilation, **dd)
        self.norm = NORMS[config.norm](channels, **dd)
        hidden = mlp_ratio * channels
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Conv2d(channels, hidden, 1, **dd),
                act=ACTIVATIONS[config.act](),
                fc2=nn.Conv2d(hidden, channels, 1, **dd),
            )
        )
        scale = config.layer_scale
        self.gamma = nn.Parameter(torch.full((channels,), scale, **dd)) if scale else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        branch = self.mlp(self.norm(self.mixer(x)))
        if self.gamma is not None:
            branch = branch * self.gamma.reshape(1, -1, 1, 1)
        return x + self.drop_path(branch)


class MetaNeXt(Network):
    """ConvNeXt's macro structure with the token mixer, norm and head that the config names.

    Args:
        cfg: The config.
        num_classes: Size of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
        global_pool: Pooling of the head, as timm names it.
        output_stride: Where the total stride reaches it, further strides become dilation.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    def __init__(
        self,
        cfg: MetaNeXtConfig,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        check_choice("output_stride", output_stride, (8, 16, 32))
        patch, width = cfg.strides[0], cfg.dims[0]
        stem: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(in_chans, width, patch, stride=patch, **dd)
        )
        if cfg.stem_norm:
            stem["norm1"] = NORMS[cfg.norm](width, **dd)

        def block(stage: int, channels: int, dilation: int, drop_path: float) -> nn.Module:
            return MetaNeXtBlock(channels, cfg, cfg.mlp_ratios[stage], dilation, drop_path, **dd)

        stages, feature_info = build_pyramid(
            cfg.dims, cfg.depths, cfg.strides, cfg.norm, block,
            drop_path_rate=drop_path_rate, output_stride=output_stride, **dd,
        )  # fmt: skip
        features = cfg.dims[-1]
        kind: dict[str, Any] = {"norm": "layer"}
        if cfg.head == "mlp":
            kind = {"hidden_widths": (3 * features,), "hidden_act": cfg.act, "hidden_norm": True}
        head = ClassifierHead(features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **kind, **dd)
        super().__init__(cfg, stem, stages, feature_info, head, num_classes=num_classes, in_chans=in_chans)
        self.apply(_init_weights)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_CONVNEXT = MetaNeXtConfig(mixer="depthwise", norm="layer", mlp_ratios=(4, 4, 4, 4), head="norm")
_PARTIAL = replace(_CONVNEXT, mixer="partial", kernel_size=3)
_ISOTROPIC = MetaNeXtConfig(
    depths=(3, 3, 9, 3), dims=(384,) * 4, strides=(16, 1, 1, 1),
    stem_norm=False, mlp_ratios=(4, 4, 4, 4), layer_scale=0, head="norm",
)  # fmt: skip
# With a scale that starts at 1e-6 so short a training would hardly use the blocks.
_DEBUG: dict[str, Any] = {
    "depths": (1, 1, 2, 1), "dims": (24, 40, 64, 88), "strides": (2, 2, 2, 2), "layer_scale": 0.1,
}  # fmt: skip

CONFIGS = {
    "inceptionnext_atto": MetaNeXtConfig(
        depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), band_kernel_size=9, branch_ratio=1 / 4
    ),
    "inceptionnext_tiny": MetaNeXtConfig(),
    "inceptionnext_small": MetaNeXtConfig(depths=(3, 3, 27, 3)),
    "inceptionnext_base": MetaNeXtConfig(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    "inceptionnext_base_384": MetaNeXtConfig(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    "inceptionnext_small_iso": _ISOTROPIC,
    "convnext_small_iso": replace(_ISOTROPIC, mixer="depthwise", norm="layer"),
    "metanext_small_attn": replace(_ISOTROPIC, depths=(2, 2, 6, 2), mixer="attention", norm="layer"),
    "convnext_tiny_k5": replace(_CONVNEXT, kernel_size=5),
    "convnext_tiny_k3": replace(_CONVNEXT, kernel_size=3),
    "convnext_tiny_k3_par1_2": replace(_PARTIAL, branch_ratio=1 / 2),
    "convnext_tiny_k3_par3_8": replace(_PARTIAL, branch_ratio=3 / 8),
    "convnext_tiny_k3_par1_4": replace(_PARTIAL, branch_ratio=1 / 4),
    "convnext_tiny_k3_par1_8": replace(_PARTIAL, branch_ratio=1 / 8),
    "convnext_tiny_k3_par1_16": replace(_PARTIAL, branch_ratio=1 / 16),
    "inceptionnext_debug": MetaNeXtConfig(**_DEBUG),
    "convnext_debug": replace(_CONVNEXT, **_DEBUG),
}

_IMAGENET: dict[str, Any] = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
_RELEASES = "https://github.com/sail-sg/inceptionnext/releases/download/model"


def _weights_224(**values: Any) -> dict[str, Any]:
    return weights(
        **_IMAGENET | {"input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.875} | values
    )


WEIGHTS = {
    "inceptionnext_atto.sail_in1k": _weights_224(hf_hub_id="timm/inception_next_atto.sail_in1k"),
    "inceptionnext_tiny.sail_in1k": _weights_224(hf_hub_id="timm/inception_next_tiny.sail_in1k"),
    "inceptionnext_small.sail_in1k": _weights_224(hf_hub_id="timm/inception_next_small.sail_in1k"),
    "inceptionnext_base.sail_in1k": _weights_224(
        hf_hub_id="timm/inception_next_base.sail_in1k", crop_pct=0.95,
    ),
    "inceptionnext_base_384.sail_in1k": _weights_224(
        hf_hub_id="timm/inception_next_base.sail_in1k_384",
        input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0,
    ),
    **{
        f"{name}.sail_in1k": _weights_224(url=f"{_RELEASES}/{name}_1k_224_ema.pth")
        for name in CONFIGS
        if name.startswith("convnext_tiny_")
    },
    **{
        name: _weights_224(pool_size=(14, 14))
        for name in ("inceptionnext_small_iso", "convnext_small_iso", "metanext_small_attn")
    },
    **{
        name: weights(input_size=(3, 32, 32), pool_size=(2, 2), crop_pct=1.0, **_IMAGENET)
        for name in ("inceptionnext_debug", "convnext_debug")
    },
}  # fmt: skip

register_variants(__name__, MetaNeXt, CONFIGS, WEIGHTS, options=("output_stride",))
