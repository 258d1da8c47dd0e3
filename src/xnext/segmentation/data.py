"""Images with a mask each: where they come from."""

import json
import re
import shlex
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from xnext.data import BadImageError, FileSource, ImageSource, unlabelled, user_path
from xnext.data._decode import decode_by, images_below
from xnext.data._hub import load_hub_pairs
from xnext.data._load import SpecKind, absolute_folder, absolute_path, reading
from xnext.data._sources import VAL_SHARE, SubsetSource
from xnext.errors import UserError, shorten

IGNORE = 255
"""What a place of a mask has that is no class and does not count."""

CLASSES_FILE = "classes.txt"
"""In a folder, the names of the classes, one a line."""

MASK_SPECS = "a folder with images/ and masks/, or hf:NAME_OR_FOLDER"

_ADE20K = "objectInfo150.txt"  # the list of classes in the folder that ADE20K's zip makes
_MASK_FOLDERS = ("annotations", "masks")
_TRAIN_FOLDERS = ("training", "train")
_VAL_FOLDERS = ("validation", "val")
_MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B")

Pairs = tuple[ImageSource, ImageSource]


class MaskSource(ImageSource):
    """Pictures with a mask each.

    Args:
        images: The pictures.
        masks: Their masks, in the same order; as pictures of a source they are never read.
        first: The value of the first class in the files; those below it are ignored.
    """

    def __init__(self, images: ImageSource, masks: ImageSource, first: int = 0):
        self._images, self._masks, self._first = images, masks, first
        # What tells these from others where a training goes on: there is no one label a picture.
        names = (zlib.crc32(masks.name(index).encode()) for index in range(len(masks)))
        self.labels = np.fromiter(names, dtype=np.int64, count=len(masks))

    def name(self, index: int) -> str:
        """Return what a user finds picture ``index`` by."""
        return self._images.name(index)

    def mask_name(self, index: int) -> str:
        """Return what a user finds its mask by."""
        return self._masks.name(index)

    def content(self, index: int) -> bytes:
        """Return the bytes of picture ``index``."""
        return self._images.content(index)

    def values(self, index: int) -> np.ndarray:
        """Return the values that the file of the mask of picture ``index`` has: int64 [H, W].

        Raises:
            BadImageError: It cannot be read, or is a colour picture.
        """
        return decode_mask(self._masks.content(index), self.mask_name(index))

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """Return what values of files mean: int64, classes, ``IGNORE``, or others that are neither."""
        ignored = (values == IGNORE) | ((values >= 0) & (values < self._first))
        places = values - self._first
        # A value that is no class must not become one that is ignored.
        return np.where(ignored, IGNORE, np.where(places == IGNORE, values, places))

    def mask(self, index: int) -> np.ndarray:
        """Return the mask of picture ``index``: int64 [H, W] of classes and ``IGNORE``.

        Raises:
            BadImageError: It cannot be read, or is a colour picture.
        """
        return self.numbers(self.values(index))

    def pair(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Return picture ``index`` as RGB, and its mask.

        Raises:
            BadImageError: One of them cannot be read, or they have different sizes.
        """
        image, mask = self.read(index), self.mask(index)
        if image.size != mask.shape[::-1]:
            raise BadImageError(self.mask_name(index), "has another size than its image")
        return image, mask


def decode_mask(content: bytes, name: str) -> np.ndarray:
    """Return the values of a mask, int64 [H, W]: numbers of a grey picture, places of a palette.

    Raises:
        BadImageError: It cannot be read, or is a colour picture.
    """

    def values(image: Image.Image) -> np.ndarray:
        if image.mode not in _MASK_MODES:
            raise BadImageError(name, f"is a picture of mode {image.mode}, and a mask has one number a place")
        return np.asarray(image).astype(np.int64)

    return decode_by(values, content, name)


@dataclass(frozen=True, eq=False)
class MaskData:
    """Images with masks, to train on and to measure on.

    Attributes:
        name: The spec they were loaded from.
        classes: The class names; a value of a mask is a place in this tuple, or ``IGNORE``.
        train: Pictures to learn from.
        val: Pictures held out.
        without_mask: Names of pictures that have no mask, and are in neither part.
        without_image: Names of masks without a picture.
        mirror: Whether a mirrored picture has the mirrored mask.
        multilabel: Whether a picture has several labels, as classifiers mean it: no.
    """

    name: str
    classes: tuple[str, ...]
    train: MaskSource
    val: MaskSource
    without_mask: tuple[str, ...] = ()
    without_image: tuple[str, ...] = ()
    mirror: bool = True
    multilabel: bool = False


def load_masks(spec: str, seed: int = 0, partial: bool = False) -> MaskData:
    """Load the images and masks that a spec names.

    A folder has ``images/`` and ``annotations/`` or ``masks/``, with the same files in both but for their
    endings; in each ``training/`` or ``train/`` and ``validation/`` or ``val/``, or else ``seed`` holds out
    a fifth. The classes stand in ``classes.txt``, one a line, the first of value 0. The folder of ADE20K's
    zip is taken as it is: its list of classes begins with value 1, and 0 is ignored.

    ``hf:NAME_OR_FOLDER`` is a Hugging Face dataset with a column of images and one of masks; its options are
    ``image`` and ``mask``: the columns, and ``train``, ``val`` and ``config``, as for images with labels.

    Options of both, as ``SPEC?key=value&key=value``, are ``classes``: a file of class names, one a line or a
    JSON object by number; ``first``: the value of the first class, those below it are ignored.

    Args:
        spec: The spec.
        seed: Decides what is held out where nothing is.
        partial: Whether images without a mask are left out, and not a mistake.

    Raises:
        UserError: There are no such images, or not one mask for each.
    """
    kind = _find_kind(spec)
    with reading(spec):
        data: MaskData = kind.load(spec, *kind.parse(spec), seed)
    if data.without_mask and not partial:
        raise UserError(
            f"{spec}: images without a mask ({len(data.without_mask):,}): {shorten(data.without_mask)};"
            f" add masks, or remove the images (xnext segment check {shlex.quote(spec)} --json lists them)"
        )
    return data


def absolute_mask_spec(spec: str) -> str:
    """Return a spec that names the same images and masks from any working folder.

    Raises:
        UserError: It is no spec.
    """
    return _find_kind(spec).absolute_spec(spec)


def _load_folder(spec: str, target: str, options: dict[str, str], seed: int) -> MaskData:
    root = user_path(target)
    if not root.is_dir():
        raise UserError(f"{spec}: no such folder; --data takes {MASK_SPECS}")
    images, masks = root / "images", _only(root, _MASK_FOLDERS)
    if all((root / name).is_dir() for name in _MASK_FOLDERS):
        raise UserError(f"{spec}: has both {' and '.join(f'{name}/' for name in _MASK_FOLDERS)}; keep one")
    if masks is None or not images.is_dir():
        raise UserError(f"{spec}: has no images/ with {' or '.join(f'{name}/' for name in _MASK_FOLDERS)}")
    train, val = _only(images, _TRAIN_FOLDERS), _only(images, _VAL_FOLDERS)
    if alone := (train or val) if train is None or val is None else None:
        raise UserError(f"{images}: has {alone.name}/ alone; put train/ and val/ there, or neither")
    if train is None or val is None:
        found = [_pair(images, masks)]
    else:
        found = [_pair(part, masks / part.name) for part in (train, val)]
    data = _join(spec, [one.pairs for one in found], *_read_classes(root, options), seed)
    return replace(
        data,
        without_mask=tuple(name for one in found for name in one.without_mask),
        without_image=tuple(name for one in found for name in one.without_image),
    )


def _load_hub(spec: str, target: str, options: dict[str, str], seed: int) -> MaskData:
    parts = load_hub_pairs(spec, target, options)
    return _join(spec, parts, *_read_classes(user_path(target), options), seed)


_OPTIONS = ("classes", "first")
_HUB = SpecKind(
    "hf:", _load_hub, ("train", "val", "image", "mask", "config", *_OPTIONS),
    {"": absolute_folder, "classes": absolute_path},
)  # fmt: skip
_FOLDER = SpecKind("", _load_folder, _OPTIONS, {"": absolute_folder, "classes": absolute_path})


def _find_kind(spec: str) -> SpecKind:
    if not spec.strip():
        raise UserError(f"the data spec is empty; give {MASK_SPECS}")
    return _HUB if spec.startswith(_HUB.prefix) else _FOLDER


def _join(spec: str, parts: Sequence[Pairs], classes: tuple[str, ...], first: int, seed: int) -> MaskData:
    """Make a data set of the training part and the held-out part, or of one that ``seed`` splits."""
    if len(parts) == 1:
        parts = _hold_out(parts[0], seed)
    for name, (images, _) in zip(("training", "held-out"), parts, strict=True):
        if not len(images):
            raise UserError(f"{spec}: no {name} images with masks")
    train, val = (MaskSource(*pairs, first) for pairs in parts)
    return MaskData(spec, classes, train, val)


def _hold_out(pairs: Pairs, seed: int) -> list[Pairs]:
    count = len(pairs[0])
    order = np.random.default_rng(seed).permutation(count)
    held_out = max(1, round(VAL_SHARE * count))
    parts: list[Pairs] = []
    for places in (np.sort(order[held_out:]), np.sort(order[:held_out])):
        images, masks = (SubsetSource(source, places) for source in pairs)
        parts.append((images, masks))
    return parts


def _only(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _read_classes(root: Path, options: dict[str, str]) -> tuple[tuple[str, ...], int]:
    """Return the names of the classes, and the value of the first."""
    first, listed = options.get("first", "0"), root / _ADE20K
    if not first.isdecimal():
        raise UserError(f"first is {first!r}; it must be a whole number, the value of the first class")
    if "classes" in options:
        path = user_path(options["classes"])
    elif not (root / CLASSES_FILE).is_file() and listed.is_file():
        path, first = listed, options.get("first", "1")
    else:
        path = root / CLASSES_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: cannot be read ({reason}); write a class name a line there, or give ?classes=FILE"
        ) from error
    names = _read_names(path, text)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not 2 <= len(names) <= IGNORE:
        wrong = f"names {shorten(twice)} twice" if twice else f"names {len(names)} classes"
        raise UserError(f"{path}: {wrong}; it takes 2 to {IGNORE} different ones, a line each")
    return names, int(first)


def _read_names(path: Path, text: str) -> tuple[str, ...]:
    """Return the class names of a list, of an object by number, or of ADE20K's table."""
    lines = text.splitlines()
    if path.suffix.lower() == ".json":
        try:
            numbered = {int(number): str(name) for number, name in json.loads(text).items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f'{path}: is no JSON object as {{"0": "wall", "1": "sky"}}') from error
        if sorted(numbered) != list(range(len(numbered))):
            raise UserError(f"{path}: its numbers are not 0 to {len(numbered) - 1}")
        lines = [numbered[number] for number in range(len(numbered))]
    elif path.name == _ADE20K:  # a table: number, three shares, names
        lines = [re.split(r"\t+|\s{2,}", line.strip())[-1] for line in lines[1:]]
    names = [line.strip() for line in "\n".join(lines).strip().splitlines()]
    if "" in names:
        raise UserError(f"{path}: line {names.index('') + 1} is empty; each class has one")
    return tuple(names)


def _by_stem(folder: Path) -> dict[Path, Path]:
    """Return the pictures below a folder by their paths in it without endings."""
    files: dict[Path, Path] = {}
    for file in images_below(folder):
        other = files.setdefault(file.relative_to(folder).with_suffix(""), file)
        if other != file:
            raise UserError(f"{other} and {file} differ in their endings alone; rename or remove one")
    return files


class _Folder(NamedTuple):
    """Pictures with their masks, and the names of those that are alone."""

    pairs: Pairs
    without_mask: list[str]
    without_image: list[str]


def _pair(images: Path, masks: Path) -> _Folder:
    """Return images with their masks, by their paths without endings."""
    if not masks.is_dir():
        raise UserError(f"{masks}: no such folder; it must have the masks of {images}")
    pictures, found = _by_stem(images), _by_stem(masks)
    both = [key for key in pictures if key in found]
    if pictures and not both:
        some = shorten([str(key) for key in pictures], 2)
        raise UserError(f"{masks}: no mask has the name of an image in {images}, as {some}")
    nothing = unlabelled(len(both))
    sources, answers = (FileSource([files[key] for key in both], nothing) for files in (pictures, found))
    return _Folder(
        (sources, answers),
        [str(path) for key, path in pictures.items() if key not in found],
        [str(path) for key, path in found.items() if key not in pictures],
    )
