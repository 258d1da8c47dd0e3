"""What a training needs to go on: one file a state, the newest of which can be trusted or is passed over."""

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from xnext._files import write_atomic
from xnext.errors import UserError

_NAME = re.compile(r"state-(\d+)\.pt")


class States:
    """The states of a run, each written whole or not at all and moved into place before the pointer to it.

    A file holds tensors and plain values, which ``weights_only=True`` loads. It is a zip archive, whose
    checksums are compared before it is used.

    Args:
        folder: Where they are.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self._folder = folder
        self._keep = keep
        self._pointer = folder / "newest-state"

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` training steps, then forget the oldest.

        Raises:
            UserError: It cannot be written; all earlier ones are untouched.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        path = self._folder / f"state-{step:08}.pt"
        write_atomic(path, buffer.getvalue())
        write_atomic(self._pointer, f"{path.name}\n".encode())
        for old in self._paths()[self._keep :]:
            old.unlink(missing_ok=True)
        return path

    def load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the newest state that is whole, or None, and a line for each damaged one before it."""
        damaged: list[str] = []
        for path in self._paths():
            try:
                return _read(path), damaged
            except UserError as error:
                damaged.append(str(error))
        return None, damaged

    def _paths(self) -> list[Path]:
        """Return the files: the one that the pointer names, then the others from the newest to the oldest."""
        paths = {path.name: path for path in self._folder.glob("state-*.pt") if _NAME.fullmatch(path.name)}
        names = sorted(paths, key=lambda name: int(_NAME.fullmatch(name)[1]), reverse=True)  # type: ignore[index]
        pointed = self._pointer.read_text(errors="replace").strip() if self._pointer.is_file() else ""
        return [paths[name] for name in sorted(names, key=lambda name: name != pointed)]


def _read(path: Path) -> dict[str, Any]:
    """Return what a state file holds.

    Raises:
        UserError: It is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead the readers to anything
        raise UserError(f"{path} is damaged ({type(error).__name__})") from error
    raise UserError(f"{path} is damaged (checksum of {broken})")
