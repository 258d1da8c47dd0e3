"""A contact sheet: what the pictures of each class look like."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rich.cells import cell_len

from xnext._figures import printable
from xnext.data._decode import BadImageError
from xnext.data._sources import ImageData
from xnext.errors import UserError

_MOST_ROWS, _COLUMNS = 20, 8
_CELL, _GAP = 96, 6  # pixels
_STEP = _CELL + _GAP
_GROUND = 235  # light grey, on which pictures with a white rim have an edge
_NAME_WIDTH, _NAME_LINES = 24, 3  # characters and lines of a class name
_INCH = 100  # pixels


def draw_contact_sheet(data: ImageData) -> Figure:
    """Draw a row of training pictures for each class, of up to 20 classes.

    The pictures of a class, and the classes if there are more, are spread evenly over the set.

    Args:
        data: The set; what cannot be read of it is left out.

    Raises:
        UserError: None of the pictures can be read.
    """
    labels = _spread(np.arange(len(data.classes)), _MOST_ROWS)
    rows = [list(islice(_readable(data, label), _COLUMNS)) for label in labels]
    if not any(rows):
        raise UserError(f"{data.name}: nothing to show, since none of these images can be read")
    counts = data.count(data.train)
    names = [f"{_wrap(data.classes[label])}\n{counts[label]:,}" for label in labels]
    sheet = _arrange(rows)
    margin = 0.3 + 0.08 * max(cell_len(line) for name in names for line in name.splitlines())
    width = max(5, margin + sheet.shape[1] / _INCH)
    shown = f"{len(labels)} of {len(data.classes)}" if len(labels) < len(data.classes) else str(len(labels))
    title = f"{data.name}: {shown} classes, with their numbers of training images"
    lines = textwrap.wrap(title, int(10 * width))
    height = 0.4 + 0.2 * len(lines) + sheet.shape[0] / _INCH
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=11)
    axes = figure.subplots()
    axes.imshow(sheet)
    axes.set_anchor("NW")  # the layout would misjudge how far names reach to the left of a centred picture
    axes.set_yticks(np.arange(len(rows)) * _STEP + _CELL / 2, names, fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _arrange(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Put rows of pictures, each at most a cell large, into one picture."""
    columns = max(map(len, rows))
    sheet = np.full((len(rows) * _STEP - _GAP, columns * _STEP - _GAP, 3), _GROUND, dtype=np.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            height, width, _ = image.shape
            top, left = row * _STEP + (_CELL - height) // 2, column * _STEP + (_CELL - width) // 2
            sheet[top : top + height, left : left + width] = image
    return sheet


def _readable(data: ImageData, label: int) -> Iterator[np.ndarray]:
    """Yield training pictures of a class, spread over it, each fitted into a cell."""
    labels = data.train.labels
    members = np.flatnonzero(labels[:, label] if data.multilabel else labels == label)
    first = _spread(members, _COLUMNS)
    for index in [*first, *np.setdiff1d(members, first)]:
        try:
            yield np.asarray(_fit(data.train.read(int(index))))
        except BadImageError:
            continue


def _spread(numbers: np.ndarray, most: int) -> np.ndarray:
    """Return up to ``most`` of some numbers, evenly spread."""
    return numbers[np.linspace(0, len(numbers) - 1, min(most, len(numbers))).astype(int)]


def _fit(image: Image.Image) -> Image.Image:
    """Scale a picture until its long side fills a cell; a small one shows its pixels."""
    scale = _CELL / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _wrap(name: str) -> str:
    """Break a class name into a few lines; more than these hold is cut."""
    lines = textwrap.wrap(printable(name), _NAME_WIDTH, max_lines=_NAME_LINES, placeholder=" …")
    return "\n".join(lines)
