"""What a segmentation network says as pictures: masks with a palette, overlays, a legend."""

import colorsys
import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from xnext.training.pictures import cut_name

_OPACITY = 0.5  # of the colours that lie on an image
_GOLDEN = (math.sqrt(5) - 1) / 2  # of the circle of hues, a step that comes near no hue it had before
_TONES = ((0.85, 0.95), (0.55, 0.85), (0.9, 0.6))  # saturation and value, in turn
_LONGEST_NAME = 30  # characters
_ROWS = 30  # of a column of the legend


def palette(count: int) -> np.ndarray:
    """Return as many colours that are told apart, uint8 [count, 3]; those of fewer classes are the first."""
    colours = [
        colorsys.hsv_to_rgb(number * _GOLDEN % 1, *_TONES[number % len(_TONES)]) for number in range(count)
    ]
    return np.rint(255 * np.array(colours)).astype(np.uint8)


def draw_mask(mask: np.ndarray, count: int) -> bytes:
    """Return a PNG whose numbers are classes, and whose palette shows them.

    Args:
        mask: uint8 [H, W].
        count: How many classes there are.
    """
    image = Image.fromarray(mask)
    image.putpalette(palette(count).tobytes())  # which makes its mode P
    return _png(image)


def draw_overlay(image: Image.Image, mask: np.ndarray, count: int) -> bytes:
    """Return a PNG of an image under the colours of its classes.

    Args:
        image: RGB.
        mask: uint8 [H, W], of its size.
        count: How many classes there are.
    """
    return _png(Image.blend(image, Image.fromarray(palette(count)[mask]), _OPACITY))


def draw_legend(classes: Sequence[str]) -> Figure:
    """Draw the colours of the classes with their names and numbers."""
    columns = math.ceil(len(classes) / _ROWS)
    rows = min(len(classes), _ROWS)
    figure = Figure(figsize=(0.5 + 2.8 * columns, 0.4 + 0.26 * rows))
    patches = [
        Patch(color=colour / 255, label=f"{number}  {cut_name(name, _LONGEST_NAME)}")
        for number, (name, colour) in enumerate(zip(classes, palette(len(classes)), strict=True))
    ]
    figure.legend(handles=patches, loc="center", ncols=columns, frameon=False, fontsize=10)
    return figure


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
