"""Training from a config to a run directory, and going on with one that was stopped."""

import platform
import time
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console

from xnext._figures import write_figure
from xnext.errors import UserError
from xnext.training.config import TrainConfig
from xnext.training.interrupts import Interrupts
from xnext.training.pictures import draw_confusion, draw_curves
from xnext.training.progress import Display, Screen
from xnext.training.run import Run, require_free
from xnext.training.setup import Setup, prepare
from xnext.training.trainer import Trainer

_VERSIONS_OF = ("xnext", "torch", "torchvision", "timm", "accelerate")


def train(
    config: TrainConfig, console: Console | None = None, *, resume: bool = False, force: bool = False
) -> dict[str, Any]:
    """Train a network and leave a run directory.

    Args:
        config: What to train on what, and how.
        console: Where progress is shown; None: standard output.
        resume: Go on with the run in the config's output folder.
        force: Go on even if the run was told something else.

    Returns:
        The result, as it stands in the run's `summary.json`.

    Raises:
        UserError: Something in the config does not exist or does not fit, too many images cannot be read,
            the disk is full, or the loss is no longer finite. A new run of which nothing was saved is
            removed.
        Stopped: SIGINT or SIGTERM came; all is saved.
    """
    console = console or Screen()
    started = time.perf_counter()
    if resume:
        run = Run.open(config.output)
    else:
        require_free(config.output)
    setup = prepare(config)
    if resume:
        check_unchanged(run.read_config(), setup.config, force)
    else:
        run = Run.create(config.output, setup.config.to_yaml())
    trainer = Trainer(setup, run)
    for line in trainer.restore() if resume else ():
        _print(console, f"{line}: going back to the state before it")
    _announce(console, setup)
    try:
        with Interrupts() as interrupts, Display(console, config.epochs, len(setup.train_loader)) as display:
            for row in trainer.progress.rows:
                display.epoch(row, row == trainer.progress.best)
            trainer.train(display, interrupts)
    except BaseException:
        if not trainer.saved:  # nothing to go on from, which would only be in the way of another try
            run.discard()
        raise
    progress = trainer.progress
    assert progress.best is not None and progress.confusion is not None, "a config has at least one epoch"
    title = f"{config.model} on {setup.data.name}"
    write_figure(run.curves, draw_curves(progress.rows, int(progress.best["epoch"]), title))
    write_figure(run.confusion, draw_confusion(progress.confusion.numpy(), setup.data.classes, title))
    summary = _summarise(setup, progress.best, progress.rows[-1], trainer.bad_images)
    summary["seconds"] = round(time.perf_counter() - started, 2)
    run.write_summary(summary)
    return summary


def check_unchanged(before: TrainConfig, now: TrainConfig, force: bool) -> None:
    """Refuse to go on with a run that was told something else, unless forced.

    Raises:
        UserError: With each value that differs.
    """
    old, new = before.to_dict(), now.to_dict()
    changed = [
        f"{key} was {old[key]!r}, now {new[key]!r}" for key in new if key != "output" and old[key] != new[key]
    ]
    if changed and not force:
        raise UserError(f"{now.output} was told otherwise: {'; '.join(changed)}; add --force to go on so")


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
        _print(console, line)


def _print(console: Console, line: str) -> None:
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
