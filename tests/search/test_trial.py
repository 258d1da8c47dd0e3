"""Trials: however one ends, the search is told in its own words."""

import os
import shutil
import signal
import sys
import threading
import time
import types
from pathlib import Path

import psutil
import pytest
import torch

import xnext
from xnext.data import Preprocessing, load_data, write_packed
from xnext.errors import UserError
from xnext.search.journal import Journal
from xnext.search.trial import Trial, TrialLost, _locked, measure_latency, supervise

ARGS = {"stem_dims": [8], "entry_dims": [16], "middle_depth": 1, "exit_dim": 16, "tail_dims": [16, 16]}


@pytest.fixture(scope="session")
def packed(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed")
    half = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(image_size=16, mean=half, std=half, interpolation="bicubic", crop_pct=1.0)
    write_packed(load_data(str(folder / "pictures")), preprocessing, path)
    return path


@pytest.fixture
def trial(packed, tmp_path):
    def make(**changes) -> Trial:
        training = {"image_size": 16, "batch_size": 16, "device": "cpu"} | changes.pop("training", {})
        plain = {
            "number": 3, "folder": str(tmp_path / "network"), "model": "nexception_debug", "model_args": ARGS,
            "data": str(packed), "epochs": 1, "max_epochs": 4,
        }  # fmt: skip
        return Trial(**plain | changes, training=training)

    return make


def test_success_and_its_continuation(trial):
    first = supervise(trial())
    assert first.status == "success" and first.seconds > 0
    assert first.values.keys() == {"top1", "macs", "params"} and 0 <= first.values["top1"] <= 100
    log = trial().log.read_text()
    again = supervise(trial())
    assert again.values == first.values and 0 < again.seconds <= first.seconds
    assert trial().log.read_text() == log, "what is known is not computed again"
    longer = supervise(trial(epochs=3))
    rows = (Path(trial().folder) / "run" / "metrics.jsonl").read_text().splitlines()
    assert longer.status == "success" and len(rows) == 3
    whole = supervise(trial(epochs=3, folder=f"{trial().folder}-2"))
    assert whole.values == longer.values, "to the bit as if it had not stopped between"


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"training": {"lr": 1e30, "clip_grad": None}}, "diverged", "loss is|norm is"),
        ({"model_args": ARGS | {"middle_kernel_size": 4}}, "exception", "not an odd kernel size"),
        ({"limits": {"params": 100}}, "rejected", "params 8698 is more than 100"),
        ({"seconds": 0.05}, "timeout", "more than 0.05 seconds"),
        ({"memory_gib": 0.001, "epochs": 4}, "out of memory", "more than 0.001 GiB"),
        ({"data": "/nowhere"}, "exception", "set.json is missing"),
    ],
)
def test_each_end_has_its_own_word(trial, changes, status, reason):
    import re

    outcome = supervise(trial(**changes))
    assert outcome.status == status and re.search(reason, outcome.reason), outcome
    assert "\n" not in outcome.reason


def test_a_search_that_was_moved_goes_on(trial, tmp_path):
    """With its images, whose place is no part of what was trained."""
    supervise(trial())
    first = trial()
    shutil.copytree(first.data, tmp_path / "moved" / "data")
    shutil.move(first.folder, tmp_path / "moved" / "network")
    there = {"folder": str(tmp_path / "moved" / "network"), "data": str(tmp_path / "moved" / "data")}
    longer = supervise(trial(epochs=2, **there))
    assert longer.status == "success" and "epoch 1" not in longer.reason
    assert longer.values == supervise(trial(epochs=2)).values, "as if it had stayed"
    config = Path(there["folder"]) / "run" / "config.yaml"
    config.write_text(config.read_text().replace("weight_decay: 0.05", "weight_decay: 0.5"))
    other = supervise(trial(epochs=3, **there))
    assert other.status == "exception" and "was told otherwise: weight_decay was 0.5, now" in other.reason


def test_damaged_results_are_measured_again(trial):
    first = supervise(trial())
    for name in ("epoch-1.json", "sizes.json"):
        (Path(trial().folder) / name).write_text("{")
    assert supervise(trial()).values == first.values


def test_what_cannot_be_written_says_nothing_of_the_network(trial):
    """The search ends, and has the trial to do when it goes on."""
    supervise(trial())
    longer = trial(epochs=2)
    longer.result.mkdir()  # no file can be put there
    with pytest.raises(UserError, match=r"cannot write .*network: is the disk full\? Mend that, and go on"):
        supervise(longer)
    longer.result.rmdir()
    assert supervise(longer).status == "success"


def test_what_is_not_of_the_network_is_moved_aside_once_nobody_writes_there(trial):
    folder = Path(trial().folder)
    folder.mkdir()
    (folder / "holiday.txt").write_text("mine")
    (folder / "epoch-1.json").write_text("{}")
    found = []
    with _locked(folder):  # as the last trial of a search that was killed, which takes a moment to end
        thread = threading.Thread(target=lambda: found.append(supervise(trial())), daemon=True)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and (folder / "holiday.txt").exists()
    thread.join()
    assert found[0].status == "success" and (folder / "network.json").exists()
    aside = folder.with_name("network.old-1")
    assert sorted(path.name for path in aside.iterdir()) == ["epoch-1.json", "holiday.txt"]
    assert supervise(trial(model_args=ARGS | {"act": "celu"})).values != found[0].values
    assert (folder.with_name("network.old-2") / "run" / "metrics.jsonl").exists()


def test_the_users_script_is_not_run_again(trial, tmp_path, monkeypatch):
    script = types.ModuleType("__main__")
    script.__file__ = str(tmp_path / "script.py")
    (tmp_path / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setitem(sys.modules, "__main__", script)
    assert supervise(trial()).status == "success"
    assert sys.modules["__main__"] is script and not (tmp_path / "ran").exists()


def test_a_process_that_somebody_kills_is_lost(trial):
    long = trial(epochs=400, max_epochs=400)
    threading.Thread(target=kill_soon, args=(long,)).start()
    with pytest.raises(TrialLost, match="died of SIGKILL"):
        supervise(long)


def kill_soon(trial: Trial) -> None:
    """Kill a trial's process once it trains."""
    metrics = Path(trial.folder) / "run" / "metrics.jsonl"
    while not metrics.exists():
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        if any(trial.folder in file.path for file in process.open_files()):
            os.kill(process.pid, signal.SIGKILL)


def test_a_cancelled_trial_saves_and_goes_on(trial):
    long, cancelled = trial(epochs=60, max_epochs=60), threading.Event()
    metrics = Path(long.folder) / "run" / "metrics.jsonl"

    def cancel() -> None:
        while not metrics.exists():
            time.sleep(0.05)
        cancelled.set()

    threading.Thread(target=cancel).start()
    with pytest.raises(TrialLost, match="cancelled"):
        supervise(long, cancelled)
    assert len(metrics.read_text().splitlines()) < 60
    assert supervise(long).status == "success"


def test_the_journal_is_whole_after_any_cut(tmp_path):
    journal = Journal.create(tmp_path / "journal.jsonl", {"seed": 1})
    for number in range(3):
        journal.append(ask=number, point={"act": "relu"})
    content = journal.path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    for cut in range(ends[0], len(content) + 1):
        journal.path.write_bytes(content[:cut])
        read = Journal.open(journal.path)
        assert len(read.entries) == sum(end <= cut for end in ends)
        read.repair()
        read.append(ask=9)
        assert Journal.open(journal.path).entries == read.entries


@pytest.mark.parametrize(
    "content", [b"", b"{}\n", b'{"settings": {}}\n{"ask"\n{"ask": 1}\n', b"\xff\n", b"[]\n"]
)
def test_damaged_journals_are_told(tmp_path, content):
    (tmp_path / "journal.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"journal\.jsonl"):
        Journal.open(tmp_path / "journal.jsonl")


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    journal = Journal.create(tmp_path / "journal.jsonl", {})
    before = journal.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        journal.append(ask=0)
    assert journal.path.read_bytes() == before and len(journal.entries) == 1


@pytest.mark.parametrize(("times", "rounds", "said"), [((1.0, 1.01), 1, ""), ((1.0, 2.0), 10, "spread by")])
def test_latency_is_measured_until_it_spreads_little(monkeypatch, capsys, times, rounds, said):
    """Otherwise ten times, and the log says so."""
    calls = []
    made = [times[number % len(times)] / 1000 for number in range(100)]

    def time_calls(call, device, count):
        calls.append(call())
        return made[:count]

    monkeypatch.setattr("xnext.search.trial.time_calls", time_calls)
    network = xnext.create_model("xception_debug")
    found = measure_latency(network, (3, 16, 16), torch.device("cpu"))
    assert len(calls) == rounds and times[0] <= found <= times[1]
    assert said in capsys.readouterr().out
