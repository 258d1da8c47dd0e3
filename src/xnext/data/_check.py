"""What a data set holds and what is odd about it, found before a training is."""

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from xnext._progress import Watch, unwatched
from xnext.data._decode import BadImageError
from xnext.data._sources import ImageData, ImageSource
from xnext.errors import UserError, shorten

SMALL_SIDE = 32
"""Below it, in pixels, a side is called small: no network was made for less."""

_PARTS = {"train": "training", "val": "held-out"}  # and what a user calls them
_MOST_EQUAL = 5  # of a group of equal pictures, named in a line
_AT_ONCE = 256  # pictures handed to the threads; their answers wait in memory until it is their turn


class Picture(NamedTuple):
    """A picture as a user finds it: its name, the part it is in, and its classes."""

    name: str
    part: str
    classes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name!r} ({_PARTS[self.part]}, {shorten(self.classes) or 'no class'})"


class Finding(NamedTuple):
    """Something odd: what, a line for each case, and what to do about it."""

    what: str
    cases: list[str]
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {len(self.cases):,}; {self.advice}"


class Span(NamedTuple):
    """The smallest, the middle and the largest of some numbers."""

    smallest: int
    median: float
    largest: int

    def __str__(self) -> str:
        if self.smallest == self.largest:
            return f"{self.smallest:,}"
        return f"{self.smallest:,} to {self.largest:,}, median {self.median:,g}"


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What a data set holds; a part is ``train`` or ``val``.

    Attributes:
        name: The spec it was loaded from.
        classes: The class names.
        multilabel: Whether a picture may have several classes.
        images: How many pictures each part has.
        counts: For each part, in how many of its pictures each class is.
        classes_per_image: Mean number of classes of a training picture.
        width: Of the readable pictures of both parts, in pixels.
        height: Likewise.
        small: How many of these have a side below ``SMALL_SIDE``.
        unreadable: For each part, the names of what cannot be read, each with the reason.
        same: Groups of readable pictures with the same bytes, in whichever parts they are.
        mean: Of each channel, red, green and blue, over all pixels of the training pictures; 0 to 1.
        std: Their standard deviation on the same scale.
    """

    name: str
    classes: tuple[str, ...]
    multilabel: bool
    images: dict[str, int]
    counts: dict[str, tuple[int, ...]]
    classes_per_image: float
    width: Span
    height: Span
    small: int
    unreadable: dict[str, dict[str, str]]
    same: tuple[tuple[Picture, ...], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def class_size(self) -> Span:
        """Of the classes, in training pictures."""
        return _span(np.array(self.counts["train"]))

    @property
    def imbalance(self) -> float:
        """How many times as many training pictures the largest class has as the smallest."""
        return self.class_size.largest / self.class_size.smallest

    @property
    def duplicates(self) -> list[tuple[Picture, ...]]:
        """The groups of the same picture within one part."""
        inside = [tuple(p for p in group if p.part == part) for group in self.same for part in _PARTS]
        return [group for group in inside if len(group) > 1]

    @property
    def leaks(self) -> list[tuple[Picture, ...]]:
        """The groups of the same picture in both parts."""
        return [group for group in self.same if len({picture.part for picture in group}) > 1]

    @property
    def conflicts(self) -> list[tuple[Picture, ...]]:
        """The groups of the same picture with different classes."""
        return [group for group in self.same if len({picture.classes for picture in group}) > 1]

    def findings(self) -> list[Finding]:
        """Return what is odd about the set; nothing of a healthy one."""
        bad = [f"{name!r}: {why}" for part in self.unreadable.values() for name, why in part.items()]
        counts = zip(self.classes, self.counts["val"], strict=True)
        unmeasured = [repr(name) for name, count in counts if not count]
        leaks, conflicts, duplicates = (
            list(map(_equation, groups)) for groups in (self.leaks, self.conflicts, self.duplicates)
        )
        findings = (
            Finding("unreadable", bad, "replace or remove what is damaged"),
            Finding("in both parts", leaks, "held-out results look too good; remove one side"),
            Finding("same image, different labels", conflicts, "keep the right label"),
            Finding("several times in one part", duplicates, "keep one of each"),
            Finding("classes never held out", unmeasured, "hold out some of their images"),
        )
        return [finding for finding in findings if finding.cases]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as what JSON can hold."""
        spans = {"class_size": self.class_size, "width": self.width, "height": self.height}
        groups = {"duplicates": self.duplicates, "leaks": self.leaks, "conflicts": self.conflicts}
        return {
            "data": self.name,
            "images": self.images,
            "multilabel": self.multilabel,
            "classes": [
                {"class": name, "train": train, "val": val}
                for name, train, val in zip(
                    self.classes, self.counts["train"], self.counts["val"], strict=True
                )
            ],
            "classes_per_image": self.classes_per_image,
            "imbalance": self.imbalance,
            **{side: span._asdict() for side, span in spans.items()},
            "small": self.small,
            "unreadable": {
                part: [{"image": name, "reason": reason} for name, reason in found.items()]
                for part, found in self.unreadable.items()
            },
            **{kind: [[p._asdict() for p in group] for group in found] for kind, found in groups.items()},
            "mean": list(self.mean),
            "std": list(self.std),
            "findings": [str(finding) for finding in self.findings()],
        }


def check_data(data: ImageData, watch: Watch = unwatched) -> DataReport:
    """Look at every picture of a data set once.

    Args:
        data: The set.
        watch: Passes on what it is given, and may show how much of the total that is.

    Raises:
        UserError: No training picture can be read.
    """
    sources = {"train": data.train, "val": data.val}
    unreadable: dict[str, dict[str, str]] = {part: {} for part in _PARTS}
    places: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    sizes = []
    histogram = np.zeros((3, 256), dtype=np.int64)
    for look in watch(_look_at_all(sources), "checking", sum(map(len, sources.values()))):
        if look.error is not None:
            unreadable[look.part][sources[look.part].name(look.place)] = look.error
            continue
        places[look.digest].append((look.part, look.place))
        sizes.append(look.size)
        if look.part == "train":
            histogram += look.histogram
    if not histogram.any():
        name, reason = next(iter(unreadable["train"].items()))
        raise UserError(f"{name}: {reason}; nor can any other training image be read: check the data")

    def picture(part: str, index: int) -> Picture:
        source = sources[part]
        return Picture(source.name(index), part, _classes_of(data, source, index))

    width, height = np.array(sizes).T
    mean, std = _mean_and_std(histogram)
    return DataReport(
        name=data.name,
        classes=data.classes,
        multilabel=data.multilabel,
        images={part: len(source) for part, source in sources.items()},
        counts={part: tuple(data.count(source).tolist()) for part, source in sources.items()},
        classes_per_image=float(data.count(data.train).sum() / len(data.train)),
        width=_span(width),
        height=_span(height),
        small=int((np.minimum(width, height) < SMALL_SIDE).sum()),
        unreadable=unreadable,
        same=tuple(tuple(picture(*p) for p in group) for group in places.values() if len(group) > 1),
        mean=mean,
        std=std,
    )


class _Look(NamedTuple):
    """What is kept of a picture; its histogram ``[3, 256]`` counts the values of each channel."""

    part: str
    place: int
    error: str | None = None
    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    histogram: np.ndarray = np.zeros((3, 256), dtype=np.int64)


def _look_at_all(sources: dict[str, ImageSource]) -> Iterator[_Look]:
    """Decode all pictures in threads; yield what is kept of each, in order."""
    places = ((part, source, index) for part, source in sources.items() for index in range(len(source)))
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(places, _AT_ONCE)):
            yield from pool.map(_look, *zip(*chunk, strict=True))


def _look(part: str, source: ImageSource, index: int) -> _Look:
    try:
        digest = blake2b(source.content(index), digest_size=16).digest()
        image = source.read(index)
    except BadImageError as error:
        return _Look(part, index, error.reason)
    return _Look(part, index, None, digest, image.size, np.array(image.histogram()).reshape(3, 256))


def _mean_and_std(histogram: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel from its counts of the values 0 to 255."""
    values, shares = np.arange(256) / 255, histogram / histogram.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


def _span(numbers: np.ndarray) -> Span:
    return Span(int(numbers.min()), float(np.median(numbers)), int(numbers.max()))


def _classes_of(data: ImageData, source: ImageSource, index: int) -> tuple[str, ...]:
    """Return the names of a picture's classes."""
    label = source.labels[index]
    return tuple(data.classes[place] for place in (np.flatnonzero(label) if label.ndim else [label]))


def _equation(group: tuple[Picture, ...]) -> str:
    """Return the line of some pictures that are the same."""
    rest = len(group) - _MOST_EQUAL
    return " = ".join(map(str, group[:_MOST_EQUAL])) + (f" and {rest} more" if rest > 0 else "")
