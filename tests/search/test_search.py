"""Searches: every trial is noted once, however it or the search ends."""

import contextlib
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from forked import begin
from xnext.cli import main
from xnext.errors import UserError
from xnext.search import Search
from xnext.search.journal import Journal
from xnext.search.optimizers import OPTIMIZERS, Optimizer, Query
from xnext.search.trial import Outcome


def words(config, output) -> list[str]:
    """Return the command of a search."""
    options = {
        name: getattr(config, name)
        for name in (
            "space",
            "trials",
            "max_epochs",
            "optimizer",
            "width",
            "image_size",
            "batch_size",
            "device",
        )
    }
    flat = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    several = [word for name in config.objective for word in ("--objective", name)]
    return ["search", config.data, "--output", str(output), *flat, *several]


def told(path) -> list[dict]:
    """Return the trials of a search, without what differs from run to run."""
    entries = Journal.open(path / "journal.jsonl").entries[1:]
    asked = [entry for entry in entries if "ask" in entry]
    told = {entry["tell"]: entry for entry in entries if "tell" in entry}
    assert [entry["ask"] for entry in asked] == list(range(len(asked)))
    assert len(told) == sum("tell" in entry for entry in entries), "a trial was told twice"
    return [
        {"point": ask["point"], "epochs": ask["epochs"], "status": told[ask["ask"]]["status"]}
        | {name: told[ask["ask"]]["values"].get(name) for name in ("top1", "macs", "params")}
        for ask in asked
    ]


@pytest.mark.parametrize(
    "optimizer", ["smac", *(pytest.param(name, marks=pytest.mark.slow) for name in ("random", "evolution"))]
)
def test_a_search_from_the_command_line(config, tmp_path, capsys, optimizer):
    output = tmp_path / "search"
    assert main(words(config(optimizer=optimizer), output)) == 0
    trials = told(output)
    assert len(trials) == 6 and all(trial["status"] == "success" for trial in trials)
    assert len({(tuple(trial["point"].items()), trial["epochs"]) for trial in trials}) == 6
    assert "best: " in capsys.readouterr().out
    assert main(["search", "show", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "6 success" in shown and "at its end" in shown and "act" in shown
    assert main(["search", "best", str(output)]) == 0
    assert (output / "best.yaml").is_file()
    assert main(["search", "--resume", "--output", str(output), "--trials", "8"]) == 0
    assert told(output)[:6] == trials and len(told(output)) == 8
    assert Search.open(output).config.trials == 8, "show tells what is wanted now"


def test_the_winner_is_trained_at_full_size(config, tmp_path, capsys):
    search = Search.create(tmp_path / "search", config(trials=2))
    search.run()
    train = [
        "--data",
        config().data,
        "--epochs",
        "1",
        "--output",
        str(tmp_path / "run"),
        "--image-size",
        "16",
    ]
    assert main(["search", "best", str(tmp_path / "search"), "--train", *train]) == 0
    assert main(["search", "best", str(tmp_path / "search"), "--train", *train, "--model", "xception"]) == 2
    assert "--train trains the winner; leave --model out" in capsys.readouterr().err
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "model: nexception_debug" in text and "middle_depth: 2" in text
    best = search.history.best.query.point
    assert f"middle_kernel_size: {best['middle_kernel_size']}" in text


def test_promoted_trials_go_on_where_they_were(config, tmp_path):
    search = Search.create(tmp_path / "search", config(optimizer="smac", trials=9, max_epochs=3))
    search.run()
    records = search.history.records
    longest = [record for record in records if record.query.epochs == 3]
    shorter = {record.network for record in records if record.query.epochs == 1}
    promoted = [record for record in longest if record.network in shorter]
    assert promoted
    for record in promoted:
        log = (tmp_path / "search" / "networks" / f"{record.network:05d}" / "log.txt").read_text()
        assert log.count("epochs\n") == 2 and log.count("epoch 1/3") <= 2
        run = tmp_path / "search" / "networks" / f"{record.network:05d}" / "run"
        assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [
            1,
            2,
            3,
        ]


def test_several_objectives_and_limits(config, tmp_path, capsys):
    limited = config(
        optimizer="smac", objective=("top1", "params", "latency_ms"), limit=("params<=7000",), trials=8
    )
    search = Search.create(tmp_path / "search", limited)
    search.run()
    status = {record.status for record in search.history.records}
    assert status == {"success", "rejected"}
    for record in search.history.records:
        assert (record.status == "rejected") == (record.values["params"] > 7000)
        assert record.values["latency_ms"] > 0 and all(0 <= cost < float("inf") for cost in record.costs)
    front = search.history.front
    assert front == sorted(front, key=lambda record: record.costs)
    assert main(["search", "show", str(tmp_path / "search")]) == 0
    assert "the front:" in capsys.readouterr().out


def test_two_workers_make_as_many_trials(config, tmp_path):
    search = Search.create(tmp_path / "search", config(workers=2))
    search.run()
    assert len(told(tmp_path / "search")) == 6


@pytest.mark.timeout(600)
@pytest.mark.parametrize("objective", [("top1",), ("top1", "params")], ids=["one", "two"])
def test_a_search_killed_anywhere_goes_on(config, tmp_path, objective):
    """Kills of the search, of its trials and in the middle of a line; then all is as without them."""
    plain = config(optimizer="smac", objective=objective, trials=12)
    Search.create(tmp_path / "whole", plain).run()
    expected, output, draw = told(tmp_path / "whole"), tmp_path / "search", random.Random(0)
    command, journal, kills = words(plain, output), output / "journal.jsonl", 0
    for life in range(2):
        process = begin(command)
        for _ in range(4):
            wait_for_work(journal, process.is_alive)
            time.sleep(draw.uniform(0, 0.2))
            kills += kill_trial(process, output)
        wait_for_work(journal, process.is_alive)
        time.sleep(draw.uniform(0, 0.4))
        assert process.is_alive(), "it is to be killed at work"
        process.kill()
        process.join()
        kills += 1
        command = ["search", "--resume", "--output", str(output)]
        if life == 0:
            with journal.open("ab") as stream:
                stream.write(b'{"tell": 3, "sta')
    assert main(command) == 0
    assert told(output) == expected and kills >= 10


def wait_for_work(journal, is_alive) -> None:
    """Wait until a search has ended another trial, of which none is to be killed three times."""

    def count() -> int:
        return journal.read_bytes().count(b'\n{"tell"') if journal.exists() else 0

    before = count()
    while count() == before and is_alive():
        time.sleep(0.01)


def kill_trial(search, output) -> int:
    """Kill a process of a trial, which has its log open; return how many that were."""
    while search.is_alive():
        for process in psutil.Process(search.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(file.path.startswith(str(output / "networks")) for file in process.open_files()):
                    process.kill()
                    return 1
        time.sleep(0.01)
    return 0


def test_a_search_is_followed_on_a_terminal_and_ended_by_ctrl_c(config, tmp_path, monkeypatch):
    output, plain = tmp_path / "search", config(trials=500, workers=2)
    process = subprocess.Popen(
        [sys.executable, "-m", "xnext", *words(plain, output)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for_work(output / "journal.jsonl", lambda: process.poll() is None)
    with pytest.raises(UserError, match="a search is running there"):
        Search.open(output).run()
    terminal, inside = pty.openpty()
    codes: list[int] = []

    def show() -> None:
        with os.fdopen(inside, "w") as stream, monkeypatch.context() as patch:
            patch.setattr("sys.stdout", stream)
            patch.setenv("TERM", "xterm")
            codes.append(main(["search", "show", str(output)]))

    showing = threading.Thread(target=show, daemon=True)
    showing.start()
    seen = b""
    while len(set(re.findall(rb"(\d+)(?:\x1b\[0m)? success", seen))) < 3:  # drawn anew as trials end
        seen += os.read(terminal, 65536)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    with contextlib.suppress(OSError):  # the terminal's end
        while os.read(terminal, 65536):
            pass
    showing.join(timeout=30)
    assert codes == [0]
    os.close(terminal)
    assert process.returncode == 130 and errors.decode().startswith("xnext: stopped after ")
    assert errors.count(b"\n") == 1 and b"--resume --output" in errors
    search = Search.open(output)
    search.resume({"trials": search.history.finished + 2})
    search.run()
    assert {trial["status"] for trial in told(output)} == {"success"}


def test_a_resumed_search_refuses_what_would_make_it_another(config, tmp_path, capsys):
    output = tmp_path / "search"
    Search.create(output, config())
    journal = (output / "journal.jsonl").read_bytes()
    for option, line in [
        ("--width=0.5", "width was 1.0 when .* cannot become 0.5"),
        ("--objective=macs", r"objective was \('top1',\) when"),
        ("--optimizer=smac", "optimizer was 'random' when"),
        ("--seed=3", "seed was 0 when"),
        ("--trials=0", "trials is 0"),
    ]:
        assert main(["search", "--resume", "--output", str(output), option]) == 2
        assert re.search(line, capsys.readouterr().err)
    assert (output / "journal.jsonl").read_bytes() == journal
    assert main(["search", "--resume", "--output", str(output), "--width=1", "--trials=1"]) == 0
    assert len(told(output)) == 1


@pytest.mark.parametrize("objectives", [("top1",), ("top1", "macs")])
def test_smacs_own_tools_read_a_search(config, tmp_path, objectives):
    """Its files are those that DeepCAVE reads."""
    smac, history = pytest.importorskip("smac"), pytest.importorskip("smac.runhistory")
    search = Search.create(
        tmp_path / "search", config(optimizer="random", objective=objectives, limit=("params<=7000",))
    )
    search.run()
    (folder,) = (tmp_path / "search" / "smac").glob("*/*")
    scenario = smac.Scenario.load(folder)
    read = history.RunHistory()
    read.load(folder / "runhistory.json", scenario.configspace)
    records = search.history.records
    assert len(read) == len(records) and {record.status for record in records} == {"success", "rejected"}
    for (key, value), record in zip(read.items(), records, strict=True):
        assert dict(read.get_config(key.config_id)) == dict(record.query.point)
        assert key.budget == record.query.epochs and key.seed == 0
        costs = value.cost if isinstance(value.cost, list) else [value.cost]
        assert tuple(costs) == record.costs
        assert (value.status == history.StatusType.SUCCESS) == (record.status == "success")
        assert value.additional_info["trial"] == record.number


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"trials": None}, "--trials N or --hours H"),
        ({"trials": 0}, "trials is 0; it must be at least 1"),
        ({"min_epochs": 5}, "min_epochs 5 is more than max_epochs 2"),
        ({"objective": ("latency_ms",)}, "must have top1"),
        ({"objective": ("top1", "latency")}, "unknown objective 'latency'. Did you mean 'latency_ms'"),
        ({"objective": ("top1", "top1")}, "stands twice"),
        ({"limit": ("params<5",)}, "limit 'params<5' is not understood"),
        ({"limit": ("params<=many",)}, "is not understood"),
        ({"optimizer": "smack"}, "unknown optimizer 'smack'. Did you mean 'smac'"),
        ({"width": float("nan")}, "width is nan"),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda"),
        ({"scheduler": "somewhere"}, "'somewhere' is no address"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(config, changes, line):
    with pytest.raises(UserError, match=line.replace("'. ", r"'\. ")):
        config(**changes)


class Moody(Optimizer):
    """May have nothing to ask for while trials run, as evolution may near the end of a space."""

    def __init__(self, task):
        self.points, self.calls, self.running = list(task.space.points()), 0, 0

    def ask(self):
        self.calls += 1
        if (self.calls % 4 == 0 and self.running) or self.calls > 30:
            return None
        self.running += 1
        return Query(self.points[self.calls], 1)

    def tell(self, query, costs):
        self.running -= 1


def test_what_was_asked_in_vain_is_asked_again(config, tmp_path, monkeypatch):
    """Else what comes next would be another."""
    delays = random.Random(0)

    def supervise(trial, cancelled):
        time.sleep(delays.random() / 200)
        return Outcome(status="success", values={"top1": 100 * delays.random()})

    monkeypatch.setattr("xnext.search.search.supervise", supervise)
    monkeypatch.setitem(OPTIMIZERS, "random", Moody)
    path = tmp_path / "search"
    Search.create(path, config(trials=10, workers=3, max_epochs=1)).run()
    for trials in (20, 1000):
        search = Search.open(path)
        assert not search.exhausted
        search.resume({"trials": trials})
        search.run()
    kinds = [next(iter(entry)) for entry in Journal.open(path / "journal.jsonl").entries[1:]]
    first, last = kinds.index("exhausted"), len(kinds) - kinds[::-1].index("ask")
    assert "ask" in kinds[first:] and "exhausted" in kinds[last:] and Search.open(path).exhausted
    assert kinds.count("ask") == kinds.count("tell") > 20
    assert kinds.count("exhausted") <= kinds.count("tell"), "in vain once at a time"
