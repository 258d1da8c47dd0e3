"""What happens to a picture between the file and the network."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision import transforms

from xnext._types import check_types
from xnext.errors import UserError, suggest

Augment = Literal["none", "flip", "light", "strong"]
Transform = Callable[[Image.Image], Tensor]

PHOTO_SIZE = 128
"""From this size on, in pixels, pictures are taken for photographs with a margin around their subject."""

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
_CROP_MODES = ("center", "squash", "border")

_MAX_ASPECT = 16
"""The eval resize sees no picture longer than this many times its short side."""


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
    ) -> "Preprocessing":
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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as what JSON and YAML can hold."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
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


# The first steps of evaluation: limit the aspect, resize, crop to a square picture.
_TO_SQUARE = 3


class _LimitAspect:
    """Cut the ends off a very long picture, which the central crop drops anyway.

    Resizing its short side to the network's size first would take memory without bound.

    Args:
        crop_mode: The others look at the whole picture.
    """

    def __init__(self, crop_mode: str):
        self.crop_mode = crop_mode

    def __call__(self, image: Image.Image) -> Image.Image:
        longest = _MAX_ASPECT * min(image.size)
        if max(image.size) <= longest or self.crop_mode != "center":
            return image
        return transforms.functional.center_crop(
            image, [min(image.height, longest), min(image.width, longest)]
        )


def build_eval_transform(
    pre: Preprocessing, change: Callable[[Image.Image], Image.Image] | None = None
) -> Transform:
    """Return the transform of evaluation and prediction: resize, crop the centre, normalise.

    It takes an RGB image and returns float32 ``[in_chans, image_size, image_size]``, always the same.

    Args:
        pre: Size, normalisation and resampling.
        change: What is done to the picture once it has the network's size, before it becomes numbers.
    """
    steps = _evaluation_steps(pre)
    if change is not None:
        steps.insert(_tensor_place(steps), change)
    return transforms.Compose(steps)


def _evaluation_steps(pre: Preprocessing) -> list[Any]:
    steps = create_transform(
        pre.shape,
        interpolation=pre.interpolation,
        crop_pct=pre.crop_pct,
        crop_mode=pre.crop_mode,
        mean=pre.mean,
        std=pre.std,
    )
    return [_LimitAspect(pre.crop_mode), *_to_channels(steps.transforms, pre.in_chans)]


def build_resize(pre: Preprocessing) -> Callable[[Image.Image], Image.Image]:
    """Return what evaluation does to a picture up to the conversion to numbers.

    It takes an RGB image and returns one of ``image_size`` squared pixels, grey for a network of one channel.
    """
    steps = _evaluation_steps(pre)
    return transforms.Compose(steps[: _tensor_place(steps)])


# What each degree of augmentation asks of timm; None stands for the evaluation's transform.
_DEGREES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "flip": {"scale": (0.08, 1.0), "color_jitter": None},
    "light": {"scale": (0.6, 1.0), "color_jitter": None},
    "strong": {"scale": (0.08, 1.0), "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25},
}
_POLICY_OF_SMALL_IMAGES = "rand-m6-mstd0.5-inc1"


def augment_options(pre: Preprocessing, augment: str, **changes: Any) -> dict[str, Any] | None:
    """Return what a degree of augmentation and its changes ask for, by the names of ``create_transform``.

    Args:
        pre: Of which the size counts.
        augment: A degree.
        **changes: What of it shall be otherwise; None: nothing.

    Returns:
        The options, or None for what evaluation does.

    Raises:
        UserError: There is no such degree, or ``none`` is to be changed.
    """
    if augment not in _DEGREES:
        raise UserError(f"augment {augment!r}: choose {', '.join(_DEGREES)}.{suggest(augment, _DEGREES)}")
    changes = {name: value for name, value in changes.items() if value is not None}
    degree = _DEGREES[augment]
    if degree is None:
        if changes:
            raise UserError(f"augment none cannot have {', '.join(changes)}; choose --augment flip")
        return None
    if "auto_augment" in degree and pre.image_size < PHOTO_SIZE:
        degree = degree | {"auto_augment": _POLICY_OF_SMALL_IMAGES}
    return degree | changes


def build_train_transform(pre: Preprocessing, augment: Augment, mirror: bool, **changes: Any) -> Transform:
    """Return the transform of training, from RGB image to float32 ``[in_chans, image_size, image_size]``.

    Args:
        pre: Size, normalisation and resampling.
        augment: ``none``: as in evaluation. ``flip``: a random crop of 8 to 100 % of the area, and mirroring.
            ``light``: the same with 60 to 100 %. ``strong``: ``flip`` with RandAugment and random erasing.
            Pictures smaller than 128 pixels, which have nothing to spare, are shifted by up to an eighth
            instead of cropped.
        mirror: Whether a mirrored picture keeps its class.
        **changes: What of it shall be otherwise, by the names of timm's ``create_transform``; None: nothing.

    Raises:
        UserError: Another value of ``augment``, changes of ``none``, or a policy that timm does not know.
    """
    options = augment_options(pre, augment, **changes)
    if options is None:
        return build_eval_transform(pre)
    try:
        steps = create_transform(
            pre.shape,
            is_training=True,
            hflip=0.5 if mirror else 0.0,
            interpolation=pre.interpolation,
            mean=pre.mean,
            std=pre.std,
            re_mode="pixel",
            **options,
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"auto_augment {options.get('auto_augment')!r} is no policy of timm's: {error}"
        ) from error
    crop, *others = steps.transforms
    photo = pre.image_size >= PHOTO_SIZE
    shift = transforms.RandomCrop(pre.image_size, padding=pre.image_size // 8)
    first = [crop] if photo else [*_evaluation_steps(pre)[:_TO_SQUARE], shift]
    return transforms.Compose([*first, *_to_channels(others, pre.in_chans)])


def _to_channels(steps: list[Any], in_chans: int) -> list[Any]:
    """Make a pipeline for RGB images end in ``in_chans`` channels."""
    if in_chans == 3:
        return steps
    place = _tensor_place(steps)
    return [*steps[:place], transforms.Grayscale(in_chans), *steps[place:]]


def _tensor_place(steps: list[Any]) -> int:
    """Return the place of the step that makes numbers of a picture."""
    return next(i for i, step in enumerate(steps) if isinstance(step, transforms.ToTensor))
