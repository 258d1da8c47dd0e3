"""Classes of the places of pictures, written as masks that other programs read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xnext._figures import write_figure
from xnext._files import make_folder, write_atomic
from xnext.data import BadImageError, decode_image, find_images
from xnext.errors import UserError
from xnext.segmentation.data import CLASSES_FILE
from xnext.segmentation.inference import Tiles, Trained, answer, answer_in_tiles
from xnext.segmentation.pictures import draw_legend, draw_mask, draw_overlay

_LEGEND = "legend.png"


@dataclass(frozen=True)
class Segmented:
    """What came of one image.

    Attributes:
        image: The file.
        shares: Class names and their shares of the places (0 to 1), the largest first; empty if unreadable.
        tiled: Whether it was seen in tiles.
        error: Why the image could not be read, or None.
    """

    image: Path
    shares: tuple[tuple[str, float], ...] = ()
    tiled: bool = False
    error: str | None = None


def plan_files(paths: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Return the images that files and folders stand for, each with the mask that will be written for it.

    Args:
        paths: Files, and folders whose folders are kept.
        output: Folder of the results.

    Raises:
        UserError: A path is missing, or a folder holds no image; two images would become one mask, or what is
            there would be replaced that is not of an earlier call.
    """
    if output.is_dir() and any(output.iterdir()) and not (output / _LEGEND).exists():
        raise UserError(f"--output {output} holds other files, which may be replaced; choose a new folder")
    planned: dict[Path, Path] = {}
    for path in paths:
        for image in find_images([path]):
            name = image.relative_to(path) if path.is_dir() else Path(image.name)
            planned[image] = output / "masks" / name.parent / f"{name.stem}.png"
    taken: dict[Path, Path] = {}
    for image, mask in planned.items():
        other = taken.setdefault(mask, image)
        if other.resolve() != image.resolve():
            raise UserError(f"{other} and {image} would both become {mask}; give each an --output of its own")
        if image.resolve().is_relative_to(output.resolve()):
            raise UserError(f"{image} lies in --output {output} and may be replaced; choose another folder")
    return planned


def write_masks(
    trained: Trained, planned: Mapping[Path, Path], output: Path, tiles: Tiles | None, overlay: bool
) -> Iterator[Segmented]:
    """Write the mask of each image; with the first one a legend and the list of classes.

    Args:
        trained: The network.
        planned: What :func:`plan_files` returned.
        output: Folder of the results.
        tiles: How images are seen at their own size; None: at the size of the training.
        overlay: Whether to write each image under the colours of its classes, too.

    Raises:
        UserError: A file cannot be written, or outputs are not finite.
    """
    classes, begun = trained.classes, False
    for path, target in planned.items():
        try:
            image = decode_image(path)
        except BadImageError as error:
            yield Segmented(path, error=str(error))
            continue
        mask = answer(trained, image) if tiles is None else answer_in_tiles(trained, image, tiles)
        if not begun:
            make_folder(output)
            write_figure(output / _LEGEND, draw_legend(classes))  # first: by it the folder is known again
            write_atomic(output / CLASSES_FILE, "".join(f"{name}\n" for name in classes).encode())
            begun = True
        make_folder(target.parent)
        write_atomic(target, draw_mask(mask, len(classes)))
        if overlay:
            laid = output / "overlays" / target.relative_to(output / "masks")
            make_folder(laid.parent)
            write_atomic(laid, draw_overlay(image, mask, len(classes)))
        yield Segmented(path, _shares(mask, classes), tiles is not None and max(mask.shape) > tiles.side)


def _shares(mask: np.ndarray, classes: Sequence[str]) -> tuple[tuple[str, float], ...]:
    counts = np.bincount(mask.reshape(-1), minlength=len(classes))
    order = np.argsort(-counts, kind="stable")
    return tuple((classes[place], counts[place] / mask.size) for place in order if counts[place])
