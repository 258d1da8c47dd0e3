"""ONNX by PyTorch's exporter, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from xnext.deploy._artefact import Format, How, cores

_KEY, _DIGEST_KEY = b"xnext", b"xnext.sha256"
_METADATA_PROPS = 14  # the field's number in ModelProto, onnx.proto
_BYTES = 2  # a protobuf field of a given length


def _write(program: Any, path: Path, dtype: str) -> None:
    import torch

    onnx_program = torch.onnx.export(
        program, dynamo=True, external_data=False, verbose=False, input_names=["images"],
        output_names=["logits"],
    )  # fmt: skip
    assert onnx_program is not None, "the dynamo exporter returns a program"
    onnx_program.save(str(path))


def _annotate(path: Path, metadata: str) -> tuple[bytes, bytes]:
    """Append entries of ``metadata_props``: protobuf takes a field's later values as more of a list."""
    entry = _entry(_KEY, metadata.encode())
    sealed = _entry(_DIGEST_KEY, bytes(64))
    return path.read_bytes() + entry + sealed[:-64], b""


def _entry(key: bytes, value: bytes) -> bytes:
    return _field(_METADATA_PROPS, _field(1, key) + _field(2, value))


def _field(number: int, value: bytes) -> bytes:
    length, size = b"", len(value)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | _BYTES]) + length + bytes([size]) + value


def _read(content: bytes) -> str:
    place = content.rindex(_field(1, _KEY)) + len(_KEY) + 3  # the key's two bytes, and the value's number
    length = shift = 0
    while True:
        byte, place = content[place], place + 1
        length, shift = length | (byte & 127) << shift, shift + 7
        if byte < 128:
            return content[place : place + length].decode()


class _Session:
    """A session of ONNX Runtime on the CPU."""

    def __init__(self, path: Path, how: How):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is fatal: errors are raised
        self.workers, self.computes = 1, how.dtype
        if how.mode == "throughput":
            self.workers = how.threads or cores()
            options.intra_op_num_threads = 1
        elif how.threads is not None:
            options.intra_op_num_threads = how.threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        return list(self._session.run(None, {self._input: images}))


ONNX = Format(
    ending=".onnx", package="onnxruntime", module="onnxruntime", writers=("onnx", "onnxscript"),
    dtypes=("fp32", "fp16", "int8"), write=_write, annotate=_annotate, read=_read, load=_Session,
)  # fmt: skip
