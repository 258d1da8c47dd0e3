"""Searches among tiny networks, whose trials take half a second."""

import numpy as np
import pytest
from PIL import Image
from tiny_space import SPACE

from xnext.search import SearchConfig


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Return a folder of light and dark pictures with noise, and a space beside it."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 12)):
        for name, level in (("dark", 60), ("light", 190)):
            place = root / "pictures" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                noise = generator.normal(level, 60, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noise).save(place / f"{number}.png")
    (root / "space.yaml").write_text(SPACE)
    return root


@pytest.fixture
def config(module_config):
    """Return what makes a config."""
    return module_config


@pytest.fixture(scope="module")
def module_config(folder):
    """Return what makes a config, for the tests of a file."""

    def make(**changes) -> SearchConfig:
        plain = {
            "data": str(folder / "pictures"), "space": str(folder / "space.yaml"),
            "trials": 6, "max_epochs": 2, "optimizer": "random", "width": 1.0,
            "image_size": 16, "batch_size": 16, "device": "cpu",
        }  # fmt: skip
        return SearchConfig(**plain | changes)

    return make
