"""Small pictures, decoded once into a file that the processes of a machine share as memory."""

import io
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from xnext._files import save_atomic
from xnext.data._batch_transforms import build_batch_transform
from xnext.data._batches import SharedBatches
from xnext.data._dataset import none_readable
from xnext.data._decode import BadImageError
from xnext.data._sources import ImageSource
from xnext.data._transforms import Preprocessing, build_resize
from xnext.errors import UserError

_CHUNK = 1024  # pictures decoded between two writes
_MOST_THREADS = 8
_DEVICE_SHARE = 0.25  # of a device's free memory that pictures may take for good


@dataclass(frozen=True, eq=False)
class PackedImages:
    """All pictures of a source as the network's size asks for them, not yet normalised.

    The file is three arrays in NumPy's format, one after the other: pixels, labels, and JSON of the rest.

    Attributes:
        pixels: uint8 ``[N, C, H, W]``, zero where a picture cannot be read. It is the file itself, whose
            memory all processes share that only read it; what one writes into it, it sees alone.
        labels: int64 ``[N]``, or float32 ``[N, classes]`` where a picture may have several classes.
        bad_images: Place in the source and reason of each picture that cannot be read.
        preprocessing: What the pictures were resized for.
    """

    pixels: Tensor
    labels: Tensor
    bad_images: dict[int, str]
    preprocessing: Preprocessing

    @classmethod
    def write(cls, source: ImageSource, preprocessing: Preprocessing, path: Path) -> "PackedImages":
        """Decode a source into a file, whole or not at all, and open it.

        Args:
            source: The pictures.
            preprocessing: Their size, channels and resampling, as in evaluation.
            path: The file; an earlier one of that name is replaced.

        Raises:
            UserError: There is no picture that can be read, or the file cannot be written.
        """
        if not len(source):
            raise UserError(f"cannot write {path}: there are no pictures to put into it")
        save_atomic(path, lambda temporary: _pack(source, preprocessing, temporary))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "PackedImages":
        """Map a file that ``write`` wrote, without reading its pictures.

        Raises:
            UserError: There is no such file, or it is damaged.
        """
        try:
            # Copy-on-write, since PyTorch knows no read-only memory and would crash where it writes to it.
            pixels = np.lib.format.open_memmap(path, mode="c")
            with path.open("rb") as stream:
                stream.seek(pixels.offset + pixels.nbytes)
                labels = np.lib.format.read_array(stream, allow_pickle=False)
                rest = json.loads(np.lib.format.read_array(stream, allow_pickle=False).item())
            preprocessing = Preprocessing.from_dict(rest["preprocessing"])
            bad_images = {int(index): str(reason) for index, reason in rest["bad_images"].items()}
            fit = pixels.dtype == np.uint8 and pixels.shape == (len(labels), *preprocessing.shape)
            if not fit or not bad_images.keys() < set(range(len(labels))):
                raise ValueError("the parts do not belong together")
            return cls(
                torch.from_numpy(pixels),
                torch.from_numpy(labels.astype(np.float32 if labels.ndim == 2 else np.int64)),
                bad_images,
                preprocessing,
            )
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error.strerror or error})") from error
        except Exception as error:  # NumPy's reader raises whatever damaged bytes lead it to
            raise UserError(
                f"{path}: is damaged, or holds no packed pictures; remove it and pack again"
            ) from error

    def adapt(self, preprocessing: Preprocessing) -> "PackedImages | None":
        """Return the same pictures for another mean and deviation, or None if they are of another size."""
        if replace(self.preprocessing, mean=preprocessing.mean, std=preprocessing.std) != preprocessing:
            return None
        return replace(self, preprocessing=preprocessing)

    def __len__(self) -> int:
        return len(self.labels)


def _pack(source: ImageSource, preprocessing: Preprocessing, path: Path) -> None:
    """Write the file of ``PackedImages``; only a chunk of the pictures is ever in memory."""
    shape = (len(source), *preprocessing.shape)
    with path.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        bad_images = _write_pixels(source, preprocessing, stream)
        if len(bad_images) == len(source):
            raise none_readable(source, bad_images)
        rest = json.dumps({"preprocessing": preprocessing.to_dict(), "bad_images": bad_images})
        tail = io.BytesIO()  # NumPy's own way of writing into a file does not say that the disk is full
        for array in (source.labels, np.array(rest.encode())):
            np.lib.format.write_array(tail, array, version=(1, 0), allow_pickle=False)
        stream.write(tail.getvalue())


def _write_pixels(source: ImageSource, preprocessing: Preprocessing, stream: BinaryIO) -> dict[int, str]:
    """Write the pixels of all pictures in order; return why some cannot be read, by their place."""
    resize = build_resize(preprocessing)
    channels, height, width = preprocessing.shape
    reasons: dict[int, str] = {}

    def read(index: int) -> np.ndarray:
        try:
            image = resize(source.read(index))
        except BadImageError as error:
            reasons[index] = error.reason
            return np.zeros(preprocessing.shape, np.uint8)
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)

    # Decoding silences warnings and puts them back, which threads that overlap would do in the wrong order.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(source), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(source)))
            stream.write(np.stack(list(pool.map(read, chunk))).tobytes())
    return dict(sorted(reasons.items()))


class MemoryLoader:
    """Batches of packed pictures: images ``[B, C, H, W]`` and labels on a device, bad indices int64 ``[B]``.

    In training the images are uint8, to be changed and normalised as a batch; in evaluation float32, equal
    to what ``build_eval_transform`` makes of the picture. Labels are int64 ``[B]`` or float32
    ``[B, classes]``. Unreadable pictures are treated as ``ImageDataset`` does: in training the next readable
    one stands in with its label; in evaluation the image is zero and the label -1. The bad indices, -1 for
    all other pictures, stay on the CPU, where they are read without waiting for the device.

    On a GPU all pictures move there once if they take less than a quarter of its free memory; otherwise, and
    on a CPU, batches are taken from the mapped file.

    Args:
        packed: The pictures.
        batch_sampler: Lists of places, or of places with seeds (as ``EpochSampler`` gives them), which are
            passed over: batches draw from the device's generator.
        device: Where the batches go.
        training: Which of the two ways.
    """

    def __init__(
        self,
        packed: PackedImages,
        batch_sampler: SharedBatches,
        device: torch.device | str,
        *,
        training: bool,
    ):
        self.packed = packed
        self.batch_sampler = batch_sampler
        self.device = torch.device(device)
        self._normalise = None
        self._taken = torch.arange(len(packed))
        self._bad = torch.full_like(self._taken, -1)
        bad = torch.tensor(list(packed.bad_images), dtype=torch.int64)
        self._bad[bad] = bad
        if training:
            readable = self._taken[self._bad < 0]
            self._taken = readable[torch.searchsorted(readable, self._taken) % len(readable)]
            labels = packed.labels[self._taken]
        else:
            self._normalise = build_batch_transform(packed.preprocessing, "none", mirror=False)
            self._normalise.to(self.device)
            labels = packed.labels.clone()
            labels[bad] = -1
        self._labels = labels.to(self.device)
        self._pixels = packed.pixels.to(self.device) if _fits(packed.pixels, self.device) else packed.pixels

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in self.batch_sampler:
            yield self._batch([place[0] if isinstance(place, tuple) else place for place in batch])

    def _batch(self, batch: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        places = torch.tensor(batch)
        bad = self._bad[places]
        images = self._pixels.index_select(0, self._taken[places].to(self._pixels.device))
        images = images.to(self.device, non_blocking=True)
        labels = self._labels.index_select(0, places.to(self.device))
        if self._normalise is not None:
            images = self._normalise(images)
            if (bad >= 0).any():
                images[(bad >= 0).nonzero().squeeze(1).to(self.device)] = 0
        return images, labels, bad


def _fits(pixels: Tensor, device: torch.device) -> bool:
    """Whether a device has memory of its own to spare for all pictures."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.nbytes < _DEVICE_SHARE * free
