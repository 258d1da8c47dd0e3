"""A quick stand-in for Triton's interpreter: the kernels' own source, on NumPy's arrays, for float32.

Triton's interpreter builds and checks a typed expression for each operation, which takes it some 50 times as
long as the operation: a step of training takes up to half a minute, and no test can go through fifty. Here a
kernel is what its source says, with blocks as arrays and pointers as places in a storage. It checks that no
place outside a storage is read or written, and nothing else that Triton would.
"""

import dataclasses
import itertools
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from xnext.kernels import _launch, _tiles
from xnext.kernels._tiles import Tile, find_tile


class Block(np.ndarray):
    """An array like one of Triton's blocks: it has types to go to, and never changes."""

    def to(self, dtype: type) -> "Block":
        return self.astype(dtype, copy=False)

    def __iadd__(self, other: Any) -> "Block":
        return self + other

    def __iand__(self, other: Any) -> "Block":
        return self & other


def block(array: Any) -> Block:
    return np.asarray(array).view(Block)


class Pointer:
    """A place, or places, in the elements of a storage."""

    __slots__ = ("elements", "place")

    def __init__(self, elements: np.ndarray, place: Any) -> None:
        self.elements, self.place = elements, place

    @property
    def dtype(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(element_ty=self.elements.dtype.type)

    def __add__(self, places: Any) -> "Pointer":
        return Pointer(self.elements, self.place + places)


class Kernel:
    """A function of Triton's language, to be called by others and to be launched."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *inputs: Any) -> Any:
        return self.function(*inputs)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*inputs: Any, num_warps: int, **constants: Any) -> None:
            language.grid = grid
            inputs = tuple(_pointer(one) if isinstance(one, torch.Tensor) else one for one in inputs)
            for language.program in itertools.product(*map(range, grid)):
                self.function(*inputs, **constants)

        return launch


def _pointer(tensor: torch.Tensor) -> Pointer:
    elements = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return Pointer(elements.numpy(), tensor.storage_offset())


def _load(pointer: Pointer, ok: Any, other: Any = 0) -> Block:
    if ok is True or (ok.shape == np.shape(pointer.place) and ok.all()):  # mostly so, and much quicker
        return pointer.elements.take(pointer.place).view(Block)
    place = np.where(ok, pointer.place, 0)
    read = pointer.elements.take(place) if pointer.elements.size else place
    return block(np.where(ok, read, pointer.elements.dtype.type(other)))


def _store(pointer: Pointer, value: Any, ok: Any) -> None:
    if np.shape(ok) == np.shape(pointer.place) and np.all(ok):
        pointer.elements[pointer.place] = value
        return
    place, ok = np.broadcast_arrays(pointer.place, ok)
    pointer.elements[place[ok]] = np.broadcast_to(value, place.shape)[ok]


def _where(ok: Any, a: Any, b: Any) -> Block:
    chosen = block(np.where(ok, a, b))
    return chosen.to(np.float32) if chosen.dtype == np.float64 else chosen  # of two numbers of Python


def _maximum(a: Any, b: Any, propagate_nan: bool = False) -> Any:
    assert propagate_nan or np.asarray(a).dtype.kind in "iu"
    return np.maximum(a, b)


language = types.SimpleNamespace(
    constexpr=int,
    float32=np.float32,
    int64=np.int64,
    uint8=np.uint8,
    PropagateNan=types.SimpleNamespace(ALL=True),
    static_range=range,
    arange=lambda start, end: block(np.arange(start, end)),
    zeros=lambda shape, dtype: block(np.zeros(shape, dtype)),
    where=_where,
    sum=lambda a, axis: a.sum(axis),
    max=lambda a, axis: a.max(axis),
    cast=lambda a, dtype: dtype(a),
    maximum=_maximum,
    minimum=np.minimum,
    load=_load,
    store=_store,
    program_id=lambda axis: language.program[axis],
    num_programs=lambda axis: language.grid[axis],
)


@contextmanager
def quick_kernels(large: bool = False) -> Iterator[None]:
    """Launch the kernels here, unless there is a GPU that can.

    Args:
        large: Take tiles of so many places, channels and taps as no GPU has room for, since an operation
            takes as long on few numbers as on many.
    """
    if torch.cuda.is_available():
        yield
        return
    triton = types.ModuleType("triton")
    triton.jit, triton.language, triton.constexpr_function = Kernel, language, lambda function: function
    kernels = {}
    with patch.dict(sys.modules, {"triton": triton, "triton.language": language}):
        for name in ("_triton", "_triton_pool"):
            spec = find_spec(f"xnext.kernels.{name}")
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            kernels |= vars(module)
    replaced = {
        "add_up": "add_up",
        "correlate": "correlate",
        "correlate_weight": "correlate_weight",
        "mix_kernel": "mix",
        "max_blur_kernel": "max_blur",
        "max_blur_input_kernel": "max_blur_input",
    }
    changes = {name: kernels[kernel] for name, kernel in replaced.items()}
    if large:
        changes["find_tile"] = lambda operation, along, across, stride: dataclasses.replace(
            find_tile(operation, along, across, stride), places=8192, channels=512, keep=True, part=across
        )
    with (
        patch.multiple(_launch, **changes),
        patch.object(_tiles, "_SHORTEST", 64 if large else _tiles._SHORTEST),
        patch.object(_launch, "_SUM", Tile(places=8192, channels=512) if large else _launch._SUM),
    ):
        yield
