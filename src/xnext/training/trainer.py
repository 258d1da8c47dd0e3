"""The loop: epochs of steps, measures, and what is saved of them."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xnext._files import is_temporary
from xnext._interrupts import Interrupts, Stopped
from xnext._processes import add_up, agree, gather
from xnext._random import STEP, derive_seed, seed_all
from xnext.data import check_same_classes
from xnext.errors import UserError
from xnext.evaluation.accuracy import Measurement
from xnext.models import save_checkpoint
from xnext.training.bad_images import BadImages
from xnext.training.distributed import average_optimizer, make_alike
from xnext.training.events import Events
from xnext.training.progress import Display, peak_memory
from xnext.training.run import Run
from xnext.training.setup import Setup
from xnext.training.states import States

# Steps between two looks at the loss; a look waits for the device and for the other processes.
_READ_EVERY = 20
_MOST_ROLLBACKS = 3


class NonFiniteError(UserError):
    """A loss or a gradient that is infinite or no number."""


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
        detail: Its confusion matrix, or what else its task draws.
        rollbacks: Times that it went back to a state after a loss that was not finite.
        elapsed: Seconds that all of it took so far.
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
    detail: Tensor | None = None
    rollbacks: int = 0
    elapsed: float = 0.0
    bad_train: list[int] = field(default_factory=list)
    bad_val: list[int] = field(default_factory=list)

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch += 1
        self.steps, self.images, self.loss_sum, self.seconds = 0, 0, 0.0, 0.0


@dataclass(frozen=True)
class _Step:
    """What a step leaves to be read later: loss, norm of the gradient, images of all processes, rate."""

    loss: Tensor
    norm: Tensor
    images: int
    lr: float


class Trainer:
    """Trains epoch by epoch, measures, and saves what later commands and a resumed training need.

    All randomness of a step is a function of the seed, the step and the process, and that of an image of its
    place in the epoch, so that no generator's state has to be saved.

    Attributes:
        progress: How far it is.
        saved: The step of the newest state to go on from, or None.
    """

    def __init__(
        self, setup: Setup, run: Run, started: float | None = None, until: int | None = None
    ) -> None:
        self.progress = Progress()
        self.saved: int | None = None
        self._started = time.perf_counter() if started is None else started
        self._earlier = 0.0  # seconds in processes before this one
        self._setup = setup
        self._last_epoch = setup.config.epochs if until is None else min(until, setup.config.epochs)
        self._run = run
        self._first = setup.accelerator.is_main_process  # the one that writes
        self._alone = setup.accelerator.num_processes == 1
        self._states = States(run.best.parent, keep=setup.config.keep)
        list_in = run if self._first else None
        self._bad_train = BadImages(list_in, setup.data.train, setup.config.max_bad_images)
        self._bad_val = BadImages(list_in, setup.data.val)
        self._events = Events(run.path if setup.config.tensorboard and self._first else None)
        self._unread: list[_Step] = []
        self._unlisted: list[int] = []
        self._frozen_steps = setup.steps(setup.config.freeze)
        every = setup.config.save_every
        self._save_steps = 0 if every is None else max(1, setup.steps(every))

    @property
    def network(self) -> nn.Module:
        """The network that is evaluated and saved: the averaged one if there is one."""
        return self._setup.network if self._setup.ema is None else self._setup.ema.module

    @property
    def elapsed(self) -> float:
        """Seconds of this training, in this process and in those before."""
        return self._earlier + time.perf_counter() - self._started

    @property
    def is_new(self) -> bool:
        """Whether nothing of it is kept yet: no state, and the weights of no epoch."""
        return self.saved is None and not self._run.metrics.exists()

    @property
    def bad_images(self) -> dict[str, list[str]]:
        """Names of the unreadable images of both parts."""
        return {"train": self._bad_train.names, "val": self._bad_val.names}

    @property
    def finished(self) -> bool:
        """Whether all epochs that are wanted are done, or none was better for as long as the patience."""
        progress, config = self.progress, self._setup.config
        since = progress.epoch - 1 - (progress.best["epoch"] if progress.best else 0)
        return progress.epoch > self._last_epoch or (config.patience is not None and since >= config.patience)

    def train(self, display: Display, interrupts: Interrupts) -> None:
        """Train from where ``progress`` is to the last epoch.

        Raises:
            UserError: A loss is not finite, too many images are unreadable, or a file cannot be written.
            Stopped: A signal came; everything is saved.
        """
        self._bad_train.add(self._setup.batches.bad_images)
        display.advance(self.progress.epoch, self.progress.updates, math.nan, 0)
        if self._setup.config.on_nonfinite == "rollback" and self.saved is None:
            self._save_state()  # there must be something to go back to
        while not self.finished:
            try:
                self._train_epoch(display, interrupts)
                row, measurement = self._measure(interrupts)
            except NonFiniteError as error:
                done = self._roll_back(error)
                display.note(f"{error}; {done}")
                continue
            self._finish_epoch(row, measurement, display)
        self._events.close()
        if self.progress.epoch <= self._last_epoch:
            display.note(f"no better for {self._setup.config.patience} epochs: the training ends")

    def _train_epoch(self, display: Display, interrupts: Interrupts) -> None:
        """Take the training images that this epoch has not had yet."""
        setup, progress = self._setup, self.progress
        setup.train_mode()
        started = time.perf_counter() - progress.seconds
        for images, labels, unreadable in self._batches():
            setup.freeze(progress.updates < self._frozen_steps, progress.updates)
            self._unlisted += unreadable[unreadable >= 0].tolist()
            self._unread.append(self._step(images, labels))
            due = bool(self._save_steps) and progress.updates % self._save_steps == 0
            if due or len(self._unread) == _READ_EVERY or (self._alone and interrupts.signal):
                self._read_steps(display)
                progress.seconds = time.perf_counter() - started
                if self._is_asked_to_stop(interrupts):
                    self._stop(interrupts)
                if due:
                    self._save_state()
        self._read_steps(display)
        progress.seconds = time.perf_counter() - started
        if not self._alone and self._is_asked_to_stop(interrupts):  # an epoch may be short of a look
            self._stop(interrupts)

    def _batches(self) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Return the batches of the epoch that are still to come."""
        batches, progress = self._setup.batches, self.progress
        if progress.steps >= len(batches.train):
            return ()
        batches.order.set_epoch(progress.epoch)
        batches.order.begin_at(progress.epoch, progress.steps * batches.size)
        return batches.train

    def _step(self, images: Tensor, labels: Tensor) -> _Step:
        """Update the weights by one batch, in parts that fit the device."""
        setup, progress, accelerator = self._setup, self.progress, self._setup.accelerator
        processes = accelerator.num_processes
        number = progress.updates * processes + accelerator.process_index
        seed_all(derive_seed(setup.config.seed, STEP, number))
        images = images.to(accelerator.device, non_blocking=True)
        if setup.batches.transform is not None:
            images = setup.batches.transform(images)
        if setup.config.channels_last:
            images = images.to(memory_format=torch.channels_last)
        images, targets = setup.task.blend(images, labels.to(accelerator.device, non_blocking=True))
        all_images = min(setup.batches.size, len(setup.batches.order) - progress.steps * setup.batches.size)
        loss = torch.zeros((), device=images.device)
        parts = math.ceil(len(images) / (setup.config.device_batch_size or len(images)))
        size = math.ceil(len(images) / parts)
        for part, (x, y) in enumerate(zip(images.split(size), targets.split(size), strict=True), start=1):
            last = contextlib.nullcontext() if part == parts else accelerator.no_sync(setup.model)
            with last:  # gradients are exchanged once
                share = setup.task.loss(setup.model(x), y) * (len(x) / all_images)
                accelerator.backward(share * processes)  # DDP divides by their number
            loss += share.detach()
        norm = self._clip_gradient(loss)
        lr = max(group["lr"] for group in setup.optimizer.param_groups)
        setup.optimizer.step()
        setup.optimizer.zero_grad()
        progress.steps += 1
        progress.updates += 1
        setup.scheduler.step_update(progress.updates)
        if setup.local_sgd is not None:
            setup.local_sgd.step(progress.updates)
        if setup.ema is not None:
            setup.ema.update(setup.network, step=progress.updates)
        return _Step(loss, norm, all_images, lr)

    def _clip_gradient(self, loss: Tensor) -> Tensor:
        """Limit the gradient as configured; return its norm, or 0 where fp16's scaling copes with any."""
        setup = self._setup
        if setup.config.clip_grad is not None:
            norm = setup.accelerator.clip_grad_norm_(setup.model.parameters(), setup.config.clip_grad)
        elif setup.accelerator.scaler is None:
            gradients = [p.grad for p in setup.model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        return torch.zeros_like(loss) if setup.accelerator.scaler is not None else norm.to(loss)

    def _read_steps(self, display: Display) -> None:
        """Read what the last steps left, of all processes.

        Raises:
            NonFiniteError: A loss or a gradient is not finite; the line says where.
            UserError: Too many images are unreadable.
        """
        self._bad_train.add(gather(self._unlisted))
        self._unlisted = []
        if not self._unread:
            return
        progress = self.progress
        steps, self._unread = self._unread, []
        losses = add_up(torch.stack([step.loss for step in steps])).tolist()
        norms = add_up(torch.stack([step.norm for step in steps])).tolist()
        for place, (loss, norm, step) in enumerate(zip(losses, norms, steps, strict=True)):
            for what, value in (("loss", loss), ("gradient norm", norm)):
                if not math.isfinite(value):
                    number = progress.steps - len(steps) + 1 + place
                    raise NonFiniteError(
                        f"{what} is {value} in epoch {progress.epoch}, step {number} (lr {step.lr:.3g})"
                    )
            progress.loss_sum += loss * step.images
            progress.images += step.images
            progress.lr = step.lr
        display.advance(progress.epoch, len(steps), losses[-1], sum(step.images for step in steps))

    def _measure(self, interrupts: Interrupts) -> tuple[dict[str, Any], Measurement]:
        """Return the epoch's line of `metrics.jsonl`, and the measurement of the network that is saved."""
        setup, progress, started = self._setup, self.progress, time.perf_counter()
        self._make_alike()
        measured = setup.task.evaluate(self.network, self._held_out(interrupts), setup.accelerator.device)
        if not math.isfinite(measured.metrics["loss"]):
            raise NonFiniteError(
                f"held-out loss is {measured.metrics['loss']} after epoch {progress.epoch}"
                f" (lr {progress.lr:.3g})"
            )
        self._bad_val.add(measured.bad_images)
        row = {"epoch": progress.epoch, "train_loss": progress.loss_sum / progress.images}
        row |= {f"val_{name}": value for name, value in measured.metrics.items()}
        if setup.ema is not None:
            raw = setup.task.evaluate(setup.network, self._held_out(interrupts), setup.accelerator.device)
            row |= {f"raw_val_{name}": value for name, value in raw.metrics.items()}
        row |= {
            "lr": progress.lr,
            "images_per_second": round(progress.images / progress.seconds, 1),
            "memory_mib": peak_memory(setup.accelerator.device),
            "seconds": round(progress.seconds + time.perf_counter() - started, 3),
        }
        return row, measured

    def _held_out(self, interrupts: Interrupts) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the held-out batches as long as nobody asks to stop."""
        for batch in self._setup.batches.val:
            # Processes may have one batch more or less, and could not agree: their launcher waits for them.
            if self._alone and interrupts.signal:
                self._stop(interrupts)
            yield batch

    def _finish_epoch(self, row: dict[str, Any], measured: Measurement, display: Display) -> None:
        """Keep what an epoch brought."""
        progress = self.progress
        is_best = progress.best is None or self._quality(row) > self._quality(progress.best)
        progress.rows.append(row)
        if is_best:
            progress.best, progress.detail = row, torch.from_numpy(measured.detail)
        if self._first:
            self._save_weights(row, is_best)
            self._run.write_metrics(progress.rows)
            self._events.write(row)
        progress.next_epoch()
        self._save_state()
        display.epoch(row, is_best)

    def _quality(self, row: dict[str, Any]) -> tuple[float, float]:
        """Order epochs by the held-out metric, and equal ones by the lower loss."""
        return row[f"val_{self._setup.task.metrics[0]}"], -row["val_loss"]

    def _is_asked_to_stop(self, interrupts: Interrupts) -> bool:
        """Return whether a signal came to any process, of which all then learn."""
        if not self._alone:
            interrupts.signal = agree(interrupts.signal or 0, self._setup.accelerator.device) or None
        return interrupts.signal is not None

    def _stop(self, interrupts: Interrupts) -> None:
        """Save and end the training."""
        self._save_state()
        progress = self.progress
        where = f"in epoch {progress.epoch}, after step {progress.steps}"
        resume = f"go on with: {self._setup.config.command} --resume {self._run.path}"
        raise Stopped(f"stopped {where}; {resume}", interrupts.signal or 0)

    def _roll_back(self, error: NonFiniteError) -> str:
        """Go back to the newest state with half the learning rate; return what was done.

        Raises:
            NonFiniteError: That is not wanted, or was done too often; the line says what to do.
        """
        config, rollbacks = self._setup.config, self.progress.rollbacks + 1
        if config.on_nonfinite == "stop" or rollbacks > _MOST_ROLLBACKS:
            advice = "lower --lr, or set --clip-grad 1"
            if rollbacks > _MOST_ROLLBACKS:
                advice = f"went back {_MOST_ROLLBACKS} times already; {advice}"
            if self.saved is not None:
                resume = f"{config.command} --resume {self._run.path} --force --lr LOWER"
                advice += (
                    f"; the last good state is that after {self.saved} steps, from which to go on: {resume}"
                )
            raise NonFiniteError(f"{error}; {advice}") from error
        self._unread.clear()
        self.restore()
        self.progress.rollbacks = rollbacks
        self._set_rate()
        self._save_state()
        return (
            f"back to the state after {self.progress.updates} steps, with {0.5**rollbacks:g} times the rate"
        )

    def _make_alike(self) -> None:
        """Give the networks of all processes the same weights."""
        setup = self._setup
        averaged = [] if setup.ema is None else [setup.ema.module]
        make_alike(setup.network, *averaged, average=setup.local_sgd is not None)

    def _save_weights(self, row: dict[str, Any], is_best: bool) -> None:
        """Write the checkpoints of a finished epoch, which other commands take."""
        config, setup = self._setup.config, self._setup
        metric = f"val_{setup.task.metrics[0]}"
        extra = {"epoch": row["epoch"], metric: row[metric], "train_config": config.to_dict()}
        for path in (self._run.best, self._run.last) if is_best else (self._run.last,):
            save_checkpoint(
                path,
                self.network,
                model_name=config.model,
                model_args=config.model_args,
                classes=setup.data.classes,
                preprocessing=setup.preprocessing.to_dict(),
                extra=extra | {"multilabel": setup.data.multilabel},
            )

    def _save_state(self) -> None:
        """Write all that going on needs."""
        progress = self.progress
        self._make_alike()
        if self._setup.local_sgd is not None:
            average_optimizer(self._setup.optimizer)  # the file has room for one, and all go on from it
        if self._first:
            progress.bad_train, progress.bad_val = self._bad_train.indices, self._bad_val.indices
            values = {f.name: getattr(progress, f.name) for f in dataclasses.fields(progress)}
            values["elapsed"] = self.elapsed
            state = {"progress": values, "data": self._data, **self._setup.state_dict()}
            self._states.save(progress.updates, state)
        self.saved = progress.updates

    @cached_property
    def _data(self) -> dict[str, Any]:
        """What tells these images from others, as far as a state knows them by their places."""
        data = self._setup.data
        labels = b"".join(np.ascontiguousarray(part.labels).tobytes() for part in (data.train, data.val))
        return {"classes": list(data.classes), "labels": blake2b(labels, digest_size=16).hexdigest()}

    def _check_data(self, before: dict[str, Any], force: bool) -> None:
        """Refuse to go on with other images than those of a state.

        Raises:
            UserError: The classes are others; or the images are, and it is not forced.
        """
        name, now = self._setup.data.name, self._data
        if before["classes"] != now["classes"]:
            check_same_classes(name, before["classes"], now["classes"], ("the run", "the data"))
        if before != now and not force:
            raise UserError(
                f"{name} has other images or labels than when the run was stopped; put them back, or add"
                " --force"
            )

    def restore(self, force: bool = False) -> list[str]:
        """Go back to the newest state that is whole, and make the run's lists agree with it.

        Without one the training begins anew, as it began.

        Args:
            force: Go on although the images are others, with the same classes.

        Returns:
            A line for each damaged state, and what is done instead.

        Raises:
            UserError: The state is that of other images or another network.
        """
        state, damaged = self._states.load()
        if damaged:
            damaged.append("going back to the state before" if state else "no state is left: beginning anew")
        if state is not None:
            before = state.pop("data")
            self._check_data(before, force)
            self._setup.load_state_dict(state)
        if self._first:
            for left in filter(is_temporary, self._run.path.rglob("*.tmp")):
                left.unlink(missing_ok=True)
            self._run.bad_images.unlink(missing_ok=True)
        if state is None:
            return damaged
        self.progress = Progress(**state.pop("progress"))
        if before != self._data:  # what is known of the images is known by their places
            self.progress.bad_train, self.progress.bad_val = [], []
        if self.saved is None:
            self._earlier = self.progress.elapsed
        self._set_rate()
        if self._first:
            self._run.write_metrics(self.progress.rows)
        self._bad_train.clear()
        self._bad_val.clear()
        self._bad_train.add(self.progress.bad_train)
        self._bad_val.add(self.progress.bad_val)
        self._events.begin_after(self.progress.epoch - 1)
        self.saved = self.progress.updates
        return damaged

    def _set_rate(self) -> None:
        """Set the learning rate to what progress asks for."""
        self._setup.set_rate(self.progress.updates, factor=0.5**self.progress.rollbacks)
