"""Work on a Dask cluster, whose workers see files under the same paths as this process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xnext.errors import UserError

if TYPE_CHECKING:
    from distributed import Client

_PATIENCE = "10s"


@contextmanager
def connect(address: str) -> "Iterator[Client]":
    """Yield the client of a cluster.

    Args:
        address: Of its scheduler, `tcp://HOST:PORT`.

    Raises:
        UserError: Nobody answers there, or there is no worker.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError("--scheduler needs Dask: pip install 'xnext[search]'") from error
    for logger in ("distributed", "distributed.client"):  # what they meet comes as exceptions
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(
            f"--scheduler {address}: no Dask scheduler answers there ({error}); start it, or give another"
        ) from error
    with client:
        if not client.nthreads():
            raise UserError(
                f"--scheduler {address}: it has no workers; start some with `dask worker {address}`"
            )
        yield client


def require_connected(client: "Client") -> None:
    """Refuse to wait for a scheduler that is no more.

    Raises:
        UserError: As said.
    """
    if client.status != "running":
        raise UserError(
            "the Dask scheduler is gone; start it again, or give another, and go on with --resume"
        )
