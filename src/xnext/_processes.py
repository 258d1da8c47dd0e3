"""What the processes of a distributed training tell each other; with one process nothing is exchanged."""

import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_first() -> bool:
    """Return whether this process is the one that writes and prints, by what its launcher says."""
    return int(os.environ.get("RANK", "0")) == 0


def is_restarted() -> bool:
    """Return whether torchrun started this process anew after one of its group died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_launched() -> bool:
    """Return whether torchrun started this process, which passes signals on to it."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def gather(items: list[Any]) -> list[Any]:
    """Return the items of all processes, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return items
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def add_up(tensor: Tensor) -> Tensor:
    """Return the sum of the tensors of all processes, which have one shape."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def agree(number: int, device: torch.device) -> int:
    """Return the largest of the processes' numbers."""
    if not (dist.is_available() and dist.is_initialized()):
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def join(backend: str, timeout: datetime.timedelta) -> None:
    """Meet the other processes after a restart on one machine, where torchrun's way may go wrong.

    It lets the new processes meet in the store of those before them, whose addresses are still in it: who
    comes first calls a process that is dead (torch 2.14, unless `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`). So
    each start has keys of its own. The starts of several machines are not counted alike, and left alone.

    Args:
        backend: ``gloo`` or ``nccl``.
        timeout: How long one waits for another.
    """
    world = int(os.environ["WORLD_SIZE"])
    if not is_restarted() or int(os.environ["LOCAL_WORLD_SIZE"]) != world:
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    keys = f"start-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    store = dist.PrefixStore(keys, dist.TCPStore(address, port, is_master=False, timeout=timeout))
    rank = int(os.environ["RANK"])
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def leave() -> None:
    """Take leave of the other processes, which else complain."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
