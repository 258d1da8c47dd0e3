"""Images and masks on their way to a network: changed together, read one by one."""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from xnext.data import BadImageError, ImageDataset, Preprocessing
from xnext.segmentation.data import IGNORE, MaskSource

_SCALES = (0.5, 2.0)
_LONGEST = 4  # times the short side; mmsegmentation's 512x2048
_DISTORTED = ("light", "strong")  # degrees of augmentation that change colours too


class MaskDataset(ImageDataset):
    """Transformed images of a source, each with its mask.

    An item is ``(image, mask, bad_index)`` as of an ``ImageDataset``. In evaluation an image keeps its shape,
    its mask is as large as the file's, and where one of the two cannot be read nothing of the mask counts.

    Args:
        source: Images and masks.
        transform: Takes and returns image and mask; see the builders below.
        training: Whether the next readable pair stands in for one that cannot be read.
    """

    source: MaskSource

    def __init__(self, source: MaskSource, transform: v2.Transform, *, training: bool):
        super().__init__(source, transform, training=training, cache=False)
        self.change = transform

    def _load(self, index: int) -> tuple[Tensor, Any] | None:
        try:
            picture, places = self.source.pair(index)
        except BadImageError as error:
            self.bad_images[index] = error.reason
            return None
        image, mask = self.change(
            tv_tensors.Image(picture), tv_tensors.Mask(torch.from_numpy(places).to(torch.uint8))
        )
        return image.as_subclass(Tensor), mask.as_subclass(Tensor).long()

    def _blank(self, index: int) -> tuple[Tensor, Any]:
        size = (1, 1)
        image, _ = self.change(
            tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8)),
            tv_tensors.Mask(torch.zeros(size, dtype=torch.uint8)),
        )
        return image.as_subclass(Tensor), torch.full(size, IGNORE)


def build_train_masks(pre: Preprocessing, augment: str, mirror: bool) -> v2.Transform:
    """Return the transform of training: random scale, crop, mirror image and colours.

    It takes an image uint8 [3, H, W] and its mask [H, W], and returns both with ``image_size`` squared
    places; what the crop has beyond the image is grey, and ignored.

    Args:
        pre: Size and normalisation.
        augment: ``none``: the crop alone is random; ``flip``: and the scale, and half are mirrored; else: and
            the colours are distorted (Liu et al., "SSD", 2016).
        mirror: Whether a mirrored image is still one of the set.
    """
    low, high = (1.0, 1.0) if augment == "none" else _SCALES
    sizes = list(range(max(1, round(low * pre.image_size)), round(high * pre.image_size) + 1))
    grey = tuple(round(255 * value) for value in pre.mean)
    steps: list[v2.Transform] = [
        _RandomSize(sizes, _LONGEST * sizes[-1], antialias=True),
        v2.RandomCrop(
            pre.image_size, pad_if_needed=True, fill={tv_tensors.Image: grey, tv_tensors.Mask: IGNORE}
        ),
    ]
    if mirror and augment != "none":
        steps.append(v2.RandomHorizontalFlip())
    if augment in _DISTORTED:
        steps.append(v2.RandomPhotometricDistort())
    return v2.Compose([*steps, *_normalise(pre)])


def build_eval_masks(pre: Preprocessing, scale: float = 1.0) -> v2.Transform:
    """Return the transform of evaluation; the mask stays as it is.

    Args:
        pre: Size and normalisation.
        scale: The short side becomes so many times ``image_size``.
    """
    return v2.Compose([_ResizeImage(max(1, round(scale * pre.image_size))), *_normalise(pre)])


def build_own_size(pre: Preprocessing) -> v2.Transform:
    """Return the transform of an image that keeps its size."""
    return v2.Compose(_normalise(pre))


class _RandomSize(v2.RandomShortestSize):
    """Resize image and mask to a random short side; of a long strip at least a pixel stays."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"size": tuple(max(1, side) for side in super().make_params(flat_inputs)["size"])}


class _ResizeImage(v2.Transform):
    """Resize an image by its short side, and leave its mask."""

    def __init__(self, size: int):
        super().__init__()
        self._size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        height, width = inpt.shape[-2:]
        return v2.functional.resize(inpt, _size(height, width, self._size), InterpolationMode.BILINEAR)


def _size(height: int, width: int, side: int) -> list[int]:
    """Return the height and width whose short side is so long, unless the long one would be too long."""
    short, long = sorted((height, width))
    sides = [side, side * long // short]
    if sides[1] > _LONGEST * side:
        sides = [max(1, _LONGEST * side * side // sides[1]), _LONGEST * side]
    return sides if height <= width else sides[::-1]


def _normalise(pre: Preprocessing) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(pre.mean), list(pre.std))]
