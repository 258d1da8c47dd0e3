"""Who computes: processes of this machine, or the workers of a Dask cluster."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from xnext._cluster import connect
from xnext._version import __version__
from xnext._workers import Processes, WorkerLost
from xnext.errors import UserError

if TYPE_CHECKING:
    from distributed import Client

_PRELOAD = ("xnext.deploy.bulk",)
_AHEAD = 2  # calls that wait for each process of this machine or are under way there
_AHEAD_CLUSTER = 4  # for each thread of a cluster, which may grow
_PATIENCE = 60.0  # seconds without any worker, which may be starting again

# As text, since a worker that lacks what it is sent ends without a word, and its work waits for ever.
_CHECK = f"""\
import xnext.deploy.bulk
if xnext.__version__ != {__version__!r}:
    raise ImportError("xnext " + xnext.__version__ + " instead of {__version__}")
"""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Who computes.

    Attributes:
        name: What to call it in errors.
        submit: Has a function called with arguments, somewhere; returns the future.
        ahead: Calls that are worth submitting before the first has ended.
        threads: For each call.
        lost: What a future raises whose process was killed.
        check: Raises a ``UserError`` if nobody is left; called while nothing ends.
    """

    name: str
    submit: "Callable[..., Future[Any]]"
    ahead: int
    threads: int
    lost: tuple[type[Exception], ...]
    check: Callable[[], None] = lambda: None


@contextmanager
def open_pool(workers: int | None, scheduler: str | None) -> Iterator[Pool]:
    """Yield who computes; at the end what is still under way is given up.

    Args:
        workers: Processes of this machine; None: one a core, or one alone where there is a GPU.
        scheduler: Address of a Dask cluster instead, `tcp://HOST:PORT`.

    Raises:
        UserError: There is no such cluster, or its workers cannot do the work.
    """
    if scheduler is None:
        threads = torch.get_num_threads()
        count = workers or (1 if torch.accelerator.is_available() else threads)
        with Processes(count, _PRELOAD) as processes:
            yield Pool(
                name="this machine", submit=processes.submit, ahead=_AHEAD * count,
                threads=max(1, threads // count), lost=(WorkerLost,),
            )  # fmt: skip
        return
    with connect(scheduler) as client:
        from distributed.scheduler import KilledWorker

        name = f"--scheduler {scheduler}"
        _check_packages(client, name)
        executor = client.get_executor(pure=False, retries=0)
        # With one thread a call, and the network shared by the calls of a worker, the cores are used well.
        yield Pool(
            name=name, submit=executor.submit, threads=1, lost=(KilledWorker,),
            ahead=_AHEAD_CLUSTER * sum(client.nthreads().values()), check=_watch(client, name),
        )  # fmt: skip


def _check_packages(client: "Client", name: str) -> None:
    """Refuse workers that have not what this process has."""
    for worker, error in client.run(exec, _CHECK, on_error="return").items():
        if error is not None:
            raise UserError(f"{name}: worker {worker} lacks a package ({error}); install xnext there too")


def _watch(client: "Client", name: str) -> Callable[[], None]:
    """Return what raises an error once a cluster has been without workers for a while."""
    seen = time.monotonic()

    def check() -> None:
        nonlocal seen
        if client.nthreads():
            seen = time.monotonic()
        elif time.monotonic() - seen > _PATIENCE:
            raise UserError(
                f"{name}: no worker is left; start some, and go on with the same command and --resume"
            )

    return check
