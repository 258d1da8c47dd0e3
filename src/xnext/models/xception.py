"""Xception and NEXcepTion: entry flow, middle flow, exit flow of separable convolutions.

`Xception: Deep Learning with Depthwise Separable Convolutions <https://arxiv.org/abs/1610.02357>`_ and
`From Xception to NEXcepTion: New Design Decisions and Neural Architecture Search
<https://arxiv.org/abs/2212.08448>`_. Both are values of one config; so are the ablations of the first
paper and every point of the second one's search space.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from xnext._types import check_types
from xnext.models._config import (
    MOST_BLOCKS,
    ConfigError,
    check_choice,
    check_most,
    check_odd,
    check_positive,
)
from xnext.models._network import Network, Stage
from xnext.models._registry import register_variants, weights
from xnext.models.layers import ACTIVATIONS, NORMS, ClassifierHead, SeparableBlock, SeparableConv2d
from xnext.models.mixers import SpatialConfig


@dataclass(frozen=True, kw_only=True)
class XceptionConfig(SpatialConfig):
    """A network of the Xception lineage; the defaults are Xception's.

    Activation and norm positions count the separable convolutions of a block from 0. The search of the
    NEXcepTion paper chooses among these fields (its sections 3 and 3.2).
    """

    stem: Literal["conv", "patchify"] = "conv"
    """Two 3x3 convolutions without padding, or one convolution over patches that do not overlap."""
    stem_dims: tuple[int, ...] = (32, 64)
    """Channels of the stem's convolutions."""
    stem_stride: int = 2
    """Stride of the stem's first convolution in pixels; of a patchify stem also the kernel size."""
    entry_dims: tuple[int, ...] = (128, 256, 728)
    """Channels of the downsampling blocks before the middle flow; each halves the image."""
    middle_depth: int = 8
    """Blocks of the middle flow."""
    middle_block: Literal["plain", "bottleneck"] = "plain"
    """Three equal separable convolutions, or an inverted bottleneck and one more."""
    expansion: int = 3
    """Width of the inverted bottleneck in multiples of the middle flow's."""
    exit_dim: int = 1024
    """Channels of the last downsampling block."""
    tail_dims: tuple[int, ...] = (1536, 2048)
    """Channels of the separable convolutions after it."""
    entry_kernel_size: int = 3
    """Kernel side of the downsampling blocks, entry and exit."""
    middle_kernel_size: int = 3
    """Kernel side of the middle flow."""
    tail_kernel_size: int = 3
    """Kernel side of the tail."""
    pool: Literal["max", "conv", "blur"] = "max"
    """How a downsampling block halves: 3x3 max pooling, a strided depthwise convolution, max then blur."""
    act: Literal["relu", "gelu", "elu", "celu"] = "relu"
    """Activation."""
    entry_acts: tuple[int, ...] = (0, 1)
    """Separable convolutions of a downsampling block that an activation precedes (never the first block's
    first, which follows the stem's)."""
    middle_acts: tuple[int, ...] = (0, 1, 2)
    """Separable convolutions of a middle block that an activation precedes."""
    norm: Literal["batch", "layer"] = "batch"
    """Normalisation."""
    entry_norms: tuple[int, ...] = (0, 1)
    """Separable convolutions of a downsampling block that a norm follows."""
    middle_norms: tuple[int, ...] = (0, 1, 2)
    """Separable convolutions of a middle block that a norm follows."""
    squeeze_excite: bool = False
    """Whether squeeze-and-excitation ends each block."""
    residual: bool = True
    """Whether the blocks have shortcuts (Xception, section 4.6)."""
    inner_act: Literal["relu", "elu"] | None = None
    """Activation between depthwise and pointwise convolution (Xception, section 4.7)."""
    head_widths: tuple[int, ...] = ()
    """Units of fully connected layers before the classifier; (4096, 4096) in the paper's JFT runs."""
    init: Literal["torch", "kaiming"] = "kaiming"
    """PyTorch's default initialisation, or Kaiming's normal one by fan-out for all convolutions."""

    @property
    def num_levels(self) -> int:
        """Feature levels: the stem, the entry blocks, the exit flow."""
        return len(self.entry_dims) + 2

    def __post_init__(self) -> None:
        check_types(self, ConfigError)
        for field in ("entry_kernel_size", "middle_kernel_size", "tail_kernel_size"):
            check_odd(field, getattr(self, field))
        for field in ("stem_dims", "entry_dims", "tail_dims"):
            check_positive(field, getattr(self, field))
        for field in ("stem_stride", "expansion", "exit_dim"):
            check_positive(field, getattr(self, field))
        if self.head_widths:
            check_positive("head_widths", self.head_widths)
        if self.middle_depth < 0:
            raise ConfigError(f"middle_depth={self.middle_depth!r} must be 0 or more")
        check_most("middle_depth", self.middle_depth, MOST_BLOCKS)
        self.check_spatial((self.stem_dims[-1], *self.entry_dims, self.exit_dim, *self.tail_dims))
        for field, convolutions in (("entry", 2), ("middle", 3)):
            for kind in ("acts", "norms"):
                for position in getattr(self, f"{field}_{kind}"):
                    check_choice(f"{field}_{kind}", position, range(convolutions))


def _conv_stem(config: XceptionConfig, in_chans: int, **dd: Any) -> "OrderedDict[str, nn.Module]":
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, dim in enumerate(config.stem_dims, start=1):
        stride = config.stem_stride if i == 1 else 1
        layers[f"conv{i}"] = nn.Conv2d(in_chans, dim, 3, stride=stride, bias=False, **dd)
        layers[f"norm{i}"] = NORMS[config.norm](dim, **dd)
        layers[f"act{i}"] = ACTIVATIONS[config.act]()
        in_chans = dim
    return layers


def _patchify_stem(config: XceptionConfig, in_chans: int, **dd: Any) -> "OrderedDict[str, nn.Module]":
    dim, patch = config.stem_dims[-1], config.stem_stride
    return OrderedDict(
        conv1=nn.Conv2d(in_chans, dim, patch, stride=patch, **dd),
        act1=ACTIVATIONS[config.act](),
        norm1=NORMS[config.norm](dim, **dd),
    )


STEMS: dict[str, Callable[..., "OrderedDict[str, nn.Module]"]] = {
    "conv": _conv_stem,
    "patchify": _patchify_stem,
}
MIDDLE_WIDTHS: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "plain": lambda dim, expansion: (dim,) * 4,
    "bottleneck": lambda dim, expansion: (dim, expansion * dim, dim, dim),
}


def _tail(config: XceptionConfig, **dd: Any) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = config.exit_dim
    for i, dim in enumerate(config.tail_dims, start=1):
        layers[f"conv{i}"] = SeparableConv2d(
            before, dim, config.tail_kernel_size, config.inner_act, config, **dd
        )
        layers[f"norm{i}"] = NORMS[config.norm](dim, **dd)
        layers[f"act{i}"] = ACTIVATIONS[config.act]()
        before = dim
    return nn.Sequential(layers)


def _flows(config: XceptionConfig, **options: Any) -> list[Stage]:
    """Build entry, middle and exit flow; a stage is a downsampling block and what follows it."""
    fields = ("act", "norm", "squeeze_excite", "residual", "inner_act")
    options = {field: getattr(config, field) for field in fields} | {"spatial": config} | options
    dd = {key: options[key] for key in ("device", "dtype")}

    def down(*widths: int, acts: tuple[int, ...]) -> nn.Module:
        positions: dict[str, Any] = {"acts_before": acts, "norms_after": config.entry_norms}
        return SeparableBlock(widths, config.entry_kernel_size, pool=config.pool, **positions, **options)

    def middle(dim: int) -> nn.Module:
        widths = MIDDLE_WIDTHS[config.middle_block](dim, config.expansion)
        positions: dict[str, Any] = {"acts_before": config.middle_acts, "norms_after": config.middle_norms}
        return SeparableBlock(widths, config.middle_kernel_size, **positions, **options)

    dims = (config.stem_dims[-1], *config.entry_dims)
    # The stem has just activated what the first block would activate again.
    after_stem = tuple(i for i in config.entry_acts if i > 0)
    entry: list[list[nn.Module]] = [
        [down(before, after, after, acts=config.entry_acts if i else after_stem)]
        for i, (before, after) in enumerate(pairwise(dims))
    ]
    entry[-1] += [middle(dims[-1]) for _ in range(config.middle_depth)]
    exit_flow = [down(dims[-1], dims[-1], config.exit_dim, acts=config.entry_acts), _tail(config, **dd)]
    return [Stage(blocks) for blocks in (*entry, exit_flow)]


class Xception(Network):
    """Xception or NEXcepTion, as its config says.

    Feature levels: the stem and each downsampling block with what follows it up to the next one.

    Args:
        cfg: The config.
        num_classes: Size of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
        global_pool: Pooling of the head, as timm names it.
        drop_rate: Dropout before the classifier (0.5 in Xception's own recipe).
        drop_path_rate: Stochastic depth, the same in every block.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    def __init__(
        self,
        cfg: XceptionConfig,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        stem = STEMS[cfg.stem](cfg, in_chans, **dd)
        last_of_stem = next(reversed(stem))
        feature_info = [
            {"num_chs": cfg.stem_dims[-1], "reduction": cfg.stem_stride, "module": f"stem.{last_of_stem}"}
        ]
        for i, channels in enumerate((*cfg.entry_dims, cfg.tail_dims[-1])):
            reduction = cfg.stem_stride * 2 ** (i + 1)
            feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{i}"})
        head = ClassifierHead(
            cfg.tail_dims[-1], num_classes, pool_type=global_pool,
            hidden_widths=cfg.head_widths, hidden_act=cfg.act, drop_rate=drop_rate, **dd,
        )  # fmt: skip
        stages = _flows(cfg, drop_path=drop_path_rate, **dd)
        super().__init__(cfg, stem, stages, feature_info, head, num_classes=num_classes, in_chans=in_chans)
        if cfg.init == "kaiming":
            self.apply(_init_kaiming)


def _init_kaiming(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


NEXCEPTION = XceptionConfig(
    stem="patchify",
    stem_dims=(96,),
    entry_dims=(128, 256, 512),
    middle_block="bottleneck",
    entry_kernel_size=5,
    middle_kernel_size=5,
    pool="blur",
    act="gelu",
    entry_acts=(1,),
    middle_acts=(1,),
    middle_norms=(0, 1),
    squeeze_excite=True,
    init="torch",
)
"""NEXcepTion-T (the paper's appendix, table 5): what the paper's search found, at full size."""


# A quarter of the width, two middle blocks, one downsampling block less: for images of 32 pixels.
_DEBUG: dict[str, Any] = {"entry_dims": (32, 48), "middle_depth": 2, "exit_dim": 96, "tail_dims": (128, 192)}

CONFIGS = {
    "xception": XceptionConfig(),
    "nexception_t": NEXCEPTION,
    "nexception_s": replace(NEXCEPTION, entry_dims=(128, 256, 752)),
    "xception_debug": XceptionConfig(stem_dims=(16, 24), stem_stride=1, **_DEBUG),
    "nexception_debug": replace(NEXCEPTION, stem_dims=(24,), **_DEBUG),
}

_NEXCEPTION_WEIGHTS = weights(
    input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.95,
    mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, origin_url="https://github.com/hadarshavit/NEXcepTion",
)  # fmt: skip
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
WEIGHTS = {
    "xception.tf_in1k": weights(
        hf_hub_id="timm/legacy_xception.tf_in1k",
        input_size=(3, 299, 299), pool_size=(10, 10), crop_pct=0.8975, **_HALF,
    ),
    "nexception_t": _NEXCEPTION_WEIGHTS,
    "nexception_s": _NEXCEPTION_WEIGHTS,
    "xception_debug": weights(input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0, **_HALF),
    "nexception_debug": weights(input_size=(3, 32, 32), pool_size=(2, 2), crop_pct=1.0, **_HALF),
}  # fmt: skip

register_variants(__name__, Xception, CONFIGS, WEIGHTS)
