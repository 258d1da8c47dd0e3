"""Trials on a Dask cluster of two workers on this machine."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from xnext._interrupts import Stopped
from xnext.errors import UserError
from xnext.search import Search


@contextlib.contextmanager
def killed_at_work(process: int, search: Search, number: int = signal.SIGKILL) -> Iterator[None]:
    """Send a process a signal once a network has had an epoch."""

    def kill() -> None:
        while not list(search.path.glob("networks/*/run/metrics.jsonl")):
            time.sleep(0.01)
        os.kill(process, number)

    killer = threading.Thread(target=kill)
    killer.start()
    yield
    killer.join()


@pytest.mark.timeout(300)
def test_two_workers_of_which_one_dies(config, tmp_path, cluster):
    search = Search.create(
        tmp_path / "search", config(scheduler=cluster.scheduler.address, workers=2, trials=3)
    )
    (victim, _) = cluster.run(os.getpid).values()
    with killed_at_work(victim, search):
        search.run()
    assert victim not in cluster.run(os.getpid).values()
    assert [record.status for record in search.history.records] == ["success"] * 3
    alone = Search.create(tmp_path / "alone", config(trials=3))
    alone.run()
    values = [[record.values for record in one.history.records] for one in (search, alone)]
    assert values[0] == values[1], "where it was computed does not matter"
    told = [entry["tell"] for entry in Search.open(search.path)._journal.entries if "tell" in entry]
    assert sorted(told) == list(range(3)), "each once"


@pytest.mark.timeout(300)
def test_a_scheduler_that_dies(config, tmp_path, cluster):
    """The search ends in a line, no trial is lost by it, and it goes on without a cluster."""
    search = Search.create(
        tmp_path / "search", config(scheduler=cluster.scheduler.address, workers=2, trials=3)
    )
    told = pytest.raises(UserError, match="the Dask scheduler is gone; start it again, or give another")
    with killed_at_work(cluster.run_on_scheduler(os.getpid), search), told:
        search.run()
    again = Search.open(search.path)
    assert not any("lost" in entry for entry in again._journal.entries)
    again.resume({"scheduler": "local"})
    again.run()
    assert [record.status for record in again.history.records] == ["success"] * 3
    assert Search.open(search.path).config.scheduler is None


@pytest.mark.timeout(300)
def test_a_search_that_is_stopped_does_not_wait_for_the_cluster(config, tmp_path, cluster):
    """What runs there goes on, and counts when the search does."""
    search = Search.create(
        tmp_path / "search", config(scheduler=cluster.scheduler.address, workers=2, trials=3)
    )
    with killed_at_work(os.getpid(), search, signal.SIGTERM), pytest.raises(Stopped, match="go on with"):
        search.run()
    entries = Search.open(search.path)._journal.entries
    assert sum("tell" in entry for entry in entries) < sum("ask" in entry for entry in entries)
    again = Search.open(search.path)
    again.resume({"scheduler": "local"})
    again.run()
    assert [record.status for record in again.history.records] == ["success"] * 3
    assert not any("lost" in entry for entry in again._journal.entries)


def test_no_scheduler(config, tmp_path, monkeypatch):
    monkeypatch.setattr("xnext._cluster._PATIENCE", "1s")
    with pytest.raises(UserError, match=r"tcp://127\.0\.0\.1:9: no Dask scheduler answers there"):
        Search.create(tmp_path / "search", config(scheduler="tcp://127.0.0.1:9"))
    assert not (tmp_path / "search").exists()
