"""From a config to all that a training needs; a user's mistake shows here, before a file is written."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from timm.optim import create_optimizer_v2, get_optimizer_info
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from xnext.data import (
    EpochSampler,
    ImageData,
    ImageDataset,
    Preprocessing,
    absolute_spec,
    build_eval_transform,
    build_loader,
    build_train_transform,
    load_data,
)
from xnext.errors import UserError
from xnext.evaluation.complexity import check_image_size, count_macs, count_parameters
from xnext.models import LoadReport, load_checkpoint
from xnext.models._registry import create_variant
from xnext.training.bad_images import check_bad_images
from xnext.training.config import TrainConfig
from xnext.training.run import Run
from xnext.training.schedule import build_scheduler
from xnext.training.task import Classification


@dataclass(kw_only=True)
class Setup:
    """The parts of one training.

    Attributes:
        config: The config with every value resolved.
        accelerator: Device, precision and processes.
        data: Training and held-out images.
        preprocessing: From an image to the network's input.
        report: What was loaded from `config.checkpoint`, or None.
        model: The network as it is trained, on its device.
        params: Its parameters.
        macs: Its multiply-accumulates for one image.
        ema: The averaged network, or None.
        task: Loss and measure.
        sampler: The order of the training images.
        train_loader: Shuffled batches: images [N, C, H, W], labels [N], unreadable source index or -1 [N].
        val_loader: The same of the held-out images, in order.
        optimizer: Updates the weights.
        scheduler: Sets the learning rate after each step.
    """

    config: TrainConfig
    accelerator: Accelerator
    data: ImageData
    preprocessing: Preprocessing
    report: LoadReport | None
    model: nn.Module
    params: int
    macs: int
    ema: ModelEmaV3 | None
    task: Classification
    sampler: EpochSampler
    train_loader: DataLoaderShard
    val_loader: DataLoader
    optimizer: Optimizer
    scheduler: Scheduler


def prepare(config: TrainConfig) -> Setup:
    """Build everything that a training needs and write nothing.

    Raises:
        UserError: The device, data, network, checkpoint or image size does not exist or does not fit.
    """
    accelerator = build_accelerator(config)
    data = load_data(config.data, seed=config.seed)
    set_seed(config.seed)  # here, so that the first weights do not depend on how the data were read
    model = create_variant(
        config.model,
        config.model_args,
        num_classes=len(data.classes),
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
    )
    preprocessing = Preprocessing.for_model(model, config.image_size, config.crop_pct)
    check_image_size(model, preprocessing.image_size, config.model)
    report = load_checkpoint(model, _weights_file(config.checkpoint)) if config.checkpoint else None
    # Absolute, so that later commands find the images from any folder.
    config = dataclasses.replace(config.resolve(preprocessing.image_size), data=absolute_spec(config.data))
    train_loader, val_loader = build_loaders(config, *build_datasets(config, data, preprocessing))
    sampler = train_loader.sampler
    assert isinstance(sampler, EpochSampler)
    optimizer = build_optimizer(config, model)
    scheduler = build_scheduler(config, optimizer, len(train_loader))
    params = count_parameters(model)
    macs = count_macs(model, (preprocessing.in_chans, preprocessing.image_size, preprocessing.image_size))
    # Depthwise convolutions are up to twice as fast on images whose channels lie side by side.
    model.to(accelerator.device).to(memory_format=torch.channels_last)
    ema = ModelEmaV3(model, decay=config.model_ema, use_warmup=True) if config.model_ema else None
    model, optimizer = accelerator.prepare(model, optimizer)
    return Setup(
        config=config,
        accelerator=accelerator,
        data=data,
        preprocessing=preprocessing,
        report=report,
        model=model,
        params=params,
        macs=macs,
        ema=ema,
        task=Classification(config, len(data.classes)),
        sampler=sampler,
        # Batches stay on the CPU, where indices of unreadable images are read without waiting for a device.
        train_loader=accelerator.prepare_data_loader(train_loader, device_placement=False),
        val_loader=val_loader,
        optimizer=optimizer,
        scheduler=scheduler,
    )


def _weights_file(checkpoint: Path) -> Path:
    """Return the file that a checkpoint, which may be another run, stands for."""
    return Run.open(checkpoint).best if checkpoint.is_dir() else checkpoint


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Return the device and precision of a config, as accelerate holds them.

    Raises:
        UserError: The machine does not have them.
    """
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise UserError("device cuda: PyTorch finds no GPU here; use --device cpu")
    if config.amp == "fp16" and (config.device == "cpu" or not has_gpu):
        raise UserError("amp fp16 needs a GPU; use --amp bf16 or off")
    # accelerate keeps a process's first device and precision and refuses others; trainings are independent.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(
        cpu=config.device == "cpu", mixed_precision="no" if config.amp == "off" else config.amp
    )


def build_datasets(
    config: TrainConfig, data: ImageData, preprocessing: Preprocessing
) -> tuple[ImageDataset, ImageDataset]:
    """Return the training and the held-out images, transformed.

    Raises:
        UserError: Too many training images are known to be unreadable.
    """
    transform = build_train_transform(
        preprocessing,
        config.augment,
        data.mirror,
        auto_augment=config.auto_augment,
        re_prob=config.random_erasing,
        color_jitter=config.color_jitter,
    )
    train = ImageDataset(data.train, transform, training=True)
    bad = [data.train.name(index) for index in train.bad_images]
    check_bad_images(bad, len(train), config.max_bad_images)
    return train, ImageDataset(data.val, build_eval_transform(preprocessing), training=False)


def build_loaders(
    config: TrainConfig, train: ImageDataset, val: ImageDataset
) -> tuple[DataLoader, DataLoader]:
    """Return the loaders of the training and the held-out images.

    Raises:
        UserError: There are too few training images for a step.
    """
    batch_size, drop_last = plan_batches(len(train), config.batch_size, even=config.mixes)
    train_loader = build_loader(
        train,
        batch_size=batch_size,
        shuffle=True,
        seed=config.seed,
        workers=config.workers,
        drop_last=drop_last,
        repeats=config.repeats,
    )
    return train_loader, build_loader(val, batch_size=config.batch_size, workers=config.workers)


def plan_batches(images: int, batch_size: int, even: bool) -> tuple[int, bool]:
    """Choose a batch size and whether the last, smaller batch is dropped.

    A single image is no batch, since batch norm cannot normalise it, and mixing pairs the images of a batch.
    The last batch is kept unless that would break one of the two.

    Args:
        images: Training images.
        batch_size: Wanted images a batch; the result is less only if there are fewer images.
        even: Whether every batch needs an even number of images; then ``batch_size`` is even.

    Returns:
        The batch size and whether to drop the rest.

    Raises:
        UserError: There are fewer than two images.
    """
    if images < 2:
        raise UserError(f"{images} training image is too few to learn from; give at least two")
    if images < batch_size:
        batch_size = images - images % 2 if even else images
    rest = images % batch_size
    return batch_size, rest == 1 or (even and rest % 2 == 1)


def build_optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    """Return the optimiser of a resolved config over all parameters; norms and biases do not decay.

    Raises:
        UserError: The optimiser does not take one of the config's values.
    """
    info = get_optimizer_info(config.optimizer)
    options = {"momentum": config.momentum, "eps": config.opt_eps, "betas": config.opt_betas}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if not getattr(info, f"has_{name}"):  # timm would pass over it
            raise UserError(f"optimizer {config.optimizer} has no {name}; leave the option out")
    if config.layer_decay is not None:
        given["layer_decay"] = config.layer_decay
    try:
        optimizer = create_optimizer_v2(
            model, opt=config.optimizer, lr=config.peak_lr, weight_decay=config.weight_decay, **given
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer {config.optimizer}: {error}; change its options") from error
    if getattr(optimizer, "is_second_order", False):
        raise UserError(f"optimizer {config.optimizer} needs second derivatives; choose another")
    return optimizer
