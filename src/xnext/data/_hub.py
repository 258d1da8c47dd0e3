"""Hugging Face datasets: of the hub, or a local folder that needs no network."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xnext._hub import hub_access
from xnext.data._sources import HubSource, ImageData, check_same_classes, hold_out, user_path
from xnext.errors import UserError, shorten, suggest

_VAL_SPLITS = ("validation", "val", "valid", "dev", "test")


def load_hub(spec: str, target: str, options: dict[str, str], seed: int) -> ImageData:
    """Load ``hf:TARGET``; see ``load_data`` for the options.

    Args:
        spec: The whole spec, for errors.
        target: A local folder, or a dataset's name on the hub.
        options: Any of ``train``, ``val``, ``image``, ``label`` and ``config``.
        seed: Decides the split where the dataset has none.

    Raises:
        UserError: The dataset cannot be reached or read, or its columns are not plain.
    """
    if target and user_path(target).is_dir():
        target = str(user_path(target).resolve())
    elif not target or target.startswith(("/", ".", "~")) or target.count("/") > 1:
        raise UserError(f"{spec}: no such folder")
    parts = _load_parts(spec, target, options)
    image = _image_column(spec, parts[0].features, options.get("image"))
    label = _label_column(spec, parts[0].features, options.get("label"))
    classes, labels = _read_labels(spec, parts, label)
    sources = [
        HubSource(_undecoded(spec, rows, image), image, part_labels, name)
        for rows, part_labels, name in zip(parts, labels, ("train", "val"), strict=False)
    ]
    if len(sources) == 1:
        return hold_out(spec, classes, sources[0], seed)
    train, val = sources
    return ImageData(spec, classes, train, val)


def _load_parts(spec: str, target: str, options: dict[str, str]) -> list[Any]:
    """Return the rows to train on and, unless the dataset has no such split, those held out."""
    import datasets

    config = options.get("config")

    def part(choice: str) -> Any:
        if set(choice) & set("*?/."):
            return datasets.load_dataset(target, config, data_files={"part": choice}, split="part")
        if choice not in splits:
            raise UserError(
                f"{spec}: no split {choice!r}; there are {shorten(list(splits))}.{suggest(choice, splits)}"
            )
        return splits[choice]()

    try:
        with hub_access(), _bars_in_a_terminal():
            splits = _find_splits(target, config)
            train = part(options.get("train", "train"))
            val = options.get("val") or next((name for name in _VAL_SPLITS if name in splits), None)
            return [train, part(val)] if val else [train]
    except UserError:
        raise
    except Exception as error:  # connection, format and configuration errors of four libraries
        reason = " ".join(str(error).split())
        raise UserError(f"{spec}: cannot be loaded ({reason}); check the name and the options") from error


def _find_splits(target: str, config: str | None) -> dict[str, Callable[[], Any]]:
    """Return the dataset's splits by name, each as a function that loads it."""
    import datasets

    load = partial(datasets.load_dataset, target, config)
    if not Path(target).is_dir():
        return {name: partial(load, split=name) for name in datasets.get_dataset_split_names(target, config)}
    files = datasets.load_dataset_builder(target, config).config.data_files
    paths = {str(name): list(found) for name, found in files.items()}
    # One at a time: loaded together, all splits would silently get the class names of the first.
    return {name: partial(load, data_files={name: paths[name]}, split=name) for name in paths}


@contextmanager
def _bars_in_a_terminal() -> Iterator[None]:
    """Let the library draw its progress where somebody may look at it, and not into files and pipes."""
    import datasets

    hide = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


def _image_column(spec: str, features: dict[str, Any], choice: str | None) -> str:
    import datasets

    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    return _choose(spec, "image", choice, found, features)


def _label_column(spec: str, features: dict[str, Any], choice: str | None) -> str:
    import datasets

    found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if not found:
        found = [name for name, feature in features.items() if _is_plain(feature)]
    return _choose(spec, "label", choice, found, features)


def _is_plain(feature: Any) -> bool:
    """Whether a column of this feature can hold a label: an integer or a string."""
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "string", "large_string"))


def _choose(spec: str, role: str, choice: str | None, found: list[str], features: dict[str, Any]) -> str:
    columns = shorten(list(features), limit=20)
    if choice is None:
        if len(found) == 1:
            return found[0]
        many = (
            f"{len(found)} columns could be the {role} ({shorten(found)})" if found else f"no {role} column"
        )
        raise UserError(f"{spec}: {many} among {columns}; choose one with ?{role}=COLUMN")
    if choice not in features:
        raise UserError(f"{spec}: no column {choice!r}; there are {columns}.{suggest(choice, features)}")
    if role == "label" and not _is_plain(features[choice]):
        raise UserError(f"{spec}: column {choice!r} holds neither class labels nor integers nor strings")
    return choice


def _undecoded(spec: str, rows: Any, column: str) -> Any:
    """Return the rows with an image column of ``{"bytes", "path"}``, for ``decode_image``."""
    import datasets

    try:
        return rows.cast_column(column, datasets.Image(decode=False))
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:  # pyarrow's are of these
        raise UserError(
            f"{spec}: column {column!r} holds no images; choose one with ?image=COLUMN"
        ) from error


def _read_labels(spec: str, parts: Sequence[Any], column: str) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Return the class names and, for each part, the class of each row."""
    for rows in parts:
        if column not in rows.features:
            raise UserError(
                f"{spec}: the held-out part has no column {column!r}; choose another with ?val=SPLIT"
            )
    values = [rows[column][:] for rows in parts]
    if any(None in part for part in values):
        raise UserError(
            f"{spec}: some rows have no {column!r}; choose labelled splits with ?train= and ?val="
        )
    features = [rows.features[column] for rows in parts]
    if hasattr(features[0], "names"):
        for feature in features[1:]:
            check_same_classes(spec, features[0].names, getattr(feature, "names", ()))
        return tuple(features[0].names), [np.asarray(part, dtype=np.int64) for part in values]
    names = sorted(set().union(*values))  # numbers by value, words by letter
    place = {name: index for index, name in enumerate(names)}
    return tuple(map(str, names)), [
        np.asarray([place[value] for value in part], dtype=np.int64) for part in values
    ]
