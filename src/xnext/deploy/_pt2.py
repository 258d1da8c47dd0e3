"""PyTorch's own two: archives of ``torch.export``, and packages that AOTInductor compiles for a CPU."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from xnext.deploy._artefact import Format, How, cores

_ENTRY = "extra/xnext.json"  # where torch.export.load finds its `extra_files`


def _write_archive(program: Any, path: Path, dtype: str) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that share memory, which are on the CPU
        torch.export.save(program, path)


def _write_package(program: Any, path: Path, dtype: str) -> None:
    import torch

    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _annotate(path: Path, metadata: str) -> tuple[bytes, bytes]:
    """Add an entry to the archive, and leave room in its comment, which is its end."""
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/{_ENTRY}", metadata)
        archive.comment = bytes(64)
    return path.read_bytes()[:-64], b""


def _read(content: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = next(name for name in archive.namelist() if name.endswith(f"/{_ENTRY}"))
        return archive.read(name).decode()


class _Session:
    """What was loaded, and called without gradients."""

    def __init__(self, call: Any, how: How):
        self._call = call
        self._threads = how.threads
        self.workers, self.computes = 1, how.dtype
        if how.mode == "throughput":
            self.workers, self._threads = how.threads or cores(), 1

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        import torch

        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # of this thread
        with torch.inference_mode():
            outputs = self._call(torch.from_numpy(images))
        return [output.numpy() for output in ([outputs] if torch.is_tensor(outputs) else outputs)]


def _load_archive(path: Path, how: How) -> _Session:
    import torch

    return _Session(torch.export.load(path).module(), how)


def _load_package(path: Path, how: How) -> _Session:
    from torch._inductor.package import load_package

    runners = (how.threads or cores()) if how.mode == "throughput" else 1
    return _Session(load_package(str(path), num_runners=runners), how)


def _format(write: Any, load: Any) -> Format:
    return Format(
        ending=".pt2", package="torch", module="torch", dtypes=("fp32", "bf16", "fp16"), channels_last=True,
        write=write, annotate=_annotate, read=_read, load=load,
    )  # fmt: skip


TORCH = _format(_write_archive, _load_archive)
AOTI = _format(_write_package, _load_package)
