"""A training that was stopped or killed at any moment ends as one that never was."""

import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from forked import begin
from xnext._interrupts import Interrupts, Stopped, clean_exit
from xnext.cli import main
from xnext.errors import UserError
from xnext.training import Run, TrainConfig, train
from xnext.training.states import States
from xnext.training.trainer import Trainer

MEASURED = ("images_per_second", "memory_mib", "seconds")
PATIENCE = 300  # seconds for a real process, many times what one takes on a machine that does nothing else
OPTIONS = {
    "epochs": 3, "batch_size": 6, "augment": "strong", "mixup": 0.5, "cutmix": 1.0, "drop_rate": 0.1,
    "drop_path_rate": 0.2, "model_ema": 0.9, "repeats": 2, "save_every": "2 steps",
}  # fmt: skip


def quiet(config: TrainConfig, **how) -> dict:
    return train(config, Console(file=io.StringIO()), **how)


def outcome(folder: Path) -> tuple:
    """Return all of a run that depends on neither clock nor memory: metrics, weights, bad images."""
    run = Run(folder)
    rows = [{key: value for key, value in row.items() if key not in MEASURED} for row in run.read_metrics()]
    weights = [
        {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
        for path in (run.best, run.last)
    ]
    summary = {k: v for k, v in json.loads(run.summary.read_text()).items() if k != "seconds"}
    bad = sorted(run.bad_images.read_text().splitlines()) if run.bad_images.exists() else []
    return rows, weights, summary, bad


@pytest.fixture(scope="module")
def never_stopped(config_in, tmp_path_factory):
    """The outcomes of trainings that were never stopped, each of which is made once."""
    torch.set_num_threads(1)

    @cache
    def train_whole(epochs: int) -> tuple:
        folder = tmp_path_factory.mktemp("whole") / "run"
        quiet(config_in(output=folder, **OPTIONS | {"epochs": epochs}))
        return outcome(folder)

    return train_whole


@pytest.fixture
def whole(config, never_stopped):
    """The config of a training and the outcome of one that was never stopped."""
    return config(**OPTIONS), never_stopped(OPTIONS["epochs"])


class StopAt:
    """Stands for ``Interrupts``: a signal comes when it was looked at so many times."""

    def __init__(self, looks: int):
        self.looks = looks

    @property
    def signal(self):
        self.looks -= 1
        return signal.SIGTERM if self.looks < 0 else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("loader", ["images", pytest.param("memory", marks=pytest.mark.slow)])
def test_stopped_after_every_few_steps_it_ends_as_if_it_never_was(config, tmp_path, monkeypatch, loader):
    config = config(**OPTIONS | {"epochs": 6, "loader": loader})
    quiet(dataclasses.replace(config, output=tmp_path / "whole"))
    stops = 0
    # Both networks are measured, in two batches each, before there is anything new to save.
    monkeypatch.setattr("xnext.training.loop.Interrupts", lambda: StopAt(5))
    for _ in range(50):
        try:
            quiet(config, resume=stops > 0)
            break
        except Stopped as stopped:
            assert stopped.signal == signal.SIGTERM and f"--resume {config.output}" in str(stopped)
            stops += 1
    assert stops >= 8
    assert outcome(config.output) == outcome(tmp_path / "whole")


def test_a_damaged_newest_state_falls_back_to_the_one_before(whole, monkeypatch):
    config, expected = whole
    monkeypatch.setattr("xnext.training.loop.Interrupts", lambda: StopAt(15))
    with pytest.raises(Stopped):
        quiet(config)
    monkeypatch.undo()
    newest = max(Run(config.output).best.parent.glob("state-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    console = Console(file=io.StringIO(), width=500)
    train(config, console, resume=True)
    assert f"{newest} is damaged" in console.file.getvalue()
    assert outcome(config.output) == expected


def test_a_finished_run_is_finished_again(whole):
    config, expected = whole
    quiet(config)
    for name in ("summary.json", "curves.png", "confusion.png"):
        (config.output / name).unlink()
    quiet(config, resume=True)
    assert outcome(config.output) == expected
    assert (config.output / "curves.png").exists() and (config.output / "confusion.png").exists()


def test_killed_before_the_first_state_it_begins_anew(whole, monkeypatch):
    config, expected = whole

    def killed(self):
        raise ZeroDivisionError

    monkeypatch.setattr(States, "save", lambda *_: killed(None))
    monkeypatch.setattr(Run, "discard", lambda self: None)
    with pytest.raises(ZeroDivisionError):
        quiet(config)
    monkeypatch.undo()
    (config.output / "checkpoints" / ".best.safetensors.x1y2.tmp").write_bytes(b"half")
    quiet(config, resume=True)
    assert outcome(config.output) == expected
    assert not list(config.output.rglob("*.tmp"))


def test_what_is_no_run_cannot_be_resumed(config):
    with pytest.raises(UserError, match="is not a run"):
        quiet(config(), resume=True)


def test_other_settings_are_listed_and_refused_unless_forced(config):
    quiet(config(epochs=1))
    with pytest.raises(UserError, match=r"epochs was 1, now 2.*batch_size was 16, now 8.*--force"):
        quiet(config(epochs=2, batch_size=8), resume=True)
    quiet(config(epochs=2), resume=True, force=True)
    assert [row["epoch"] for row in Run(config().output).read_metrics()] == [1, 2]


def test_a_full_disk_leaves_the_earlier_state(whole, monkeypatch):
    config, expected = whole
    save, calls = States.save, []

    def full(self, step, state):
        calls.append(step)
        if len(calls) == 6:
            raise UserError("cannot write: the disk is full")
        return save(self, step, state)

    monkeypatch.setattr(States, "save", full)
    with pytest.raises(UserError, match="disk is full"):
        quiet(config)
    monkeypatch.undo()
    quiet(config, resume=True)
    assert outcome(config.output) == expected


def test_signals_are_noted_once_and_then_act_as_ever():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_while_pictures_are_packed_cleans_up():
    before, done = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit) as exit_, clean_exit():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            done.append("cleaned")
    assert (exit_.value.code, done) == (143, ["cleaned"])
    assert signal.getsignal(signal.SIGTERM) == before


def start(config: TrainConfig) -> subprocess.Popen:
    file = config.output.with_suffix(".yaml")
    file.write_text(config.to_yaml())
    command = [sys.executable, "-m", *config.command.split(), "--config", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_a_state(config: TrainConfig, exit_code: Callable[[], int | None]) -> None:
    folder, deadline = Run(config.output).best.parent, time.monotonic() + PATIENCE
    while not list(folder.glob("state-*.pt")):
        assert exit_code() is None and time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_real_process_saves_when_it_is_told_to_stop(config, never_stopped, number, code):
    config = config(**OPTIONS | {"epochs": 4})  # long enough to be still at it when the signal comes
    expected = never_stopped(4)
    process = start(config)
    wait_for_a_state(config, process.poll)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert errors.splitlines() == [errors.strip()] and f"xnext train --resume {config.output}" in errors
    assert main(["train", "--resume", str(config.output)]) == 0
    assert outcome(config.output) == expected


def kill_and_go_on(config: TrainConfig, kills: int, seed: int) -> None:
    """Kill the training as often as told, at random moments, and let it finish."""
    file = config.output.with_suffix(".yaml")
    file.write_text(config.to_yaml())
    rng, words, done = random.Random(seed), ["--config", str(file)], 0
    while True:
        process = begin([*config.command.split()[1:], *words])
        if done < kills:
            wait_for_a_state(config, lambda: process.exitcode)  # noqa: B023
            time.sleep(rng.uniform(0, 0.8))
            process.kill()
        process.join(PATIENCE)
        if process.exitcode == 0:
            return
        assert process.exitcode == -signal.SIGKILL
        done += 1
        words = ["--resume", str(config.output)]


def test_a_run_that_is_killed_ends_as_if_it_never_was(whole):
    config, expected = whole
    kill_and_go_on(config, kills=2, seed=0)
    assert outcome(config.output) == expected


@pytest.mark.parametrize("decoder", ["fpn", pytest.param("upernet", marks=pytest.mark.slow)])
def test_a_segmentation_that_is_killed_ends_as_if_it_never_was(config, pairs, tmp_path, decoder):
    torch.set_num_threads(1)
    config = config(
        decoder=decoder, data=str(pairs), epochs=3, batch_size=2, save_every="1 step", model_ema=0.9,
        drop_path_rate=0.2,
    )  # fmt: skip
    quiet(dataclasses.replace(config, output=tmp_path / "whole"))
    kill_and_go_on(config, kills=1, seed=0)
    assert outcome(config.output) == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_is_killed_many_times_ends_as_if_it_never_was(config, tmp_path, seed):
    torch.set_num_threads(1)
    config = config(**OPTIONS | {"epochs": 12, "save_every": "1 step"})
    quiet(dataclasses.replace(config, output=tmp_path / "whole"))
    kill_and_go_on(config, kills=8, seed=seed)
    assert outcome(config.output) == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    "call", [pytest.param(call, marks=[pytest.mark.slow] if call % 2 else []) for call in range(12)]
)
def test_killed_inside_a_write(whole, monkeypatch, call):
    """Each write of a file is cut off before it is moved into place, as by a kill."""
    config, expected = whole
    calls, replace = [], Path.replace

    class Killed(BaseException):
        pass

    def cut(self, target):
        calls.append(target)
        if len(calls) == call + 4:
            raise Killed
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    monkeypatch.setattr(Run, "discard", lambda self: None)  # a killed process removes nothing
    with pytest.raises(Killed):
        quiet(config)
    monkeypatch.undo()
    quiet(config, resume=True)
    assert outcome(config.output) == expected


def test_the_trainer_says_when_there_is_something_to_go_on_from(config, monkeypatch):
    seen = []
    whole = Trainer._save_state
    monkeypatch.setattr(Trainer, "_save_state", lambda self: seen.append(self.saved) or whole(self))
    quiet(config())
    assert seen == [None, 2]
