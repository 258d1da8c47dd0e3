"""A run directory: all that a training leaves, in one folder that later commands take."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xnext._files import is_temporary, make_folder, write_atomic, write_error
from xnext._yaml import read_yaml
from xnext.errors import UserError
from xnext.training.config import TrainConfig


class Run:
    """The files of one training, each written whole or not at all.

    Attributes:
        path: The folder.
        config: `config.yaml`, everything needed to run it again.
        metrics: `metrics.jsonl`, a line an epoch.
        summary: `summary.json`, the result.
        bad_images: `bad_images.txt`, names of the images that could not be read; absent without any.
        best: Weights of the best epoch.
        last: Weights of the last epoch.
        curves: Picture of losses and metrics over the epochs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.bad_images = path / "bad_images.txt"
        self.best = path / "checkpoints" / "best.safetensors"
        self.last = path / "checkpoints" / "last.safetensors"
        self._made: list[Path] = []
        self.curves = path / "curves.png"

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Return the run in an existing folder.

        Raises:
            UserError: The folder is missing or holds no run.
        """
        run = cls(path)
        if not run.config.is_file():
            raise UserError(
                f"{path} is not a run: it holds no config.yaml; give the --output folder of a training"
            )
        return run

    @classmethod
    def create(cls, path: Path, config_yaml: str) -> "Run":
        """Make the folder with its `config.yaml`; after a failure no folder is left that was not there.

        Raises:
            UserError: The folder is taken, or it cannot be written.
        """
        require_free(path)
        run = cls(path)
        run._made = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
        try:
            make_folder(run.best.parent)
            run.write_config(config_yaml)
        except UserError:
            run.discard()
            raise
        return run

    def discard(self) -> None:
        """Remove all that the run has written, and the folders that were made for it."""
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody else may have put something there
            for folder in self._made:
                folder.rmdir()

    def read_config(self) -> TrainConfig:
        """Return what the run was told, with its folder as the output.

        Raises:
            UserError: The file cannot be read or is damaged.
        """
        try:
            config = TrainConfig.from_dict(read_yaml(self.config))
        except UserError as error:
            path = "" if str(self.config) in str(error) else f"{self.config}: "
            raise UserError(f"{path}{error}; mend the file, or give its weights as --checkpoint") from error
        return dataclasses.replace(config, output=self.path)

    def write_config(self, config_yaml: str) -> None:
        """Write what the training is told to `config.yaml`."""
        write_atomic(self.config, config_yaml.encode("utf-8", "replace"))

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write the finished epochs to `metrics.jsonl`, a line each."""
        write_atomic(self.metrics, "".join(f"{json.dumps(row)}\n" for row in rows).encode())

    def append_bad_images(self, names: Iterable[str]) -> None:
        """Add names to `bad_images.txt`, one a line."""
        _append(self.bad_images, "\n".join(name.replace("\n", "\\n") for name in names))

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the epochs done so far, first to last."""
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the result of the training to `summary.json`."""
        write_atomic(
            self.summary,
            (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace"),
        )


def require_free(path: Path) -> None:
    """Check that a run can be created at ``path``, without creating anything.

    Raises:
        UserError: Something is there already, or it cannot be looked at.
    """
    try:
        taken = (path.exists() or path.is_symlink()) and not (path.is_dir() and _is_free(path))
    except OSError as error:
        raise write_error(path, error) from error
    if taken:
        raise UserError(
            f"{path} exists already; choose another --output, remove it, or go on with --resume {path}"
        )
    parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not parent.is_dir():
        raise UserError(f"cannot create {path}: {parent} is a file; choose another --output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot create {path}: no permission to write in {parent}; choose another --output")


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty but for what a training that was killed at its very start leaves."""
    rest = [entry for entry in folder.rglob("*") if not is_temporary(entry)]
    return all(entry == Run(folder).best.parent for entry in rest)


def _append(path: Path, text: str) -> None:
    """Add lines to a file that is small enough to be written anew, so that it never ends in half a line."""
    before = path.read_bytes() if path.exists() else b""
    write_atomic(path, before + text.encode("utf-8", "surrogateescape") + b"\n")
