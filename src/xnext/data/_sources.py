"""A source is a labelled list of pictures; a data set is two of them and the names of the classes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xnext.data._decode import decode_image
from xnext.errors import UserError, shorten

VAL_SHARE = 0.2
"""Share of each class that is held out when a set comes without a split."""


class ImageSource(ABC):
    """Labelled pictures that are read one at a time.

    Attributes:
        labels: int64 ``[N]``, the class of each picture.
    """

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what a user finds picture ``index`` by: its file, or its place in the set."""

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """Return picture ``index`` as RGB.

        Raises:
            BadImageError: It cannot be read.
        """


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

    def read(self, index: int) -> Image.Image:
        """Return picture ``index`` as RGB."""
        return Image.fromarray(self.images[index]).convert("RGB")


class FileSource(ImageSource):
    """Pictures in files.

    Args:
        files: Their paths.
        labels: The class of each, ``[N]``.
    """

    def __init__(self, files: Sequence[Path | str], labels: np.ndarray):
        self._files = [str(file) for file in files]  # strings: a tenth of the memory of Path objects
        self.labels = np.asarray(labels, dtype=np.int64)

    def name(self, index: int) -> str:
        """Return the path of picture ``index``."""
        return self._files[index]

    def read(self, index: int) -> Image.Image:
        """Decode the file of picture ``index``."""
        return decode_image(Path(self._files[index]))


class HubSource(ImageSource):
    """Rows of a Hugging Face dataset, decoded here so that bad ones are told apart.

    Args:
        rows: A ``datasets.Dataset`` whose image column is cast to ``Image(decode=False)``.
        column: The name of that column.
        labels: The class of each row, ``[N]``.
        name: What the set is called.
    """

    def __init__(self, rows: Any, column: str, labels: np.ndarray, name: str):
        self._rows = rows
        self._column = column
        self.labels = np.asarray(labels, dtype=np.int64)
        self._name = name

    def name(self, index: int) -> str:
        """Return the row's place in the set, and its file name where the set keeps one."""
        path = (self._rows[index][self._column] or {}).get("path")
        return f"{self._name}[{index}]" + (f" ({path})" if path else "")

    def read(self, index: int) -> Image.Image:
        """Decode row ``index``."""
        cell = self._rows[index][self._column] or {}  # a missing picture is a null cell
        if cell.get("bytes") is None and cell.get("path"):
            return decode_image(Path(cell["path"]))
        return decode_image(cell.get("bytes") or b"", self.name(index))


class _SubsetSource(ImageSource):
    """Some pictures of another source."""

    def __init__(self, source: ImageSource, indices: np.ndarray):
        self._source = source
        self._indices = indices
        self.labels = source.labels[indices]

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def read(self, index: int) -> Image.Image:
        return self._source.read(int(self._indices[index]))


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
        UserError: There are fewer than two classes, a class without training pictures, nothing held out, or a
            label that is no class.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSource
    val: ImageSource
    mirror: bool = True

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            only = f" ({self.classes[0]!r})" if self.classes else ""
            raise UserError(f"{self.name}: {len(self.classes)} class{only}; a classifier needs at least two")
        for part, source in (("training", self.train), ("held-out", self.val)):
            if not len(source):
                raise UserError(f"{self.name}: no {part} images")
            odd = source.labels[(source.labels < 0) | (source.labels >= len(self.classes))]
            if len(odd):
                without = f"{len(odd)} {part} images without a class (label {odd[0]})"
                raise UserError(f"{self.name}: {without}; choose a labelled split")
        counts = np.bincount(self.train.labels, minlength=len(self.classes))
        empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if empty:
            raise UserError(
                f"{self.name}: no training images of {shorten(empty)}; add some or drop the class"
            )


def user_path(text: str) -> Path:
    """Return a path as a user writes it, with ``~`` for a home folder.

    Raises:
        UserError: ``~NAME`` names nobody.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: there is no such home folder") from error


def stratified_split(labels: np.ndarray, classes: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out ``VAL_SHARE`` of every class, at least one picture, by chance.

    A class is split the same way whatever the others hold.

    Args:
        labels: The class of each picture, ``[N]``.
        classes: The class names, for errors.
        seed: The same seed gives the same split.

    Returns:
        The sorted places of the pictures to train on, and of those held out.

    Raises:
        UserError: A class has fewer than two pictures.
    """
    train, val = [], []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            few = "1 image" if len(members) else "no image"
            raise UserError(f"class {name!r} has {few}; add some, for it takes one to learn and one to check")
        members = np.random.default_rng([seed, label]).permutation(members)
        held_out = max(1, round(VAL_SHARE * len(members)))
        val.append(members[:held_out])
        train.append(members[held_out:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


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
    return ImageData(name, classes, _SubsetSource(source, train), _SubsetSource(source, val), mirror)


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
