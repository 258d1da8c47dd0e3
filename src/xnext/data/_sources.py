"""A source is a labelled list of pictures; a data set is two of them and the names of the classes."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xnext.data._decode import BadImageError, decode_image, read_image
from xnext.errors import UserError, shorten

VAL_SHARE = 0.2
"""Share of each class that is held out when a set comes without a split."""


class ImageSource(ABC):
    """Labelled pictures that are read one at a time.

    Attributes:
        labels: int64 ``[N]``, the class of each picture; or bool ``[N, classes]``, true for its classes.
    """

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what a user finds picture ``index`` by: its file, or its place in the set."""

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Return the bytes of picture ``index`` as they are stored; equal ones are the same picture.

        Raises:
            BadImageError: They cannot be read.
        """

    def read(self, index: int) -> Image.Image:
        """Return picture ``index`` as RGB.

        Raises:
            BadImageError: It cannot be read.
        """
        try:
            return decode_image(self.content(index))
        except BadImageError as error:  # the name is looked up for the few that need one
            raise BadImageError(self.name(index), error.reason) from error

    def part(self, begin: int, end: int) -> "ImageSource":
        """Return the pictures from ``begin`` to before ``end``, with no more than reading them takes."""
        return SubsetSource(self, np.arange(begin, end))

    def fingerprint(self) -> str:
        """Return what differs where pictures were added, removed, renamed or put in another order."""
        return digest(self.name(index) for index in range(len(self)))


class ArraySource(ImageSource):
    """Pictures that are in memory already.

    Args:
        images: uint8 ``[N, H, W]`` (grey) or ``[N, H, W, 3]``.
        labels: The class of each, ``[N]``.
        name: What the set is called.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str):
        self.images = images
        self.labels = np.asarray(labels, dtype=np.int64)
        self._name = name

    def name(self, index: int) -> str:
        """Return the set's name and the picture's place in it."""
        return f"{self._name}[{index}]"

    def content(self, index: int) -> bytes:
        """Return the pixels of picture ``index``."""
        return self.images[index].tobytes()

    def read(self, index: int) -> Image.Image:
        """Return picture ``index`` as RGB."""
        return Image.fromarray(self.images[index]).convert("RGB")


class FileSource(ImageSource):
    """Pictures in files.

    Args:
        files: Their paths.
        labels: As ``ImageSource.labels``.
    """

    def __init__(self, files: Sequence[Path | str], labels: np.ndarray):
        self._files = [str(file) for file in files]  # strings: a tenth of the memory of Path objects
        self.labels = labels

    def name(self, index: int) -> str:
        """Return the path of picture ``index``."""
        return self._files[index]

    def content(self, index: int) -> bytes:
        """Read the file of picture ``index``."""
        return read_image(Path(self._files[index]))

    def part(self, begin: int, end: int) -> "FileSource":
        """Return the pictures from ``begin`` to before ``end``."""
        return FileSource(self._files[begin:end], self.labels[begin:end])


class HubSource(ImageSource):
    """Rows of a Hugging Face dataset, decoded here so that bad ones are told apart.

    Args:
        rows: A ``datasets.Dataset`` whose image column is cast to ``Image(decode=False)``.
        column: The name of that column.
        labels: As ``ImageSource.labels``.
        name: What the set is called.
    """

    def __init__(self, rows: Any, column: str, labels: np.ndarray, name: str):
        self._rows = rows
        self._column = column
        self.labels = labels
        self._name = name
        self._first = 0  # the place in the set of the first row

    def name(self, index: int) -> str:
        """Return the row's place in the set, and its file name where the set keeps one."""
        path = (self._rows[index][self._column] or {}).get("path")
        return f"{self._name}[{self._first + index}]" + (f" ({path})" if path else "")

    def content(self, index: int) -> bytes:
        """Return the image of row ``index``."""
        cell = self._rows[index][self._column] or {}  # a missing picture is a null cell
        if cell.get("bytes") is None and cell.get("path"):
            return read_image(Path(cell["path"]))
        return cell.get("bytes") or b""

    def part(self, begin: int, end: int) -> "HubSource":
        """Return the rows from ``begin`` to before ``end``."""
        part = copy.copy(self)
        part._rows = self._rows.select(range(begin, end))
        part.labels = self.labels[begin:end]
        part._first = self._first + begin
        return part

    def fingerprint(self) -> str:
        """Return the fingerprint that the library derives from the files: to read all rows takes long."""
        return digest([self._name, str(self._first), self._rows._fingerprint])


class SubsetSource(ImageSource):
    """Some pictures of another source."""

    def __init__(self, source: ImageSource, indices: np.ndarray):
        self._source = source
        self._indices = indices
        self.labels = source.labels[indices]

    def name(self, index: int) -> str:
        """Return what a user finds picture ``index`` by."""
        return self._source.name(int(self._indices[index]))

    def content(self, index: int) -> bytes:
        """Return the bytes of picture ``index``."""
        return self._source.content(int(self._indices[index]))

    def read(self, index: int) -> Image.Image:
        """Return picture ``index`` as RGB."""
        return self._source.read(int(self._indices[index]))


class JoinedSource(ImageSource):
    """The pictures of several sources, one after the other.

    Args:
        sources: Each with labels of the same kind.
    """

    def __init__(self, sources: Sequence[ImageSource]):
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])
        self.labels = np.concatenate([source.labels for source in sources])

    def _find(self, index: int) -> tuple[ImageSource, int]:
        """Return the source of a picture, and its place there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self._sources[number]
        return source, index - int(self._ends[number]) + len(source)

    def name(self, index: int) -> str:
        """Return the name that the picture has in its source."""
        source, place = self._find(index)
        return source.name(place)

    def content(self, index: int) -> bytes:
        """Return the bytes of picture ``index`` as its source has them."""
        source, place = self._find(index)
        return source.content(place)

    def read(self, index: int) -> Image.Image:
        """Return picture ``index`` as RGB."""
        source, place = self._find(index)
        return source.read(place)

    def part(self, begin: int, end: int) -> ImageSource:
        """Return the pictures from ``begin`` to before ``end``."""
        starts = self._ends - [len(source) for source in self._sources]
        spans = zip(self._sources, starts.tolist(), strict=True)
        parts = [
            source.part(max(begin - start, 0), min(end - start, len(source)))
            for source, start in spans
            if start < end and begin < start + len(source)
        ]
        return JoinedSource(parts)

    def fingerprint(self) -> str:
        """Return what differs where that of a source does."""
        return digest(source.fingerprint() for source in self._sources)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set to train on and to measure on.

    Attributes:
        name: The spec it was loaded from.
        classes: The class names; a label is a place in this tuple.
        train: Pictures to learn from; every class has at least one.
        val: Pictures held out.
        mirror: Whether a mirrored picture is still of its class (not so for digits).

    Raises:
        UserError: There are fewer than two classes (one, if several may be in a picture), a class without
            training pictures, nothing held out, or a label that is no class.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSource
    val: ImageSource
    mirror: bool = True

    def __post_init__(self) -> None:
        if len(self.classes) < (1 if self.multilabel else 2):
            only = f" ({self.classes[0]!r})" if self.classes else ""
            raise UserError(f"{self.name}: {len(self.classes)} class{only}; a classifier needs at least two")
        for part, source in (("training", self.train), ("held-out", self.val)):
            if not len(source):
                raise UserError(f"{self.name}: no {part} images")
            if self.multilabel:
                continue
            odd = source.labels[(source.labels < 0) | (source.labels >= len(self.classes))]
            if len(odd):
                without = f"{len(odd)} {part} images without a class (label {odd[0]})"
                raise UserError(f"{self.name}: {without}; choose a labelled split")
        counts = self.count(self.train)
        empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if empty:
            raise UserError(
                f"{self.name}: no training images of {shorten(empty)}; add some or drop the class"
            )

    @property
    def multilabel(self) -> bool:
        """Whether a picture may have several classes, or none."""
        return self.train.labels.ndim == 2

    def count(self, source: ImageSource) -> np.ndarray:
        """Return how many pictures of one of the two parts each class is in, ``[classes]``."""
        if self.multilabel:
            return source.labels.sum(axis=0)
        return np.bincount(source.labels, minlength=len(self.classes))


def unlabelled(count: int) -> np.ndarray:
    """Return the labels of pictures of which nobody says what they show: -1 for each."""
    return np.full(count, -1, dtype=np.int64)


def digest(words: Iterable[str]) -> str:
    """Return the SHA-256 of words, in hexadecimal, with their ends told apart."""
    result = hashlib.sha256()
    for word in words:
        result.update(word.encode("utf-8", "surrogateescape") + b"\0")
    return result.hexdigest()


def user_path(text: str) -> Path:
    """Return a path as a user writes it, with ``~`` for a home folder.

    Raises:
        UserError: ``~NAME`` names nobody, or there is a zero byte.
    """
    if "\0" in text:
        raise UserError(f"{text!r}: a path has no zero byte")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: there is no such home folder") from error


def stratified_split(labels: np.ndarray, classes: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out ``VAL_SHARE`` of every class, at least one picture, by chance.

    Where a picture has one class, each class is split the same way whatever the others hold. Where it may
    have several, the rarest class is split first, and then of each next one what is not yet on either side
    (after Sechidis et al. 2011), so that rare classes are on both.

    Args:
        labels: As ``ImageSource.labels``.
        classes: The class names, for errors.
        seed: The same seed gives the same split.

    Returns:
        The sorted places of the pictures to train on, and of those held out.

    Raises:
        UserError: A class has fewer than two pictures.
    """
    groups = [
        np.flatnonzero(labels[:, label] if labels.ndim == 2 else labels == label)
        for label in range(len(classes))
    ]
    for group, name in zip(groups, classes, strict=True):
        if len(group) < 2:
            few = "1 image" if len(group) else "no image"
            raise UserError(f"class {name!r} has {few}; add some, for it takes one to learn and one to check")
    held_out, free = np.zeros(len(labels), dtype=bool), np.ones(len(labels), dtype=bool)
    rarest_first = sorted(range(len(classes)), key=lambda label: len(groups[label]))
    for label in rarest_first:
        members = groups[label]
        least = 0 if held_out[members].any() else 1
        members = np.random.default_rng([seed, label]).permutation(members[free[members]])
        held_out[members[: max(least, round(VAL_SHARE * len(members)))]] = True
        free[members] = False
    rest = np.random.default_rng([seed, len(classes)]).permutation(np.flatnonzero(free))  # of no class
    held_out[rest[: round(VAL_SHARE * len(rest))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def hold_out(
    name: str, classes: tuple[str, ...], source: ImageSource, seed: int, mirror: bool = True
) -> ImageData:
    """Make a data set of a source that comes without a split, by ``stratified_split``.

    Raises:
        UserError: The set cannot be split, or not be trained on.
    """
    try:
        train, val = stratified_split(source.labels, classes, seed)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return ImageData(name, classes, SubsetSource(source, train), SubsetSource(source, val), mirror)


def check_same_classes(
    name: str,
    train: Sequence[str],
    val: Sequence[str],
    parts: tuple[str, str] = ("the training part", "the held-out part"),
) -> None:
    """Refuse two parts that do not have the same classes in the same order.

    Args:
        name: What to call the whole in the error.
        train: Classes of the one.
        val: Classes of the other.
        parts: What to call the two.

    Raises:
        UserError: With the classes that only one part has.
    """
    if tuple(train) == tuple(val):
        return
    extra = [
        f"only {part} has {shorten(names)}"
        for part, names in (
            (parts[0], [name for name in dict.fromkeys(train) if name not in set(val)]),
            (parts[1], [name for name in dict.fromkeys(val) if name not in set(train)]),
        )
        if names
    ]
    raise UserError(f"{name}: the classes differ: {'; '.join(extra) or 'the same in another order'}")
