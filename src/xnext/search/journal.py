"""The journal of a search: an append-only file of what was asked and told, which is all of its state."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xnext._files import make_folder, write_atomic, write_error
from xnext.errors import UserError


class Journal:
    """Lines of JSON, each on the disk before anything follows from it.

    Attributes:
        path: The file.
        entries: All lines, the settings of the search first.
    """

    def __init__(self, path: Path, entries: list[dict[str, Any]]) -> None:
        self.path = path
        self.entries = entries

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any]) -> "Journal":
        """Begin a journal.

        Raises:
            UserError: It cannot be written.
        """
        make_folder(path.parent)
        first = {"settings": dict(settings)}
        write_atomic(path, _line(first))
        return cls(path, [json.loads(_line(first))])

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Read a journal; a last line that a kill cut short is as if it had not been begun.

        Raises:
            UserError: There is none, or another line is damaged.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path.parent} is not a search: {path} cannot be read ({error.strerror})"
            ) from error
        *lines, _ = content.split(b"\n")
        entries = []
        for number, line in enumerate(lines, start=1):
            try:
                entries.append(json.loads(line))
                if not isinstance(entries[-1], dict):
                    raise ValueError("no mapping")
            except ValueError as error:
                raise UserError(
                    f"{path}: line {number} is damaged; cut the file before it to lose what comes after"
                ) from error
        if not entries or "settings" not in entries[0]:
            raise UserError(f"{path}: does not begin with the settings of a search")
        return cls(path, entries)

    def repair(self) -> None:
        """Cut a last line off that a kill has left short, so that the next one begins anew.

        Raises:
            UserError: The file cannot be written.
        """
        size = self.path.read_bytes().rfind(b"\n") + 1
        try:
            os.truncate(self.path, size)
        except OSError as error:
            raise write_error(self.path, error) from error

    def require_current(self) -> None:
        """Refuse to go on where another process has gone on since this was read.

        Raises:
            UserError: As said, or the file cannot be read.
        """
        if Journal.open(self.path).entries != self.entries:
            raise UserError(f"{self.path} has got lines of another process meanwhile; give the command again")

    def append(self, **entry: Any) -> None:
        """Add a line and wait until it is on the disk.

        Raises:
            UserError: It cannot be written; then it is not there at all.
        """
        line = _line(entry)
        try:
            with self.path.open("ab", buffering=0) as stream:
                before = stream.tell()
                try:
                    if stream.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(stream.fileno())
                except OSError:
                    stream.truncate(before)
                    raise
        except OSError as error:
            raise write_error(self.path, error) from error
        self.entries.append(json.loads(line))


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, allow_nan=False, ensure_ascii=False).encode() + b"\n"
