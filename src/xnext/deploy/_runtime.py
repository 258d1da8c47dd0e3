"""Running exported networks; this needs the runtime of their format, NumPy and Pillow, but no PyTorch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from xnext.data._decode import decode_image
from xnext.data._preprocessing import normalise, to_pixels
from xnext.deploy._artefact import ArtefactError, How, Mode, Session, files_of
from xnext.deploy._formats import read_artefact
from xnext.errors import UserError, suggest

Picture = str | Path | Image.Image | np.ndarray


class Runtime:
    """An exported network, loaded and ready; may be called from several threads at once.

    Args:
        path: What ``xnext export`` wrote.
        threads: Of the CPU; None: the runtime's choice.
        mode: ``latency``: a batch at a time, each on all threads. ``throughput``: several batches at once,
            each on some of the threads, which ``predict_many`` keeps busy.

    Attributes:
        artefact: What the file says about itself: model, source, types, the gate's result.
        classes: Class names in the order of the logits.
        preprocessing: How a picture becomes an input.
        computes: The type that it computes in here; a CPU without bf16 runs a bf16 network in fp32.
        workers: Batches that run at once.
        size: Of its files, in bytes.

    Raises:
        UserError: The file is missing, damaged or of another version, the runtime is not installed, or
            cannot load it; or another option than there is.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None, mode: Mode = "latency"):
        if mode not in get_args(Mode):
            raise UserError(
                f"mode {mode!r}: choose {' or '.join(get_args(Mode))}.{suggest(mode, get_args(Mode))}"
            )
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise UserError(f"threads is {threads!r}; it must be a whole number of at least 1")
        self.path = Path(path)
        self.artefact, format = read_artefact(self.path)
        format.require_runtime()
        self.size = sum(file.stat().st_size for file in files_of(self.path))
        self.classes = self.artefact.classes
        self.preprocessing = self.artefact.pre
        try:
            self._session = format.load(self.path, How(dtype=self.artefact.dtype, threads=threads, mode=mode))
        except Exception as error:  # each runtime has its own, and the file is known to be whole
            raise ArtefactError(f"{path} cannot be run by this {format.package}: {_reason(error)}") from error
        self.computes, self.workers = self._session.computes, self._session.workers
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="xnext")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Map a batch to logits.

        Args:
            images: [N, C, H, W], any N, as ``prepare`` makes them: float32, or uint8 pixels where the network
                includes its preprocessing.

        Returns:
            float32 [N, classes].

        Raises:
            UserError: It takes no images of that shape or type.
        """
        images = self._checked(images)
        if not len(images):
            return np.zeros((0, len(self.classes)), np.float32)
        try:
            return call_in_batches(self._session, images, self.artefact.batch)
        except Exception as error:  # each runtime has its own
            shape = "x".join(map(str, images.shape[2:]))
            raise UserError(
                f"{self.path} cannot take images of {shape} pixels; it was exported for "
                f"{self.preprocessing.image_size}, and much smaller or larger ones may not do "
                f"({_reason(error)})"
            ) from error

    def prepare(self, image: Picture) -> np.ndarray:
        """Return a picture as the network sees it.

        Args:
            image: A file, a picture, or an array [C, H, W] that is prepared already.

        Returns:
            [C, image_size, image_size]: float32, or uint8 where the network includes its preprocessing.

        Raises:
            BadImageError: It cannot be read.
        """
        if isinstance(image, np.ndarray):
            return image
        if not isinstance(image, str | Path | Image.Image):
            raise UserError(f"a picture is a file, a Pillow image or an array, not {type(image).__name__}")
        picture = image.convert("RGB") if isinstance(image, Image.Image) else decode_image(Path(image))
        pixels = to_pixels(picture, self.preprocessing)
        return pixels if self.artefact.include_preprocessing else normalise(pixels, self.preprocessing)

    def predict_many(self, images: Iterable[Picture], batch_size: int = 16) -> Iterator[np.ndarray]:
        """Yield the logits [classes] of each picture, in order; several batches are under way at once.

        Args:
            images: As ``prepare`` takes them, without end if need be: only as many are asked for as keep the
                network busy.
            batch_size: Pictures of one size in a batch; a network of fixed batches has its own.

        Raises:
            UserError: A picture cannot be read, or the network does not take it.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be a whole number of at least 1")
        if isinstance(images, str | Path | Image.Image):
            raise UserError(f"predict_many takes a list of pictures, not one: [{images!r}]")
        pictures, size = iter(images), self.artefact.batch or batch_size
        pending: deque[Future[np.ndarray]] = deque()
        while batch := list(islice(pictures, size)):
            pending.append(self._pool.submit(self._predict, batch))
            if len(pending) > 2 * self.workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the probability of each class for logits [..., classes]."""
        if self.artefact.multilabel:
            return 1 / (1 + np.exp(-logits))
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def _predict(self, pictures: list[Picture]) -> np.ndarray:
        prepared = [self.prepare(picture) for picture in pictures]
        if len({one.shape for one in prepared}) > 1:
            shapes = sorted({str(list(one.shape)) for one in prepared})
            raise UserError(f"pictures of one batch have different shapes: {', '.join(shapes)}")
        return self(np.stack(prepared))

    def _checked(self, images: np.ndarray) -> np.ndarray:
        """Return a batch contiguous in memory, after checking all that the artefact says of it."""
        if not isinstance(images, np.ndarray):
            raise UserError(f"images are an array [N, C, H, W], not {type(images).__name__}")
        kind = np.uint8 if self.artefact.include_preprocessing else np.float32
        channels, size = self.preprocessing.in_chans, self.artefact.size
        sides = {size} if size else set(images.shape[2:])
        if (
            images.dtype != kind
            or images.ndim != 4
            or images.shape[1] != channels
            or set(images.shape[2:]) != sides
        ):
            side = size or "any"
            raise UserError(
                f"{self.path} takes {np.dtype(kind).name} [N, {channels}, {side}, {side}], not "
                f"{images.dtype} {list(images.shape)}"
            )
        return np.require(images, requirements=["C", "W"])


def call_in_batches(session: Session, images: np.ndarray, batch: int | None) -> np.ndarray:
    """Return the logits of a session for any number of images, with batches of a fixed size filled up."""
    size = batch or len(images)
    logits = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        filled = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
        logits.append(session(filled)[0][: len(part)])
    return np.concatenate(logits)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    told = [line for line in lines if not line.startswith("Exception from ")]  # OpenVINO's source lines
    return (told or lines)[0]
