"""From a file, or its bytes, to an RGB picture; everything that is wrong with a file becomes one error."""

import io
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION

from xnext.errors import UserError

# Pillow reads more than these, but some of the rest start other programs (EPS) or are no pictures. They are
# tried in this order: the usual ones first, and last the one that no mark at its start tells from any bytes.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG2000", "MPO", "PPM", "TIFF", "TGA",
)  # fmt: skip
_YCBCR = 6  # in a TIFF's header

T = TypeVar("T")

MAX_PIXELS = 89_478_485
"""Largest picture that is decoded, in pixels (256 MiB as RGB): a small file may claim to hold far more."""


class BadImageError(UserError):
    """A picture that cannot be read: which one (``name``) and why (``reason``)."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both, so that the error survives pickling between processes
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}; replace or remove the file"


def decode_image(source: Path | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture by its content, whatever its file name ends in.

    The EXIF rotation is applied, transparency is laid on white, 16-bit and wider pixels are scaled to 8 bits,
    CMYK and palettes become RGB, and of an animation the first frame is taken.

    Args:
        source: A file, or the bytes of one.
        name: What to call it in an error; by default its path.
        max_pixels: Largest picture that is decoded; its size is checked before.

    Returns:
        An image of mode RGB, 8 bits a channel, at most ``max_pixels`` large.

    Raises:
        BadImageError: It is missing, empty, truncated, no image, or too large.
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    content = read_image(source, name) if isinstance(source, Path) else source
    return decode_by(lambda image: _to_rgb(_upright(image)), content, name, max_pixels)


def read_image(path: Path, name: str | None = None, start: int = 0, size: int = -1) -> bytes:
    """Return the bytes of a picture: a file, or a part of one.

    Args:
        path: The file.
        name: What to call it in an error; by default its path.
        start: The place of the first byte.
        size: How many there are; by default all that follow.

    Raises:
        BadImageError: There is no such file, or it cannot be opened.
    """
    name = name or str(path)
    try:
        if path.exists() and not path.is_file():
            raise BadImageError(name, "is not a file")
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    except (OSError, ValueError) as error:  # a path in a table may have a zero byte
        reason = getattr(error, "strerror", None) or error
        raise BadImageError(name, f"cannot be opened ({reason})") from error


def decode_by(
    convert: Callable[[Image.Image], T], content: bytes, name: str, max_pixels: int = MAX_PIXELS
) -> T:
    """Return what ``convert`` makes of a picture that was read from the bytes of a file.

    Raises:
        BadImageError: As ``decode_image``, or as ``convert``.
    """
    if not content:
        raise BadImageError(name, "the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow grumbles about is either readable or refused below
        try:
            with Image.open(io.BytesIO(content), formats=_readers()) as image:
                if image.width * image.height > max_pixels:
                    raise Image.DecompressionBombError
                _mend_ycbcr(image)
                image.load()
                return convert(image)
        except BadImageError:
            raise
        except UnidentifiedImageError as error:
            raise BadImageError(name, "is no image, or is damaged at its start") from error
        except Image.DecompressionBombError as error:
            limit = f"{max_pixels / 1e6:.0f} megapixels"
            raise BadImageError(name, f"is larger than {limit} (a decompression bomb?)") from error
        except Exception as error:  # Pillow's parsers raise whatever damaged bytes lead them to
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise BadImageError(name, f"is damaged or truncated ({reason})") from error


def _mend_ycbcr(image: Any) -> None:
    """Tell Pillow before 13 that the pixels of an uncompressed YCbCr TIFF have three bytes, not four."""
    if image.format != "TIFF" or image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) != _YCBCR:
        return
    if all(codec == "raw" for codec, *_ in image.tile):
        image._mode = "YCbCr"
        image.tile = [(*where, ("YCbCr", *how)) for *where, (_, *how) in image.tile]


@cache
def _readers() -> tuple[str, ...]:
    """Return the formats that this Pillow reads: AVIF may be missing, and MPO comes by way of JPEG."""
    Image.init()
    return tuple(kind for kind in _FORMATS if kind in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # damaged EXIF raises anything, and says nothing against the pixels
        return image
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """Scale one wide channel ``[H, W]`` to uint8.

    Integers that fit 16 bits are scaled by the full 16-bit range, so that pictures stay comparable. Wider
    integers and floats have no agreed range: the picture's own smallest to largest value becomes 0 to 255.
    """
    values = np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    if pixels.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    return np.rint((values - low) * (255.0 / max(high - low, np.finfo(np.float32).tiny))).astype(np.uint8)


@cache
def image_extensions() -> frozenset[str]:
    """Return the file name endings of the formats that are read, in lower case, with their dot."""
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in _FORMATS)


def images_below(folder: Path) -> list[Path]:
    """Return the image files in a folder and the folders below it, sorted; hidden ones are left out.

    Raises:
        UserError: A folder may not be read.
    """
    found: list[Path] = []
    for entry in visible(folder):
        if entry.suffix.lower() in image_extensions():
            found.append(entry)
        elif entry.is_dir() and not folder.resolve().is_relative_to(entry.resolve()):  # no link back up
            found += images_below(entry)
    return found


def visible(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted, without hidden entries.

    Raises:
        UserError: The folder may not be read.
    """
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the images that files and folders stand for.

    A file stands for itself, whatever its name ends in; a folder for every image file below it, sorted.

    Raises:
        UserError: A path is missing, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        try:
            is_folder, exists = path.is_dir(), path.exists()
        except OSError as error:
            raise UserError(f"{path}: cannot be reached ({error.strerror})") from error
        if not exists:
            raise UserError(f"{path}: no such file or folder")
        inside = images_below(path) if is_folder else [path]
        if not inside:
            raise UserError(f"{path}: no image file in this folder or below it")
        found += inside
    return found
