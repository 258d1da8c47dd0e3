"""Draw images, their masks and what a network says of them: `python segmentation_picture.py --help`."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from xnext._figures import write_figure
from xnext.segmentation.pictures import palette

CLASSES = 255


def main() -> None:
    """Draw a column an image, and a row a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("images", "masks", "answers"):
        parser.add_argument(name, type=Path, help=f"folder of the {name}, with the same names in each")
    parser.add_argument("--count", type=int, default=6, help="images to draw, the first by name")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    options = parser.parse_args()
    files = sorted(options.images.iterdir())[: options.count]
    figure = Figure(figsize=(0.9 + 1.1 * len(files), 3.4), layout="constrained")
    grid = figure.subplots(3, len(files), squeeze=False)
    rows = {"image": options.images, "mask": options.masks, "answer": options.answers}
    for axes, (title, folder) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(title)
        for cell, file in zip(axes, files, strict=True):
            path = next(folder.glob(f"{file.stem}.*"))
            pixels = np.asarray(Image.open(path))
            cell.imshow(palette(CLASSES)[pixels] if pixels.ndim == 2 else pixels)
            cell.set(xticks=[], yticks=[])
    write_figure(options.output, figure, dpi=90)


if __name__ == "__main__":
    main()
