"""What a training shows while it runs: a live bar in a terminal, and a line for each epoch anywhere."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_COLUMNS: tuple[tuple[str, str, str], ...] = (  # key in the metrics, heading, format
    ("epoch", "epoch", "d"),
    ("train_loss", "train loss", ".4f"),
    ("val_loss", "val loss", ".4f"),
    ("val_top1", "top-1 %", ".2f"),
    ("val_top5", "top-5 %", ".2f"),
    ("lr", "lr", ".1e"),
    ("images_per_second", "images/s", ".0f"),
    ("seconds", "seconds", ".1f"),
)


class Screen(Console):
    """rich's console, which leaves a closed pipe to the caller instead of ending the process."""

    def on_broken_pipe(self) -> None:
        """Pass on the error that is being handled."""
        raise


class Display:
    """Shows a training; use it as a context manager, so that the bar is taken down in the end."""

    def __init__(self, console: Console, epochs: int, steps: int) -> None:
        """Prepare the bar.

        Args:
            console: Where to print; without a terminal there is no bar.
            epochs: Epochs of the training.
            steps: Training steps of an epoch.
        """
        self._console = console
        self._epochs = epochs
        self._images = 0
        self._started = 0.0
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} images/s  time left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=epochs * steps, epoch=1, epochs=epochs, loss=float("nan"), speed=0.0
        )

    def __enter__(self) -> "Display":
        self._line("  ".join(f"{heading:>{max(7, len(heading))}}" for _, heading, _ in _COLUMNS))
        self._bar.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, epoch: int, steps: int, loss: float, images: int) -> None:
        """Move the bar on by ``steps`` training steps of ``epoch`` (from 1), which took ``images``."""
        self._images += images
        speed = self._images / max(time.perf_counter() - self._started, 1e-9)
        self._bar.update(self._task, advance=steps, epoch=epoch, loss=loss, speed=speed)

    def epoch(self, row: Mapping[str, float], best: bool) -> None:
        """Print the line of an epoch, with a star at the best one so far."""
        cells = [f"{format(row[key], form):>{max(7, len(heading))}}" for key, heading, form in _COLUMNS]
        self._line("  ".join(cells) + ("  *" if best else ""))

    def _line(self, text: str) -> None:
        """Print a line as it is: not wrapped, cut or coloured."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)
