"""Images with a mask each: where they come from, and what is odd about them before a training is."""

import io
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from xnext.data import BadImageError, FileSource, ImageSource, user_path
from xnext.data._decode import images_below
from xnext.data._sources import VAL_SHARE
from xnext.errors import UserError, shorten

IGNORE = 255
"""What a place of a mask has that is no class and does not count."""

_CLASSES = "classes.txt"
_ADE20K = "objectInfo150.txt"  # the list of classes in the folder that ADE20K's zip makes
_MASK_FOLDERS = ("annotations", "masks")
_TRAIN_FOLDERS = ("training", "train")
_VAL_FOLDERS = ("validation", "val")
_MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B")


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

    def mask(self, index: int) -> np.ndarray:
        """Return the mask of picture ``index``: int64 [H, W] of classes and ``IGNORE``.

        Raises:
            BadImageError: It cannot be read, or is a colour picture.
        """
        values = decode_mask(self._masks.content(index), self.mask_name(index))
        ignored = (values == IGNORE) | ((values >= 0) & (values < self._first))
        return np.where(ignored, IGNORE, values - self._first)


def decode_mask(content: bytes, name: str) -> np.ndarray:
    """Return the values of a mask, int64 [H, W]: numbers of a grey picture, places of a palette.

    Raises:
        BadImageError: It cannot be read, or is a colour picture.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode = image.mode
            values = np.asarray(image) if mode in _MASK_MODES else None
    except Exception as error:  # Pillow's parsers raise whatever damaged bytes lead them to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BadImageError(name, f"cannot be read as a mask ({reason})") from error
    if values is None:
        raise BadImageError(name, f"is a picture of mode {mode}, and a mask has one number a place")
    return values.astype(np.int64)


@dataclass(frozen=True, eq=False)
class MaskData:
    """Images with masks, to train on and to measure on.

    Attributes:
        name: The spec they were loaded from.
        classes: The class names; a value of a mask is a place in this tuple, or ``IGNORE``.
        train: Pictures to learn from.
        val: Pictures held out.
        mirror: Whether a mirrored picture has the mirrored mask.
        multilabel: Whether a picture has several labels, as classifiers mean it: no.
    """

    name: str
    classes: tuple[str, ...]
    train: MaskSource
    val: MaskSource
    mirror: bool = True
    multilabel: bool = False


def load_masks(spec: str, seed: int = 0) -> MaskData:
    """Load images and masks from a folder.

    It has ``images/`` and ``annotations/`` or ``masks/``, with the same files in both but for their endings;
    in each ``training/`` or ``train/`` and ``validation/`` or ``val/``, or else ``seed`` holds out a fifth.
    The classes stand in ``classes.txt``, one a line, the first of value 0. The folder of ADE20K's zip is
    taken as it is: its list of classes begins with value 1, and 0 is ignored.

    Args:
        spec: The folder.
        seed: Decides what is held out where nothing is.

    Raises:
        UserError: There is no such folder, or not one mask for each image.
    """
    root = user_path(spec)
    if not root.is_dir():
        raise UserError(f"{spec}: no such folder; give one with images/, masks/ and {_CLASSES}")
    images, masks = root / "images", _only(root, _MASK_FOLDERS)
    if masks is None or not images.is_dir():
        raise UserError(f"{spec}: has no images/ with {' or '.join(f'{name}/' for name in _MASK_FOLDERS)}")
    classes, first = _read_classes(root)
    train, val = _only(images, _TRAIN_FOLDERS), _only(images, _VAL_FOLDERS)
    if alone := (train or val) if train is None or val is None else None:
        raise UserError(f"{images}: has {alone.name}/ alone; put train/ and val/ there, or neither")
    if train is None or val is None:
        pairs = _pair(images, masks)
        order = np.random.default_rng(seed).permutation(len(pairs))
        held_out = set(order[: max(1, round(VAL_SHARE * len(pairs)))].tolist())
        parts = [
            [pair for place, pair in enumerate(pairs) if (place in held_out) == held]
            for held in (False, True)
        ]
    else:
        parts = [_pair(part, masks / part.name) for part in (train, val)]
    for part, pairs in zip(("training", "held-out"), parts, strict=True):
        if not pairs:
            raise UserError(f"{spec}: no {part} images")
    learnt, held_out_part = (_source(pairs, first) for pairs in parts)
    return MaskData(spec, classes, learnt, held_out_part)


def _source(pairs: Sequence[tuple[Path, Path]], first: int) -> MaskSource:
    nothing = np.zeros(len(pairs), dtype=np.int64)
    images, masks = (FileSource([pair[place] for pair in pairs], nothing) for place in range(2))
    return MaskSource(images, masks, first)


def _only(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _read_classes(root: Path) -> tuple[tuple[str, ...], int]:
    """Return the names of the classes, and the value of the first."""
    path, first = root / _CLASSES, 0
    if not path.is_file() and (root / _ADE20K).is_file():
        path, first = root / _ADE20K, 1
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); write a class name a line there") from error
    if first:  # a table: number, three shares, names
        lines = [line.split("\t")[-1].strip() for line in lines[1:]]
    names = tuple(line.strip() for line in lines if line.strip())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not 2 <= len(names) <= IGNORE:
        wrong = f"names {shorten(twice)} twice" if twice else f"names {len(names)} classes"
        raise UserError(f"{path}: {wrong}; it takes 2 to {IGNORE} different ones, a line each")
    return names, first


def _pair(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Return images with their masks, by their paths without endings."""
    if not masks.is_dir():
        raise UserError(f"{masks}: no such folder; it must have the masks of {images}")
    pictures, found = (
        {file.relative_to(folder).with_suffix(""): file for file in images_below(folder)}
        for folder in (images, masks)
    )
    alone = [str(pictures[key]) for key in pictures if key not in found]
    if alone:
        raise UserError(f"{masks}: has no mask of {shorten(alone)}; add them, or remove the images")
    return [(picture, found[key]) for key, picture in pictures.items()]


@dataclass(frozen=True)
class MaskReport:
    """What the masks of a data set hold.

    Attributes:
        shares: For each part, the share of its places that each class has, and last what is ignored.
        images: For each part, in how many masks each class is.
        unreadable: Names of images or masks that cannot be read, each with the reason.
    """

    shares: dict[str, np.ndarray]
    images: dict[str, np.ndarray]
    unreadable: dict[str, str]


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
            what = {"train": "training", "val": "held-out"}[part]
            raise UserError(f"{data.name}: no place of any {what} mask has a class")
    return MaskReport(
        {part: total / max(1, total.sum()) for part, total in totals.items()}, images, unreadable
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
