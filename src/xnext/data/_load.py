"""The data spec: one string that says where images come from."""

from itertools import chain
from pathlib import Path

import numpy as np

from xnext.data._decode import images_below, visible
from xnext.data._hub import load_hub
from xnext.data._sources import (
    ArraySource,
    FileSource,
    ImageData,
    ImageSource,
    check_same_classes,
    hold_out,
    user_path,
)
from xnext.errors import UserError, shorten, suggest

_VAL_FOLDERS = ("val", "validation", "test")
_DIGITS_SEED = 0

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
    ``hf:NAME_OR_FOLDER``       a Hugging Face dataset: of the hub, or a local folder (parquet, …)
    ``torch/NAME``              a torchvision dataset by timm's name: ``torch/cifar100``, ``torch/mnist``
    ==========================  =====================================================================

    ``hf:`` and ``torch/`` take options after a question mark, ``SPEC?key=value&key=value``:

    - ``hf:`` ``train`` and ``val``: a split name, or a pattern of data files, such as
      ``train=data/train-00000*`` for the first shard only; ``image`` and ``label``: the columns, where they
      are not plain; ``config``: the dataset's configuration. Without a held-out split (``validation``,
      ``val``, ``valid``, ``dev`` or ``test``) ``seed`` holds out a fifth of each class.
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
        raise UserError("the data spec is empty; give digits, a folder, hf:NAME_OR_FOLDER or torch/NAME")
    if spec == "digits":
        return _load_digits()
    try:
        if spec.startswith("hf:"):
            target, options = _parse_options(spec, ("train", "val", "image", "label", "config"))
            return load_hub(spec, target.removeprefix("hf:"), options, seed)
        if spec.startswith("torch/"):
            target, options = _parse_options(spec, ("root", "download"))
            return _load_torch(spec, target.removeprefix("torch/"), options)
        return _load_folder(spec, seed)
    except OSError as error:
        raise UserError(f"{spec}: cannot be read ({error.strerror or error})") from error


def absolute_spec(spec: str) -> str:
    """Return a spec that names the same images from any working folder, where it names a folder."""
    prefix = "hf:" if spec.startswith("hf:") else ""
    target, question, options = spec.removeprefix(prefix).partition("?")
    if spec == "digits" or spec.startswith("torch/") or not user_path(target).is_dir():
        return spec
    return (
        f"{prefix}{user_path(target).resolve()}{question}{options}"
        if prefix
        else str(user_path(spec).resolve())
    )


def _parse_options(spec: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    target, _, query = spec.partition("?")
    options = {}
    for part in query.split("&") if query else ():
        key, _, value = part.partition("=")
        if key not in known:
            raise UserError(
                f"{spec}: unknown option {key!r}; it takes {shorten(known)}.{suggest(key, known)}"
            )
        if not value:
            raise UserError(f"{spec}: option {key!r} has no value; write {key}=VALUE")
        options[key] = value
    return target, options


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
            raise UserError(f"{spec}: is a file; --data takes a folder of class folders")
        kinds = ("digits", "hf:", *(f"torch/{name}" for name in _TORCH_SETS))
        raise UserError(
            f"{spec}: no such folder, and no other data set's name (digits, hf:NAME, torch/NAME)."
            + suggest(spec, kinds)
        )
    parts = [name for name in ("train", *_VAL_FOLDERS) if (root / name).is_dir()]
    flat = not any(_class_folders(root / name) for name in parts)
    if not flat or ("train" in parts and len(parts) > 1):
        if "train" not in parts or len(parts) == 1:
            raise UserError(f"{root}: has {parts[0]}/ alone; put train/ and val/, validation/ or test/ there")
        classes, train = _scan(root / "train")
        val_classes, val = _scan(root / parts[1])
        check_same_classes(spec, classes, val_classes)
        return ImageData(spec, classes, train, val)
    classes, source = _scan(root)
    return hold_out(spec, classes, source, seed)


def _class_folders(root: Path) -> list[Path]:
    return [entry for entry in visible(root) if entry.is_dir()]


def _scan(root: Path) -> tuple[tuple[str, ...], FileSource]:
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


def _load_torch(spec: str, name: str, options: dict[str, str]) -> ImageData:
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
