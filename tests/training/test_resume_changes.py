"""What a resumed run may find changed: settings, images, its own states."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from xnext.errors import UserError
from xnext.training import Run, TrainConfig, train
from xnext.training.setup import build_accelerator
from xnext.training.states import States


def quiet(config: TrainConfig, **how) -> str:
    console = Console(file=io.StringIO(), width=500)
    train(config, console, **how)
    return console.file.getvalue()


@pytest.fixture
def images(colours, tmp_path) -> Path:
    """A copy of the pictures that a test may change."""
    return Path(shutil.copytree(colours, tmp_path / "images"))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_resumed_run_that_fails_keeps_all_it_had(config):
    run = Run(config().output)
    quiet(config(epochs=1))
    for state in run.best.parent.glob("state-*"):
        state.unlink()
    (run.path / "notes.txt").write_text("mine")
    before = files(run.path)
    with pytest.raises(UserError, match=r"not finite|is nan|is inf"):
        quiet(config(epochs=3, lr=1e30, warmup=0), resume=True, force=True)
    assert files(run.path) >= before


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "convnext_debug"}, {"model_args": {"depths": [1, 1, 1, 2]}}, {"optimizer": "sgd"},
        {"layer_decay": 0.7},
    ],
)  # fmt: skip
def test_what_a_state_cannot_take_is_refused_even_by_force(config, changes):
    quiet(config(epochs=1))
    with pytest.raises(UserError, match=f"cannot go on so: {next(iter(changes))} was .*--checkpoint"):
        quiet(config(epochs=2, **changes), resume=True, force=True)


def test_an_optimiser_with_other_groups_is_refused(config):
    quiet(config(epochs=1))
    with pytest.raises(UserError, match=r"does not fit what is now to be trained .*group.*--checkpoint"):
        quiet(config(epochs=2, weight_decay=0.0), resume=True, force=True)


def test_a_renamed_class_is_refused(config, images):
    quiet(config(data=str(images), epochs=1))
    for part in ("train", "val"):
        (images / part / "green").rename(images / part / "azure")
    for force in (False, True):
        with pytest.raises(
            UserError, match="classes differ: only the run has 'green'; only the data has 'azure'"
        ):
            quiet(config(data=str(images), epochs=1), resume=True, force=force)


def test_further_images_are_refused_unless_forced(config, images):
    (images / "train" / "red" / "00.png").write_bytes(b"damaged")
    first = config(data=str(images), epochs=1, max_bad_images=0.5)
    quiet(first)
    for file in sorted((images / "train" / "blue").iterdir())[:5]:
        file.unlink()
    with pytest.raises(UserError, match=r"has other images or labels than when .*--force"):
        quiet(first, resume=True)
    quiet(dataclasses.replace(first, epochs=2), resume=True, force=True)
    run = Run(first.output)
    assert len(run.read_metrics()) == 2
    assert [Path(line).name for line in run.bad_images.read_text().splitlines()] == ["00.png"]


def test_averages_begin_at_the_weights_when_they_are_switched_on(config):
    quiet(config(model="convnext_debug", epochs=1))
    rate = {"lr": 1e-12, "warmup_lr": 1e-12, "min_lr": 1e-12}
    quiet(config(model="convnext_debug", epochs=2, model_ema=0.999, **rate), resume=True, force=True)
    last = Run(config().output).read_metrics()[-1]
    assert last["val_loss"] == pytest.approx(last["raw_val_loss"], rel=1e-4)


def test_a_forced_change_is_kept_in_the_config(config):
    quiet(config(epochs=1))
    quiet(config(epochs=2, drop_rate=0.3), resume=True, force=True)
    kept = Run(config().output).read_config()
    assert (kept.epochs, kept.drop_rate) == (2, 0.3)
    quiet(kept, resume=True)  # asks for nothing else than the run was told


def test_bad_images_are_listed_once_however_often_it_begins(config, images, monkeypatch):
    (images / "train" / "red" / "00.png").write_bytes(b"damaged")
    monkeypatch.chdir(images.parent)
    chosen = config(data="images", epochs=1, max_bad_images=0.5)

    def killed(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(States, "save", killed)
    monkeypatch.setattr(Run, "discard", lambda self: None)
    with pytest.raises(ZeroDivisionError):
        quiet(chosen)
    monkeypatch.undo()
    run = Run(chosen.output)
    quiet(run.read_config(), resume=True)
    assert run.bad_images.read_text().splitlines() == [str(images / "train" / "red" / "00.png")]
    assert (
        json.loads(run.summary.read_text())["bad_images"]["train"] == run.bad_images.read_text().splitlines()
    )


def test_seconds_are_those_of_all_processes(config):
    quiet(config(epochs=1))
    first = json.loads(Run(config().output).summary.read_text())["seconds"]
    quiet(config(epochs=1), resume=True)
    again = json.loads(Run(config().output).summary.read_text())["seconds"]
    assert again > 0.7 * first  # all but what came after the last state


def test_with_every_state_damaged_it_says_that_it_begins_anew(config):
    quiet(config(epochs=1))
    states = sorted(Run(config().output).best.parent.glob("state-*.pt"))
    for state in states:
        state.write_bytes(b"damaged")
    told = quiet(config(epochs=1), resume=True)
    assert told.count(" is damaged") == len(states) and "no state is left: beginning anew" in told


def test_without_a_gpu_auto_is_the_cpu_with_all_its_processes(config, monkeypatch):
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("xnext.training.setup.Accelerator", lambda **how: asked.update(how))
    build_accelerator(config(device="auto"))
    assert asked["cpu"] is True
