"""What the tests of bad input share."""

import pytest
from samples import CLASSES, listing, picture

import xnext
from xnext import cli
from xnext.models import save_checkpoint
from xnext.training import TrainConfig


@pytest.fixture
def data(tmp_path):
    """A tiny healthy data set: two splits of three classes."""
    for split, count in (("train", 4), ("val", 2)):
        for name in CLASSES:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                picture(index).save(folder / f"{name}{index}.png")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run directory with an untrained network, made as training makes it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(model="inceptionnext_debug", data="digits", output=folder)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    save_checkpoint(
        folder / "checkpoints" / "best.safetensors",
        xnext.create_model("inceptionnext_debug", num_classes=3),
        model_name="inceptionnext_debug", model_args={}, classes=CLASSES,
        extra={"train_config": config.to_dict()},
        preprocessing={
            "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
            "crop_pct": 1.0, "in_chans": 3,
        },
    )  # fmt: skip
    return folder


@pytest.fixture
def fails(capsys, tmp_path):
    """Run a command that must fail and leave everything as it was; return its one line."""

    def run(*words, names=()):
        before = listing(tmp_path)
        code = cli.main([str(word) for word in words])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("xnext: error: ")
        for name in names:
            assert str(name) in lines[0]
        assert code == 2
        assert listing(tmp_path) == before
        return lines[0]

    return run
