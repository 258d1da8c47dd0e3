"""A data set decoded once into a folder, for many trainings at the same image size."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from xnext._files import make_folder, write_atomic
from xnext.data._decode import BadImageError
from xnext.data._memory import PackedImages
from xnext.data._sources import ImageData, ImageSource
from xnext.data._transforms import Preprocessing
from xnext.errors import UserError

_PARTS = ("train", "val")


class PackedSource(ImageSource):
    """Pictures of a packed file.

    Args:
        packed: The file.
        name: What the set is called.
    """

    def __init__(self, packed: PackedImages, name: str):
        self.packed = packed
        labels = packed.labels.numpy()
        self.labels = labels > 0 if labels.ndim == 2 else labels
        self._name = name

    def name(self, index: int) -> str:
        """Return the set's name and the picture's place in it."""
        return f"{self._name}[{index}]"

    def content(self, index: int) -> bytes:
        """Return the pixels of picture ``index``."""
        if index in self.packed.bad_images:
            raise BadImageError(self.name(index), self.packed.bad_images[index])
        return self.packed.pixels[index].numpy().tobytes()

    def read(self, index: int) -> Image.Image:
        """Return picture ``index`` as RGB."""
        pixels = np.frombuffer(self.content(index), np.uint8).reshape(self.packed.pixels.shape[1:])
        return Image.fromarray(pixels.transpose(1, 2, 0).squeeze()).convert("RGB")


def write_packed(data: ImageData, preprocessing: Preprocessing, folder: Path) -> None:
    """Decode both parts of a set into a folder, which ``packed:FOLDER`` then names.

    Args:
        data: The set.
        preprocessing: The size of the pictures.
        folder: Where to; it is whole once it holds `set.json`, which is written last.

    Raises:
        UserError: No picture of a part can be read, or the folder cannot be written.
    """
    make_folder(folder)
    for part, source in zip(_PARTS, (data.train, data.val), strict=True):
        PackedImages.write(source, preprocessing, folder / f"{part}.npy")
    about = {"name": data.name, "classes": data.classes, "mirror": data.mirror}
    write_atomic(folder / "set.json", json.dumps(about).encode())


def load_packed(spec: str, folder: str, options: dict[str, str], seed: int) -> ImageData:
    """Return the set of a folder that ``write_packed`` wrote.

    Raises:
        UserError: It holds no such set, or a damaged one.
    """
    path = Path(folder)
    try:
        about = json.loads((path / "set.json").read_text(encoding="utf-8"))
        name, classes, mirror = about["name"], tuple(about["classes"]), bool(about["mirror"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{spec}: {path / 'set.json'} is missing or damaged; pack the images again"
        ) from error
    train, val = (PackedSource(PackedImages.open(path / f"{part}.npy"), f"{name} {part}") for part in _PARTS)
    return ImageData(name, classes, train, val, mirror)
