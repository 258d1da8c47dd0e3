"""How long and how fast: durations, the learning rate of a batch size, and its course over a training."""

import logging
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from xnext.errors import UserError

if TYPE_CHECKING:
    from xnext.training.config import TrainConfig

Duration = float | str
"""``5`` and ``"5 epochs"``, ``"500 steps"`` or ``"3e6 samples"``."""

# Learning rate for a batch of 256 images, and the power of (batch size / 256) that it grows with. SGD and
# RMSprop follow the linear rule of Goyal et al. 2017; the adaptive optimisers with normalised steps the
# square-root rule of Krizhevsky 2014.
LEARNING_RATES: dict[str, tuple[float, float]] = {
    "sgd": (0.1, 1.0),
    "rmsprop": (1e-3, 1.0),
    "rmsproptf": (1e-3, 1.0),
    "adam": (2e-3, 0.5),
    "adamw": (4e-3, 0.5),
    "nadamw": (4e-3, 0.5),
    "lamb": (1e-2, 0.5),
    "lion": (4e-4, 0.5),
}
# The library warns of a cosine of one step, which is no mistake of a training that short.
for _name in ("cosine_lr", "poly_lr"):
    logging.getLogger(f"timm.scheduler.{_name}").addFilter(lambda record: "no effect" not in record.msg)

_ADAPTIVE_POWER = 0.5
_REFERENCE_BATCH = 256

_DURATION = re.compile(r"\s*(?P<number>\d[\d_]*\.?\d*(?:e\d+)?)\s*(?P<unit>epoch|step|sample)?s?\s*")


def count_steps(duration: Duration, *, steps_per_epoch: int, batch_size: int) -> int:
    """Return a duration in training steps, rounded to the nearest.

    Args:
        duration: A number of epochs, or a text of a number and ``epochs``, ``steps`` or ``samples``.
        steps_per_epoch: Steps of an epoch.
        batch_size: Images of a step, over all processes.

    Raises:
        UserError: It is none of these.
    """
    number, unit = parse_duration(duration)
    return round(number * {"epoch": steps_per_epoch, "step": 1, "sample": 1 / batch_size}[unit])


def parse_duration(duration: Duration) -> tuple[float, str]:
    """Return the number and the unit, ``epoch``, ``step`` or ``sample``, of a duration.

    Raises:
        UserError: It has no such form.
    """
    match = _DURATION.fullmatch(str(duration))
    if not match or not math.isfinite(float(match["number"])):
        raise UserError(f"{duration!r} is no duration; write e.g. 5, '5 epochs', '500 steps', '3e6 samples'")
    return float(match["number"]), match["unit"] or "epoch"


def learning_rate(optimizer: str, batch_size: int, rate: float | str | None = None) -> float:
    """Return the peak learning rate for the images of a step.

    A rate that belongs to a batch size, such as ``4e-3/4096``, changes for another one with a power of the
    ratio of the two: 1 for SGD and RMSprop, 1/2 for the other optimisers.

    Args:
        optimizer: Its name.
        batch_size: Images of a step, over all processes.
        rate: A number, which stays; a rate and its batch size; None: one of ``LEARNING_RATES``.

    Raises:
        UserError: None was chosen for the optimiser.
    """
    base, power = LEARNING_RATES.get(optimizer, (None, _ADAPTIVE_POWER))
    lr, reference = (base, _REFERENCE_BATCH) if rate is None else parse_rate(rate)
    if lr is None:
        known = ", ".join(LEARNING_RATES)
        raise UserError(
            f"no learning rate rule for optimizer {optimizer!r} (only for {known}); give lr, e.g. --lr 1e-3"
        )
    return lr * (batch_size / (reference or batch_size)) ** power


def parse_rate(rate: float | str) -> tuple[float, int | None]:
    """Return a learning rate and the batch size that it belongs to, None for any.

    Raises:
        UserError: It is not written as ``1e-3`` or ``4e-3/4096``, or not positive.
    """
    number, _, batch = str(rate).partition("/")
    try:
        value, reference = float(number), int(batch) if batch else None
    except ValueError:
        raise UserError(f"lr must be a number, or one for a batch size as 4e-3/4096, not {rate!r}") from None
    if not 0 < value < float("inf") or (reference is not None and reference < 1):
        raise UserError(f"lr is {rate}; it must be more than 0")
    return value, reference


# Each takes the optimizer, the steps after the warm-up, the config and its steps, and what all share.
SCHEDULES: dict[str, Callable[..., Scheduler]] = {
    "cosine": lambda optimizer, steps, decay_steps, config, shared: CosineLRScheduler(
        optimizer, t_initial=steps, lr_min=config.min_lr, **shared
    ),
    "step": lambda optimizer, steps, decay_steps, config, shared: StepLRScheduler(
        optimizer, decay_t=decay_steps, decay_rate=config.decay_rate, **shared
    ),
    "poly": lambda optimizer, steps, decay_steps, config, shared: PolyLRScheduler(
        optimizer, t_initial=steps, lr_min=config.min_lr, power=config.power, **shared
    ),
    "constant": lambda optimizer, steps, decay_steps, config, shared: StepLRScheduler(
        optimizer, decay_t=1, decay_rate=1.0, **shared
    ),
}


def build_scheduler(config: "TrainConfig", optimizer: Optimizer, steps_per_epoch: int) -> Scheduler:
    """Return the course of the learning rate: a linear rise over the warm-up, then the config's schedule.

    Its times are training steps. The cosine ends with the last step; the decays of `step` count from the end
    of the warm-up.

    Args:
        config: A resolved config.
        optimizer: Its learning rates are set, now and after each step, times a group's ``lr_scale``.
        steps_per_epoch: Steps of an epoch.

    Raises:
        UserError: The warm-up takes the whole training.
    """
    assert config.warmup is not None and config.warmup_lr is not None, "the config is not resolved"
    times = {"steps_per_epoch": steps_per_epoch, "batch_size": config.batch_size}
    total, warmup = config.epochs * steps_per_epoch, count_steps(config.warmup, **times)
    if warmup >= total:
        raise UserError(f"warmup {config.warmup} must be less than the {config.epochs} epochs; lower it")
    shared = {
        "warmup_t": warmup, "warmup_lr_init": config.warmup_lr, "warmup_prefix": True, "t_in_epochs": False,
    }  # fmt: skip
    decay_steps = max(1, count_steps(config.decay_every, **times))
    return SCHEDULES[config.schedule](optimizer, total - warmup, decay_steps, config, shared)
