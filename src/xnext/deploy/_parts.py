"""The files of predictions: Parquet, a row an image."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from xnext._files import save_atomic

Row = tuple[str, tuple[tuple[str, float], ...], str | None]
"""Name of an image, its classes with their probabilities, and why it could not be read."""

SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "class": pa.string(),
        "probability": pa.float32(),
        "classes": pa.list_(pa.string()),
        "probabilities": pa.list_(pa.float32()),
        "error": pa.string(),
    }
)
"""The columns; where an image could not be read, all but name and error are empty."""


def write_part(path: Path, rows: Sequence[Row]) -> None:
    """Write rows, whole or not at all; of a name that is no text, the bytes are written escaped.

    Raises:
        UserError: The file cannot be written.
    """
    found = [classes or None for _, classes, _ in rows]
    columns = {
        "name": [name.encode("utf-8", "backslashreplace").decode() for name, _, _ in rows],
        "class": [classes and classes[0][0] for classes in found],
        "probability": [classes and classes[0][1] for classes in found],
        "classes": [classes and [name for name, _ in classes] for classes in found],
        "probabilities": [classes and [value for _, value in classes] for classes in found],
        "error": [error for _, _, error in rows],
    }
    table = pa.table(columns, SCHEMA)
    save_atomic(path, lambda temporary: parquet.write_table(table, temporary))


def read_unreadable(paths: Iterable[Path]) -> list[str]:
    """Return the names of the images of some parts that could not be read."""
    tables = (parquet.read_table(path, columns=["name", "error"]) for path in paths)
    return [row["name"] for table in tables for row in table.filter(table["error"].is_valid()).to_pylist()]
