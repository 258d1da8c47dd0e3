"""A trial: one network trained for so many epochs, in a process of its own that cannot harm the search."""

import contextlib
import fcntl
import itertools
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from torch import nn

from xnext._files import is_unwritable, make_folder, write_atomic
from xnext._interrupts import Stopped
from xnext._timing import deciles, time_calls
from xnext._workers import die_with_parent, warm_up, without_script
from xnext.errors import UserError, is_out_of_memory
from xnext.kernels import fuse
from xnext.training import Run, TrainConfig, train
from xnext.training.setup import Setup, prepare
from xnext.training.trainer import NonFiniteError

SUCCESS = "success"
REJECTED = "rejected"
FAILURES = ("exception", "diverged", "out of memory", "timeout", "crashed")
STATUSES = (SUCCESS, REJECTED, *FAILURES)
"""How a trial ends. Rejected: its network is over a limit, and was not trained."""

SIZES = ("latency_ms", "macs", "params")
"""What is known of a network before it is trained."""

PRELOAD = ("xnext.search._preload",)
"""What the processes of trials have imported when they start."""

_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_LOOK = 0.1  # seconds between two looks at a process
_MOST_SPREAD = 0.05  # of the latency: half of what lies between its deciles, to its median
_MOST_ROUNDS = 10
_CALLS = 20  # of the network in a round

# What all trials share; the rest is the search's.
TRAINING: Mapping[str, Any] = {
    "loader": "memory",
    "optimizer": "adamw",
    "lr": "4.0e-3/256",
    "weight_decay": 0.05,
    "clip_grad": 5.0,
    "label_smoothing": 0.1,
    "augment": "light",
    "crop_pct": 1.0,
    "val_batch_size": 256,
    # With 0.1, networks with batch norm are at the level of chance after few steps, however good they are.
    "bn_momentum": 0.3,
    "keep": 1,
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial's process is told.

    Attributes:
        number: Of the trial, its name in the journal.
        folder: Of the network, where an earlier trial of it with fewer epochs has left its state.
        model: Name of a registered network.
        model_args: Fields of its config that differ.
        data: Folder of the decoded images.
        epochs: After which the trial ends.
        max_epochs: After which the learning rate would be at its end.
        limits: Most milliseconds, multiply-accumulates or parameters, by their names in ``SIZES``.
        latency: Whether to measure it.
        training: Further fields of the training's config.
        seconds: Most that it may take, or None.
        memory_gib: Most memory, of the host and of the device each, or None.
        device: Number of the GPU, or None for what there is.
        threads: Of PyTorch on the CPU.
    """

    number: int
    folder: str
    model: str
    model_args: Mapping[str, Any]
    data: str
    epochs: int
    max_epochs: int
    limits: Mapping[str, float] = field(default_factory=dict)
    latency: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    memory_gib: float | None = None
    device: int | None = None
    threads: int = 1

    @property
    def log(self) -> Path:
        """The file of all that its process prints."""
        return Path(self.folder) / "log.txt"

    @property
    def run(self) -> Path:
        """The folder of its network's training."""
        return Path(self.folder) / "run"

    @property
    def result(self) -> Path:
        """The file of its outcome."""
        return Path(self.folder) / f"epoch-{self.epochs}.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended.

    Attributes:
        status: One of ``STATUSES``.
        values: What was measured, by name: ``top1`` in per cent, ``latency_ms``, ``macs``, ``params``.
        seconds: That its process ran.
        reason: Of anything but success, in a line.
    """

    status: str
    values: Mapping[str, float]
    seconds: float = 0.0
    reason: str = ""


class TrialLost(Exception):  # noqa: N818 - the trial is to be asked again
    """The process of a trial ended without a word: it was killed, or died of a signal."""


def supervise(trial: Trial, cancelled: threading.Event | None = None) -> Outcome:
    """Run a trial in a process of its own, end it where it takes too much, and say how it went.

    Args:
        trial: The trial.
        cancelled: Once set, the process is asked to save and end.

    Raises:
        TrialLost: The process died, though it was not ended here, or was cancelled.
        UserError: The folder of the network cannot be written, before the trial or in it.
    """
    with _locked(Path(trial.folder)):
        _claim(trial)
        if (outcome := _read(trial)) is not None:  # its search was killed before it could note that
            return outcome
    context = warm_up(PRELOAD)
    process = context.Process(target=_run, args=(trial,), name=f"trial {trial.number}")
    with without_script():
        process.start()
    started = time.monotonic()  # the first waits in there for what all processes import
    try:
        end = _watch(process, trial, started, cancelled)
    finally:
        _end(process)
    seconds = round(time.monotonic() - started, 3)
    if (outcome := _read(trial)) is not None:
        return Outcome(**asdict(outcome) | {"seconds": seconds})
    if cancelled is not None and cancelled.is_set():
        raise TrialLost("was cancelled")
    known = _read_sizes(Path(trial.folder))
    if end is not None:
        return Outcome(status=end[0], values=known, seconds=seconds, reason=end[1])
    code = process.exitcode or 0
    if code == os.EX_IOERR:
        raise UserError(f"cannot write {trial.folder}: is the disk full? Mend that, and go on with --resume")
    raise TrialLost(f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}")


def _claim(trial: Trial) -> None:
    """Make the folder of a network, and move aside what is there of anything else.

    That is another network's, from before the journal was cut, or somebody's own: nothing is deleted.
    """
    folder = Path(trial.folder)
    told = asdict(trial)
    deciding = ("model", "model_args", "max_epochs", "training")
    content = json.dumps({name: told[name] for name in deciding}, sort_keys=True).encode()
    known = folder / "network.json"
    if known.exists() and known.read_bytes() == content:
        return
    if folder.is_dir() and any(folder.iterdir()):
        places = (folder.with_name(f"{folder.name}.old-{number}") for number in itertools.count(1))
        folder.rename(next(place for place in places if not place.exists()))
    make_folder(folder)
    write_atomic(known, content)


def _watch(
    process: Any, trial: Trial, started: float, cancelled: threading.Event | None
) -> tuple[str, str] | None:
    """Wait for a process; return the status and reason for which it has to end, or None if it did."""
    seen = None
    with contextlib.suppress(psutil.Error):
        seen = psutil.Process(process.pid)
    while process.exitcode is None:
        wait([process.sentinel], timeout=_LOOK)
        if cancelled is not None and cancelled.is_set():
            return None
        if trial.seconds is not None and time.monotonic() - started > trial.seconds:
            return "timeout", f"took more than {trial.seconds:g} seconds"
        with contextlib.suppress(psutil.Error):  # it may just have ended
            if (
                trial.memory_gib is not None
                and seen is not None
                and _private(seen) > trial.memory_gib * 2**30
            ):
                return "out of memory", f"took more than {trial.memory_gib:g} GiB of memory"
    return None


def _private(process: psutil.Process) -> int:
    """Return the bytes that a process has for itself; the decoded images belong to all trials."""
    memory = process.memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def _end(process: Any) -> None:
    """Ask a process to end, and kill it if it does not."""
    for stop in (process.terminate, process.kill):
        if process.exitcode is None:
            stop()
            process.join(_GRACE)
    process.join()


def _read(trial: Trial) -> Outcome | None:
    """Return the outcome that a trial's process has written."""
    try:
        return Outcome(**json.loads(trial.result.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # damaged, it is as good as none
        return None


def _run(trial: Trial) -> None:
    """Do a trial, as the process of its own; print into its log."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    if trial.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(trial.device)
    try:
        with _logged(trial.log), _locked(Path(trial.folder)):
            _note(trial)
    except Exception as error:
        if not is_unwritable(error):
            raise
        sys.exit(os.EX_IOERR)


def _note(trial: Trial) -> None:
    """Do a trial and write how it ended, for a search that may be killed before it can."""
    started = time.monotonic()
    print(f"trial {trial.number}: {trial.epochs} epochs")
    torch.set_num_threads(trial.threads)
    if trial.memory_gib is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, trial.memory_gib * 2**30 / total))
    try:
        outcome = _train(trial)
    except Stopped as stopped:
        print(stopped)
        sys.exit(128 + stopped.signal)
    except Exception as error:
        if is_unwritable(error):  # which says nothing of the network
            raise
        traceback.print_exc()
        status = _status(error)
        reason = f"{type(error).__name__}: {error}" if status == "exception" else str(error)
        values = _read_sizes(Path(trial.folder))
        outcome = Outcome(status=status, values=values, reason=" ".join(reason.split()))
    seconds = round(time.monotonic() - started, 3)
    write_atomic(trial.result, json.dumps(asdict(outcome) | {"seconds": seconds}).encode())


def _status(error: Exception) -> str:
    if isinstance(error, NonFiniteError):
        return "diverged"
    if is_out_of_memory(error):
        return "out of memory"
    return "exception"


def _train(trial: Trial) -> Outcome:
    """Measure a network and, if it is within the limits, train it from where it was left."""
    folder = Path(trial.folder)
    run = Run(trial.run)
    config = TrainConfig(
        model=trial.model, model_args=dict(trial.model_args), data=f"packed:{trial.data}", output=run.path,
        epochs=trial.max_epochs, **dict(TRAINING) | dict(trial.training),
    )  # fmt: skip
    setup = prepare(config)
    values = _read_sizes(folder) or _measure(trial, setup)
    write_atomic(folder / "sizes.json", json.dumps(values).encode())
    for name, most in trial.limits.items():
        if values[name] > most:
            reason = f"{name} {values[name]:.4g} is more than {most:.4g}"
            return Outcome(status=REJECTED, values=values, reason=reason)
    if resume := run.config.is_file():  # the search may have been moved since, with its images
        run.write_config(replace(run.read_config(), data=setup.config.data).to_yaml())
    summary = train(config, Console(file=sys.stdout), resume=resume, until=trial.epochs, setup=setup)
    row = run.read_metrics()[-1]
    name = next(name for name in ("top1", "map") if f"val_{name}" in row)
    print(f"best so far: {summary[f'best_val_{name}']:.2f}")
    return Outcome(status=SUCCESS, values=values | {"top1": row[f"val_{name}"]})


def _measure(trial: Trial, setup: Setup) -> dict[str, float]:
    """Return what is known of a network before it is trained."""
    values: dict[str, float] = {"params": setup.params, "macs": setup.macs}
    if trial.latency:
        values["latency_ms"] = measure_latency(
            setup.network, setup.preprocessing.shape, setup.accelerator.device
        )
    return values


def measure_latency(network: nn.Module, shape: tuple[int, int, int], device: torch.device) -> float:
    """Return the milliseconds that a network takes for one image, fused for inference.

    Rounds of calls are repeated until their spread is under 5 %, ten times at most; then the round that
    spread least counts, and the trial's log says so.

    Args:
        network: The network.
        shape: Of the image, (C, H, W).
        device: Where.
    """
    fused = fuse(network.to(device)).to(memory_format=torch.channels_last)
    image = torch.randn(1, *shape, device=device).to(memory_format=torch.channels_last)
    best, found = math.inf, math.inf
    with torch.inference_mode():
        for _ in range(_MOST_ROUNDS):
            low, median, high = deciles(time_calls(lambda: fused(image), device, _CALLS))
            if (spread := (high - low) / 2 / median) < best:
                best, found = spread, median
            if best < _MOST_SPREAD:
                break
        else:
            print(f"latency: the calls spread by {best:.1%} of the median, after {_MOST_ROUNDS} rounds")
    return round(found * 1e3, 4)


def _read_sizes(folder: Path) -> dict[str, float]:
    """Return what an earlier trial of the network has measured."""
    try:
        return dict(json.loads((folder / "sizes.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Send all that is printed, by libraries too, to the end of a file."""
    with path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process trains in a folder: that of a killed search takes a moment to end."""
    make_folder(folder.parent)
    with folder.with_name(f".{folder.name}.lock").open("w") as stream:  # beside it, since it may be moved
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
