"""The sets that ImageNet classifiers are held against: what is in them, and which answers count as right."""

import json
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import timm.data
from timm.data import ImageNetInfo

from xnext.data import ImageSource, load_data
from xnext.data._load import scan_classes
from xnext.data._sources import FileSource, user_path
from xnext.errors import UserError, shorten

CLASSES = 1000
_VAL = ("val", "validation")


@dataclass(frozen=True)
class TestSet:
    """Images and which answers are right.

    Attributes:
        source: The images.
        right: bool [images, classes], of all 1,000 classes.
        columns: Of a set of fewer classes, which those are: with `masked` answers these alone are given.
    """

    source: ImageSource
    right: np.ndarray
    columns: np.ndarray | None = None

    @property
    def places(self) -> np.ndarray:
        """Which of the network's classes may be answered, in the order of the answers: int64 [classes]."""
        return np.arange(self.right.shape[1]) if self.columns is None else self.columns


@dataclass(frozen=True)
class Kind:
    """A kind of set.

    Attributes:
        what: In a few words, for the help.
        subset: Name of timm's lists of its classes, which are fewer; None: all 1,000.
        real: Whether the labels are those of "Are we done with ImageNet?", of which an image may have
            several, or none and then does not count.
    """

    what: str
    subset: str | None = None
    real: bool = False


SETS = {
    "imagenet": Kind("ImageNet's validation images"),
    "real": Kind("the same with ReaL labels", real=True),
    "v2": Kind("ImageNetV2"),
    "a": Kind("ImageNet-A", subset="imagenet_a"),
    "r": Kind("ImageNet-R", subset="imagenet_r"),
    "sketch": Kind("ImageNet-Sketch"),
}
"""By the names of the command line."""


def load_set(name: str, spec: str) -> TestSet:
    """Load a set from its own layout: class folders called by WordNet ids, or in ImageNetV2 by numbers.

    A folder may hold fewer classes, and `val/` or `validation/` instead of the class folders. Other specs of
    data give their held-out images; their classes are called in the same way.

    Args:
        name: One of ``SETS``.
        spec: The folder, or what `load_data` takes.

    Raises:
        UserError: There are no images, or their classes are not those of ImageNet.
    """
    kind = SETS[name]
    folder = user_path(spec)
    if folder.is_dir():
        root = next((folder / part for part in _VAL if (folder / part).is_dir()), folder)
        classes, files = scan_classes(root)
        source: ImageSource = files
    else:
        data = load_data(spec)
        if data.multilabel:
            raise UserError(f"{spec}: has several classes an image, which no set of ImageNet has")
        classes, source = data.classes, data.val
    places = _places(spec, classes, kind.subset)
    right = np.zeros((len(source), CLASSES), dtype=bool)
    right[np.arange(len(source)), places[source.labels]] = True
    columns = None
    if kind.real:
        source, right = _relabel(spec, source)
    elif kind.subset is not None:
        columns = np.array([int(line) for line in _timm_list(f"{kind.subset}_indices.txt")])
    return TestSet(source, right, columns)


def _places(spec: str, classes: Sequence[str], subset: str | None) -> np.ndarray:
    """Return the place of each class among the 1,000."""
    known = {name: place for place, name in enumerate(ImageNetInfo().label_names())}
    allowed = known if subset is None else _timm_list(f"{subset}_synsets.txt")
    if subset is None and all(name.isdecimal() for name in classes):  # as in ImageNetV2
        numbers = [int(name) for name in classes]
        if len(set(numbers)) < len(numbers):
            raise UserError(f"{spec}: two class folders stand for the same number; keep one of each")
        if max(numbers) >= CLASSES:
            raise UserError(f"{spec}: class {max(numbers)} is none of ImageNet's, which go from 0 to 999")
        return np.array(numbers)
    if strange := [name for name in classes if name not in allowed]:
        whose = (subset or "ImageNet").replace("_", "-")
        raise UserError(
            f"{spec}: {shorten(strange)}: no class of {whose}; class folders are called by WordNet ids, like"
            " n01440764"
        )
    return np.array([known[name] for name in classes])


def _relabel(spec: str, source: ImageSource) -> tuple[ImageSource, np.ndarray]:
    """Give the images of ImageNet's validation set their ReaL labels; those without any are left out."""
    labels = _real_labels()
    numbers = []
    for index in range(len(source)):
        name = Path(source.name(index)).name
        number = name.removeprefix("ILSVRC2012_val_").partition(".")[0]
        if not number.isdecimal() or not 1 <= int(number) <= len(labels):
            raise UserError(
                f"{spec}: {name} is not called as an image of ImageNet's validation set, like"
                " ILSVRC2012_val_00000001.JPEG, which says which ReaL labels it has"
            )
        numbers.append(int(number))
    kept = [index for index, number in enumerate(numbers) if labels[number - 1]]
    if not kept:
        raise UserError(f"{spec}: none of the images has a ReaL label")
    right = np.zeros((len(kept), CLASSES), dtype=bool)
    for row, index in enumerate(kept):
        right[row, labels[numbers[index] - 1]] = True
    files = [source.name(index) for index in kept]
    return FileSource(files, right.argmax(axis=1)), right


@cache
def _real_labels() -> list[list[int]]:
    """Return timm's copy of the ReaL labels, one list an image of the validation set."""
    return json.loads(_timm_file("imagenet_real_labels.json"))


def _timm_list(name: str) -> list[str]:
    return _timm_file(name).split()


def _timm_file(name: str) -> str:
    """Return what stands in one of the files that come with timm."""
    content = pkgutil.get_data(timm.data.__name__, f"_info/{name}")
    assert content is not None, "timm has the file"
    return content.decode()
