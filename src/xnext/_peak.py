"""How much memory a call takes, of a GPU or of a CPU."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(call: Callable[[], Any], device: torch.device) -> int:
    """Return the most bytes that PyTorch's allocator had given out during a call, beyond those before it.

    On a CPU they are added up from the profiler's record of what was taken and given back. What a library
    takes past the allocator, as oneDNN does for scratch space, is not in it.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it writes to standard error that there is no GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    assert record.profiler is not None and record.profiler.kineto_results is not None, "it has ended"
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    taken = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        taken += event.nbytes()
        most = max(most, taken)
    return most
