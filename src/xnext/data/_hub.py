"""Hugging Face datasets: of the hub, or a local folder that needs no network."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from xnext._hub import hub_access
from xnext.data._labels import choose_column, chosen_label, join_parts, number_labels
from xnext.data._sources import (
    HubSource,
    ImageData,
    ImageSource,
    JoinedSource,
    check_same_classes,
    unlabelled,
    user_path,
)
from xnext.errors import UserError, shorten, suggest

_OF_MASKS = ("mask", "annotation", "label", "segment")  # what the name of a column of masks has in it
_VAL_SPLITS = ("validation", "val", "valid", "dev", "test")


def load_hub(spec: str, target: str, options: dict[str, str], seed: int) -> ImageData:
    """Load ``hf:TARGET``; see ``load_data`` for the options.

    Args:
        spec: The whole spec, for errors.
        target: A local folder, or a dataset's name on the hub.
        options: Any of ``train``, ``val``, ``image``, ``label``, ``labels`` and ``config``.
        seed: Decides the split where the dataset has none.

    Raises:
        UserError: The dataset cannot be reached or read, or its columns are not plain.
    """
    parts = _load_two(spec, target, options)
    image = _image_column(spec, parts[0].features, options.get("image"))
    label, several = _label_column(spec, parts[0].features, options)
    classes, labels = _read_labels(spec, parts, label, several)
    sources = [
        HubSource(_undecoded(spec, rows, image), image, part_labels, name)
        for rows, part_labels, name in zip(parts, labels, ("train", "val"), strict=False)
    ]
    return join_parts(spec, classes, sources, seed)


def load_hub_pairs(spec: str, target: str, options: dict[str, str]) -> list[tuple[ImageSource, ImageSource]]:
    """Load the images and the masks of ``hf:TARGET``.

    Args:
        spec: The whole spec, for errors.
        target: A local folder, or a dataset's name on the hub.
        options: Any of ``train``, ``val``, ``image``, ``mask`` and ``config``.

    Returns:
        For each part, images and masks: to train on and, unless the dataset has no such split, held out.

    Raises:
        UserError: The dataset cannot be reached or read, or its columns are not plain.
    """
    parts = _load_two(spec, target, options)
    columns = list(parts[0].features)
    pictures = _picture_columns(parts[0].features)
    masks = [name for name in pictures if any(part in name.lower() for part in _OF_MASKS)]
    mask = choose_column(spec, "mask", options.get("mask"), masks, columns)
    rest = [name for name in pictures if name not in (mask, *masks)]
    image = choose_column(spec, "image", options.get("image"), rest, columns)
    pairs: list[tuple[ImageSource, ImageSource]] = []
    for rows, name in zip(parts, ("train", "val"), strict=False):
        if missing := [column for column in (image, mask) if column not in rows.features]:
            raise _missing_in_part(spec, missing[0])
        # Each with its column alone, since a row is read as a whole.
        one, other = (
            HubSource(
                _undecoded(spec, rows, column).select_columns([column]), column, unlabelled(len(rows)), name
            )
            for column in (image, mask)
        )
        pairs.append((one, other))
    return pairs


def _load_two(spec: str, target: str, options: dict[str, str]) -> list[Any]:
    """Return the rows to train on and, unless the dataset has no such split, those held out."""

    def choose(splits: list[str]) -> list[str]:
        val = options.get("val") or next((name for name in _VAL_SPLITS if name in splits), None)
        return [options.get("train", "train"), *([val] if val else [])]

    return [rows for _, rows in _load_parts(spec, target, options.get("config"), choose)]


def _missing_in_part(spec: str, column: str) -> UserError:
    return UserError(f"{spec}: the held-out part has no column {column!r}; choose another with ?val=SPLIT")


def hub_pictures(spec: str, target: str, options: dict[str, str]) -> ImageSource:
    """Return the pictures of ``hf:TARGET``, whatever is said of them there.

    Args:
        spec: The whole spec, for errors.
        target: A local folder, or a dataset's name on the hub.
        options: Any of ``split`` (a name, or a pattern of data files; else all are taken), ``image`` and
            ``config``.

    Raises:
        UserError: The dataset cannot be reached or read, or has not one column of images.
    """
    chosen = [options["split"]] if "split" in options else None
    parts = _load_parts(spec, target, options.get("config"), lambda splits: chosen or splits)
    sources = []
    for split, rows in parts:
        image = _image_column(spec, rows.features, options.get("image"))
        rows = _undecoded(spec, rows, image)
        sources.append(HubSource(rows, image, unlabelled(len(rows)), f"hf:{target} {split}"))
    if not any(map(len, sources)):
        raise UserError(f"{spec}: no picture in it")
    return JoinedSource(sources)


def _load_parts(
    spec: str, target: str, config: str | None, choose: Callable[[list[str]], list[str]]
) -> list[tuple[str, Any]]:
    """Return splits, and patterns of data files, with their rows.

    Args:
        spec: The whole spec, for errors.
        target: A local folder, or a dataset's name on the hub.
        config: The dataset's configuration.
        choose: From the names of the splits that there are to those that are wanted.
    """
    import datasets

    if target and user_path(target).is_dir():
        target = str(user_path(target).resolve())
    elif not target or target.startswith(("/", ".", "~")) or target.count("/") > 1:
        raise UserError(f"{spec}: no such folder")

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
            return [(name, part(name)) for name in choose(list(splits))]
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
    return choose_column(spec, "image", choice, _picture_columns(features), list(features))


def _picture_columns(features: dict[str, Any]) -> list[str]:
    """Return the columns of images, and where none is said to be one, those of encoded files.

    Libraries other than Hugging Face's write Parquet files that do not say what an image is: pandas and
    Polars write its bytes, or a struct of them and a path.
    """
    import datasets

    def encoded(feature: Any) -> bool:
        if isinstance(feature, dict):
            return "bytes" in feature and feature.keys() <= {"bytes", "path"}
        return getattr(feature, "dtype", None) in ("binary", "large_binary")

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    return images or [name for name, feature in features.items() if encoded(feature)]


def _label_column(spec: str, features: dict[str, Any], options: dict[str, str]) -> tuple[str, bool]:
    """Return the column of labels, and whether each row has a list of them."""
    import datasets

    choice, several = chosen_label(spec, options)
    named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [name for name, feature in features.items() if _is_plain(feature)]
    lists = [name for name, feature in features.items() if _is_plain(_item(feature))]
    found = named or plain or lists
    column = choose_column(spec, "label", choice, found, list(features))
    several = several or (choice is None and found is lists)
    if several and column not in lists:
        raise UserError(f"{spec}: column {column!r} holds no lists of class labels, integers or strings")
    if not several and not _is_plain(features[column]):
        hint = f"; it holds lists of them: choose it with ?labels={column}" if column in lists else ""
        raise UserError(
            f"{spec}: column {column!r} holds neither class labels nor integers nor strings{hint}"
        )
    return column, several


def _item(feature: Any) -> Any:
    """Return what a column of lists holds, and nothing for any other column."""
    return getattr(feature, "feature", None)


def _is_plain(feature: Any) -> bool:
    """Whether a column of this feature can hold a label: an integer or a string."""
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "string", "large_string"))


def _undecoded(spec: str, rows: Any, column: str) -> Any:
    """Return the rows with an image column of ``{"bytes", "path"}``, for ``decode_image``."""
    import datasets

    try:
        return rows.cast_column(column, datasets.Image(decode=False))
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:  # pyarrow's are of these
        raise UserError(
            f"{spec}: column {column!r} holds no images; choose one with ?image=COLUMN"
        ) from error


def _read_labels(
    spec: str, parts: Sequence[Any], column: str, several: bool
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Return the class names and, for each part, the class or the classes of each row."""
    for rows in parts:
        if column not in rows.features:
            raise _missing_in_part(spec, column)
    values = [rows[column][:] for rows in parts]
    if any(None in part or (several and any(None in row for row in part)) for part in values):
        raise UserError(
            f"{spec}: some rows have no {column!r}; choose labelled splits with ?train= and ?val="
        )
    features = [rows.features[column] for rows in parts]
    names = [getattr(_item(feature) if several else feature, "names", None) for feature in features]
    if names[0] is None:
        texts = [[list(map(str, row)) if several else str(row) for row in part] for part in values]
        return number_labels(texts, several)
    for other in names[1:]:
        check_same_classes(spec, names[0], other or ())
    classes = tuple(names[0])
    if not several:
        return classes, [np.asarray(part, dtype=np.int64) for part in values]
    odd = set(chain.from_iterable(chain.from_iterable(values))) - set(range(len(classes)))
    if odd:
        raise UserError(f"{spec}: column {column!r} has label {min(odd)}, which is no class; choose another")
    return number_labels(
        [[[classes[label] for label in row] for row in part] for part in values], True, classes
    )
