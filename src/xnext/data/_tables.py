"""Tables of image paths and labels: CSV, TSV and Parquet."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from xnext.data._labels import choose_column, chosen_label, join_parts, missing_column, number_labels
from xnext.data._sources import FileSource, ImageData, check_same_classes, unlabelled, user_path
from xnext.errors import UserError, shorten, suggest

if TYPE_CHECKING:
    from pandas import DataFrame

_IMAGE = (
    "image", "images", "img", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path",
    "image_file", "image_name", "img_path", "img_file", "img_name",
)  # fmt: skip
_ONE = ("label", "class")
_SEVERAL = ("labels", "classes", "tags")
_SPLITS = (("train",), ("val", "valid", "validation"), ("test",))
_TRUTH = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


class _Table(NamedTuple):
    """Rows of a table, which keep their place in the file as their index.

    A cell is text, empty where the file has none; in Parquet also a list of texts, or whatever else is there.
    """

    path: Path
    rows: "DataFrame"

    @property
    def columns(self) -> list[str]:
        return list(self.rows.columns)

    def named(self, *names: str) -> list[str]:
        """Return the columns that have one of these names, in upper or lower case."""
        return [column for column in self.columns if column.lower() in names]

    def cells(self, column: str) -> list[Any]:
        if column not in self.columns:
            there = shorten(self.columns, limit=20)
            raise UserError(
                f"{self.path}: no column {column!r}; there are {there}.{suggest(column, self.columns)}"
            )
        return self.rows[column].tolist()

    def texts(self, column: str, hint: str = "choose another") -> list[str]:
        """Return the cells of a column that has text in every row; the hint is for one of another kind."""
        cells = self.cells(column)
        for row, cell in zip(self.rows.index, cells, strict=True):
            if not isinstance(cell, str):
                raise UserError(f"{self.path}: column {column!r} holds no text; {hint}")
            if not cell:
                raise UserError(f"{self.path}: row {row + 1} has no {column!r}; fill it or remove the row")
        return cells


def load_table(spec: str, target: str, options: dict[str, str], seed: int) -> ImageData:
    """Load a table of image paths and labels; see ``load_data`` for the options.

    Args:
        spec: The whole spec, for errors.
        target: The table's file, of a kind in ``TABLES``.
        options: Any of ``image``, ``label``, ``labels``, ``separator``, ``val`` and ``split``.
        seed: Decides the split where the table has none.

    Raises:
        UserError: A table cannot be read, or its columns are not plain.
    """
    table = _read_table(user_path(target))
    split = table.named("split")
    if "val" in options:
        if "split" in options:
            raise UserError(f"{spec}: val= and split= both say what is held out; give one of them")
        parts = [table, _read_table(user_path(options["val"]))]
        split += parts[1].named("split")  # such a column holds no label, in either
    elif split or "split" in options:
        split = [choose_column(spec, "split", options.get("split"), split, table.columns)]
        parts = _split_rows(table, split[0])
    else:
        parts = [table]
    image = _image_column(spec, table, options)
    classes, labels = _read_labels(spec, parts, {image, *split}, options)
    sources = [FileSource(_paths(part, image), each) for part, each in zip(parts, labels, strict=True)]
    return join_parts(spec, classes, sources, seed)


def table_pictures(spec: str, target: str, options: dict[str, str]) -> FileSource:
    """Return the pictures of a table, whatever its other columns say of them.

    Raises:
        UserError: The table cannot be read, or has not one column of paths.
    """
    table = _read_table(user_path(target))
    return FileSource(_paths(table, _image_column(spec, table, options)), unlabelled(len(table.rows)))


def _image_column(spec: str, table: _Table, options: dict[str, str]) -> str:
    return choose_column(spec, "image", options.get("image"), table.named(*_IMAGE), table.columns)


def _split_rows(table: _Table, column: str) -> list[_Table]:
    """Return the rows to train on and, if there are any, those held out, by the word in ``column``."""
    words = [word.lower() for word in table.texts(column)]
    known = [word for names in _SPLITS for word in names]
    for row, word in zip(table.rows.index, words, strict=True):
        if word not in known:
            there = f"{table.path}: row {row + 1} has {word!r} in column {column!r}"
            raise UserError(f"{there}, which takes {', '.join(known)}.{suggest(word, known)}")
    train, *others = (table._replace(rows=table.rows[np.isin(words, names)]) for names in _SPLITS)
    # Test rows stay unseen where there are others to choose the best epoch by.
    return [train, *[part for part in others if len(part.rows)][:1]]


def _paths(table: _Table, column: str) -> list[str]:
    """Return the paths of the images, which are relative to the table's folder."""
    folder = table.path.parent
    return [str(folder / path) for path in table.texts(column, "pictures in a table are read by hf:FOLDER")]


def _read_labels(
    spec: str, parts: list[_Table], others: set[str], options: dict[str, str]
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Return the class names and the labels of each part; the columns ``others`` are something else."""
    choice, several = chosen_label(spec, options)
    found = [name for name in parts[0].named(*_ONE, *_SEVERAL) if name not in others]
    if choice is None and len(found) == 1:
        choice, several = found[0], found[0].lower() in _SEVERAL
    if "separator" in options and not several:
        raise UserError(f"{spec}: separator= is for a column of several classes a row; add labels=COLUMN")
    if choice is None and not found:
        return _read_truth(spec, parts, others)
    column = choose_column(spec, "label", choice, found, parts[0].columns)
    if several:
        pattern = re.escape(options["separator"]) if "separator" in options else "[|;]"
        return number_labels([_any_classes(part, column, pattern) for part in parts], several=True)
    hint = f"if it holds lists of classes, choose it with ?labels={column}"
    return number_labels([part.texts(column, hint) for part in parts], several=False)


def _any_classes(table: _Table, column: str, separator: str) -> list[list[str]]:
    """Return the classes of each row, none where the cell is empty."""
    cells = [re.split(separator, cell) if isinstance(cell, str) else cell for cell in table.cells(column)]
    for cell in cells:
        if not isinstance(cell, list) or not all(isinstance(name, str) for name in cell):
            raise UserError(f"{table.path}: column {column!r} holds neither text nor lists of it")
    return [[name.strip() for name in cell if name.strip()] for cell in cells]


def _read_truth(spec: str, parts: list[_Table], others: set[str]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Return the classes and labels of tables with a column a class: whether it is in the picture."""
    place = {name: index for index, name in enumerate(parts[0].columns)}
    classes = [
        tuple(sorted(set(part.columns) - others, key=lambda name: (place.get(name, len(place)), name)))
        for part in parts
    ]
    missing = missing_column(spec, "label", (), parts[0].columns)
    if not classes[0]:
        raise missing
    labels = []
    for part, names in zip(parts, classes, strict=True):
        truth = np.zeros((len(part.rows), len(names)), dtype=bool)
        for column, name in enumerate(names):
            cells = part.cells(name)
            values = [_TRUTH.get(str(cell).lower()) for cell in cells]
            if None in values:
                row = values.index(None)
                where = f"row {part.rows.index[row] + 1} of {part.path} has {cells[row]!r} in {name!r}"
                raise UserError(f"{missing}; nor is there a column of 0 and 1 for each class: {where}")
            truth[:, column] = values
        labels.append(truth)
    check_same_classes(spec, classes[0], classes[-1])
    return classes[0], labels


def _read_table(path: Path) -> _Table:
    if path.suffix.lower() not in TABLES:
        raise UserError(f"{path}: no table; one ends in {', '.join(TABLES)}")
    try:
        with path.open("rb") as file:
            rows = TABLES[path.suffix.lower()](file)
        if not len(rows):
            raise ValueError("it has no rows")
    except Exception as error:  # of the file, and whatever damaged bytes lead three libraries to
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"{path}: cannot be read as a table ({reason})") from error
    # What pandas writes of its row numbers is a column without a name.
    return _Table(path, rows.loc[:, [name for name in rows.columns if name]])


def _read_text(file: BinaryIO, delimiter: str) -> "DataFrame":
    from pandas import DataFrame

    # Python's reader, since pandas' takes a row that is too short for one with empty cells.
    reader = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        for cells in reader:
            if rows and cells and len(cells) != len(rows[0]):
                raise ValueError(
                    f"line {reader.line_num} has {len(cells)} cells, and the first {len(rows[0])}"
                )
            if cells:
                rows.append([cell.strip() for cell in cells])
    except UnicodeDecodeError as error:
        raise ValueError("it is no UTF-8 text; save it as UTF-8") from error
    if not rows:
        raise ValueError("it is empty")
    _check_names(rows[0])
    return DataFrame(rows[1:], columns=rows[0], dtype=object)


def _read_parquet(file: BinaryIO) -> "DataFrame":
    from pandas import read_parquet
    from pyarrow.parquet import read_schema

    _check_names(read_schema(file).names)
    rows = read_parquet(file, dtype_backend="pyarrow")  # its types keep whole numbers whole beside nulls
    if any(rows.index.names):
        rows = rows.reset_index()
    rows = rows.astype(object)
    rows.columns = [str(name).strip() for name in rows.columns]
    return rows.where(rows.notna(), None).map(_text)


def _check_names(names: list[str]) -> None:
    """Refuse a column name that comes twice."""
    counts = Counter(name.strip() for name in names)
    twice = [name for name, count in counts.items() if name and count > 1]
    if twice:
        raise ValueError(f"more than one column is called {shorten(twice)}")


def _text(cell: Any) -> Any:
    """Return a Parquet cell as CSV would have it: text, and empty for a null; other things as they are."""
    if isinstance(cell, list | np.ndarray):
        return [_text(item) for item in np.asarray(cell, dtype=object).tolist()]
    if cell is None or cell != cell:  # as NaN alone is
        return ""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # whole numbers beside nulls are often kept as floats
    return str(cell).strip() if isinstance(cell, str | int | float) else cell


TABLES: dict[str, Callable[[BinaryIO], "DataFrame"]] = {
    ".csv": partial(_read_text, delimiter=","),
    ".tsv": partial(_read_text, delimiter="\t"),
    ".parquet": _read_parquet,
}
"""How a table is read, by the ending of its name."""
