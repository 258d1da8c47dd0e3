"""A network on several processes: gradients or weights averaged, statistics made alike."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.optim import Optimizer

from xnext.errors import UserError
from xnext.training.config import TrainConfig


def check_processes(config: TrainConfig, accelerator: Accelerator) -> None:
    """Refuse what does not go with the number and kind of the processes.

    Raises:
        UserError: The batch cannot be shared alike, or an option needs several processes or GPUs.
    """
    processes = accelerator.num_processes
    if config.batch_size % processes:
        raise UserError(
            f"batch_size {config.batch_size} cannot be shared alike by {processes} processes; take a multiple"
        )
    if config.mixes and config.batch_size // processes % 2:
        raise UserError(
            f"mixup and cutmix pair the images of a process: batch_size {config.batch_size} must be a"
            f" multiple of {2 * processes}"
        )
    if config.sync_bn and accelerator.device.type == "cpu":
        raise UserError("sync_bn needs GPUs, since PyTorch's has no form for the CPU; leave it out")
    if config.local_sgd and processes == 1:
        raise UserError("local_sgd averages the weights of several processes; start them with torchrun")


class LocalSGD:
    """Post-local SGD (Lin et al. 2020) by PyTorch's own hook: local steps, weights averaged now and then.

    It stands in for the asynchronous updates of the Xception paper's trainings on JFT (section 4.4), which
    PyTorch does not have. Until the start gradients are averaged as ever.

    Args:
        model: The network in ``DistributedDataParallel``.
        period: Steps between two averagings.
        start: Steps before the first local one.
        updates: Steps done before, of a training that is resumed.
    """

    def __init__(self, model: nn.Module, *, period: int, start: int, updates: int) -> None:
        self._model = model
        self._period = period
        self._start = start
        hook = PostLocalSGDState(
            process_group=None, subgroup=None, start_localSGD_iter=start, post_local_gradient_allreduce=False
        )
        hook.iter = updates
        model.register_comm_hook(hook, post_localSGD_hook)  # type: ignore[operator]

    def step(self, updates: int) -> None:
        """Average the weights, if it is time to after so many steps."""
        if updates >= self._start and updates % self._period == 0:
            average_weights(self._model)


def average_weights(network: nn.Module) -> None:
    """Give the networks of all processes the mean of their weights."""
    # PyTorch's averager takes weights that have a gradient, and forgets their memory format.
    for weight in network.parameters():
        dist.all_reduce(weight.data)
        weight.data /= dist.get_world_size()


def average_optimizer(optimizer: Optimizer) -> None:
    """Give the optimisers of all processes the mean of their averages, so that one stands for all."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            for value in optimizer.state[weight].values():
                if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
                    dist.all_reduce(value)
                    value /= dist.get_world_size()


def make_alike(*networks: nn.Module, average: bool) -> None:
    """Give the networks of all processes the same weights and statistics, before they are measured or saved.

    Args:
        networks: Of this process.
        average: Whether weights differ and are averaged; statistics are always those of the first process.
    """
    if not dist.is_initialized():
        return
    for network in networks:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)
        if average:
            average_weights(network)


@contextmanager
def lost_processes() -> Iterator[None]:
    """Tell in a line that another process is gone, which shows in an exchange with it that fails.

    Raises:
        UserError: Such an exchange failed.
    """
    try:
        yield
    except RuntimeError as error:
        if dist.is_initialized() and re.search("gloo|nccl", str(error), re.IGNORECASE):
            raise UserError(f"another process is gone; its own error says why ({error})") from error
        raise
