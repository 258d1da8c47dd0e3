"""The moving parts of a training, and their state: what is saved is all that going on needs."""

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xnext._files import is_temporary
from xnext._random import STEP, derive_seed, seed_all
from xnext.errors import UserError
from xnext.evaluation.accuracy import Accuracy
from xnext.models import save_checkpoint
from xnext.training.bad_images import BadImages
from xnext.training.interrupts import Interrupts, Stopped
from xnext.training.progress import Display
from xnext.training.run import Run
from xnext.training.schedule import count_steps
from xnext.training.setup import Setup
from xnext.training.states import States

# Steps between two looks at the loss; a look waits for the device.
_READ_EVERY = 20


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        epoch: The epoch under way, from 1.
        steps: Its steps so far.
        updates: The steps of all epochs so far.
        images: The images of this epoch so far.
        loss_sum: The sum of their losses.
        lr: The learning rate of the last step.
        seconds: What training this epoch took so far.
        rows: The finished epochs' lines of `metrics.jsonl`.
        best: The line of the best one.
        confusion: Its confusion matrix.
        bad_train: Indices of unreadable training images.
        bad_val: Indices of unreadable held-out images.
    """

    epoch: int = 1
    steps: int = 0
    updates: int = 0
    images: int = 0
    loss_sum: float = 0.0
    lr: float = 0.0
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    confusion: Tensor | None = None
    bad_train: list[int] = field(default_factory=list)
    bad_val: list[int] = field(default_factory=list)

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch += 1
        self.steps, self.images, self.loss_sum, self.seconds = 0, 0, 0.0, 0.0


class Trainer:
    """Trains epoch by epoch, measures, and saves what later commands and a resumed training need.

    All randomness of a step is a function of the seed and the step, and that of an image of its place in the
    epoch, so that no generator's state has to be saved.

    Attributes:
        progress: How far it is.
        saved: Whether there is anything to go on from.
    """

    def __init__(self, setup: Setup, run: Run) -> None:
        self.progress = Progress()
        self.saved = False
        self._setup = setup
        self._run = run
        self._states = States(run.best.parent, keep=setup.config.keep)
        self._bad_train = BadImages(run, setup.data.train, setup.config.max_bad_images)
        self._bad_val = BadImages(run, setup.data.val)
        self._unread: list[tuple[Tensor, int, float]] = []
        self._save_steps = 0
        if setup.config.save_every is not None:
            steps = len(setup.train_loader)
            times = {"steps_per_epoch": steps, "batch_size": setup.config.batch_size}
            self._save_steps = max(1, count_steps(setup.config.save_every, **times))

    @property
    def network(self) -> nn.Module:
        """The network that is evaluated and saved: the averaged one if there is one."""
        return self._trained if self._setup.ema is None else self._setup.ema.module

    @property
    def bad_images(self) -> dict[str, list[str]]:
        """Names of the unreadable images of both parts."""
        return {"train": self._bad_train.names, "val": self._bad_val.names}

    @property
    def _trained(self) -> nn.Module:
        return self._setup.accelerator.unwrap_model(self._setup.model)

    def train(self, display: Display, interrupts: Interrupts) -> None:
        """Train from where ``progress`` is to the last epoch.

        Raises:
            UserError: The loss is not finite, too many images are unreadable, or a file cannot be written.
            Stopped: A signal came; everything is saved.
        """
        progress = self.progress
        self._bad_train.add(self._setup.train_loader.dataset.bad_images)  # a set in memory knows them all
        display.advance(progress.epoch, progress.updates, math.nan, 0)
        while progress.epoch <= self._setup.config.epochs:
            self._train_epoch(display, interrupts)
            row, accuracy = self._measure(interrupts)
            is_best = progress.best is None or _quality(row) > _quality(progress.best)
            progress.rows.append(row)
            if is_best:
                progress.best, progress.confusion = row, torch.from_numpy(accuracy.confusion)
            self._save_weights(row, is_best)
            self._run.write_metrics(progress.rows)
            progress.next_epoch()
            self._save_state()
            display.epoch(row, is_best)

    def _train_epoch(self, display: Display, interrupts: Interrupts) -> None:
        """Take the training images that this epoch has not had yet."""
        setup, progress, device = self._setup, self.progress, self._setup.accelerator.device
        setup.model.train()
        started = time.perf_counter() - progress.seconds
        for images, labels, unreadable in self._batches():
            self._bad_train.add(unreadable[unreadable >= 0].tolist())
            lr = max(group["lr"] for group in setup.optimizer.param_groups)
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            loss = self._step(images, labels.to(device, non_blocking=True))
            progress.steps += 1
            self._unread.append((loss, len(images), lr))
            if len(self._unread) == _READ_EVERY:
                self._read_losses(display)
            if interrupts.signal or (self._save_steps and progress.updates % self._save_steps == 0):
                self._read_losses(display)
                progress.seconds = time.perf_counter() - started
                self._save_state()
                self._stop_if_asked(interrupts)
        self._read_losses(display)
        progress.seconds = time.perf_counter() - started

    def _batches(self) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Return the batches of the epoch that are still to come."""
        setup, progress = self._setup, self.progress
        if progress.steps >= len(setup.train_loader):
            return ()
        setup.sampler.begin_at(
            progress.epoch, progress.steps * (setup.train_loader.batch_sampler.batch_size or 1)
        )
        setup.train_loader.set_epoch(progress.epoch)
        return setup.train_loader

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Update the weights by one batch, in parts that fit the device; return its loss, detached."""
        setup, progress = self._setup, self.progress
        seed_all(derive_seed(setup.config.seed, STEP, progress.updates))
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
        progress.updates += 1
        setup.scheduler.step_update(progress.updates)
        if setup.ema is not None:
            setup.ema.update(self._trained, step=progress.updates)
        return whole

    def _read_losses(self, display: Display) -> None:
        """Read the losses that were not read yet.

        Raises:
            UserError: One is not finite; the line says where.
        """
        if not self._unread:
            return
        progress = self.progress
        losses = torch.stack([loss for loss, _, _ in self._unread]).tolist()
        first = progress.steps - len(losses) + 1
        for step, (loss, (_, images, lr)) in enumerate(zip(losses, self._unread, strict=True), start=first):
            if not math.isfinite(loss):
                kept = "; the checkpoints of finished epochs are kept" if progress.rows else ""
                raise UserError(
                    f"loss is {loss} in epoch {progress.epoch}, step {step} (lr {lr:.3g});"
                    f" lower --lr, or set --clip-grad 1{kept}"
                )
            progress.loss_sum += loss * images
            progress.images += images
            progress.lr = lr
        images = sum(images for _, images, _ in self._unread)
        self._unread.clear()
        display.advance(progress.epoch, len(losses), losses[-1], images)

    def _measure(self, interrupts: Interrupts) -> tuple[dict[str, Any], Accuracy]:
        """Return the epoch's line of `metrics.jsonl`, and the whole measurement."""
        progress, started = self.progress, time.perf_counter()

        def watched() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for batch in self._setup.val_loader:
                if interrupts.signal:
                    self._save_state()
                    self._stop_if_asked(interrupts)
                yield batch

        accuracy = self._setup.task.evaluate(self.network, watched(), self._setup.accelerator.device)
        if not math.isfinite(accuracy.loss):
            raise UserError(
                f"held-out loss is {accuracy.loss} after epoch {progress.epoch} (lr {progress.lr:.3g});"
                " lower --lr"
            )
        self._bad_val.add(accuracy.bad_images)
        row = {
            "epoch": progress.epoch,
            "train_loss": progress.loss_sum / progress.images,
            "val_loss": accuracy.loss,
            "val_top1": accuracy.top1,
            "val_top5": accuracy.top5,
            "lr": progress.lr,
            "images_per_second": round(progress.images / progress.seconds, 1),
            "seconds": round(progress.seconds + time.perf_counter() - started, 3),
        }
        return row, accuracy

    def _stop_if_asked(self, interrupts: Interrupts) -> None:
        if interrupts.signal:
            progress = self.progress
            where = f"in epoch {progress.epoch}, after step {progress.steps}"
            raise Stopped(
                f"stopped {where}; go on with: xnext train --resume {self._run.path}", interrupts.signal
            )

    def _save_weights(self, row: dict[str, Any], is_best: bool) -> None:
        """Write the checkpoints of a finished epoch, which other commands take."""
        config, setup = self._setup.config, self._setup
        for path in (self._run.best, self._run.last) if is_best else (self._run.last,):
            save_checkpoint(
                path,
                self.network,
                model_name=config.model,
                model_args=config.model_args,
                classes=setup.data.classes,
                preprocessing=setup.preprocessing.to_dict(),
                extra={"epoch": row["epoch"], "val_top1": row["val_top1"], "train_config": config.to_dict()},
            )

    def _save_state(self) -> None:
        """Write all that going on needs."""
        setup, progress = self._setup, self.progress
        progress.bad_train, progress.bad_val = self._bad_train.indices, self._bad_val.indices
        state = {
            "progress": {f.name: getattr(progress, f.name) for f in dataclasses.fields(progress)},
            "model": self._trained.state_dict(),
            "optimizer": setup.optimizer.state_dict(),
            "scheduler": setup.scheduler.state_dict(),
        }
        if setup.accelerator.scaler is not None:
            state["scaler"] = setup.accelerator.scaler.state_dict()
        if setup.ema is not None:
            state["ema"] = setup.ema.module.state_dict()
        self._states.save(progress.updates, state)
        self.saved = True

    def restore(self) -> list[str]:
        """Go back to the newest state that is whole, and make the run's lists agree with it.

        Without one the training begins anew, as it began.

        Returns:
            A line for each damaged state.
        """
        for left in filter(is_temporary, self._run.path.rglob("*.tmp")):
            left.unlink(missing_ok=True)
        state, damaged = self._states.load()
        if state is None:
            return damaged
        setup = self._setup
        self._trained.load_state_dict(state["model"])
        setup.optimizer.load_state_dict(state["optimizer"])
        setup.scheduler.load_state_dict(state["scheduler"])
        if "scaler" in state and setup.accelerator.scaler is not None:
            setup.accelerator.scaler.load_state_dict(state["scaler"])
        if "ema" in state and setup.ema is not None:
            setup.ema.module.load_state_dict(state["ema"])
        self.progress = Progress(**state["progress"])
        self._run.write_metrics(self.progress.rows)
        self._run.bad_images.unlink(missing_ok=True)
        self._bad_train.add(self.progress.bad_train)
        self._bad_val.add(self.progress.bad_val)
        self.saved = True
        return damaged


def _quality(row: dict[str, Any]) -> tuple[float, float]:
    """Order epochs by held-out accuracy, and equal ones by the lower loss."""
    return row["val_top1"], -row["val_loss"]
