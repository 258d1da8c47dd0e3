"""What a training shows while it runs: a live bar in a terminal, and a line for each epoch anywhere."""

import resource
import sys
import time
from collections.abc import Mapping, Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from xnext.evaluation.accuracy import METRICS

_BEFORE = (  # key in the metrics, heading, format
    ("epoch", "epoch", "d"),
    ("train_loss", "train loss", ".4f"),
    ("val_loss", "val loss", ".4f"),
)
_AFTER = (
    ("lr", "lr", ".1e"),
    ("images_per_second", "images/s", ".0f"),
    ("memory_mib", "MiB", ".0f"),
    ("seconds", "seconds", ".1f"),
)


def peak_memory(device: torch.device) -> int:
    """Return the most memory that was in use so far, in MiB: the device's, or of a CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


class Screen(Console):
    """rich's console, which leaves a closed pipe to the caller instead of ending the process."""

    def on_broken_pipe(self) -> None:
        """Pass on the error that is being handled."""
        raise


class Display:
    """Shows a training; use it as a context manager, so that the bar is taken down in the end."""

    def __init__(
        self, console: Console, epochs: int, steps: int, metrics: Sequence[str], device: torch.device
    ) -> None:
        """Prepare the bar.

        Args:
            console: Where to print; without a terminal there is no bar.
            epochs: Epochs of the training.
            steps: Training steps of an epoch.
            metrics: What is measured beside the loss, by the names of ``METRICS``.
            device: Whose memory is shown.
        """
        shown = ((f"val_{name}", f"{METRICS[name]} %", ".2f") for name in metrics)
        self._columns = (*_BEFORE, *shown, *_AFTER)
        self._device = device
        self._console = console
        self._epochs = epochs
        self._images = 0
        self._started = 0.0
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn(
                "loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} images/s  "
                "{task.fields[memory]} MiB  time left"
            ),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=epochs * steps, epoch=1, epochs=epochs, loss=float("nan"), speed=0.0, memory=0
        )

    def __enter__(self) -> "Display":
        self._line("  ".join(f"{heading:>{max(7, len(heading))}}" for _, heading, _ in self._columns))
        self._bar.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, epoch: int, steps: int, loss: float, images: int) -> None:
        """Move the bar on by ``steps`` training steps of ``epoch`` (from 1), which took ``images``."""
        self._images += images
        speed = self._images / max(time.perf_counter() - self._started, 1e-9)
        memory = peak_memory(self._device)
        self._bar.update(self._task, advance=steps, epoch=epoch, loss=loss, speed=speed, memory=memory)

    def epoch(self, row: Mapping[str, float], best: bool) -> None:
        """Print the line of an epoch, with a star at the best one so far."""
        cells = [f"{format(row[key], form):>{max(7, len(heading))}}" for key, heading, form in self._columns]
        self._line("  ".join(cells) + ("  *" if best else ""))

    def note(self, text: str) -> None:
        """Print a line of something that happened."""
        self._line(text)

    def _line(self, text: str) -> None:
        """Print a line as it is: not wrapped, cut or coloured."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)
