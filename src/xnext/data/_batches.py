"""Which pictures make a batch, and which of them a process of several takes."""

from collections.abc import Iterator, Sized
from typing import Any, Protocol

from torch.utils.data import Sampler


class _Order(Sized, Protocol):
    """An order of pictures."""

    def __iter__(self) -> Iterator[Any]: ...


class SharedBatches(Sampler[list]):
    """Batches of an order of pictures, each divided among the processes of a training.

    Every process goes through the same order and takes its part of each batch, so that a step sees the same
    pictures however many processes there are, and a pass over all batches sees each picture once.

    Args:
        order: What is divided; ``EpochSampler``, or a range.
        batch_size: Pictures a batch, over all processes.
        drop_last: Leave out a last batch that is not full, unless it is the only one.
        process: Rank of this process.
        processes: How many there are.
    """

    def __init__(
        self, order: _Order, batch_size: int, *, drop_last: bool = False, process: int = 0, processes: int = 1
    ):
        self.order = order
        self.batch_size = batch_size
        self._drop_last = drop_last and len(order) >= batch_size
        self._process = process
        self._processes = processes

    def __len__(self) -> int:
        whole, rest = divmod(len(self.order), self.batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[list]:
        batch = []
        for picture in self.order:
            batch.append(picture)
            if len(batch) == self.batch_size:
                yield self._share(batch)
                batch = []
        if batch and not self._drop_last and (share := self._share(batch)):
            yield share

    def _share(self, batch: list) -> list:
        """Return this process's part; the parts differ by at most one picture."""
        begin, end = (len(batch) * rank // self._processes for rank in (self._process, self._process + 1))
        return batch[begin:end]
