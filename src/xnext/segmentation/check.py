"""What masks hold and what is odd about them, before a training is."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xnext.data import BadImageError
from xnext.errors import UserError, shorten
from xnext.segmentation.data import IGNORE, MaskData, MaskSource

_PARTS = {"train": "training", "val": "held-out"}
_MOST_LISTED = 20  # classes of a line


@dataclass(frozen=True)
class MaskReport:
    """What the masks of a data set hold.

    Attributes:
        classes: The class names.
        shares: For each part, the share of its places that each class has, and last what is ignored.
        images: For each part, in how many masks each class is.
        unreadable: Names of images or masks that cannot be read, each with the reason.
    """

    classes: tuple[str, ...]
    shares: dict[str, np.ndarray]
    images: dict[str, np.ndarray]
    unreadable: dict[str, str]

    def lines(self) -> list[str]:
        """Return what is to be said of it, in lines: the share of each class, and what is odd."""
        shares, never = self.shares["train"], self.images["train"] == 0
        order = np.argsort(-shares[:-1], kind="stable")[:_MOST_LISTED]
        known = [f"{self.classes[place]} {_percent(shares[place])}" for place in order if not never[place]]
        rest = len(self.classes) - never.sum() - len(known)
        more = [f"and {rest} more"] if rest else []
        lines = [f"places of the training masks: {', '.join(known + more)}; ignored {_percent(shares[-1])}"]
        for part, what in _PARTS.items():
            if absent := [self.classes[place] for place in np.flatnonzero(self.images[part] == 0)]:
                lines.append(f"in no {what} mask: {shorten(absent)}")
        if self.unreadable:
            cases = [f"{name}: {reason}" for name, reason in self.unreadable.items()]
            lines.append(f"cannot be read: {shorten(cases)}")
        return lines


def check_masks(
    data: MaskData, progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda looks, total: looks
) -> MaskReport:
    """Look at every mask once.

    Args:
        data: Images and masks.
        progress: Passes on what it is given, and may show how much of the total that is.

    Raises:
        UserError: A mask has values that are no class, or another size than its image; each by name.
    """
    count = len(data.classes)
    parts = {"train": data.train, "val": data.val}
    places = [(part, index) for part, source in parts.items() for index in range(len(source))]
    totals = {part: np.zeros(count + 1, dtype=np.int64) for part in parts}
    images = {part: np.zeros(count, dtype=np.int64) for part in parts}
    unreadable: dict[str, str] = {}
    odd, sizes = list[str](), list[str]()
    with ThreadPoolExecutor() as pool:
        looks = pool.map(lambda place: _look(parts[place[0]], place[1]), places)
        for (part, index), look in zip(places, progress(looks, len(places)), strict=True):
            if isinstance(look, BadImageError):
                unreadable[look.name] = look.reason
                continue
            name = parts[part].mask_name(index)
            values = dict(zip(look.values.tolist(), look.counts.tolist(), strict=True))
            ignored = values.pop(IGNORE, 0)
            if strange := [value for value in values if not 0 <= value < count]:
                odd.append(f"{name} ({', '.join(map(str, strange[:3]))})")
            elif look.size != look.mask_size:
                sizes.append(f"{name} ({_size(look.mask_size)}, its image {_size(look.size)})")
            else:
                totals[part][list(values)] += np.array(list(values.values()), dtype=np.int64)
                totals[part][count] += ignored
                images[part][list(values)] += 1
    for found, what in ((odd, f"values that are none of the {count} classes"), (sizes, "another size")):
        if found:
            raise UserError(
                f"{data.name}: {len(found)} masks with {what}: {shorten(found)}; mend or remove them"
            )
    for part, total in totals.items():
        if not total[:count].any():
            why = [f"{name}: {reason}" for name, reason in unreadable.items()]
            first = f" (first of {len(why)} unreadable ones: {why[0]})" if why else ""
            raise UserError(f"{data.name}: no place of any {_PARTS[part]} mask has a class{first}")
    return MaskReport(
        data.classes,
        {part: total / max(1, total.sum()) for part, total in totals.items()},
        images,
        unreadable,
    )


class _Look(NamedTuple):
    """What is kept of a mask: its values, how often each is there, and (width, height) of image and mask."""

    values: np.ndarray
    counts: np.ndarray
    size: tuple[int, int]
    mask_size: tuple[int, int]


def _look(source: MaskSource, index: int) -> _Look | BadImageError:
    try:
        mask, image = source.mask(index), source.read(index)
    except BadImageError as error:
        return error
    return _Look(*np.unique(mask, return_counts=True), image.size, (mask.shape[1], mask.shape[0]))


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else "under 0.1 %"
