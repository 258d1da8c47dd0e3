"""From a config to all that a training needs; a user's mistake shows here, before a file is written."""

import dataclasses
import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import InitProcessGroupKwargs, set_seed
from timm.layers import convert_sync_batchnorm
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from xnext._processes import is_restarted, join
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
from xnext.training.distributed import LocalSGD, check_processes
from xnext.training.optimizer import build_optimizer, load_optimizer
from xnext.training.run import Run
from xnext.training.schedule import build_scheduler, count_steps
from xnext.training.task import Task, build_task

_LONGEST_WAIT = datetime.timedelta(hours=2)  # of a process for another, which may be reading a large data set


@dataclass(kw_only=True)
class Setup:
    """The parts of one training.

    Attributes:
        config: The config with every value resolved.
        accelerator: Device, precision and processes.
        data: Training and held-out images.
        preprocessing: From an image to the network's input.
        report: What was loaded from `config.checkpoint`, or None.
        network: The network on its device.
        model: The same as it is trained: in its precision, and with other processes.
        params: Its parameters.
        macs: Its multiply-accumulates for one image.
        ema: The averaged network, or None.
        task: Loss and measure.
        sampler: The order of the training images.
        batch_size: Images of a full step, over all processes.
        train_loader: Shuffled batches: images [N, C, H, W], labels [N], unreadable source index or -1 [N].
        val_loader: The same of the held-out images, in order.
        optimizer: Updates the weights.
        scheduler: Sets the learning rate after each step.
        frozen: Whether all but the classifier stays as it is.
        local_sgd: What averages the weights of the processes instead of their gradients, or None.
    """

    config: TrainConfig
    accelerator: Accelerator
    data: ImageData
    preprocessing: Preprocessing
    report: LoadReport | None
    network: nn.Module
    model: nn.Module
    params: int
    macs: int
    ema: ModelEmaV3 | None
    task: Task
    sampler: EpochSampler
    batch_size: int
    train_loader: DataLoader
    val_loader: DataLoader
    optimizer: Optimizer
    scheduler: Scheduler
    frozen: bool | None = None
    local_sgd: LocalSGD | None = None

    def steps(self, duration: float | str) -> int:
        """Return a duration in training steps."""
        times = {"steps_per_epoch": len(self.train_loader), "batch_size": self.config.batch_size}
        return count_steps(duration, **times)

    def freeze(self, frozen: bool, updates: int) -> None:
        """Let the classifier alone learn, or all of the network.

        Args:
            frozen: Which of the two.
            updates: Training steps so far.
        """
        if frozen == self.frozen:
            return
        self.frozen = frozen
        self.network.requires_grad_(not frozen)
        self.network.get_classifier().requires_grad_(True)  # type: ignore[operator]
        self.model = self.accelerator.prepare_model(self.network)  # anew: it notes what learns
        if self.config.local_sgd:
            start = max(1, self.steps(self.config.warmup or 0))
            self.local_sgd = LocalSGD(self.model, period=self.config.local_sgd, start=start, steps=updates)
        self.train_mode()

    def train_mode(self) -> None:
        """Take the mode of training, in which a frozen part has none: its batch norm must not move on."""
        self.model.train()
        if self.frozen:
            self.network.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return what of the parts changes in a training."""
        state = {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        if self.ema is not None:
            state["ema"] = self.ema.module.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.network.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        if "scaler" in state and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if "ema" in state and self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])

    def set_rate(self, updates: int, factor: float) -> None:
        """Set the learning rate, which is a function of the steps so far.

        Args:
            updates: Training steps so far.
            factor: Of the whole schedule.
        """
        self.scheduler.base_values = [group["initial_lr"] * factor for group in self.optimizer.param_groups]
        self.scheduler.step_update(updates)


def prepare(config: TrainConfig) -> Setup:
    """Build everything that a training needs and write nothing.

    Raises:
        UserError: The device, data, network, checkpoint or image size does not exist or does not fit.
    """
    accelerator = build_accelerator(config)
    with accelerator.main_process_first():  # the others find data in the cache, and a mistake is told once
        check_processes(config, accelerator)
        return _build(config, accelerator)


def _build(config: TrainConfig, accelerator: Accelerator) -> Setup:
    data = load_data(config.data, seed=config.seed)
    set_seed(config.seed)  # here, so that the first weights do not depend on how the data were read
    network = create_variant(
        config.model,
        config.model_args,
        num_classes=len(data.classes),
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
        pretrained=config.pretrained and config.checkpoint is None,
    )
    preprocessing = Preprocessing.for_model(network, config.image_size, config.crop_pct)
    check_image_size(network, preprocessing.image_size, config.model)
    report = load_checkpoint(network, _weights_file(config.checkpoint)) if config.checkpoint else None
    config = _absolute(config.resolve(preprocessing.image_size, data.multilabel))
    params = count_parameters(network)
    macs = count_macs(network, (preprocessing.in_chans, preprocessing.image_size, preprocessing.image_size))
    task = build_task(config, data).to(accelerator.device)
    batch_size, train_loader, val_loader = build_loaders(
        config, accelerator, *build_datasets(config, data, preprocessing)
    )
    sampler = train_loader.batch_sampler.order  # type: ignore[union-attr]
    network = _place(config, network, accelerator.device)
    optimizer = build_optimizer(config, network)
    ema = None
    if config.model_ema:
        copied = config.ema_buffers == "copy"
        ema = ModelEmaV3(network, decay=config.model_ema, use_warmup=True, exclude_buffers=copied)
    if config.compile:
        network.compile()  # in place, so that names of weights stay; after the average's copy was made
    return Setup(
        config=config,
        accelerator=accelerator,
        data=data,
        preprocessing=preprocessing,
        report=report,
        network=network,
        model=network,
        params=params,
        macs=macs,
        ema=ema,
        task=task,
        sampler=sampler,
        batch_size=batch_size,
        train_loader=train_loader,
        val_loader=val_loader,
        optimizer=accelerator.prepare_optimizer(optimizer),
        scheduler=build_scheduler(config, optimizer, len(train_loader)),
    )


def _absolute(config: TrainConfig) -> TrainConfig:
    """Return a config whose paths later commands find from any folder."""
    weights = config.class_weights
    if weights not in ("none", "auto"):
        weights = str(Path(weights).absolute())
    return dataclasses.replace(config, data=absolute_spec(config.data), class_weights=weights)


def _place(config: TrainConfig, network: nn.Module, device: torch.device) -> nn.Module:
    """Bring a network to its device, in the form that the config asks for."""
    if config.sync_bn:
        network = convert_sync_batchnorm(network)
    if config.grad_checkpointing:
        network.set_grad_checkpointing(True)  # type: ignore[operator]
    network.to(device)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)
    return network


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
    if is_restarted():
        join("gloo" if config.device == "cpu" or not has_gpu else "nccl", _LONGEST_WAIT)
    return Accelerator(
        cpu=config.device == "cpu",
        mixed_precision="no" if config.amp == "off" else config.amp,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
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
    config: TrainConfig, accelerator: Accelerator, train: ImageDataset, val: ImageDataset
) -> tuple[int, DataLoader, DataLoader]:
    """Return the images of a full step, and the loaders of this process's training and held-out images.

    Raises:
        UserError: There are too few training images for a step.
    """
    share = {"process": accelerator.process_index, "processes": accelerator.num_processes}
    batch_size, drop_last = plan_batches(
        len(train), config.batch_size, even=config.mixes, processes=accelerator.num_processes
    )
    train_loader = build_loader(
        train,
        batch_size=batch_size,
        shuffle=True,
        seed=config.seed,
        workers=config.workers,
        drop_last=drop_last,
        repeats=config.repeats,
        **share,
    )
    return (
        batch_size,
        train_loader,
        build_loader(val, batch_size=config.batch_size, workers=config.workers, **share),
    )


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
