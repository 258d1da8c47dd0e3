"""OpenVINO's intermediate representation: the graph in a .xml, the weights in a .bin beside it."""

from __future__ import annotations

import ctypes
import html
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from xnext.deploy._artefact import Format, How

_METADATA = re.compile(rb'<xnext value="([^"]*)" ?/>')
# What is not int8 of an int8 network may as well be bf16 where a CPU has it. Left unsaid, it would be in
# whatever the runtime holds fastest, fp32 networks too.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "bf16"}
_COMPUTES = {"f32": "fp32", "float32": "fp32", "bf16": "bf16", "f16": "fp16"}


def _write(program: Any, path: Path, dtype: str) -> None:
    import openvino

    model = openvino.convert_model(program)
    model.inputs[0].get_tensor().set_names({"images"})
    model.outputs[0].get_tensor().set_names({"logits"})
    save(model, path, dtype)


def save(model: Any, path: Path, dtype: str) -> None:
    """Write an OpenVINO model; weights of 16 bits are kept in as many."""
    import openvino

    model.set_rt_info("xnext", ["written_by"])  # so that there is a place for metadata
    openvino.save_model(model, path, compress_to_fp16=dtype in ("bf16", "fp16"))


def _annotate(path: Path, metadata: str) -> tuple[bytes, bytes]:
    """Put metadata where ``Model.set_rt_info`` would, but leave all else byte for byte as it was tested."""
    before, end, after = path.read_bytes().rpartition(b"</rt_info>")
    assert end, "what `save` wrote has it"
    entry = f'<xnext value="{html.escape(metadata)}" />'.encode()
    return before + entry + end + after + b"<!-- sha256 ", b" -->\n"


def _read(content: bytes) -> str:
    return html.unescape(_METADATA.findall(content)[-1].decode())


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Let this thread keep its stack for signals, or that it has none, while OpenVINO's CPU plugin is loaded.

    The plugin sets a small one whose memory goes with the network, and after that each of Python's handlers,
    for Ctrl-C or of a DataLoader, may end the process with a segmentation fault.
    """
    sigaltstack = getattr(ctypes.CDLL(None), "sigaltstack", None) if sys.platform == "linux" else None
    stack = _SignalStack()
    if sigaltstack is None or sigaltstack(None, ctypes.byref(stack)) != 0:
        yield
        return
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(stack), None)


class _Session:
    """A model compiled for the CPU, with requests of its own for each thread that asks."""

    def __init__(self, path: Path, how: How):
        import openvino

        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[how.dtype],
            "PERFORMANCE_HINT": how.mode.upper(),
        }
        if how.threads is not None:
            options["INFERENCE_NUM_THREADS"] = how.threads
        core = openvino.Core()
        with own_signal_stack():
            self._compiled = core.compile_model(core.read_model(path), "CPU", options)
        self.workers = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        precision = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.computes = how.dtype if how.dtype == "int8" else _COMPUTES.get(precision, precision)
        self._own = threading.local()

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        outputs = self._own.request.infer([images], share_inputs=True)
        return [np.array(outputs[place]) for place in range(len(outputs))]


OPENVINO = Format(
    ending=".xml", package="openvino", module="openvino", dtypes=("fp32", "bf16", "fp16", "int8"),
    write=_write, annotate=_annotate, read=_read, load=_Session, hinted=True,
)  # fmt: skip
