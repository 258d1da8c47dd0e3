"""Signals that ask long work to stop: it saves, or removes what it made, before it does."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from xnext._processes import is_launched

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 - the user's wish, no error
    """Long work stopped by a signal, after everything was saved.

    Attributes:
        signal: Number of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


@contextmanager
def clean_exit() -> Iterator[None]:
    """Let SIGTERM end the process by an exception, as SIGINT does, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interrupts:
    """Notes SIGINT and SIGTERM instead of dying of them; a second one acts as ever.

    Under torchrun, which sends on what a terminal has sent to all already, a second one does nothing.

    Use it as a context manager. Outside the main thread, where Python allows no handlers, it notes nothing.

    Attributes:
        signal: Number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        if not is_launched():
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
