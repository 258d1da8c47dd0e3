"""Who computes: processes of this machine, or the workers of a Dask cluster."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from xnext._cluster import connect
from xnext._workers import Processes, WorkerLost

_PRELOAD = ("xnext.deploy.bulk",)
_AHEAD = 2  # calls that wait for each process of this machine or are under way there
_AHEAD_CLUSTER = 4  # for each thread of a cluster, which may grow


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Who computes.

    Attributes:
        name: What to call it in errors.
        submit: Has a function called with arguments, somewhere; returns the future.
        ahead: Calls that are worth submitting before the first has ended.
        threads: For each call.
        lost: What a future raises whose process was killed.
    """

    name: str
    submit: "Callable[..., Future[Any]]"
    ahead: int
    threads: int
    lost: tuple[type[Exception], ...]


@contextmanager
def open_pool(workers: int | None, scheduler: str | None) -> Iterator[Pool]:
    """Yield who computes; at the end what is still under way is given up.

    Args:
        workers: Processes of this machine; None: one a core, or one alone where there is a GPU.
        scheduler: Address of a Dask cluster instead, `tcp://HOST:PORT`.

    Raises:
        UserError: There is no such cluster.
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

        executor = client.get_executor(pure=False, retries=0)
        # With one thread a call, and the network shared by the calls of a worker, the cores are used well.
        yield Pool(
            name=f"--scheduler {scheduler}", submit=executor.submit, threads=1, lost=(KilledWorker,),
            ahead=_AHEAD_CLUSTER * sum(client.nthreads().values()),
        )  # fmt: skip
