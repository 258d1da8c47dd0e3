"""What masks hold and what is odd about them, before a training is."""

import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xnext._progress import Watch, unwatched
from xnext.data import BadImageError
from xnext.errors import UserError, shorten
from xnext.segmentation.data import IGNORE, MaskData, MaskSource

_PARTS = {"train": "training", "val": "held-out"}
_MOST_LISTED = 20  # classes of a line

_FAULTS = {
    "without_mask": "images without a mask",
    "values": "masks with values that are none of the {count} classes",
    "sizes": "masks of another size than their image",
}
_FINDINGS = _FAULTS | {
    "without_image": "masks without an image",
    "unreadable": "images or masks that cannot be read",
}


@dataclass(frozen=True)
class MaskReport:
    """What the masks of a data set hold.

    Attributes:
        name: The spec of the data.
        classes: The class names.
        shares: For each part, the share of its places that each class has, and last what is ignored.
        images: For each part, in how many masks each class is.
        pairs: For each part, how many pairs of image and mask it has, and how many of them cannot be read.
        findings: For each kind of what is odd, the files, each with what there is to say of it.
    """

    name: str
    classes: tuple[str, ...]
    shares: dict[str, np.ndarray]
    images: dict[str, np.ndarray]
    pairs: dict[str, tuple[int, int]]
    findings: dict[str, list[str]]

    def odd(self) -> dict[str, list[str]]:
        """Return what is odd, in words, with the files."""
        return {self._what(kind): cases for kind, cases in self.findings.items() if cases}

    def require_sound(self, max_bad_images: float = 1.0) -> None:
        """Refuse what no network can be trained on.

        Args:
            max_bad_images: The share of training pairs that may be unreadable.

        Raises:
            UserError: Images have no mask, masks have values that are no class or another size than their
                image, no place of a part has a class, or too much cannot be read; with the names.
        """
        for kind in _FAULTS:
            if cases := self.findings[kind]:
                raise UserError(
                    f"{self.name}: {self._what(kind)}: {shorten(cases)}; mend or remove them"
                    f" (xnext segment check {shlex.quote(self.name)} --json lists all that is odd)"
                )
        for part, shares in self.shares.items():
            if not shares[:-1].any():
                bad = self.findings["unreadable"]
                first = f" (first of {len(bad)} unreadable ones: {bad[0]})" if bad else ""
                raise UserError(f"{self.name}: no place of any {_PARTS[part]} mask has a class{first}")
        pairs, lost = self.pairs["train"]
        if lost > max_bad_images * pairs:
            raise UserError(
                f"{self.name}: {lost} of {pairs} training images or their masks cannot be read:"
                f" {shorten(self.findings['unreadable'])}; mend or remove them, or raise --max-bad-images"
            )

    def lines(self) -> list[str]:
        """Return what is to be said of sound masks, in lines: the share of each class, and what is odd."""
        shares, never = self.shares["train"], self.images["train"] == 0
        order = np.argsort(-shares[:-1], kind="stable")[:_MOST_LISTED]
        known = [f"{self.classes[place]} {_percent(shares[place])}" for place in order if not never[place]]
        rest = len(self.classes) - never.sum() - len(known)
        more = [f"and {rest} more"] if rest else []
        lines = [f"places of the training masks: {', '.join(known + more)}; ignored {_percent(shares[-1])}"]
        for part, what in _PARTS.items():
            if absent := [self.classes[place] for place in np.flatnonzero(self.images[part] == 0)]:
                lines.append(f"in no {what} mask: {shorten(absent)}")
        return lines + [f"{what}: {shorten(cases)}" for what, cases in self.odd().items()]

    def _what(self, kind: str) -> str:
        words = _FINDINGS[kind].format(count=len(self.classes))
        return f"{words} ({len(self.findings[kind]):,})"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        classes = []
        for place, name in enumerate(self.classes):
            parts = {
                part: {"share": float(self.shares[part][place]), "masks": int(self.images[part][place])}
                for part in _PARTS
            }
            classes.append({"class": name} | parts)
        ignored = {part: float(shares[-1]) for part, shares in self.shares.items()}
        return {"data": self.name, "classes": classes, "ignored": ignored} | self.findings


def check_masks(data: MaskData, watch: Watch = unwatched) -> MaskReport:
    """Look at every image and its mask once.

    Args:
        data: Images and masks.
        watch: Passes on what it is given, and may show how much of the total that is.
    """
    count = len(data.classes)
    parts = {"train": data.train, "val": data.val}
    places = [(part, index) for part, source in parts.items() for index in range(len(source))]
    totals = {part: np.zeros(count + 1, dtype=np.int64) for part in parts}
    images = {part: np.zeros(count, dtype=np.int64) for part in parts}
    lost = dict.fromkeys(parts, 0)
    findings: dict[str, list[str]] = {kind: [] for kind in _FINDINGS}
    findings["without_mask"] += data.without_mask
    findings["without_image"] += data.without_image
    with ThreadPoolExecutor() as pool:
        looks = pool.map(lambda place: _look(parts[place[0]], place[1]), places)
        for (part, index), look in zip(places, watch(looks, "checking", len(places)), strict=True):
            if isinstance(look, BadImageError):
                findings["unreadable"].append(f"{look.name}: {look.reason}")
                lost[part] += 1
                continue
            name, numbers = parts[part].mask_name(index), parts[part].numbers(look.values)
            strange = look.values[(numbers < 0) | ((numbers >= count) & (numbers != IGNORE))]
            if len(strange):
                findings["values"].append(f"{name} ({', '.join(map(str, strange[:3]))})")
            elif look.size != look.mask_size:
                findings["sizes"].append(f"{name} ({_size(look.mask_size)}, its image {_size(look.size)})")
            else:
                places_of = np.where(numbers == IGNORE, count, numbers)
                np.add.at(totals[part], places_of, look.counts)  # several values may be ignored
                images[part][np.unique(places_of[places_of < count])] += 1
    shares = {part: total / max(1, total.sum()) for part, total in totals.items()}
    pairs = {part: (len(source), lost[part]) for part, source in parts.items()}
    return MaskReport(data.name, data.classes, shares, images, pairs, findings)


class _Look(NamedTuple):
    """Of a mask: the values of its file, how often each is there, and (width, height) of image and mask."""

    values: np.ndarray
    counts: np.ndarray
    size: tuple[int, int]
    mask_size: tuple[int, int]


def _look(source: MaskSource, index: int) -> _Look | BadImageError:
    try:
        mask, image = source.values(index), source.read(index)
    except BadImageError as error:
        return error
    return _Look(*np.unique(mask, return_counts=True), image.size, (mask.shape[1], mask.shape[0]))


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else "under 0.1 %"
