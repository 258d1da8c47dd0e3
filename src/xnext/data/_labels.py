"""What loaders of labelled rows share: the column of a label, the classes, the two parts."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from xnext.data._sources import ImageData, ImageSource, hold_out
from xnext.errors import UserError, shorten, suggest

_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)


def chosen_label(spec: str, options: dict[str, str]) -> tuple[str | None, bool]:
    """Return the column that ``label=`` or ``labels=`` names, and whether it holds several labels a picture.

    Raises:
        UserError: Both are given.
    """
    if "label" in options and "labels" in options:
        raise UserError(
            f"{spec}: label= is for one class a picture and labels= for several; give one of them"
        )
    return options.get("labels", options.get("label")), "labels" in options


def choose_column(
    spec: str, role: str, choice: str | None, found: Sequence[str], columns: Sequence[str]
) -> str:
    """Return the column of a role.

    Args:
        spec: The spec, for errors.
        role: What the column is for, and the option that chooses it.
        choice: The user's choice, if there is one.
        found: The columns that look like it.
        columns: All of them.

    Raises:
        UserError: The choice is no column, or there is none and not exactly one was found.
    """
    if choice is None and len(found) != 1:
        raise missing_column(spec, role, found, columns)
    if choice is not None and choice not in columns:
        names = shorten(columns, limit=20)
        raise UserError(f"{spec}: no column {choice!r}; there are {names}.{suggest(choice, columns)}")
    return found[0] if choice is None else choice


def missing_column(spec: str, role: str, found: Sequence[str], columns: Sequence[str]) -> UserError:
    """Return the line that asks the user to choose the column of a role."""
    many = f"{len(found)} columns could be the {role} ({shorten(found)})" if found else f"no {role} column"
    several = ", or ?labels=COLUMN where a picture may have several" if role == "label" else ""
    return UserError(
        f"{spec}: {many} among {shorten(columns, limit=20)}; choose one with ?{role}=COLUMN{several}"
    )


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names in their order: by value if all are numbers, else by letter."""
    names = sorted(names)
    if all(map(_NUMBER.fullmatch, names)):
        names.sort(key=float)
    return tuple(names)


def number_labels(
    parts: Sequence[Sequence], several: bool, classes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Turn the names of classes into their numbers.

    Args:
        parts: For each part, the class of every picture; or, with ``several``, its classes.
        several: Whether a picture may have several classes, or none.
        classes: All class names; by default those that occur, sorted.

    Returns:
        The class names and, for each part, labels as ``ImageSource.labels`` has them.
    """
    if classes is None:
        cells = chain.from_iterable(parts)
        classes = sort_classes(set(chain.from_iterable(cells) if several else cells))
    place = {name: index for index, name in enumerate(classes)}
    if not several:
        return tuple(classes), [np.array([place[name] for name in part], dtype=np.int64) for part in parts]
    labels = [np.zeros((len(part), len(classes)), dtype=bool) for part in parts]
    for part, rows in zip(parts, labels, strict=True):
        for names, row in zip(part, rows, strict=True):
            row[[place[name] for name in names]] = True
    return tuple(classes), labels


def join_parts(spec: str, classes: tuple[str, ...], sources: Sequence[ImageSource], seed: int) -> ImageData:
    """Make a data set of the training part and the held-out part, or of one source that ``seed`` splits.

    Raises:
        UserError: The set cannot be split, or not be trained on.
    """
    if len(sources) == 1:
        return hold_out(spec, classes, sources[0], seed)
    train, val = sources
    return ImageData(spec, classes, train, val)
