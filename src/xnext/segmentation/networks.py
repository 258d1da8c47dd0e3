"""A backbone under a segmentation decoder: UPerNet or Semantic FPN, as the InceptionNeXt paper uses them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xnext.errors import UserError, suggest
from xnext.models import LoadReport, read_metadata
from xnext.models._checkpoints import load_unchanged, read_tensors, read_weights
from xnext.models._network import Network
from xnext.models._registry import create_variant

try:
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
except ImportError as error:
    raise UserError(
        "segmentation needs segmentation-models-pytorch: pip install 'xnext[segmentation]'"
    ) from error

LEVELS = 4
"""Of the backbone, each half as large as the one before: the last ones that it has."""

_UPERNET_WIDTH = 512
_FPN_WIDTH = 256
_AUXILIARY_WIDTH = 256
_DROPOUT = 0.1  # before the last convolution


class Pyramid(FPNDecoder):
    """The decoder of Semantic FPN with a 3x3 convolution after the sum of each level, and batch norms.

    Lin et al. (2017) have the convolution, and so have the networks whose sizes the InceptionNeXt paper
    tells; the library leaves it out. Its group norms, and the way it enlarges, let each place depend on the
    whole image, so that a part would not be told as in the whole; here it is as in mmsegmentation.

    Args:
        channels: Of each level of the backbone.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__(list(channels), encoder_depth=LEVELS, pyramid_channels=_FPN_WIDTH, dropout=0.0)
        for name in ("p5", "p4", "p3", "p2"):
            self.add_module(f"{name}_output", nn.Conv2d(_FPN_WIDTH, _FPN_WIDTH, 3, padding=1))
        for module in list(self.modules()):
            for name, norm in module.named_children():
                if isinstance(norm, nn.GroupNorm):
                    setattr(module, name, nn.BatchNorm2d(norm.num_channels))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the levels, the largest first, to features as large as that, (B, channels, H, W)."""
        level = self.p5(features[-1])
        outputs = [self.p5_output(level)]
        for name, feature in zip(("p4", "p3", "p2"), features[-2::-1], strict=True):
            # To its very size: a stem without padding leaves levels that are not twice as large.
            level = F.interpolate(level, feature.shape[-2:]) + self.get_submodule(name).skip_conv(feature)
            outputs.append(self.get_submodule(f"{name}_output")(level))
        parts = []
        for block, part in zip(self.seg_blocks, outputs, strict=True):
            for layer in block.block:
                part = layer.block(part)
                if layer.upsample:
                    part = enlarge(part, [2 * side for side in part.shape[-2:]])
            parts.append(enlarge(part, features[0].shape[-2:]))
        return self.merge(parts)


class UPerNet(UPerNetDecoder):
    """The library's decoder of UPerNet, for a backbone of four levels.

    Args:
        channels: Of each level of the backbone.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__([0, 0, *channels], encoder_depth=LEVELS + 1, decoder_channels=_UPERNET_WIDTH)
        self.out_channels = _UPERNET_WIDTH

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the levels, the largest first, to features as large as that, (B, channels, H, W)."""
        return super().forward([features[0], features[0], *features])  # two that it leaves out


DECODERS: dict[str, Callable[[Sequence[int]], Any]] = {"upernet": UPerNet, "fpn": Pyramid}
"""By name: from the channels of the levels to a decoder."""


class Segmenter(nn.Module):
    """A backbone, a decoder and a classifier of every place of an image.

    Args:
        encoder: A network with timm's ``forward_intermediates``, which loses its head.
        decoder: One of ``DECODERS``.
        num_classes: Classes of a place.

    Raises:
        UserError: The network has no four levels, each half as large as the one before, or takes images of
            one size alone.
    """

    def __init__(self, encoder: Any, decoder: str, num_classes: int):
        super().__init__()
        levels = encoder.feature_info[-LEVELS:]
        strides = [level["reduction"] for level in levels]
        if len(levels) < LEVELS or any(b != 2 * a for a, b in pairwise(strides)):
            raise UserError(
                f"segmentation takes networks with {LEVELS} levels of features, each half as large as the one"
                f" before; those of this one have strides {', '.join(map(str, strides))}"
            )
        _require_any_size(encoder, strides[-1])
        self.num_classes = num_classes
        self.in_chans = getattr(encoder, "in_chans", 3)
        self.pretrained_cfg = encoder.pretrained_cfg
        self.stride = strides[-1]
        self.encoder = encoder
        encoder.prune_intermediate_layers(LEVELS)
        channels = [level["num_chs"] for level in levels]
        self.decoder = DECODERS[decoder](channels)
        self.head = _classifier(self.decoder.out_channels, num_classes)
        self.auxiliary: nn.Module | None = None
        if decoder == "upernet":
            self.auxiliary = nn.Sequential(
                nn.Conv2d(channels[-2], _AUXILIARY_WIDTH, 3, padding=1, bias=False),
                nn.BatchNorm2d(_AUXILIARY_WIDTH),
                nn.ReLU(inplace=True),
                _classifier(_AUXILIARY_WIDTH, num_classes),
            )

    def get_classifier(self) -> nn.Module:
        """Return what is not of the backbone: all that a network with a frozen backbone learns."""
        parts = [self.decoder, self.head, self.auxiliary]
        return nn.ModuleList(part for part in parts if part is not None)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in the backbone."""
        self.encoder.set_grad_checkpointing(enable)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map images of any size (B, C, H, W) to logits (B, classes, H, W).

        In training UPerNet returns a second one, of its auxiliary head on the last level but one.
        """
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        levels = self.encoder.forward_intermediates(
            x, indices=LEVELS, output_fmt="NCHW", intermediates_only=True
        )
        results = [self.head(self.decoder(list(levels)))]
        if self.auxiliary is not None and self.training:
            results.append(self.auxiliary(levels[-2]))
        logits = [enlarge(one, x.shape[-2:])[..., :height, :width] for one in results]
        return logits[0] if len(logits) == 1 else (logits[0], logits[1])


def _require_any_size(encoder: Any, stride: int) -> None:
    """Refuse a network that takes images of one size alone; those that may say so in timm.

    Raises:
        UserError: It takes no other.
    """
    if not encoder.pretrained_cfg.get("fixed_input_size"):
        return
    _, *size = encoder.pretrained_cfg["input_size"]
    image = next(encoder.parameters()).new_zeros(1, 3, size[0], size[1] + stride)
    training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval().forward_intermediates(image, intermediates_only=True)
    except (AssertionError, RuntimeError, IndexError) as error:
        raise UserError(
            f"this network takes images of {size[0]}x{size[1]} pixels alone, and segmentation needs one that"
            " takes any; choose another"
        ) from error
    finally:
        encoder.train(training)


def create_segmenter(
    encoder: str,
    decoder: str = "upernet",
    num_classes: int = 150,
    *,
    model_args: Mapping[str, Any] | None = None,
    **options: Any,
) -> Segmenter:
    """Return a segmentation network.

    Args:
        encoder: Name of the backbone, this project's or timm's.
        decoder: ``upernet`` (Xiao et al., 2018) or ``fpn`` (Kirillov et al., 2019).
        num_classes: Classes of a place.
        model_args: Fields of the backbone's config.
        **options: Further keywords of ``xnext.create_model``, such as ``pretrained`` and ``drop_path_rate``.

    Raises:
        UserError: There is no such backbone or decoder, or they do not go together.
    """
    if decoder not in DECODERS:
        hint = suggest(decoder, DECODERS) or f" Choose from {', '.join(DECODERS)}."
        raise UserError(f"decoder {decoder!r} is unknown.{hint}")
    if num_classes < 2:
        raise UserError(f"num_classes is {num_classes}; a segmentation has at least 2 classes")
    backbone = create_variant(encoder, model_args or {}, num_classes=0, **options)
    return Segmenter(backbone, decoder, num_classes)


def load_segmenter(network: Segmenter, path: Path) -> LoadReport:
    """Load the weights of a whole segmentation network, or of a backbone alone.

    Args:
        network: Where to.
        path: A checkpoint of such a network, or one of the backbone as a classifier, whose head is left out.

    Raises:
        UserError: The file cannot be read, or its tensors do not fit.
    """
    metadata = read_metadata(path) or {}
    if decoder_of(metadata) is not None:
        load_unchanged(network, read_tensors(path), str(path))
        return LoadReport(str(path), "segmentation")
    if isinstance(network.encoder, Network):
        layout, state = read_weights(path)
    else:
        layout, state = "timm", read_tensors(path)
    own = network.encoder.state_dict()
    if not own.keys() & state.keys():
        raise UserError(f"{path} holds no weights of this backbone; give a run or file of the same network")
    # Some published files lack the counters of batch norms, which no result depends on.
    kept = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    backbone = {key: value for key, value in state.items() if key in own}
    load_unchanged(network.encoder, kept | backbone, str(path))
    return LoadReport(str(path), layout)


def decoder_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the decoder of the network in a checkpoint, by its metadata; None: it is a classifier."""
    return metadata.get("extra", {}).get("train_config", {}).get("decoder")


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps [N, C, H, W] of another height and width, by bilinear interpolation."""
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _classifier(channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout2d(_DROPOUT), nn.Conv2d(channels, num_classes, 1))
