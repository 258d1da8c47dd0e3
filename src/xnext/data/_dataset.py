"""From a source to batches: memory, unreadable pictures, order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from xnext._random import EPOCH, PICTURE, derive_seed, seed_cpu
from xnext.data._batches import SharedBatches
from xnext.data._decode import BadImageError
from xnext.data._sources import ImageSource
from xnext.data._transforms import Transform
from xnext.errors import UserError

CACHE_BUDGET = 2**30
"""Most memory that the decoded pictures of one dataset may take, in bytes."""

_SAMPLE = 32  # pictures read to estimate the rest


class ImageDataset(Dataset):
    """Transformed pictures of a source, each with its label.

    An item is ``(image, label, bad_index)``: float32 ``[C, H, W]``, the class (or float32 ``[classes]``, 1
    for each class of the picture), and -1. It is asked for by its index, or by index and a seed, which all
    generators of the process then get. Of a picture that cannot be read, ``bad_index`` is its place in the
    source. In training the next readable picture stands in for it, with that one's label; in evaluation the
    image is zero and the label -1, for the caller to leave out.

    A small set is decoded once and kept in memory, and then ``bad_images`` is complete from the start. Worker
    processes share that memory where they are forked and copy it where they are spawned.

    Args:
        source: The pictures.
        transform: From RGB image to tensor.
        training: Which of the two ways to treat unreadable pictures.
        cache: Whether to keep decoded pictures in memory; by default if they are estimated to fit
            ``CACHE_BUDGET``.

    Attributes:
        bad_images: Place in the source and reason of each picture known to be unreadable.

    Raises:
        UserError: None of the pictures looked at can be read.
    """

    def __init__(
        self, source: ImageSource, transform: Transform, *, training: bool, cache: bool | None = None
    ):
        self.source = source
        self.transform = transform
        self.training = training
        self.bad_images: dict[int, str] = {}
        self._cache: list[np.ndarray | None] | None = None
        if cache or (cache is None and self._estimate_bytes() <= CACHE_BUDGET):
            images = map(self._read, range(len(source)))
            self._cache = [None if image is None else np.asarray(image) for image in images]
            if len(self.bad_images) == len(source):
                raise none_readable(self.source, self.bad_images)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: int | tuple[int, int]) -> tuple[Tensor, Any, int]:
        if isinstance(place, int):
            return self._item(place)
        index, seed = place
        seed_cpu(seed)
        return self._item(index)

    def _item(self, index: int) -> tuple[Tensor, Any, int]:
        loaded = self._load(index)
        if loaded is not None:
            return *loaded, -1
        if not self.training:
            return *self._blank(index), index
        for step in range(1, len(self)):
            loaded = self._load((index + step) % len(self))
            if loaded is not None:
                return *loaded, index
        raise none_readable(self.source, self.bad_images)

    def _load(self, index: int) -> tuple[Tensor, Any] | None:
        """Return what the network is fed and the label, or None if the picture cannot be read."""
        image = self._read(index)
        return None if image is None else (self.transform(image), self._label(index))

    def _blank(self, index: int) -> tuple[Tensor, Any]:
        """Return what stands for a picture that cannot be read, with a label of no class."""
        return torch.zeros_like(self.transform(Image.new("RGB", (1, 1)))), self._label(index) * 0 - 1

    def _label(self, index: int) -> int | np.ndarray:
        label = self.source.labels[index]
        return label.astype(np.float32) if label.ndim else int(label)

    def _read(self, index: int) -> Image.Image | None:
        if self._cache is not None:
            pixels = self._cache[index]
            return None if pixels is None else Image.fromarray(pixels)
        try:
            return self.source.read(index)
        except BadImageError as error:
            self.bad_images[index] = error.reason
            return None

    def _estimate_bytes(self) -> float:
        """Estimate the size of all pictures decoded from a few spread over the source."""
        places = np.linspace(0, len(self) - 1, min(_SAMPLE, len(self))).astype(int)
        sizes = [3 * image.width * image.height for image in map(self._read, places.tolist()) if image]
        if not sizes:
            raise none_readable(self.source, self.bad_images)
        return len(self) * float(np.mean(sizes))


def none_readable(source: ImageSource, bad_images: dict[int, str]) -> UserError:
    """Return the error of a source of which no picture can be read, with the reason of the first."""
    index, reason = next(iter(bad_images.items()))
    return UserError(f"{source.name(index)}: {reason}; nor can any other be read: check the data")


class EpochSampler(Sampler[int | tuple[int, int]]):
    """A random order, and a seed for what happens to each picture, that depend on (seed, epoch) alone.

    So a resumed run repeats them, whatever processes load the pictures.

    Args:
        length: How many pictures there are, and how many an epoch has.
        seed: The run's seed.
        repeats: Times that a picture comes, one after the other, in an epoch (Hoffer et al. 2020); an epoch
            then sees only one of as many pictures.
        seeded: Whether each picture comes with its seed; where batches are changed as one, nobody needs it,
            and without it the order takes a tenth of the time.

    Attributes:
        generator: Seeded alike at each ``set_epoch``; the loader seeds its workers from it.
    """

    def __init__(self, length: int, seed: int, repeats: int = 1, seeded: bool = True):
        self._length = length
        self._repeats = repeats
        self._seed = seed
        self._seeded = seeded
        self.generator = torch.Generator()
        self._begin = (0, 0)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``; call it before each one."""
        self._epoch = epoch
        self._epoch_seed = derive_seed(self._seed, EPOCH, epoch)
        self.generator.manual_seed(self._epoch_seed)

    def begin_at(self, epoch: int, position: int) -> None:
        """Leave out the first pictures of one epoch, those that were taken before an interruption."""
        self._begin = (epoch, position)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int | tuple[int, int]]:
        order = torch.Generator().manual_seed(self._epoch_seed)
        places = torch.randperm(self._length, generator=order).repeat_interleave(self._repeats).tolist()
        epoch, begin = self._begin
        for position in range(begin if epoch == self._epoch else 0, self._length):
            place = places[position]
            yield (place, derive_seed(self._epoch_seed, PICTURE, position)) if self._seeded else place


def build_loader(
    dataset: ImageDataset,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    drop_last: bool = False,
    repeats: int = 1,
    process: int = 0,
    processes: int = 1,
) -> DataLoader:
    """Batch a dataset: images float32 ``[B, C, H, W]``, labels int64 ``[B]``, bad indices int64 ``[B]``.

    Args:
        dataset: What to batch.
        batch_size: Pictures a batch, over all processes.
        shuffle: In the order of an ``EpochSampler``; call its ``set_epoch`` before each epoch.
        seed: Of that order, and of what the workers draw.
        workers: Processes that decode and transform; 0 does it in this one, enough for small cached sets.
        drop_last: Leave out a last batch that is not full, unless it is the only one.
        repeats: Times that a picture comes in a shuffled epoch, as ``EpochSampler`` says.
        process: Rank of this process in a distributed training.
        processes: How many take part in it; each takes its share of a batch.
    """
    order = EpochSampler(len(dataset), seed, repeats) if shuffle else range(len(dataset))
    return DataLoader(
        dataset,
        batch_sampler=SharedBatches(
            order, batch_size, drop_last=drop_last, process=process, processes=processes
        ),
        generator=order.generator if isinstance(order, EpochSampler) else None,
        num_workers=workers,
        persistent_workers=workers > 0,  # to start them takes seconds where they are spawned
        pin_memory=torch.cuda.is_available(),
    )
