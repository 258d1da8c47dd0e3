"""The training loop: epochs of steps, each epoch measured, saved and shown."""

import math
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from xnext._figures import write_figure
from xnext.errors import UserError
from xnext.evaluation.accuracy import Accuracy
from xnext.models import save_checkpoint
from xnext.training.bad_images import BadImages
from xnext.training.config import TrainConfig
from xnext.training.pictures import draw_confusion, draw_curves
from xnext.training.progress import Display
from xnext.training.run import Run, require_free
from xnext.training.setup import Setup, prepare

# Steps between two looks at the loss; a look waits for the device.
_READ_EVERY = 20

_VERSIONS_OF = ("xnext", "torch", "torchvision", "timm", "accelerate")


def train(config: TrainConfig, console: Console | None = None) -> dict[str, Any]:
    """Train a network and leave a run directory.

    Args:
        config: What to train on what, and how.
        console: Where progress is shown; None: standard output.

    Returns:
        The result, as it stands in the run's `summary.json`.

    Raises:
        UserError: Something in the config does not exist or does not fit, too many images cannot be read,
            the disk is full, or the loss is no longer finite. Without a finished epoch no folder is left.
    """
    console = console or Console()
    started = time.perf_counter()
    require_free(config.output)
    setup = prepare(config)
    run = Run.create(config.output, setup.config.to_yaml())
    bad_train = BadImages(run, setup.data.train, config.max_bad_images)
    bad_val = BadImages(run, setup.data.val)
    trainer = Trainer(setup, bad_train)
    _announce(console, setup)
    best: tuple[dict[str, float], Accuracy] | None = None
    try:
        with Display(console, config.epochs, len(setup.train_loader)) as display:
            for epoch in range(1, config.epochs + 1):
                row, accuracy = trainer.run_epoch(epoch, display.advance)
                bad_val.add(accuracy.bad_images)
                is_best = best is None or _quality(row) > _quality(best[0])
                trainer.save(run, row, is_best)
                run.append_metrics(row)
                best = (row, accuracy) if is_best else best
                display.epoch(row, is_best)
    except BaseException:
        if best is None:  # nothing to go on from, which would only be in the way of another try
            run.discard()
        raise
    assert best is not None, "a config has at least one epoch"
    best_row, best_accuracy = best
    title = f"{config.model} on {setup.data.name}"
    write_figure(run.curves, draw_curves(run.read_metrics(), int(best_row["epoch"]), title))
    write_figure(run.confusion, draw_confusion(best_accuracy.confusion, setup.data.classes, title))
    summary = _summarise(setup, best_row, row, {"train": bad_train.names, "val": bad_val.names})
    summary["seconds"] = round(time.perf_counter() - started, 2)
    run.write_summary(summary)
    return summary


class Trainer:
    """The moving parts of a training: one epoch at a time, and what is saved after it."""

    def __init__(self, setup: Setup, bad_images: BadImages) -> None:
        self._setup = setup
        self._bad_images = bad_images
        self._updates = 0

    @property
    def network(self) -> nn.Module:
        """The network that is evaluated and saved: the averaged one if there is one."""
        ema, accelerator = self._setup.ema, self._setup.accelerator
        return accelerator.unwrap_model(self._setup.model) if ema is None else ema.module

    def run_epoch(
        self, epoch: int, advance: Callable[[int, int, float, float], None]
    ) -> tuple[dict, Accuracy]:
        """Train for one epoch and measure.

        Args:
            epoch: Number of the epoch, from 1.
            advance: Is told epoch, steps, loss and images a second now and then.

        Returns:
            The epoch's line of `metrics.jsonl`, and the whole measurement.

        Raises:
            UserError: The loss is not finite, or too many images are unreadable.
        """
        started = time.perf_counter()
        log = self._train_epoch(epoch, advance)
        trained = time.perf_counter()
        accuracy = self._setup.task.evaluate(
            self.network, self._setup.val_loader, self._setup.accelerator.device
        )
        if not math.isfinite(accuracy.loss):
            raise UserError(
                f"held-out loss is {accuracy.loss} after epoch {epoch} (lr {log.lr:.3g}); lower --lr"
            )
        row = {
            "epoch": epoch,
            "train_loss": log.mean,
            "val_loss": accuracy.loss,
            "val_top1": accuracy.top1,
            "val_top5": accuracy.top5,
            "lr": log.lr,
            "images_per_second": round(log.images / (trained - started), 1),
            "seconds": round(time.perf_counter() - started, 3),
        }
        return row, accuracy

    def save(self, run: Run, row: dict[str, float], is_best: bool) -> None:
        """Write the checkpoints of an epoch."""
        config, setup = self._setup.config, self._setup
        for path in (run.best, run.last) if is_best else (run.last,):
            save_checkpoint(
                path,
                self.network,
                model_name=config.model,
                model_args=config.model_args,
                classes=setup.data.classes,
                preprocessing=setup.preprocessing.to_dict(),
                extra={"epoch": row["epoch"], "val_top1": row["val_top1"], "train_config": config.to_dict()},
            )
        run.write_state(self._state(int(row["epoch"])))

    def _train_epoch(self, epoch: int, advance: Callable[[int, int, float, float], None]) -> "_StepLog":
        """Take every training image once."""
        setup, device = self._setup, self._setup.accelerator.device
        log = _StepLog(epoch, advance)
        setup.model.train()
        setup.train_loader.set_epoch(epoch)
        for images, labels, unreadable in setup.train_loader:
            self._bad_images.add(unreadable[unreadable >= 0].tolist())
            lr = max(group["lr"] for group in setup.optimizer.param_groups)
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            loss = self._step(images, labels.to(device, non_blocking=True))
            log.add(loss, len(images), lr)
        log.read()
        return log

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Update the weights by one batch, in parts that fit the device; return its loss, detached."""
        setup = self._setup
        images, targets = setup.task.blend(images, labels)
        whole = torch.zeros((), device=images.device)
        size = setup.config.device_batch_size or len(images)
        for part, part_targets in zip(images.split(size), targets.split(size), strict=True):
            loss = setup.task.loss(setup.model(part), part_targets) * (len(part) / len(images))
            setup.accelerator.backward(loss)
            whole += loss.detach()
        if setup.config.clip_grad is not None:
            setup.accelerator.clip_grad_norm_(setup.model.parameters(), setup.config.clip_grad)
        setup.optimizer.step()
        setup.optimizer.zero_grad()
        self._updates += 1
        setup.scheduler.step_update(self._updates)
        if setup.ema is not None:
            setup.ema.update(setup.accelerator.unwrap_model(setup.model), step=self._updates)
        return whole

    def _state(self, epoch: int) -> dict[str, Any]:
        """Return what continuing needs besides the saved weights, as tensors and plain values."""
        setup = self._setup
        state = {
            "epoch": epoch,
            "updates": self._updates,
            "optimizer": setup.optimizer.state_dict(),
            "scheduler": setup.scheduler.state_dict(),
        }
        if setup.accelerator.scaler is not None:
            state["scaler"] = setup.accelerator.scaler.state_dict()
        if setup.ema is not None:  # the saved weights are the averaged ones, so the trained ones stand here
            state["model"] = setup.accelerator.unwrap_model(setup.model).state_dict()
        return state


class _StepLog:
    """The losses of an epoch, read from the device a few steps at a time."""

    def __init__(self, epoch: int, advance: Callable[[int, int, float, float], None]) -> None:
        self.images = 0
        self.lr = 0.0
        self._epoch = epoch
        self._advance = advance
        self._started = time.perf_counter()
        self._steps = 0
        self._sum = 0.0
        self._unread: list[tuple[Tensor, int, float]] = []

    @property
    def mean(self) -> float:
        """Mean loss of the images so far."""
        return self._sum / self.images

    def add(self, loss: Tensor, images: int, lr: float) -> None:
        """Take note of a step: its loss, images and learning rate."""
        self._unread.append((loss, images, lr))
        if len(self._unread) == _READ_EVERY:
            self.read()

    def read(self) -> None:
        """Read the losses that were not read yet.

        Raises:
            UserError: One is not finite; the line says where.
        """
        if not self._unread:
            return
        losses = torch.stack([loss for loss, _, _ in self._unread]).tolist()
        for loss, (_, images, lr) in zip(losses, self._unread, strict=True):
            self._steps += 1
            if not math.isfinite(loss):
                kept = "; the checkpoints of finished epochs are kept" if self._epoch > 1 else ""
                raise UserError(
                    f"loss is {loss} in epoch {self._epoch}, step {self._steps} (lr {lr:.3g});"
                    f" lower --lr, or set --clip-grad 1{kept}"
                )
            self._sum += loss * images
            self.images += images
            self.lr = lr
        self._unread.clear()
        self._advance(
            self._epoch, len(losses), losses[-1], self.images / (time.perf_counter() - self._started)
        )


def _quality(row: dict[str, float]) -> tuple[float, float]:
    """Order epochs by held-out accuracy, and equal ones by the lower loss."""
    return row["val_top1"], -row["val_loss"]


def _announce(console: Console, setup: Setup) -> None:
    """Print what is trained on what, in a few lines."""
    config, data, size = setup.config, setup.data, setup.preprocessing.image_size
    lines = [
        f"{config.model}: {setup.params / 1e6:.2f} M parameters, {size}x{size} pixels,"
        f" on {_device_name(setup)}",
        f"{data.name}: {len(data.train)} training and {len(data.val)} held-out images,"
        f" {len(data.classes)} classes",
        f"{config.optimizer}, learning rate {config.peak_lr:.2g}, batch size {config.batch_size},"
        f" epochs {config.epochs} -> {config.output}",
    ]
    if setup.report is not None and setup.report.new_classes is None:  # that case was logged as a warning
        lines.insert(1, str(setup.report))
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _device_name(setup: Setup) -> str:
    """Name the device, as a reader of the numbers needs it."""
    device = setup.accelerator.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} with {threads} thread{'s' if threads > 1 else ''}"


def _summarise(
    setup: Setup, best: dict[str, float], last: dict[str, float], bad_images: dict[str, list[str]]
) -> dict[str, Any]:
    """Return the result of a training, all but its duration."""
    config, data = setup.config, setup.data
    return {
        "model": config.model,
        "model_args": config.model_args,
        "data": config.data,
        "best_val_top1": best["val_top1"],
        "best_val_top5": best["val_top5"],
        "best_val_loss": best["val_loss"],
        "best_epoch": best["epoch"],
        "last_val_top1": last["val_top1"],
        "epochs": config.epochs,
        "params": setup.params,
        "macs": setup.macs,
        "classes": len(data.classes),
        "images": {"train": len(data.train), "val": len(data.val)},
        "bad_images": bad_images,
        "device": _device_name(setup),
        "amp": config.amp,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS_OF},
    }
