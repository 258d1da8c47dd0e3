"""How far long work is."""

from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.progress import track

Watch = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Passes items on, under a title, and may show how many of a total; as :func:`watched` does."""


def unwatched(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """Pass items on, and show nothing."""
    return items


def watched(items: Iterable[Any], title: str, total: int | None = None) -> Iterable[Any]:
    """Pass items on, with a bar on stderr where that is a terminal.

    Args:
        items: What to pass on.
        title: What is being done.
        total: How many there are, where the items do not know.
    """
    console = Console(stderr=True)
    return track(items, title, total=total, console=console, transient=True, disable=not console.is_terminal)
