"""A trained segmentation network, and how it is shown an image: whole or in parts, at which scales."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors

from xnext.data import Preprocessing
from xnext.errors import UserError
from xnext.evaluation.predict import choose_device, weights_file
from xnext.models import read_metadata
from xnext.models._checkpoints import load_unchanged, read_tensors
from xnext.segmentation.batches import build_eval_masks, build_own_size
from xnext.segmentation.networks import Segmenter, UPerNet, create_segmenter, decoder_of, enlarge

_STEP = 2 / 3  # of a window to the next
_LONGEST_STRIP = 8192  # pixels; what sees half as far to each side is said to see everything
_ALIKE = 1e-3  # of the standard deviation of logits
_MOST_VALUES = 2**26  # of enlarged logits at once


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """A trained segmentation network with all that its use takes.

    Attributes:
        network: Maps images [N, C, H, W] to logits [N, classes, H, W]; in evaluation mode, on ``device``.
        name: Of its backbone.
        decoder: Its decoder.
        classes: Name of each class.
        preprocessing: How an image becomes the network's input.
        device: Where the network is.
        data: The data spec that it was trained on.
        seed: The seed of that training, which may have decided what was held out.
    """

    network: Segmenter
    name: str
    decoder: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    device: torch.device
    data: str
    seed: int

    @cached_property
    def reach(self) -> int | None:
        """How far the network sees; see :func:`find_reach`."""
        return find_reach(self.network)


def load_trained(checkpoint: Path) -> Trained:
    """Load a trained segmentation network onto the accelerator if there is one, else the CPU.

    Args:
        checkpoint: A run folder (its best weights are taken), or a checkpoint in one.

    Raises:
        UserError: Nothing usable is there, or it is no segmentation network.
    """
    path = weights_file(checkpoint)
    metadata = read_metadata(path)
    decoder = None if metadata is None else decoder_of(metadata)
    if metadata is None or decoder is None:
        what = "says nothing about its network" if metadata is None else "is a classifier"
        raise UserError(
            f"{checkpoint} {what}; `xnext segment` takes what `xnext segment train` left, and"
            " `xnext evaluate` and `xnext predict` take classifiers"
        )
    classes, config = tuple(metadata["classes"]), metadata["extra"]["train_config"]
    network = create_segmenter(
        metadata["model_name"], decoder, len(classes), model_args=metadata["model_args"]
    )
    load_unchanged(network, read_tensors(path), str(path))
    device = choose_device()
    return Trained(
        network=network.to(device).eval(),
        name=metadata["model_name"],
        decoder=decoder,
        classes=classes,
        preprocessing=Preprocessing.from_dict(metadata["preprocessing"]),
        device=device,
        data=config["data"],
        seed=config["seed"],
    )


@dataclass(frozen=True)
class Views:
    """How a network is shown an image; what it says of each view is averaged.

    Attributes:
        slide: Whether a square window of the training's size slides over the image, two thirds of it a step,
            and the logits are averaged; otherwise it sees the image as a whole.
        scales: Of the size that images have in the training's evaluation.
        mirrored: Whether each is shown mirrored too.
    """

    slide: bool = False
    scales: tuple[float, ...] = (1.0,)
    mirrored: bool = False


ONE_VIEW = Views()
"""The image as a whole, once."""

MULTI_SCALE = Views(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), mirrored=True)
"""That of mmsegmentation's evaluation at several scales."""


def ask(trained: Trained, image: Image.Image, size: tuple[int, int], views: Views = ONE_VIEW) -> Tensor:
    """Return the probability of each class at each place, [classes, height, width].

    As mmsegmentation does, windows are averaged as logits, scales and mirror images as probabilities.

    Args:
        trained: The network.
        image: RGB, of any size.
        size: Height and width of the answer.
        views: How it is shown.

    Raises:
        UserError: The outputs of the network are not finite.
    """
    total, count = torch.zeros(()), 0
    with torch.inference_mode():
        for scale in views.scales:
            change = build_eval_masks(trained.preprocessing, scale)
            x = change(tv_tensors.Image(image)).as_subclass(Tensor)[None].to(trained.device)
            for mirrored in (False, True) if views.mirrored else (False,):
                logits = _view(trained, x.flip(-1) if mirrored else x, views.slide)
                answer = enlarge(logits, size).softmax(1)[0]
                total = total.to(answer) + (answer.flip(-1) if mirrored else answer)
                count += 1
        return total / count


def _view(trained: Trained, x: Tensor, slide: bool) -> Tensor:
    window = trained.preprocessing.image_size if slide else max(x.shape[-2:])
    return slide_over(lambda part: _finite(trained, part), x, window)


def slide_over(network: nn.Module | object, x: Tensor, window: int) -> Tensor:
    """Return the mean of the logits that windows of an image give its places.

    Args:
        network: Maps images [N, C, H, W] to logits of their size.
        x: [N, C, H, W]
        window: Side in pixels; the last one of a row or column ends with the image.
    """
    total, count = None, torch.zeros(x.shape[-2:], device=x.device)
    for top in _starts(x.shape[-2], window):
        for left in _starts(x.shape[-1], window):
            place = (..., slice(top, top + window), slice(left, left + window))
            logits = network(x[place])  # type: ignore[operator]
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *x.shape[-2:])
            total[place] += logits
            count[place] += 1
    assert total is not None, "an image has a place"
    return total / count


def _starts(length: int, window: int) -> list[int]:
    """Return where windows begin along a side."""
    step = max(1, round(_STEP * window))
    count = 1 + max(0, math.ceil((length - window) / step))
    return [max(0, min(number * step, length - window)) for number in range(count)]


def answer(trained: Trained, image: Image.Image) -> np.ndarray:
    """Return the class of each place of an image, uint8 [H, W], seen at the size of the training."""
    change = build_eval_masks(trained.preprocessing)
    with torch.inference_mode():
        x = change(tv_tensors.Image(image)).as_subclass(Tensor)[None].to(trained.device)
        logits = _finite(trained, x)
        size = (image.height, image.width)
        best = torch.full(size, -torch.inf, device=trained.device)
        found = torch.zeros(size, dtype=torch.uint8, device=trained.device)
        chunk = max(1, _MOST_VALUES // (size[0] * size[1]))
        for first, part in zip(range(0, logits.shape[1], chunk), logits.split(chunk, dim=1), strict=True):
            top, index = enlarge(part, size)[0].max(dim=0)
            found = torch.where(top > best, (index + first).to(torch.uint8), found)
            best = torch.maximum(top, best)
    return found.cpu().numpy()


@dataclass(frozen=True)
class Tiles:
    """How an image is cut that is too large to be seen at once.

    Attributes:
        side: Largest side of what is seen at once, in pixels.
        overlap: Pixels that a tile sees beyond what is taken from it.

    Raises:
        UserError: Nothing would be taken from a tile.
    """

    side: int
    overlap: int

    def __post_init__(self) -> None:
        if self.side < 1 or self.overlap < 0:
            name, value, least = ("tile", self.side, 1) if self.side < 1 else ("overlap", self.overlap, 0)
            raise UserError(f"--{name} is {value}; it must be at least {least}")
        if 2 * self.overlap >= self.side:
            raise UserError(
                f"--overlap is {self.overlap} and --tile {self.side}; the overlap must be less than half"
            )

    @classmethod
    def of(cls, trained: Trained, side: int = 1024, overlap: int | None = None) -> "Tiles":
        """Return tiles in whole strides of a network.

        Args:
            trained: The network.
            side: As the attribute.
            overlap: As the attribute; None: as far as the network sees, but at most a quarter of the side.

        Raises:
            UserError: As said.
        """
        stride = trained.network.stride
        if overlap is None:
            overlap = side // 4 // stride * stride
            overlap = overlap if trained.reach is None else min(overlap, trained.reach)
        asked = cls(side, overlap)
        side, overlap = (math.ceil(pixels / stride) * stride for pixels in (asked.side, asked.overlap))
        return cls(max(side, 2 * overlap + stride), overlap)


def answer_in_tiles(trained: Trained, image: Image.Image, tiles: Tiles) -> np.ndarray:
    """Return the class of each place of an image, uint8 [H, W], seen at its own size.

    Where a network sees no further than the tiles overlap, it is what it says of the whole image.

    Args:
        trained: The network.
        image: RGB, of any size.
        tiles: Of whole strides.

    Raises:
        UserError: The outputs of the network are not finite.
    """
    change, found = build_own_size(trained.preprocessing), np.zeros((image.height, image.width), np.uint8)
    with torch.inference_mode():
        for taken, seen in _cut(image.height, tiles):
            for taken_x, seen_x in _cut(image.width, tiles):
                part = image.crop((seen_x.start, seen.start, seen_x.stop, seen.stop))
                x = change(tv_tensors.Image(part)).as_subclass(Tensor)[None].to(trained.device)
                inner = tuple(
                    slice(one.start - whole.start, one.stop - whole.start)
                    for one, whole in ((taken, seen), (taken_x, seen_x))
                )
                classes = _finite(trained, x)[0].argmax(0)[inner]
                found[taken, taken_x] = classes.to(torch.uint8).cpu().numpy()
    return found


def _cut(length: int, tiles: Tiles) -> Iterator[tuple[slice, slice]]:
    """Yield what is taken of each tile along a side, and what it sees."""
    step = length if length <= tiles.side else tiles.side - 2 * tiles.overlap
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield slice(start, stop), slice(max(0, start - tiles.overlap), min(length, stop + tiles.overlap))


def find_reach(network: Segmenter) -> int | None:
    """Return how far a network sees: from how many pixels away a place may be told otherwise.

    A value that is no number spreads to all that depends on it, here in strips of growing length.

    Args:
        network: In evaluation mode.

    Returns:
        Pixels to each side; None if it sees the whole image, or tells parts of an image in another way.
    """
    if isinstance(network.decoder, UPerNet):  # which pools over the whole image
        return None
    stride, weight = network.stride, next(network.parameters())
    length = 16 * stride
    while length <= _LONGEST_STRIP:
        reaches = []
        for turned in (False, True):
            strip = torch.zeros(1, network.in_chans, stride, length).to(weight)
            strip[..., length // 2] = torch.nan
            with torch.inference_mode():
                logits = network(strip.mT if turned else strip)
                lost = (logits.mT if turned else logits).isnan()[0].any(0).any(0).nonzero()
            reaches.append(max(length // 2 - int(lost.min()), int(lost.max()) - length // 2))
        # A stride more: what a place sees depends on where it lies between the places of coarse levels.
        reach = stride * math.ceil(max(reaches) / stride + 1)
        if reach < length // 2 - stride:
            return reach if _tells_parts_alike(network, length, reach) else None
        length *= 2
    return None


def _tells_parts_alike(network: Segmenter, length: int, reach: int) -> bool:
    """Return whether a network says the same of a strip whose beginning is cut off."""
    generator = torch.Generator().manual_seed(0)
    strip = torch.randn(1, network.in_chans, network.stride, length, generator=generator)
    with torch.inference_mode():
        whole = network(strip.to(next(network.parameters())))
        part = network(strip[..., network.stride :].to(whole))
    apart = (whole[..., network.stride :] - part)[..., reach:].abs().max()
    return bool(apart < _ALIKE * whole.std())


def _finite(trained: Trained, x: Tensor) -> Tensor:
    """Return the logits of images.

    Raises:
        UserError: They are not finite.
    """
    logits = trained.network(x).float()
    if not logits.isfinite().all():
        raise UserError(f"the outputs of {trained.name} are not finite; train again, or take other weights")
    return logits
