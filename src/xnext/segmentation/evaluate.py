"""How well a segmentation network tells the places of images that it has not seen."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from xnext._progress import Watch, unwatched
from xnext.data import BadImageError
from xnext.errors import UserError
from xnext.segmentation.data import IGNORE, MaskSource
from xnext.segmentation.inference import ONE_VIEW, Trained, Views, answer, ask
from xnext.segmentation.task import count_places, shares, summarise

_AT_ONCE = 16  # pairs that threads read ahead


@dataclass(frozen=True, kw_only=True)
class PlacesReport:
    """What a network got right of the places of masks.

    Attributes:
        classes: The class names.
        counts: int64 [classes, classes]: places by true class, a row, and answered class.
        images: How many images were read and counted.
        bad_images: Names of those that could not be read, or their masks, each with the reason.
    """

    classes: tuple[str, ...]
    counts: np.ndarray
    images: int
    bad_images: dict[str, str]

    @property
    def metrics(self) -> dict[str, float]:
        """``miou``, ``mean_accuracy`` and ``accuracy`` in per cent."""
        return summarise(self.counts)[0]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as what JSON can hold; what a class has not is null."""
        rows = zip(self.classes, *shares(self.counts), self.counts.sum(axis=1), strict=True)
        return {
            **self.metrics,
            "images": self.images,
            "bad_images": [{"name": name, "reason": reason} for name, reason in self.bad_images.items()],
            "classes": [
                {
                    "class": name, "iou": _percent(iou), "accuracy": _percent(accuracy),
                    "places": int(places),
                }
                for name, iou, accuracy, places in rows
            ],
        }  # fmt: skip


def evaluate_masks(
    trained: Trained,
    source: MaskSource,
    views: Views = ONE_VIEW,
    watch: Watch = unwatched,
) -> PlacesReport:
    """Ask a network about the images of a source, and compare at the size of their masks.

    Args:
        trained: The network.
        source: Images and masks.
        views: How it is shown them.
        watch: Passes pairs on, and may show how many of a total.

    Raises:
        UserError: A mask has values that are no class, nothing can be read or has a class, or outputs are
            not finite.
    """
    count = len(trained.classes)
    counts = torch.zeros(count, count, dtype=torch.int64, device=trained.device)
    bad_images: dict[str, str] = {}
    for index, pair in watch(_read_all(source), "evaluating", len(source)):
        if isinstance(pair, BadImageError):
            bad_images[pair.name] = pair.reason
            continue
        image, mask = pair
        if strange := set(np.unique(mask).tolist()) - {*range(count), IGNORE}:
            raise UserError(
                f"{source.mask_name(index)} has values that are none of the {count} classes"
                f" ({', '.join(map(str, sorted(strange)[:3]))}); mend or remove it"
            )
        truth = torch.from_numpy(mask).to(trained.device)
        if views == ONE_VIEW:  # which takes less memory
            answers = torch.from_numpy(answer(trained, image)).to(trained.device)
        else:
            answers = ask(trained, image, mask.shape, views).argmax(0)
        counts += count_places(answers[None], truth[None], count)
    if len(bad_images) == len(source):
        name, reason = next(iter(bad_images.items()))
        raise UserError(f"{name}: {reason}; nor can any other be read: there is nothing to measure")
    if not counts.any():
        raise UserError(
            f"{source.mask_name(0)} and all others: no place has a class, so there is nothing to measure"
        )
    return PlacesReport(
        classes=trained.classes, counts=counts.cpu().numpy(), images=len(source) - len(bad_images),
        bad_images=bad_images,
    )  # fmt: skip


def describe_views(views: Views) -> dict[str, Any]:
    """Return how images were shown as what JSON can hold."""
    return asdict(views) | {"scales": list(views.scales)}


def _read_all(
    source: MaskSource,
) -> Iterator[tuple[int, tuple[Image.Image, np.ndarray] | BadImageError]]:
    """Read pairs in threads, in order."""

    def read(index: int) -> tuple[int, tuple[Image.Image, np.ndarray] | BadImageError]:
        try:
            return index, source.pair(index)
        except BadImageError as error:
            return index, error

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(source), _AT_ONCE):
            yield from pool.map(read, range(start, min(start + _AT_ONCE, len(source))))


def _percent(share: float) -> float | None:
    return None if np.isnan(share) else 100 * float(share)
