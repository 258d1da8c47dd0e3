"""NEXcepTion-TP: the NEXcepTion block in ConvNeXt's pyramid.

`From Xception to NEXcepTion <https://arxiv.org/abs/2212.08448>`_, section 4. NEXcepTion-T and -S have
Xception's own flow and are in ``xception.py``.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from xnext._types import check_types
from xnext.models._config import ConfigError, check_choice, check_odd, check_positive, check_stages
from xnext.models._network import Network, build_pyramid
from xnext.models._registry import register_variants, weights
from xnext.models.layers import NORMS, ClassifierHead, SeparableBlock
from xnext.models.mixers import SpatialConfig


@dataclass(frozen=True, kw_only=True)
class NexceptionPyramidConfig(SpatialConfig):
    """A pyramid of NEXcepTion blocks; the defaults are NEXcepTion-TP's."""

    depths: tuple[int, ...] = (3, 4, 9, 3)
    """Blocks a stage."""
    dims: tuple[int, ...] = (96, 192, 384, 768)
    """Channels a stage."""
    strides: tuple[int, ...] = (4, 2, 2, 2)
    """Patch size of the stem, then the stride before each further stage; (16, 1, 1, 1) is isotropic."""
    kernel_size: int = 5
    """Kernel side."""
    expansion: int = 3
    """Width of the inverted bottleneck in multiples of the channels."""
    act: Literal["relu", "gelu", "elu", "celu"] = "gelu"
    """Activation."""
    acts: tuple[int, ...] = (1,)
    """Separable convolutions of a block, counted from 0, that an activation precedes."""
    norm: Literal["batch", "layer"] = "batch"
    """Normalisation."""
    norms: tuple[int, ...] = (0, 1)
    """Separable convolutions of a block, counted from 0, that a norm follows."""
    squeeze_excite: bool = True
    """Whether squeeze-and-excitation ends each block."""

    @property
    def num_levels(self) -> int:
        """Feature levels: the stages."""
        return len(self.depths)

    def __post_init__(self) -> None:
        check_types(self, ConfigError)
        check_odd("kernel_size", self.kernel_size)
        check_positive("expansion", self.expansion)
        check_stages(self, "depths", "dims", "strides")
        self.check_spatial(self.dims)
        for position in (*self.acts, *self.norms):
            check_choice("acts and norms", position, range(3))


class NexceptionPyramid(Network):
    """NEXcepTion-TP, or another pyramid of its blocks.

    Args:
        cfg: The config.
        num_classes: Size of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
        global_pool: Pooling of the head, as timm names it.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    def __init__(
        self,
        cfg: NexceptionPyramidConfig,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        patch, width = cfg.strides[0], cfg.dims[0]
        stem: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(in_chans, width, patch, stride=patch, **dd),
            norm1=NORMS[cfg.norm](width, **dd),
        )

        def block(stage: int, channels: int, dilation: int, drop_path: float) -> nn.Module:
            return SeparableBlock(
                (channels, cfg.expansion * channels, channels, channels), cfg.kernel_size,
                act=cfg.act, norm=cfg.norm, acts_before=cfg.acts, norms_after=cfg.norms,
                squeeze_excite=cfg.squeeze_excite, spatial=cfg, drop_path=drop_path, **dd,
            )  # fmt: skip

        stages, feature_info = build_pyramid(
            cfg.dims, cfg.depths, cfg.strides, cfg.norm, block, drop_path_rate=drop_path_rate, **dd
        )
        head = ClassifierHead(
            cfg.dims[-1], num_classes, pool_type=global_pool, norm=cfg.norm, drop_rate=drop_rate, **dd
        )
        super().__init__(cfg, stem, stages, feature_info, head, num_classes=num_classes, in_chans=in_chans)


CONFIGS = {
    "nexception_tp": NexceptionPyramidConfig(),
    "nexception_tp_debug": NexceptionPyramidConfig(
        depths=(1, 1, 2, 1), dims=(16, 32, 48, 96), strides=(2, 2, 2, 2)
    ),
}

_IMAGENET: dict[str, Any] = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
WEIGHTS = {
    "nexception_tp": weights(
        input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.95,
        origin_url="https://github.com/hadarshavit/NEXcepTion", **_IMAGENET,
    ),
    "nexception_tp_debug": weights(input_size=(3, 32, 32), pool_size=(2, 2), crop_pct=1.0, **_IMAGENET),
}  # fmt: skip

register_variants(__name__, NexceptionPyramid, CONFIGS, WEIGHTS)
