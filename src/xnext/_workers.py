"""Processes that work for this one: how they start, are watched and end."""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from xnext._files import write_error
from xnext.errors import UserError

_LOOK = 0.1  # seconds between two looks at a lock
_STARTING = threading.Lock()


def warm_up(preload: Sequence[str]) -> Any:
    """Start what workers are forked from, which takes seconds; return it.

    Args:
        preload: Modules that it imports, so that no worker needs to.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    with without_script():
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def without_script() -> Iterator[None]:
    """Let a process that is started not run the user's script again, of which a worker needs nothing.

    `multiprocessing` would do so in each of them: it takes time, and one without a main guard would begin
    the whole work anew in its workers.
    """
    with _STARTING:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script


def die_with_parent() -> None:
    """End this process once the one that started it is no more; for a thread of its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def require_free_of(folder: Path, what: str, patience: float = 0.0) -> Any:
    """Take the lock of a folder for as long as what is returned lives.

    Args:
        folder: Of a search, or of whatever one process alone may write to.
        what: What another process that has it is doing there, for the error.
        patience: Seconds to wait for one who has it.

    Raises:
        UserError: Another process has it, or the folder cannot be written.
    """
    lock = folder / ".lock"
    try:
        stream = lock.open("w")
    except OSError as error:
        raise write_error(lock, error) from error
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return stream
        except OSError as error:
            if time.monotonic() > until:
                stream.close()
                raise UserError(f"{folder}: {what} is running there; wait for it, or stop it") from error
        time.sleep(_LOOK)


class WorkerLost(Exception):  # noqa: N818 - what it did is to be done again
    """A process ended in the middle of its work: it was killed, or died of a signal."""


class Processes:
    """Processes that each do one thing after the other; of one that dies, only what it did is lost.

    Python's own pool of processes is broken by one that dies, and all that the others did is lost too.

    Use it as a context manager; at its end the processes are killed.

    Args:
        count: How many there are; each starts when it is needed.
        preload: Modules that they have imported when they start.
    """

    def __init__(self, count: int, preload: Sequence[str]) -> None:
        self._context = warm_up(preload)
        self._threads = ThreadPoolExecutor(count)
        self._local = threading.local()
        self._running: set[Any] = set()
        self._ended = False

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        with _STARTING:  # none is being started
            self._ended = True
        processes = list(self._running)
        for process in processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in processes:
            process.join()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Let a process call a function of a module; its future raises ``WorkerLost`` if the process dies."""
        return self._threads.submit(self._call, function, arguments)

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Have the process of this thread call a function; start it if there is none."""
        if getattr(self._local, "process", None) is None:
            self._start()
        process, connection = self._local.process, self._local.connection
        try:
            connection.send((function, arguments))
            answer, error = connection.recv()
        except (EOFError, OSError) as end:
            self._local.process = None
            connection.close()
            process.join()
            self._running.discard(process)
            code = process.exitcode or 0
            how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            raise WorkerLost(how) from end
        if error is not None:
            raise error
        return answer

    def _start(self) -> None:
        connection, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        with without_script():
            if self._ended:
                raise WorkerLost("was not started any more")
            process.start()
            self._running.add(process)
        theirs.close()  # so that the end of the process ends the connection
        self._local.process, self._local.connection = process, connection


def _serve(connection: Connection) -> None:
    """Call what is asked for, as a process of ``Processes``, until nobody asks any more."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for the process that started this one
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = connection.recv()
            answer: tuple[Any, Exception | None]
            try:
                answer = function(*arguments), None
            except UserError as error:
                answer = None, error
            except Exception:  # some cannot be sent, and none with where it came from
                answer = None, RuntimeError(traceback.format_exc())
            connection.send(answer)
