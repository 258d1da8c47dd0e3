"""A picture set of three colours that a network learns in seconds."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xnext.training import TrainConfig

COLOURS = {"blue": (40, 60, 200), "green": (40, 200, 60), "red": (200, 60, 40)}


def _draw(folder: Path, per_class: int, seed: int) -> None:
    """Write noisy 16x16 pictures of each colour into a folder of its name."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            noisy = np.clip(rng.normal(colour, 60, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / name / f"{index:02}.png")


@pytest.fixture(scope="session")
def draw() -> Callable[[Path, int, int], None]:
    """Draw pictures: folder, number a class, seed."""
    return _draw


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory, draw) -> Path:
    """A folder with 33 training and 12 held-out pictures; tests must not change it."""
    folder = tmp_path_factory.mktemp("colours")
    draw(folder / "train", 11, 0)
    draw(folder / "val", 4, 1)
    return folder


@pytest.fixture
def config(config_in, tmp_path: Path):
    """Make a quick config; keywords override."""
    return partial(config_in, output=tmp_path / "run")


@pytest.fixture(scope="session")
def config_in(colours: Path):
    """Make a quick config of a training into the folder ``output``; other keywords override."""

    def make(**changes: Any) -> TrainConfig:
        quick = {
            "model": "inceptionnext_debug",
            "data": str(colours),
            "epochs": 2,
            "batch_size": 16,
            "image_size": 16,
            "device": "cpu",
        }
        return TrainConfig(**quick | changes)

    return make


@pytest.fixture(scope="session")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 40 training and 13 held-out pictures with the colours of both halves; no test changes it."""
    folder = tmp_path_factory.mktemp("tagged")
    rng = np.random.default_rng(2)
    lines = ["image,labels,split"]
    for index in range(53):
        halves = [str(name) for name in rng.choice(list(COLOURS), 2)]
        pixels = np.concatenate([np.full((16, 8, 3), COLOURS[name]) for name in halves], axis=1)
        noisy = np.clip(rng.normal(pixels, 30), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index:02}.png")
        lines.append(f"{index:02}.png,{'|'.join(sorted(set(halves)))},{'train' if index < 40 else 'val'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"
