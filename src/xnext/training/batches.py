"""The batches of a training: pictures one by one from where they are, or all of them in memory."""

import hashlib
import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from xnext._interrupts import clean_exit
from xnext.data import (
    EpochSampler,
    ImageData,
    ImageDataset,
    MemoryLoader,
    PackedImages,
    PackedSource,
    Preprocessing,
    SharedBatches,
    build_batch_transform,
    build_eval_transform,
    build_loader,
    build_train_transform,
)
from xnext.errors import UserError
from xnext.training.bad_images import check_bad_images
from xnext.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Batches:
    """What a training and its measure see.

    A batch is images [N, C, H, W], labels [N] or [N, classes], and source indices [N] of what could not be
    read, or -1.

    Attributes:
        size: Images of a full step, over all processes.
        order: The order of the training images.
        train: Shuffled batches of this process.
        val: Its held-out batches, in order.
        transform: What training images go through on the device, or None if they are ready.
        bad_images: Indices of training images that are known to be unreadable before the first step.
    """

    size: int
    order: EpochSampler
    train: DataLoader | MemoryLoader
    val: DataLoader | MemoryLoader
    transform: nn.Module | None
    bad_images: Collection[int]


class _Plan(NamedTuple):
    """What both ways of loading are told: how batches are cut, divided, and changed."""

    size: int
    drop_last: bool
    share: dict[str, Any]
    changes: dict[str, Any]


def build_batches(
    config: TrainConfig, accelerator: Accelerator, data: ImageData, preprocessing: Preprocessing
) -> Batches:
    """Return the batches of a config, as its `loader` makes them.

    Raises:
        UserError: There are too few training images for a step, or too many are known to be unreadable.
    """
    processes = accelerator.num_processes
    size, drop_last = plan_batches(len(data.train), config.batch_size, even=config.mixes, processes=processes)
    plan = _Plan(
        size,
        drop_last,
        share={"process": accelerator.process_index, "processes": processes},
        changes={
            "auto_augment": config.auto_augment,
            "re_prob": config.random_erasing,
            "color_jitter": config.color_jitter,
        },
    )
    load = _LOADERS[config.loader if config.decoder is None else "masks"]
    batches = load(config, accelerator, data, preprocessing, plan)
    bad = [data.train.name(index) for index in batches.bad_images]
    check_bad_images(bad, len(data.train), config.max_bad_images)
    return batches


def _from_sources(
    config: TrainConfig, _: Accelerator, data: ImageData, preprocessing: Preprocessing, plan: _Plan
) -> Batches:
    """Decode and change pictures one by one."""
    transform = build_train_transform(preprocessing, config.augment, data.mirror, **plan.changes)
    train = ImageDataset(data.train, transform, training=True)
    val = ImageDataset(data.val, build_eval_transform(preprocessing), training=False)
    return _in_batches(config, train, val, config.val_batch_size or config.batch_size, plan)


def _from_masks(
    config: TrainConfig, _: Accelerator, data: Any, preprocessing: Preprocessing, plan: _Plan
) -> Batches:
    """Read pictures and masks one by one; those held out are measured at sizes of their own, each alone."""
    from xnext.segmentation.batches import MaskDataset, build_eval_masks, build_train_masks

    transform = build_train_masks(preprocessing, config.augment, data.mirror)
    train = MaskDataset(data.train, transform, training=True)
    val = MaskDataset(data.val, build_eval_masks(preprocessing), training=False)
    return _in_batches(config, train, val, plan.share["processes"], plan)


def _in_batches(
    config: TrainConfig, train: ImageDataset, val: ImageDataset, val_batch_size: int, plan: _Plan
) -> Batches:
    loader = build_loader(
        train,
        batch_size=plan.size,
        shuffle=True,
        seed=config.seed,
        workers=config.workers,
        drop_last=plan.drop_last,
        repeats=config.repeats,
        **plan.share,
    )
    return Batches(
        size=plan.size,
        order=loader.batch_sampler.order,  # type: ignore[union-attr]
        train=loader,
        val=build_loader(val, batch_size=val_batch_size, workers=config.workers, **plan.share),
        transform=None,
        bad_images=train.bad_images.keys(),
    )


def _from_memory(
    config: TrainConfig, accelerator: Accelerator, data: ImageData, preprocessing: Preprocessing, plan: _Plan
) -> Batches:
    """Keep all pictures decoded, and change them in batches."""
    transform = build_batch_transform(preprocessing, config.augment, data.mirror, **plan.changes)
    train, val = _pack(config, accelerator, data, preprocessing)
    order = EpochSampler(len(train), config.seed, config.repeats, seeded=False)
    in_training = SharedBatches(order, plan.size, drop_last=plan.drop_last, **plan.share)
    in_order = SharedBatches(range(len(val)), config.val_batch_size or config.batch_size, **plan.share)
    return Batches(
        size=plan.size,
        order=order,
        train=MemoryLoader(train, in_training, accelerator.device, training=True),
        val=MemoryLoader(val, in_order, accelerator.device, training=False),
        transform=transform.to(accelerator.device),
        bad_images=train.bad_images.keys(),
    )


def _pack(
    config: TrainConfig, accelerator: Accelerator, data: ImageData, preprocessing: Preprocessing
) -> Sequence[PackedImages]:
    """Decode both parts into files that the processes of a machine share, and that go when they end.

    A set that was decoded before, for such a size, is taken as it is.
    """
    if isinstance(data.train, PackedSource) and isinstance(data.val, PackedSource):
        parts = [source.packed.adapt(preprocessing) for source in (data.train, data.val)]
        ready = [part for part in parts if part is not None]
        if len(ready) == len(parts):
            return ready
    # The name is one for the processes of this training alone, for which its launcher's port stands.
    key = f"{os.getuid()} {config.output.absolute()} {os.environ.get('MASTER_PORT', os.getpid())}"
    name = f"xnext-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    paths = [Path(tempfile.gettempdir()) / f"{name}-{part}" for part in ("train", "val")]
    try:
        with clean_exit(), accelerator.local_main_process_first():
            for source, path in zip((data.train, data.val), paths, strict=True):
                if accelerator.is_local_main_process:
                    PackedImages.write(source, preprocessing, path)
            packed = [PackedImages.open(path) for path in paths]
        accelerator.wait_for_everyone()  # all have opened them
    finally:
        if accelerator.is_local_main_process:
            for path in paths:
                path.unlink(missing_ok=True)  # what is open stays until it is closed
    return packed


_LOADERS = {"images": _from_sources, "memory": _from_memory, "masks": _from_masks}


def plan_batches(images: int, batch_size: int, even: bool, processes: int = 1) -> tuple[int, bool]:
    """Choose a batch size and whether the last, smaller batch is dropped.

    A single image is no batch, since batch norm cannot normalise it, and mixing pairs the images of a batch.
    The last batch is kept unless that would break one of the two in a process.

    Args:
        images: Training images.
        batch_size: Wanted images a batch; the result is less only if there are fewer images.
        even: Whether every process needs an even number of images; then its share of ``batch_size`` is even.
        processes: How many share a batch.

    Returns:
        The batch size and whether to drop the rest.

    Raises:
        UserError: There are fewer than two images a process.
    """
    if images < 2 * processes:
        more = f" a process ({processes} of them)" if processes > 1 else ""
        raise UserError(
            f"{images} training image{'s' if images > 1 else ''} is too few to learn from;"
            f" give at least two{more}"
        )
    unit = processes * (2 if even else 1)
    if images < batch_size:
        batch_size = images - images % unit
    rest = images % batch_size
    return batch_size, rest > 0 and (rest // processes < 2 or (even and rest % unit > 0))
