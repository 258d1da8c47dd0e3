"""Trials on the workers of a Dask cluster, which see the folder of the search under the same path."""

import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from xnext.errors import UserError

_PATIENCE = "10s"


@contextmanager
def connect(address: str) -> Iterator[Executor]:
    """Yield the executor of a cluster.

    Args:
        address: Of its scheduler, `tcp://HOST:PORT`.

    Raises:
        UserError: Nobody answers there, or there is no worker.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError("--scheduler needs Dask: pip install 'xnext[search]'") from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it meets comes as exceptions
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(f"--scheduler {address}: no Dask scheduler answers there ({error})") from error
    with client:
        if not client.nthreads():
            raise UserError(
                f"--scheduler {address}: it has no workers; start some with `dask worker {address}`"
            )
        yield client.get_executor(pure=False, retries=0)
