"""Handwritten digits on photographs, with masks of their ink: `python make_digits.py FOLDER`."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

_DIGIT = (0.8, 0.98)  # smallest and largest share of the side of an image


def make_digits(root: Path, train: int = 400, val: int = 60, side: int = 96, seed: int = 0) -> Path:
    """Write images/ and masks/ of both parts, and classes.txt; the digits held out are others."""
    rng = np.random.default_rng(seed)
    digits, photos = load_digits().images, load_sample_images().images
    last = len(digits) * 4 // 5
    for part, count, pool in (("train", train, digits[:last]), ("val", val, digits[last:])):
        for kind in ("images", "masks"):
            (root / kind / part).mkdir(parents=True)
        for number in range(count):
            image, mask = _draw(rng, photos[rng.integers(len(photos))], pool[rng.integers(len(pool))], side)
            Image.fromarray(image).save(root / "images" / part / f"{number:04d}.png")
            Image.fromarray(mask).save(root / "masks" / part / f"{number:04d}.png")
    (root / "classes.txt").write_text("background\ndigit\n")
    return root


def _draw(
    rng: np.random.Generator, photo: np.ndarray, digit: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a part of a photograph with a digit on it, and where its ink is."""
    top, left = (rng.integers(whole - side) for whole in photo.shape[:2])
    image = photo[top : top + side, left : left + side].copy()
    size = int(rng.integers(*(round(share * side) for share in _DIGIT)))
    ink = (
        np.asarray(Image.fromarray((digit * 15.9).astype(np.uint8)).resize((size, size), Image.BICUBIC)) > 110
    )
    y, x = rng.integers(side - size, size=2)
    mask = np.zeros((side, side), np.uint8)
    mask[y : y + size, x : x + size] = ink
    # The ink is as rough as the photograph, and darker or lighter than what it lies on.
    colour = rng.integers(0, 80, size=3) + (175 if image.mean() < 110 else 0)
    rough = np.clip(colour + rng.normal(0, 12, size=(side, side, 3)), 0, 255)
    image[mask == 1] = rough[mask == 1].astype(np.uint8)
    return image, mask


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    make_digits(parser.parse_args().folder)
