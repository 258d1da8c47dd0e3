"""Where the trials of a search run: on this machine, or on a Dask cluster."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from xnext._cluster import connect, require_connected
from xnext.search.config import SearchConfig


@dataclass(frozen=True)
class Pool:
    """Where trials run.

    Attributes:
        executor: To which they are submitted.
        cancelled: Set, it ends those on this machine.
        require: Raises a ``UserError`` where the cluster is no more.
    """

    executor: Executor
    cancelled: threading.Event
    require: Callable[[], None] = lambda: None


@contextmanager
def open_pool(config: SearchConfig) -> Iterator[Pool]:
    """Yield where trials run.

    Raises:
        UserError: There is no such scheduler.
    """
    cancelled = threading.Event()
    if config.scheduler is None:
        with ThreadPoolExecutor(config.workers) as pool:
            try:
                yield Pool(pool, cancelled)
            finally:
                cancelled.set()
        return
    with connect(config.scheduler) as client:
        yield Pool(client.get_executor(pure=False, retries=0), cancelled, partial(require_connected, client))
