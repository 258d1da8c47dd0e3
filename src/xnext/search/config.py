"""What a search is told."""

from dataclasses import dataclass
from typing import Literal

from xnext._types import check_types
from xnext.errors import UserError, suggest
from xnext.search.optimizers import OPTIMIZERS
from xnext.search.trial import SIZES

OBJECTIVES = ("top1", *SIZES)
"""What can be searched for: the highest accuracy, or the lowest of the others."""

_MOST = {
    "trials": 10**6,
    "min_epochs": 10**4,  # with more, Hyperband's first bracket alone has more networks than can be tried
    "max_epochs": 10**4,
    "workers": 10**3,
    "image_size": 10**4,
    "batch_size": 10**6,
}
"""What is more than anybody means."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Everything that decides a search.

    Attributes:
        data: Images to search for, as `xnext train` takes them.
        space: Where to look: nexception, union, or a YAML file of choices.
        trials: Trials to make; default: until the time is over.
        hours: Hours to search; default: until the trials are done.
        min_epochs: Epochs of the shortest trials, of which the best go on.
        max_epochs: Epochs of the longest trials.
        objective: What to search for: top1 and any of latency_ms, macs and params, which are to be low.
        limit: What no network may exceed, as `latency_ms<=5` or `params<=1e6`.
        workers: Trials at a time.
        scheduler: Address of a Dask scheduler whose workers run the trials, `tcp://HOST:PORT`; or local, this
            machine, which is the default.
        optimizer: Who decides what to try: smac, random or evolution.
        width: Factor of all numbers of channels in the search; the winner has them all.
        image_size: Side of the square images in pixels.
        batch_size: Images a step.
        seed: Start of every random choice.
        trial_minutes: Most minutes of a trial; default: no limit.
        trial_memory: Most GiB of memory of a trial, on the host and on the device each; default: no limit.
        device: Where to train: auto (a GPU if there is one), cpu or cuda.
        amp: Mixed precision: off, bf16 or fp16.
    """

    data: str
    space: str = "nexception"
    trials: int | None = None
    hours: float | None = None
    min_epochs: int = 1
    max_epochs: int = 9
    objective: tuple[str, ...] = ("top1",)
    limit: tuple[str, ...] = ()
    workers: int = 1
    scheduler: str | None = None
    optimizer: str = "smac"
    width: float = 0.25
    image_size: int = 32
    batch_size: int = 64
    seed: int = 0
    trial_minutes: float | None = None
    trial_memory: float | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["off", "bf16", "fp16"] = "off"

    def __post_init__(self) -> None:
        check_types(self)
        for name, most in _MOST.items():
            if (value := getattr(self, name)) is not None and not 1 <= value <= most:
                limit = "at least 1" if value < 1 else f"at most {most}"
                raise UserError(f"{name} is {value}; it must be {limit}")
        for name in ("hours", "width", "trial_minutes", "trial_memory"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} is {value}; it must be more than 0")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must be at least 0 and less than 2^32")
        if self.trials is None and self.hours is None:
            raise UserError("say how long to search: --trials N or --hours H")
        if self.min_epochs > self.max_epochs:
            raise UserError(f"min_epochs {self.min_epochs} is more than max_epochs {self.max_epochs}")
        named = [("objective", name, OBJECTIVES) for name in self.objective]
        for what, name, known in (*named, ("optimizer", self.optimizer, OPTIMIZERS)):
            if name not in known:
                hint = suggest(name, known) or f" Choose from {', '.join(known)}."
                raise UserError(f"unknown {what} {name!r}.{hint}")
        if "top1" not in self.objective:
            raise UserError("objective must have top1, without which the smallest network is the best")
        if len(set(self.objective)) < len(self.objective):
            raise UserError("an objective stands twice")
        if self.scheduler == "local":
            object.__setattr__(self, "scheduler", None)
        if self.scheduler is not None and "://" not in self.scheduler:
            raise UserError(f"scheduler {self.scheduler!r} is no address; give tcp://HOST:PORT, or local")
        _ = self.limits

    @property
    def limits(self) -> dict[str, float]:
        """The limits, by what they limit.

        Raises:
            UserError: One is not understood.
        """
        limits = {}
        for text in self.limit:
            name, sign, number = text.partition("<=")
            try:
                value = float(number)
            except ValueError:
                value = -1.0
            if name.strip() not in SIZES or not sign or not 0 < value < float("inf"):
                raise UserError(
                    f"limit {text!r} is not understood; write latency_ms<=5, macs<=1e8 or params<=1e6"
                )
            if name.strip() in limits:
                raise UserError(f"limit {name.strip()} is given twice; keep the one that is meant")
            limits[name.strip()] = value
        return limits
