"""The metrics of a run for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Events:
    """Writes every epoch's metrics into `tensorboard` in a run's folder.

    Args:
        run: The run's folder; None writes nothing.
    """

    def __init__(self, run: Path | None) -> None:
        self._folder = None if run is None else run / "tensorboard"
        self._writer: SummaryWriter | None = None
        self._begin = 1

    def begin_after(self, epoch: int) -> None:
        """Let what was written of later epochs count no more."""
        self._begin = epoch + 1
        self.close()

    def write(self, row: Mapping[str, float]) -> None:
        """Write the line of an epoch."""
        if self._folder is None:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._begin)
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(row["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        """End the file that is written to."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
