"""What happens to a picture between the file and the network."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision import transforms

from xnext.data._preprocessing import PHOTO_SIZE, Preprocessing, limit_aspect
from xnext.errors import UserError, suggest

Augment = Literal["none", "flip", "light", "strong"]
Transform = Callable[[Image.Image], Tensor]

# The first steps of evaluation: limit the aspect, resize, crop to a square picture.
_TO_SQUARE = 3


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
    return [partial(limit_aspect, crop_mode=pre.crop_mode), *_to_channels(steps.transforms, pre.in_chans)]


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
