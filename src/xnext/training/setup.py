"""From a config to all that a training needs; a user's mistake shows here, before a file is written."""

import dataclasses
import datetime
from collections.abc import Callable
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

from xnext._processes import is_restarted, join
from xnext._progress import watched
from xnext.data import ImageData, Preprocessing, absolute_spec, load_data, user_path
from xnext.errors import UserError
from xnext.evaluation.complexity import count_macs, count_parameters
from xnext.kernels import accelerate
from xnext.kernels._backend import why_not_on
from xnext.models import LoadReport, load_checkpoint
from xnext.models._registry import create_variant
from xnext.training.batches import Batches, build_batches
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
        notes: Lines to be said of them before a training.
        preprocessing: From an image to the network's input.
        report: What was loaded from `config.checkpoint`, or None.
        network: The network on its device.
        model: The same as it is trained: in its precision, and with other processes.
        params: Its parameters.
        macs: Its multiply-accumulates for one image.
        ema: The averaged network, or None.
        task: Loss and measure.
        batches: The images in batches.
        optimizer: Updates the weights.
        scheduler: Sets the learning rate after each step.
        frozen: Whether all but the classifier stays as it is.
        local_sgd: What averages the weights of the processes instead of their gradients, or None.
    """

    config: TrainConfig
    accelerator: Accelerator
    data: ImageData
    notes: list[str]
    preprocessing: Preprocessing
    report: LoadReport | None
    network: nn.Module
    model: nn.Module
    params: int
    macs: int
    ema: ModelEmaV3 | None
    task: Task
    batches: Batches
    optimizer: Optimizer
    scheduler: Scheduler
    frozen: bool | None = None
    local_sgd: LocalSGD | None = None

    def steps(self, duration: float | str) -> int:
        """Return a duration in training steps."""
        times = {"steps_per_epoch": len(self.batches.train), "batch_size": self.config.batch_size}
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
            self.local_sgd = LocalSGD(self.model, period=self.config.local_sgd, start=start, updates=updates)
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
        """Take over what ``state_dict`` returned.

        Raises:
            UserError: It is that of another network or optimiser.
        """
        try:
            self.network.load_state_dict(state["model"])
            load_optimizer(self.optimizer, state["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"the saved state does not fit what is now to be trained ({reason}); start a new run from its"
                " weights, with --checkpoint"
            ) from error
        if "scaler" in state and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:  # which begins at the weights where there was none before
            self.ema.module.load_state_dict(state.get("ema", state["model"]))

    def set_rate(self, updates: int, factor: float) -> None:
        """Set the learning rate, which is a function of the steps so far.

        Args:
            updates: Training steps so far.
            factor: Of the whole schedule.
        """
        self.scheduler.base_values = [group["initial_lr"] * factor for group in self.optimizer.param_groups]
        self.scheduler.step_update(updates)


def prepare(config: TrainConfig) -> Setup:
    """Build everything that a training needs and write nothing that stays.

    Raises:
        UserError: The device, data, network, checkpoint or image size does not exist or does not fit.
    """
    accelerator = build_accelerator(config)
    config = _absolute(config)
    with accelerator.main_process_first():  # the others find data in the cache, and a mistake is told once
        check_processes(config, accelerator)
        data, notes = _load_data(config)
        set_seed(config.seed)  # here, so that the first weights do not depend on how the data were read
        network, report = build_network(config, len(data.classes))
        preprocessing = Preprocessing.for_model(network, config.image_size, config.crop_pct)
        params, macs = count_parameters(network), count_macs(network, preprocessing.shape, config.model)
        config = config.resolve(preprocessing.image_size, data.multilabel)
        task = build_task(config, data).to(accelerator.device)
        network = _place(config, network, accelerator.device)
        optimizer = build_optimizer(config, network)
    batches = build_batches(config, accelerator, data, preprocessing)
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
        notes=notes,
        preprocessing=preprocessing,
        report=report,
        network=network,
        model=network,
        params=params,
        macs=macs,
        ema=ema,
        task=task,
        batches=batches,
        optimizer=accelerator.prepare_optimizer(optimizer),
        scheduler=build_scheduler(config, optimizer, len(batches.train)),
    )


def build_network(config: TrainConfig, classes: int) -> tuple[nn.Module, LoadReport | None]:
    """Return the network of a config with its first weights, and what was loaded of a checkpoint.

    Raises:
        UserError: There is no such network, or its weights cannot be had.
    """
    pretrained = config.pretrained and config.checkpoint is None
    options: dict[str, Any] = {"drop_path_rate": config.drop_path_rate, "pretrained": pretrained}
    if config.decoder is not None:
        from xnext.segmentation.networks import create_segmenter, load_segmenter

        network: nn.Module = create_segmenter(
            config.model, config.decoder, classes, model_args=config.model_args, **options
        )
        load: Callable[..., LoadReport] = load_segmenter
    else:
        network = create_variant(
            config.model, config.model_args, num_classes=classes, drop_rate=config.drop_rate, **options
        )
        load = load_checkpoint
    return network, load(network, _weights_file(config.checkpoint)) if config.checkpoint else None


def _load_data(config: TrainConfig) -> tuple[Any, list[str]]:
    """Load the images of a config, and with a decoder masks; return what is to be said of these, too."""
    if config.decoder is None:
        return load_data(config.data, seed=config.seed), []
    from xnext.segmentation.check import check_masks
    from xnext.segmentation.data import load_masks

    data = load_masks(config.data, seed=config.seed)
    report = check_masks(data, watched)
    report.require_sound(config.max_bad_images)
    return data, report.lines()


def _absolute(config: TrainConfig) -> TrainConfig:
    """Return a config whose paths later commands find from any folder."""
    weights, absolute = config.class_weights, absolute_spec
    if weights not in ("none", "auto"):
        weights = str(user_path(weights).absolute())
    if config.decoder is not None:
        from xnext.segmentation.data import absolute_mask_spec as absolute
    return dataclasses.replace(config, data=absolute(config.data), class_weights=weights)


def _place(config: TrainConfig, network: nn.Module, device: torch.device) -> nn.Module:
    """Bring a network to its device, in the form that the config asks for."""
    if config.bn_momentum is not None:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = config.bn_momentum
    if config.sync_bn:
        network = convert_sync_batchnorm(network)
    if config.grad_checkpointing:
        network.set_grad_checkpointing(True)  # type: ignore[operator]
    if config.kernels == "triton" and (reason := why_not_on(device)) is not None:
        raise UserError(f"kernels triton: {reason}; use auto or torch")
    if config.kernels != "torch":
        accelerate(network)
    network.to(device)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)
    return network


def _weights_file(checkpoint: Path) -> Path:
    """Return the file that a checkpoint, which may be another run, stands for."""
    return Run.open(checkpoint).best if checkpoint.is_dir() else checkpoint


def require_device(device: str, amp: str) -> None:
    """Refuse a device and a precision that the machine does not have.

    Raises:
        UserError: As said.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("device cuda: PyTorch finds no GPU here; use --device cpu")
    if amp == "fp16" and (device == "cpu" or not has_gpu):
        raise UserError("amp fp16 needs a GPU; use --amp bf16 or off")


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Return the device and precision of a config, as accelerate holds them.

    Raises:
        UserError: The machine does not have them.
    """
    require_device(config.device, config.amp)
    # accelerate keeps a process's first device and precision and refuses others; trainings are independent.
    # Unless it is told that it is on a CPU, it takes each process for the only one.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    if is_restarted():
        join("gloo" if on_cpu else "nccl", _LONGEST_WAIT)
    return Accelerator(
        cpu=on_cpu,
        mixed_precision="no" if config.amp == "off" else config.amp,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
    )
