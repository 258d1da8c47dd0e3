"""Which of the two computes an operator: the Triton kernel, or PyTorch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

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


def is_auto() -> bool:
    """Return whether the faster one is to compute an operator."""
    return _backend == "auto"


def takes_triton(name: str, x: Tensor, *geometries: Geometry) -> bool:
    """Return whether the Triton kernel is to compute an operator.

    Args:
        name: Of the operator in the table of winners.
        x: Its input.
        geometries: How each kernel that it applies moves.

    Raises:
        UserError: It is asked for and cannot; the line says why.
    """
    if _backend == "torch":
        return False
    reason = next(filter(None, (why_not(x, geometry) for geometry in geometries)), None)
    if _backend == "triton" and reason is not None:
        raise UserError(f"backend triton: {reason}; use auto or torch")
    return reason is None and (_backend == "triton" or is_faster(name, x))


def why_not_on(device: torch.device) -> str | None:
    """Return why there are no Triton kernels on a device, or None if there are."""
    if not HAS_TRITON:
        return "Triton is not installed"
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"{device.type} is no NVIDIA or AMD GPU"
    return None


def why_not(x: Tensor, geometry: Geometry) -> str | None:
    """Return why the Triton kernel cannot compute this, or None if it can."""
    if (reason := why_not_on(x.device)) is not None:
        return reason
    if forward_ad._current_level >= 0:
        return "it has no forward-mode derivatives"
    dtype = effective_dtype(x)
    if dtype not in DTYPES:
        return f"it has no {str(dtype).removeprefix('torch.')}"
    if max(geometry.kernel) > LARGEST_KERNEL:
        return f"kernel {geometry.kernel[0]}x{geometry.kernel[1]} is larger than {LARGEST_KERNEL}"
    if geometry.stride not in ((1, 1), (2, 2)):
        return f"stride {geometry.stride} is neither 1 nor 2"
    return None


def is_faster(name: str, x: Tensor) -> bool:
    """Return whether the kernel was measured to be faster than PyTorch for such a shape on such a GPU."""
    if x.device.type != "cuda" or x.stride(1) != 1:
        return False
    least = _least(x.device.index, winner(name, effective_dtype(x), torch.is_grad_enabled()))
    return least is not None and x.numel() >= least


def winner(name: str, dtype: torch.dtype, training: bool) -> str:
    """Return the name of an operator's row in the table of winners."""
    size = "32-bit" if dtype == torch.float32 else "16-bit"
    return f"{name} {size} {'training' if training else 'inference'}"


def effective_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which a tensor takes part, which is another under autocast."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):
        return x.dtype
    if x.is_floating_point() and x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


# The compiler is told that this stays as it is, since it cannot look into a cache.
@torch.compiler.assume_constant_result
def _least(device: int, row: str) -> int | None:
    """Return the fewest elements with which our kernel won on such a GPU, or None if it never did."""
    return _winners(torch.cuda.get_device_capability(device)).get(row)


def _winners(capability: tuple[int, int]) -> dict[str, int]:
    """Return the table of what was measured on such a GPU: the fewest elements, by operator."""
    return read_table()["winners"].get("{}.{}".format(*capability), {})
