"""Published weight layouts -> ours: one pure function a layout, found by a key that only it has."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

StateDict = Mapping[str, Tensor]


def _rename(key: str, *rules: tuple[str, str]) -> str:
    """Apply the first rule whose pattern matches the start of ``key``."""
    for pattern, replacement in rules:
        renamed, count = re.subn(rf"\A{pattern}", replacement, key)
        if count:
            return renamed
    return key


def _separable_layer(position: int) -> str:
    """Name a layer of a block that repeats (activation, convolution, norm), counted from 0."""
    return f"{('act', 'conv', 'norm')[position % 3]}{position // 3 + 1}"


def from_legacy_xception(state: StateDict) -> dict[str, Tensor]:
    """Convert timm's ``legacy_xception`` (the PyTorch port of Keras' weights): twelve numbered blocks."""

    def block(match: re.Match[str]) -> str:
        number = int(match["block"])
        if number <= 3:
            place = f"stages.{number - 1}.blocks.0"
        elif number <= 11:
            place = f"stages.2.blocks.{number - 3}"
        else:
            place = "stages.3.blocks.0"
        if match["layer"] is None:
            return f"{place}.shortcut.{'norm' if match['skip'] == 'skipbn' else 'conv'}."
        # The first block starts without the activation, so its layers count one less.
        return f"{place}.layers.{_separable_layer(int(match['layer']) + (number == 1))}."

    converted = {}
    for old, tensor in state.items():
        key = re.sub(r"\Ablock(?P<block>\d+)\.(?:rep\.(?P<layer>\d+)|(?P<skip>skip(?:bn)?))\.", block, old)
        # Depthwise parts are called conv1; the tail's separable convolutions conv3 and conv4.
        key = _rename(
            key,
            (r"(stages\..*\.conv\d)\.conv1\.", r"\1.conv_dw."),
            (r"(stages\..*\.conv\d)\.pointwise\.", r"\1.conv_pw."),
            (r"conv([12])\.weight", r"stem.conv\1.weight"),
            (r"bn([12])\.", r"stem.norm\1."),
            (r"conv3\.conv1\.", "stages.3.blocks.1.conv1.conv_dw."),
            (r"conv3\.pointwise\.", "stages.3.blocks.1.conv1.conv_pw."),
            (r"conv4\.conv1\.", "stages.3.blocks.1.conv2.conv_dw."),
            (r"conv4\.pointwise\.", "stages.3.blocks.1.conv2.conv_pw."),
            (r"bn3\.", "stages.3.blocks.1.norm1."),
            (r"bn4\.", "stages.3.blocks.1.norm2."),
            (r"(?:fc|last_linear)\.", "head.fc."),
        )
        converted[key] = tensor
    return converted


_NEXCEPTION_BLOCK = (
    (r"(.*)\.sepconv(\d)\.", r"\1.layers.conv\2."),
    (r"(.*)\.norm(\d)\.", r"\1.layers.norm\2."),
    (r"(.*)\.block_end\.bn\.", r"\1.layers.se.norm."),
    (r"(.*)\.block_end\.", r"\1.layers.se."),
    (r"(.*)\.skip\.", r"\1.shortcut.conv."),
    (r"(.*)\.skipbn\.", r"\1.shortcut.norm."),
)


def from_nexception(state: StateDict) -> dict[str, Tensor]:
    """Convert the NEXcepTion authors' T and S: three downsampling blocks, the middle and the exit flow."""

    def layer(match: re.Match[str]) -> str:
        # The blocks start without an activation.
        return f"{match[1]}.layers.{_separable_layer(int(match[2]) + 1)}."

    converted = {}
    for old, tensor in state.items():
        key = re.sub(r"\A(.*)\.rep\.(\d+)\.", layer, _rename(old, *_NEXCEPTION_BLOCK))
        key = re.sub(r"\Amiddle_flow\.(\d+)\.", lambda m: f"stages.2.blocks.{int(m[1]) + 1}.", key)
        key = _rename(
            key,
            (r"stem\.0\.", "stem.conv1."),
            (r"stem\.2\.", "stem.norm1."),
            (r"downsampling_block1\.", "stages.0.blocks.0."),
            (r"downsampling_block2\.", "stages.1.blocks.0."),
            (r"downsampling_block3\.", "stages.2.blocks.0."),
            (r"exit_flow\.0\.", "stages.3.blocks.0."),
            (r"exit_flow\.1\.", "stages.3.blocks.1.conv1."),
            (r"exit_flow\.2\.", "stages.3.blocks.1.norm1."),
            (r"exit_flow\.4\.", "stages.3.blocks.1.conv2."),
            (r"exit_flow\.5\.", "stages.3.blocks.1.norm2."),
            (r"fc\.", "head.fc."),
        )
        converted[key] = tensor
    return converted


def from_nexception_tp(state: StateDict) -> dict[str, Tensor]:
    """Convert the NEXcepTion authors' TP: stages of blocks with numbered stem and downsampling layers."""
    return {_rename(key, *_PYRAMID, *_NEXCEPTION_BLOCK): tensor for key, tensor in state.items()}


_PYRAMID = (
    (r"stem\.0\.", "stem.conv1."),
    (r"stem\.1\.", "stem.norm1."),
    (r"stages\.(\d+)\.downsample\.0\.", r"stages.\1.downsample.norm."),
    (r"stages\.(\d+)\.downsample\.1\.", r"stages.\1.downsample.conv."),
)


def from_inceptionnext(state: StateDict) -> dict[str, Tensor]:
    """Convert InceptionNeXt, whose authors and timm share one layout."""
    rules = (
        *_PYRAMID,
        (r"(stages\..*)\.token_mixer\.", r"\1.mixer."),
        (r"head\.fc1\.", "head.hidden.fc1."),
        (r"head\.norm\.", "head.hidden.norm1."),
        (r"head\.fc2\.", "head.fc."),
    )
    return {_rename(key, *rules): tensor for key, tensor in state.items()}


_CONVNEXT_BLOCK = (
    (r"(.*)\.dwconv\.", r"\1.mixer."),
    (r"(.*)\.pwconv([12])\.", r"\1.mlp.fc\2."),
)


def _pointwise(key: str, tensor: Tensor) -> Tensor:
    """Turn the weight of a linear layer of a block into that of a 1x1 convolution."""
    return (
        tensor[:, :, None, None]
        if re.search(r"\.mlp\.fc[12]\.weight\Z", key) and tensor.ndim == 2
        else tensor
    )


def from_convnext(state: StateDict) -> dict[str, Tensor]:
    """Convert ConvNeXt and its variants by the InceptionNeXt authors: stem among the downsampling layers."""
    converted = {}
    for old, tensor in state.items():
        key = _rename(
            old,
            (r"downsample_layers\.0\.0\.", "stem.conv1."),
            (r"downsample_layers\.0\.1\.", "stem.norm1."),
            (r"downsample_layers\.(\d+)\.0\.", r"stages.\1.downsample.norm."),
            (r"downsample_layers\.(\d+)\.1\.", r"stages.\1.downsample.conv."),
            (r"stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"norm\.", "head.norm."),
            (r"head\.", "head.fc."),
        )
        key = _rename(key, *_CONVNEXT_BLOCK)
        converted[key] = _pointwise(key, tensor)
    return converted


def from_convnext_isotropic(state: StateDict) -> dict[str, Tensor]:
    """Convert the isotropic ConvNeXt-S: 18 blocks in one list, here in stages of 3, 3, 9 and 3."""
    places = [f"stages.{i}.blocks.{j}." for i, depth in enumerate((3, 3, 9, 3)) for j in range(depth)]
    converted = {}
    for old, tensor in state.items():
        key = re.sub(r"\Ablocks\.(1[0-7]|\d)\.", lambda m: places[int(m[1])], old)
        key = _rename(
            key,
            (r"stem\.", "stem.conv1."),
            (r"norm\.", "head.norm."),
            (r"head\.", "head.fc."),
            *_CONVNEXT_BLOCK,
        )
        converted[key] = _pointwise(key, tensor)
    return converted


LAYOUTS: dict[str, tuple[str, Callable[[StateDict], dict[str, Tensor]]]] = {
    "legacy_xception": ("block1.rep.0.conv1.weight", from_legacy_xception),
    "NEXcepTion": ("downsampling_block1.rep.0.conv_dw.weight", from_nexception),
    "NEXcepTion-TP": ("stages.0.blocks.0.sepconv1.conv_dw.weight", from_nexception_tp),
    "InceptionNeXt": ("stages.0.blocks.0.token_mixer.dwconv_hw.weight", from_inceptionnext),
    "ConvNeXt": ("downsample_layers.0.0.weight", from_convnext),
    "isotropic ConvNeXt": ("blocks.0.dwconv.weight", from_convnext_isotropic),
}
"""Name of the layout: the key that tells it, and the function that converts it."""


def recognise(state: StateDict) -> str | None:
    """Return the name of the published layout that ``state`` has, or None for our own or an unknown one."""
    return next((name for name, (key, _) in LAYOUTS.items() if key in state), None)
