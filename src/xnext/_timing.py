"""How long a call takes, on a CPU or by a GPU's own clock."""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

CACHE = 2**28
"""Bytes that no cache of a device holds: inputs that rotate through as many come from memory."""


def time_call(call: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of a call; on a GPU from its first kernel to its last, by events."""
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def time_calls(call: Callable[[], Any], device: torch.device, calls: int, warm_up: int = 3) -> list[float]:
    """Return the seconds of each of several calls, after some that do not count."""
    return [time_call(call, device) for _ in range(warm_up + calls)][warm_up:]


def rotate(make: Callable[[], Sequence[Tensor]], device: torch.device) -> Callable[[], Sequence[Tensor]]:
    """Return what hands out inputs in turn; on a GPU so many that the cache holds none when its turn comes.

    Args:
        make: Makes one set of inputs.
        device: Where they are.
    """
    sets = [make()]
    if device.type == "cuda":
        size = sum(tensor.nbytes for tensor in sets[0])
        sets += [make() for _ in range(min(-(-CACHE // max(size, 1)), 64))]
    turn = cycle(sets)
    return lambda: next(turn)


def deciles(times: Sequence[float]) -> tuple[float, float, float]:
    """Return the 10th, 50th and 90th percentile of times."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    found = statistics.quantiles(times, n=10, method="inclusive")
    return found[0], found[4], found[8]
