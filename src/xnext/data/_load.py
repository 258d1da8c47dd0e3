"""The data spec: one string that says where images come from."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from xnext.data._decode import find_images, images_below, visible
from xnext.data._hub import hub_pictures, load_hub
from xnext.data._packed import load_packed
from xnext.data._shards import absolute_pattern, load_shards, shard_pictures
from xnext.data._sources import (
    ArraySource,
    FileSource,
    ImageData,
    ImageSource,
    JoinedSource,
    check_same_classes,
    hold_out,
    unlabelled,
    user_path,
)
from xnext.data._tables import TABLES, load_table, table_pictures
from xnext.errors import UserError, shorten, suggest

_VAL_FOLDERS = ("val", "validation", "test")
_DIGITS_SEED = 0
_SPECS = "digits, a folder of class folders, TABLE.csv, hf:NAME_OR_FOLDER, wds:SHARDS or torch/NAME"

# What timm serves as torch/NAME and needs no more than a root; the value is ImageData.mirror.
_TORCH_SETS = {
    "cifar10": True,
    "cifar100": True,
    "fashion_mnist": True,
    "imagenet": True,
    "kmnist": False,
    "mnist": False,
    "places365": True,
    "qmnist": False,
}


def load_data(spec: str, *, seed: int = 0) -> ImageData:
    """Load the data set that a spec names.

    ==========================  =====================================================================
    spec                        data set
    ==========================  =====================================================================
    ``digits``                  scikit-learn's 1,797 handwritten digits of 8x8, always split 80/20 alike
    ``FOLDER``                  ``train/`` and ``val/``, ``validation/`` or ``test/`` with a folder a class;
                                or class folders alone, of which ``seed`` holds out a fifth of each
    ``TABLE.csv``               a table of image paths and labels; also ``.tsv`` and ``.parquet``
    ``hf:NAME_OR_FOLDER``       a Hugging Face dataset: of the hub, or a local folder (parquet, …)
    ``wds:SHARDS``              WebDataset shards in local tar files: ``wds:photos-{000..127}.tar``
    ``torch/NAME``              a torchvision dataset by timm's name: ``torch/cifar100``, ``torch/mnist``
    ``packed:FOLDER``           a set that a search decoded once, for trainings at its image size
    ==========================  =====================================================================

    All but the first two take options after a question mark, ``SPEC?key=value&key=value``. Where nothing is
    held out, ``seed`` holds out a fifth of each class.

    - tables: ``image``: the column of paths, absolute or relative to the table's folder; ``label``: a column
      of one class a row, or ``labels``: a column of any number of classes, as ``cat|dog`` or ``cat;dog`` or
      apart by ``separator``, in Parquet also as a list; ``val``: a table of held-out images, or ``split``: a
      column of ``train``, ``val`` (``valid``, ``validation``) and ``test``, whose rows are held out where
      there are none of ``val``. Columns with plain names are found. Without a column of labels, all other
      columns are classes, and say 1 or 0 (true or false) of each row.
    - ``hf:`` ``train`` and ``val``: a split name, or a pattern of data files, such as
      ``train=data/train-00000*`` for the first shard only; ``image``, and ``label`` or ``labels`` (a column
      of lists): the columns, where they are not plain; ``config``: the dataset's configuration. Held out is
      the split ``validation``, ``val``, ``valid``, ``dev`` or ``test``.
    - ``wds:`` ``val``: the shards to hold out; ``classes``: a text file of class names, one a line, which
      numbers in the shards then stand for. Patterns have ranges, ``{a,b}``, ``*`` and ``~``.
    - ``torch/`` ``root``: the folder that holds or receives the files (by default ``datasets`` in torch's
      cache folder); ``download=true``: fetch what is missing.

    Args:
        spec: The spec. A folder called like another kind of spec is written with ``./`` before it.
        seed: Decides the split where the set has none.

    Returns:
        The data set, with labels read and no picture decoded yet.

    Raises:
        UserError: There is no such set, or it cannot be trained on; the line says what to mend.
    """
    if not spec.strip():
        raise UserError(f"the data spec is empty; give {_SPECS}")
    if spec == "digits":
        return _load_digits()
    with reading(spec):
        kind = _find_kind(spec)
        if not kind:
            return _load_folder(spec, seed)
        return kind.load(spec, *kind.parse(spec), seed)


@contextmanager
def reading(spec: str) -> Iterator[None]:
    """Turn what the system says where data cannot be read into the line that names their spec."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{spec}: cannot be read ({error.strerror or error})") from error


def absolute_spec(spec: str) -> str:
    """Return a spec that names the same images from any working folder.

    Raises:
        UserError: It is no spec.
    """
    if spec == "digits":
        return spec
    kind = _find_kind(spec)
    return kind.absolute_spec(spec) if kind else absolute_folder(spec)


def load_pictures(specs: Sequence[str]) -> ImageSource:
    """Find the pictures that specs name, which need no labels, and of which nothing is held out.

    A spec is an image file, a folder, of which every image below it is taken, a table (``TABLE.csv``,
    ``.tsv`` or ``.parquet``) of paths, ``wds:SHARDS`` or ``hf:NAME_OR_FOLDER``; the last two and tables as
    ``load_data`` has them. Tables take the option ``image``, and ``hf:`` takes ``image``, ``config`` and
    ``split``: a split's name or a pattern of data files; by default all splits are taken.

    Returns:
        The pictures in the order of the specs, by absolute paths, labelled -1; none is decoded yet.

    Raises:
        UserError: A spec names nothing, or what it names cannot be read.
    """
    return JoinedSource([_find_pictures(spec) for spec in specs])


def _find_pictures(spec: str) -> ImageSource:
    with reading(spec):
        kind = _find_kind(spec, _PICTURES)
        if kind:
            spec = kind.absolute_spec(spec)
            return kind.load(spec, *kind.parse(spec))
        files = find_images([Path(absolute_path(spec))])
        return FileSource(files, unlabelled(len(files)))


def absolute_path(text: str) -> str:
    """Return the absolute form of a path, without following a link that a file or folder itself may be."""
    path = user_path(text)
    return str(path.parent.resolve() / path.name)


def absolute_folder(text: str) -> str:
    """Return the absolute form of a folder's path, and anything else as it is."""
    return absolute_path(text) if user_path(text).is_dir() else text


def _load_digits() -> ImageData:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # ink from 0 to 16
    source = ArraySource(images, digits.target, "digits")
    classes = tuple(map(str, digits.target_names))
    return hold_out("digits", classes, source, _DIGITS_SEED, mirror=False)


def _load_folder(spec: str, seed: int) -> ImageData:
    root = user_path(spec)
    if not root.is_dir():
        if root.exists():
            raise UserError(f"{spec}: is a file; --data takes {_SPECS}")
        kinds = ("digits", "hf:", "wds:", *(f"torch/{name}" for name in _TORCH_SETS))
        raise UserError(f"{spec}: no such folder; --data takes {_SPECS}.{suggest(spec, kinds)}")
    parts = [name for name in ("train", *_VAL_FOLDERS) if (root / name).is_dir()]
    flat = not any(_class_folders(root / name) for name in parts)
    if not flat or ("train" in parts and len(parts) > 1):
        if "train" not in parts or len(parts) == 1:
            raise UserError(f"{root}: has {parts[0]}/ alone; put train/ and val/, validation/ or test/ there")
        classes, train = scan_classes(root / "train")
        val_classes, val = scan_classes(root / parts[1])
        check_same_classes(spec, classes, val_classes)
        return ImageData(spec, classes, train, val)
    classes, source = scan_classes(root)
    return hold_out(spec, classes, source, seed)


def _class_folders(root: Path) -> list[Path]:
    return [entry for entry in visible(root) if entry.is_dir()]


def scan_classes(root: Path) -> tuple[tuple[str, ...], FileSource]:
    """List the images of each class folder of ``root``."""
    folders = _class_folders(root)
    if not folders:
        raise UserError(
            f"{root}: has no class folders; put the images of each class into a folder of its name"
        )
    images = [images_below(folder) for folder in folders]
    empty = [folder.name for folder, files in zip(folders, images, strict=True) if not files]
    if empty:
        raise UserError(f"{root}: no image in class folder {shorten(empty)}; add some or remove the folder")
    labels = np.repeat(np.arange(len(folders)), [len(files) for files in images])
    return tuple(folder.name for folder in folders), FileSource(list(chain(*images)), labels)


def _load_torch(spec: str, name: str, options: dict[str, str], _seed: int) -> ImageData:
    import torch
    from timm.data import create_dataset

    if name not in _TORCH_SETS:
        raise UserError(
            f"{spec}: no such set; there are {', '.join(_TORCH_SETS)}.{suggest(name, _TORCH_SETS)}"
        )
    download = options.get("download", "false")
    if download not in ("true", "false"):
        raise UserError(f"{spec}: download is true or false, not {download!r}")
    root = user_path(options["root"]) if "root" in options else Path(torch.hub.get_dir()).parent / "datasets"

    def part(split: str) -> tuple[tuple[str, ...], ImageSource]:
        dataset = create_dataset(f"torch/{name}", root=str(root), split=split, download=download == "true")
        # Some sets keep several labels a picture, the class first; ImageNet several names a class.
        labels = np.asarray(dataset.targets).reshape(len(dataset), -1)[:, 0]
        classes = tuple(c if isinstance(c, str) else ", ".join(c) for c in dataset.classes)
        if hasattr(dataset, "data"):
            return classes, ArraySource(np.asarray(dataset.data), labels, f"{name} {split}")
        return classes, FileSource([path for path, _ in dataset.imgs], labels)

    try:
        (classes, train), (_, val) = part("train"), part("val")
    except (OSError, RuntimeError) as error:  # what torchvision raises where files are missing or damaged
        reason = str(error).partition("\n")[0]
        hint = "" if download == "true" else "; name their folder with root=FOLDER, or add download=true"
        raise UserError(f"{spec}: no usable files in {root} ({reason}){hint}") from error
    return ImageData(spec, classes, train, val, mirror=_TORCH_SETS[name])


@dataclass(frozen=True)
class SpecKind:
    """A kind of spec that takes options.

    Attributes:
        prefix: What it begins with.
        load: Called with the spec, what follows the prefix and the options; for labelled pictures also with
            the seed.
        options: The options it takes.
        absolute: How an option, or what follows the prefix (``""``), is made absolute.
    """

    prefix: str
    load: Callable[..., Any]
    options: tuple[str, ...]
    absolute: dict[str, Callable[[str], str]]

    def parse(self, spec: str) -> tuple[str, dict[str, str]]:
        """Return what follows the prefix, and the options.

        Raises:
            UserError: There is no such option, or one has no value.
        """
        target, _, query = spec.removeprefix(self.prefix).partition("?")
        options: dict[str, str] = {}
        for part in query.split("&") if query else ():
            key, _, value = part.partition("=")
            if key not in self.options:
                known = shorten(self.options, limit=len(self.options)) or "none"
                raise UserError(
                    f"{spec}: unknown option {key!r}; it takes {known}.{suggest(key, self.options)}"
                )
            if not value:
                raise UserError(f"{spec}: option {key!r} has no value; write {key}=VALUE")
            options[key] = value
        return target, options

    def absolute_spec(self, spec: str) -> str:
        """Return a spec of this kind that names the same pictures from any working folder."""
        target, options = self.parse(spec)
        keep: Callable[[str], str] = str
        target = self.prefix + self.absolute.get("", keep)(target)
        query = "&".join(f"{key}={self.absolute.get(key, keep)(value)}" for key, value in options.items())
        return f"{target}?{query}" if query else target


_KINDS = (
    SpecKind("hf:", load_hub, ("train", "val", "image", "label", "labels", "config"), {"": absolute_folder}),
    SpecKind(
        "wds:",
        load_shards,
        ("val", "classes"),
        {"": absolute_pattern, "val": absolute_pattern, "classes": absolute_path},
    ),
    SpecKind("torch/", _load_torch, ("root", "download"), {"root": absolute_path}),
    SpecKind("packed:", load_packed, (), {"": absolute_path}),
    SpecKind(
        "",
        load_table,
        ("image", "label", "labels", "separator", "val", "split"),
        {"": absolute_path, "val": absolute_path},
    ),
)
_PICTURES = (
    SpecKind("hf:", hub_pictures, ("split", "image", "config"), {"": absolute_folder}),
    SpecKind("wds:", shard_pictures, (), {"": absolute_pattern}),
    SpecKind("", table_pictures, ("image",), {"": absolute_path}),
)


def _find_kind(spec: str, kinds: Iterable[SpecKind] = _KINDS) -> SpecKind | None:
    """Return the kind of a spec; none for a folder, which takes no options."""
    is_table = Path(spec.partition("?")[0]).suffix.lower() in TABLES
    return next((k for k in kinds if (spec.startswith(k.prefix) if k.prefix else is_table)), None)
