"""Exported networks, ready for the measurement of speed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xnext.data._preprocessing import normalise
from xnext.deploy import FORMATS, Runtime
from xnext.errors import UserError

_BATCHES_A_WORKER = 4  # so that none waits long for the last of them


@dataclass(frozen=True)
class ExportedWay:
    """How an exported network is called.

    Attributes:
        network: Its file's name.
        name: What the table calls the way.
        layout: ``NHWC`` or ``NCHW``, of images inside.
        dtype: What it computes in.
        image_size: Pixels a side.
        images: That a call takes.
        call: Returns the logits.
    """

    network: str
    name: str
    layout: str
    dtype: str
    image_size: int
    images: int
    call: Callable[[], list[Tensor]]


def prepare(runtime: Runtime, batch_size: int, image_size: int | None) -> ExportedWay:
    """Return an exported network, ready to be called with a batch, or with several at once.

    Args:
        runtime: The network; in throughput mode several batches are under way.
        batch_size: Images of a batch.
        image_size: Pixels a side; None: its own.

    Raises:
        UserError: It takes other batches or images.
    """
    about, pre = runtime.artefact, runtime.preprocessing
    size = about.size or image_size or pre.image_size
    if image_size not in (None, size):
        raise UserError(f"{runtime.path} takes {size} pixels, not {image_size}; leave --image-size out")
    if about.batch not in (None, batch_size):
        raise UserError(f"{runtime.path} takes {about.batch} images; use --batch-size {about.batch}")
    batches = _BATCHES_A_WORKER * runtime.workers if runtime.workers > 1 else 1
    shape = (batch_size * batches, pre.in_chans, size, size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = pixels if about.include_preprocessing else normalise(pixels, pre)

    def call() -> list[Tensor]:
        several = np.stack(list(runtime.predict_many(images, batch_size))) if batches > 1 else runtime(images)
        return [torch.from_numpy(several)]

    return ExportedWay(
        network=runtime.path.name,
        name=f"{about.format}, {f'{runtime.workers} batches at once' if batches > 1 else 'one batch'}",
        layout="NHWC" if FORMATS[about.format].channels_last else "NCHW",
        dtype=about.dtype if runtime.computes == about.dtype else f"{about.dtype} in {runtime.computes}",
        image_size=size,
        images=len(images),
        call=call,
    )
