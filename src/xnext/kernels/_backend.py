"""Which of the two computes an operator: the Triton kernel, or PyTorch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from xnext.errors import UserError, suggest
from xnext.kernels._geometry import Geometry
from xnext.kernels._tiles import read_table

Backend = Literal["auto", "triton", "torch"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_KERNEL = 11

HAS_TRITON = find_spec("triton") is not None  # as it is with PyTorch for Linux
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels on the CPU; it asks for that when it is imported."""

_backend: Backend = "auto"


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Choose who computes the operators of ``xnext.kernels`` within a ``with`` block, in all threads.

    Args:
        backend: ``auto`` takes the Triton kernel where it can compute the operator and was measured to be
            faster on this kind of GPU; ``triton`` takes it wherever it can, and raises where it cannot;
            ``torch`` never takes it.

    Raises:
        UserError: There is no such backend.
    """
    global _backend
    if backend not in get_args(Backend):
        raise UserError(f"there is no backend {backend!r}.{suggest(backend, get_args(Backend))}")
    before, _backend = _backend, backend
    try:
        yield
    finally:
        _backend = before


def takes_triton(x: Tensor, weight: Tensor | None, geometry: Geometry) -> bool:
    """Return whether the Triton kernel is to compute a depthwise convolution, or a pooling without a weight.

    Raises:
        UserError: It is asked for and cannot; the line says why.
    """
    if _backend == "torch":
        return False
    reason = why_not(x, weight, geometry)
    if _backend == "triton" and reason is not None:
        raise UserError(f"backend triton: {reason}; use auto or torch")
    return reason is None and (_backend == "triton" or is_faster(x, geometry))


def why_not(x: Tensor, weight: Tensor | None, geometry: Geometry) -> str | None:
    """Return why the Triton kernel cannot compute this, or None if it can."""
    if not HAS_TRITON:
        return "Triton is not installed"
    if x.device.type != "cuda" and not INTERPRETED:
        return f"{x.device.type} is no NVIDIA or AMD GPU"
    dtype = effective_dtype(x)
    if dtype not in DTYPES:
        return f"it has no {str(dtype).removeprefix('torch.')}"
    if weight is not None and effective_dtype(weight) != dtype:
        return f"the input is {x.dtype} and the weight {weight.dtype}"
    if max(geometry.kernel) > LARGEST_KERNEL:
        return f"kernel {geometry.kernel[0]}x{geometry.kernel[1]} is larger than {LARGEST_KERNEL}"
    if geometry.stride not in ((1, 1), (2, 2)):
        return f"stride {geometry.stride} is neither 1 nor 2"
    return None


def is_faster(x: Tensor, geometry: Geometry) -> bool:
    """Return whether the kernel was measured to be faster than PyTorch for such a shape on such a GPU."""
    if x.device.type != "cuda" or x.stride(1) != 1:
        return False
    least = _least(x.device.index, geometry)
    return least is not None and x.numel() >= least


def effective_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which a tensor takes part, which is another under autocast."""
    kind = x.device.type
    if x.is_floating_point() and x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


# The compiler is told that this stays as it is, since it cannot look into a cache.
@torch.compiler.assume_constant_result
def _least(device: int, geometry: Geometry) -> int | None:
    """Return the fewest elements with which our kernel won on such a GPU, or None if it never did."""
    kernel, stride = geometry.kernel, geometry.stride[0]
    return _winners(torch.cuda.get_device_capability(device)).get(f"{kernel[0]}x{kernel[1]}x{stride}")


def _winners(capability: tuple[int, int]) -> dict[str, int]:
    """Return the table of what was measured on such a GPU, by kernel and stride."""
    return read_table()["winners"].get("{}.{}".format(*capability), {})
