"""What an exported network says about itself, and the seal that shows whether its file is whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from xnext._types import check_types
from xnext._version import __version__
from xnext.data._preprocessing import Preprocessing
from xnext.errors import UserError

FORMAT_VERSION = 1
"""Of what stands in an artefact beside the network; another one is not read."""

DTYPES = ("fp32", "bf16", "fp16", "int8")
Mode = Literal["latency", "throughput"]

_DIGEST = re.compile(rb"[0-9a-f]{64}")
_TAIL = 80  # bytes in which the digest stands


class ArtefactError(UserError):
    """An exported network that cannot be read, or not here."""


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """What an exported network says about itself.

    Attributes:
        format: One of the formats of ``xnext export``.
        model_name: The network's registered name.
        model_args: Fields of its config.
        classes: Class names in the order of the logits.
        preprocessing: How a picture becomes an input.
        multilabel: Whether a picture may have several classes.
        include_preprocessing: Whether the input is uint8 pixels, which the graph normalises itself.
        dtype: What it computes in.
        batch: Images a call; None: any number.
        size: Pixels a side; None: any.
        source: Where the weights came from.
        gate: What was compared before it was written, and how near the outputs were.
        version: Of this project, that wrote it.
        format_version: See ``FORMAT_VERSION``.
    """

    format: str
    model_name: str
    model_args: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    multilabel: bool
    include_preprocessing: bool
    dtype: str
    batch: int | None
    size: int | None
    source: str
    gate: dict[str, Any]
    version: str = __version__
    format_version: int = field(default=FORMAT_VERSION)

    def to_json(self) -> str:
        """Return it as ASCII text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, path: Path) -> Artefact:
        """Read what ``to_json`` wrote.

        Raises:
            ArtefactError: It is of another version, or not complete.
        """
        values = json.loads(text)
        whole = isinstance(values, dict)
        if whole and (theirs := values.get("format_version")) != FORMAT_VERSION:
            raise ArtefactError(
                f"{path} was written by xnext {values.get('version')} in artefact format {theirs}, and xnext "
                f"{__version__} reads format {FORMAT_VERSION}; export it again, or install that version"
            )
        if not whole or values.keys() != {one.name for one in fields(cls)}:
            raise ArtefactError(f"{path} has damaged metadata; export it again")
        artefact = cls(**values)
        check_types(artefact, ArtefactError)
        return artefact

    @property
    def pre(self) -> Preprocessing:
        """How a picture becomes an input."""
        return Preprocessing.from_dict(self.preprocessing)


@dataclass(frozen=True, kw_only=True)
class How:
    """How a network is run.

    Attributes:
        dtype: What it was exported to compute in.
        threads: Of the CPU; None: the runtime's choice.
        mode: ``latency``: one batch at a time on all threads; ``throughput``: several batches at once.
    """

    dtype: str = "fp32"
    threads: int | None = None
    mode: Mode = "latency"


class Session(Protocol):
    """A network that a runtime has loaded; may be called from several threads at once.

    Attributes:
        workers: Calls at once that use all threads.
        computes: The type it really computes in here, where the runtime says so, else that asked for.
    """

    workers: int
    computes: str

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Map images [N, C, H, W] to its outputs, the first of which are logits, float32 [N, classes]."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How networks are written in one format, and run.

    Attributes:
        ending: Of the file.
        package: What runs it, as pip names it.
        writers: What else writing takes, as pip names it.
        module: What is imported of ``package``.
        dtypes: Those it has.
        channels_last: Whether its runtime is faster with channels last.
        hinted: Whether its runtime is told which type to compute in, and the graph stays in float32.
        write: Write an ``ExportedProgram`` of torch.export: (program, path, dtype).
        annotate: Return the file's content with metadata in it, in two parts between which the digest goes:
            (path, metadata).
        read: Return the metadata of a file's content.
        load: Load a file: (path, how).
    """

    ending: str
    package: str
    module: str
    dtypes: tuple[str, ...]
    write: Callable[[Any, Path, str], None]
    annotate: Callable[[Path, str], tuple[bytes, bytes]]
    read: Callable[[bytes], str]
    load: Callable[[Path, How], Session]
    writers: Sequence[str] = ()
    channels_last: bool = False
    hinted: bool = False

    def require_runtime(self) -> None:
        """Refuse where the runtime is missing.

        Raises:
            ArtefactError: It says what to install.
        """
        self._require((self.module,), "to run it")

    def require_writer(self, others: Sequence[str] = ()) -> None:
        """Refuse where what writes the format, or another package, is missing, as ``require_runtime``."""
        self._require((self.module, *self.writers, *others), "to write it")

    def _require(self, modules: Sequence[str], purpose: str) -> None:
        for name in modules:
            if find_spec(name) is None:
                package = self.package if name == self.module else name
                raise ArtefactError(f"the package {package} is missing {purpose}: pip install {package}")


def files_of(path: Path) -> list[Path]:
    """Return the files that an artefact consists of, the one that is opened first."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def seal(path: Path, content: tuple[bytes, bytes]) -> None:
    """Write an artefact's first file with a digest of all files between two parts of its content."""
    digest = _digest(*content, files_of(path)[1:])
    path.write_bytes(content[0] + digest + content[1])


def read_sealed(path: Path) -> bytes:
    """Return the content of an artefact's first file.

    Raises:
        ArtefactError: It is missing, truncated or altered.
    """
    try:
        content = path.read_bytes()
        found = list(_DIGEST.finditer(content, max(0, len(content) - _TAIL)))
        whole = found and found[-1][0] == _digest(
            content[: found[-1].start()], content[found[-1].end() :], files_of(path)[1:]
        )
    except OSError as error:
        both = "; the network is that file and the .xml, of one name" if len(files_of(path)) > 1 else ""
        raise ArtefactError(f"{error.filename} cannot be read ({error.strerror}){both}") from error
    if not whole:
        names = " or ".join(map(str, files_of(path)))
        raise ArtefactError(f"{names} is truncated, altered, or not from `xnext export`; export it again")
    return content


def _digest(before: bytes, after: bytes, others: Sequence[Path]) -> bytes:
    state = hashlib.sha256(before)
    state.update(after)
    for other in others:
        with other.open("rb") as file:
            while block := file.read(2**20):
                state.update(block)
    return state.hexdigest().encode()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
