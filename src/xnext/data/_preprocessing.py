"""How pictures are brought to a network; no PyTorch is needed to know it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from xnext._types import check_types
from xnext.errors import UserError, suggest

if TYPE_CHECKING:
    from torch import nn

PHOTO_SIZE = 128
"""From this size on, in pixels, pictures are taken for photographs with a margin around their subject."""

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
_CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pictures are brought to a network; stored in its checkpoint.

    Attributes:
        image_size: Height and width that the network sees, in pixels.
        mean: Mean of each channel on the scale 0 to 1.
        std: Standard deviation of each channel on the same scale.
        interpolation: Resampling, by timm's names: ``bilinear``, ``bicubic``, ``nearest`` ...
        crop_pct: Share of the shorter side that the central crop of an evaluated picture keeps.
        in_chans: 3 for colour, 1 for grey.
        crop_mode: What becomes of an oblong picture, by timm's names: ``center`` cuts its ends off,
            ``squash`` brings it to a square, ``border`` adds to its sides.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    in_chans: int = 3
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        check_types(self)
        if self.image_size < 1 or not 0 < self.crop_pct <= 1 or self.in_chans not in (1, 3):
            raise UserError(
                f"preprocessing: image_size {self.image_size} must be at least 1, crop_pct {self.crop_pct} "
                f"above 0 up to 1, in_chans {self.in_chans} 1 or 3"
            )
        if not len(self.mean) == len(self.std) == self.in_chans or min(self.std) <= 0:
            raise UserError(f"preprocessing: mean and std must have {self.in_chans} values, std more than 0")
        for name, known in (("interpolation", _INTERPOLATIONS), ("crop_mode", _CROP_MODES)):
            if (value := getattr(self, name)) not in known:
                raise UserError(f"preprocessing: there is no {name} {value!r}")

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        image_size: int | None = None,
        crop_pct: float | None = None,
        tested: bool = False,
    ) -> Preprocessing:
        """Take what the network's ``pretrained_cfg`` asks for.

        Its central crop suits photographs at the size it was tuned for, and is kept there. At any other size,
        and for pictures under 128 pixels, whose subject reaches the edge, nothing is cropped away.

        Args:
            model: A network with timm's ``pretrained_cfg``.
            image_size: In pixels; by default the network's own.
            crop_pct: Share of the shorter side that the crop keeps; by default as said.
            tested: Whether size and crop are those that published weights were tested with, which for many
                networks are larger than those of their training.

        Raises:
            UserError: The network takes neither 1 nor 3 channels or no square, or the size is not positive.
        """
        from timm.data import resolve_model_data_config
        from torch import nn

        config = resolve_model_data_config(model, use_test_size=tested)
        _, height, own_size = config["input_size"]
        if height != own_size:
            raise UserError(f"a network for {height}x{own_size} pixels does not see the squares it is shown")
        size = own_size if image_size is None else image_size
        if size < 1:
            raise UserError(f"image size {size}: must be at least 1 pixel")
        stem = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        in_chans = stem.in_channels if stem else 3
        if in_chans not in (1, 3):
            raise UserError(
                f"a network of {in_chans} input channels cannot see pictures; use in_chans 1 or 3"
            )
        mean, std = config["mean"], config["std"]
        if len(mean) != in_chans:
            mean, std = (sum(mean) / len(mean),) * in_chans, (sum(std) / len(std),) * in_chans
        return cls(
            image_size=size,
            mean=tuple(mean),
            std=tuple(std),
            interpolation=config["interpolation"],
            crop_pct=crop_pct or (config["crop_pct"] if tested or size == own_size >= PHOTO_SIZE else 1.0),
            in_chans=in_chans,
            crop_mode=config["crop_mode"],
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the network sees."""
        return self.in_chans, self.image_size, self.image_size

    def without_normalisation(self) -> Preprocessing:
        """Return the same with values that stay on the scale 0 to 1."""
        return replace(self, mean=(0.0,) * self.in_chans, std=(1.0,) * self.in_chans)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as what JSON and YAML can hold."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Read what ``to_dict`` wrote.

        Raises:
            UserError: A key is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        for key in values.keys() - known:
            raise UserError(f"preprocessing: unknown key {key!r}.{suggest(key, known)}")
        for key in known - {"in_chans", "crop_mode"} - values.keys():
            raise UserError(f"preprocessing: key {key!r} is missing")
        return cls(**values)


_MAX_ASPECT = 16
"""The eval resize sees no picture longer than this many times its short side."""


def limit_aspect(image: Image.Image, crop_mode: str) -> Image.Image:
    """Cut the ends off a very long picture, which the central crop drops anyway.

    Resizing its short side to the network's size first would take memory without bound.

    Args:
        image: The picture.
        crop_mode: Those beside ``center`` look at the whole picture.
    """
    longest = _MAX_ASPECT * min(image.size)
    if max(image.size) <= longest or crop_mode != "center":
        return image
    return _crop(image, (min(image.width, longest), min(image.height, longest)))


def to_pixels(image: Image.Image, pre: Preprocessing) -> np.ndarray:
    """Bring an RGB picture to the network's size, as evaluation does, with Pillow alone.

    Returns:
        uint8 [in_chans, image_size, image_size], the pixels that ``build_eval_transform`` normalises.
    """
    size, scaled = (pre.image_size,) * 2, math.floor(pre.image_size / pre.crop_pct)
    image = limit_aspect(image, pre.crop_mode)
    width, height = image.size
    fill: tuple[int, ...] = (0, 0, 0)
    if pre.crop_mode == "squash":
        target = scaled, scaled
    elif pre.crop_mode == "border":
        ratio = max(width, height) / scaled
        target = round(width / ratio), round(height / ratio)
        mean = pre.mean if pre.in_chans == 3 else pre.mean * 3
        fill = tuple(round(255 * value) for value in mean)
    else:
        long = int(scaled * max(width, height) / min(width, height))
        target = (scaled, long) if width <= height else (long, scaled)
    if target != image.size:
        image = image.resize(target, Image.Resampling[pre.interpolation.upper()])
    image = _crop(image, size, fill)
    pixels = np.asarray(image if pre.in_chans == 3 else image.convert("L"))
    return np.ascontiguousarray(pixels.reshape(*size, pre.in_chans).transpose(2, 0, 1))


def normalise(pixels: np.ndarray, pre: Preprocessing) -> np.ndarray:
    """Return pixels [..., in_chans, H, W], uint8, as what the network sees, float32 of the same shape."""
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (pre.mean, pre.std))
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def _crop(image: Image.Image, size: tuple[int, int], fill: tuple[int, ...] = (0, 0, 0)) -> Image.Image:
    """Return the centre of a picture, of (width, height) ``size``; what is beyond its edges is filled."""
    missing = [max(0, wanted - there) for wanted, there in zip(size, image.size, strict=True)]
    if any(missing):
        ground = Image.new("RGB", (image.width + missing[0], image.height + missing[1]), fill)
        ground.paste(image, (missing[0] // 2, missing[1] // 2))
        image = ground
    left, top = (round((there - wanted) / 2) for wanted, there in zip(size, image.size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))
