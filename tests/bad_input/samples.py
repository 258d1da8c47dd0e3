"""Pictures healthy, damaged and unusual; the words of a short training; what a folder holds."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")
TRAIN = [
    "train",
    "--model",
    "inceptionnext_debug",
    "--image-size",
    "32",
    "--epochs",
    "1",
    "--batch-size",
    "4",
]


def picture(seed=0, mode="RGB", size=(24, 20)):
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels, mode) if channels > 1 else Image.fromarray(pixels[..., 0])


def save_bytes(*args, image=None, **kwargs):
    buffer = io.BytesIO()
    (image or picture()).save(buffer, *args, **kwargs)
    return buffer.getvalue()


def bomb():
    """Return a PNG of 60,000 x 60,000 pixels in a few bytes."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    pixels = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


UNREADABLE = {
    "truncated.jpg": save_bytes("JPEG")[:-300],
    "truncated.png": save_bytes("PNG")[:200],
    "empty.png": b"",
    "text.png": b"this is no image\n",
    "page.jpg": b"<!doctype html><html></html>",
    "zeros.jpg": bytes(5000),
    "bomb.png": bomb(),
}


def animation():
    return save_bytes("GIF", save_all=True, append_images=[picture(1), picture(2)])


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return save_bytes("JPEG", exif=exif)


UNUSUAL = {
    "wrong-extension.jpg": save_bytes("PNG"),
    "no-extension": save_bytes("PNG"),
    "cmyk.jpg": save_bytes("JPEG", image=picture(mode="CMYK")),
    "16-bit.png": save_bytes(
        "PNG", image=Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    ),
    "palette-alpha.png": save_bytes(
        "PNG", image=picture().quantize(8), transparency=bytes(range(0, 256, 32))
    ),
    "alpha.png": save_bytes("PNG", image=picture(mode="RGBA")),
    "animated.gif": animation(),
    "exif-rotated.jpg": rotated(),
    "one-pixel.png": save_bytes("PNG", image=picture(size=(1, 1))),
}


def listing(folder):
    """Return every file below a folder with its content."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
