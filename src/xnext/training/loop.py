"""Training from a config to a run directory, and going on with one that was stopped."""

import platform
import time
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console

from xnext._figures import write_figure
from xnext._interrupts import Interrupts
from xnext._processes import is_first
from xnext.errors import UserError
from xnext.kernels import use_backend
from xnext.training.config import TrainConfig
from xnext.training.distributed import lost_processes
from xnext.training.pictures import draw_curves
from xnext.training.progress import Display, Screen
from xnext.training.run import Run, require_free
from xnext.training.setup import Setup, prepare
from xnext.training.trainer import Trainer

_FIXED = ("model", "model_args", "decoder", "optimizer", "layer_decay")
"""What a saved state holds only one kind of."""

_VERSIONS_OF = ("xnext", "torch", "torchvision", "timm", "accelerate")


def train(
    config: TrainConfig,
    console: Console | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    until: int | None = None,
    setup: Setup | None = None,
) -> dict[str, Any]:
    """Train a network and leave a run directory.

    Args:
        config: What to train on what, and how.
        console: Where progress is shown; None: standard output.
        resume: Go on with the run in the config's output folder.
        force: Go on even if the run was told something else.
        until: Epoch after which to leave the rest to another call with ``resume``, without pictures and
            `summary.json`; None: the last one.
        setup: What is prepared of the config already; None: it is prepared here.

    Returns:
        The result, as it stands in the run's `summary.json`.

    Raises:
        UserError: Something in the config does not exist or does not fit, too many images cannot be read,
            the disk is full, or the loss is no longer finite. A new run of which nothing was saved is
            removed.
        Stopped: SIGINT or SIGTERM came; all is saved.
    """
    console = (console or Screen()) if is_first() else Screen(quiet=True)
    started = time.perf_counter()
    run = Run.open(config.output) if resume else Run(config.output)
    if is_first() and not resume:
        require_free(config.output)
    setup = prepare(config) if setup is None else setup
    if resume:
        check_unchanged(run.read_config(), setup.config, force)
    elif is_first():
        run = Run.create(config.output, setup.config.to_yaml())
    setup.accelerator.wait_for_everyone()
    trainer = Trainer(setup, run, started, until)
    if resume:
        for line in trainer.restore(force):
            _print(console, line)
        if is_first():
            run.write_config(setup.config.to_yaml())
    try:
        _announce(console, setup)
        display = Display(
            console, config.epochs, len(setup.batches.train), setup.task.metrics, setup.accelerator.device
        )
        with use_backend(config.kernels), Interrupts() as interrupts, display, lost_processes():
            for row in trainer.progress.rows:
                display.epoch(row, row == trainer.progress.best)
            trainer.train(display, interrupts)
    except BaseException:
        # Nothing is lost by it, and it would be in the way of another try.
        if trainer.is_new and not resume and is_first():
            run.discard()
        raise
    summary = _summarise(setup, trainer)
    summary["seconds"] = round(trainer.elapsed, 2)
    if is_first() and until is None:
        _draw(setup, trainer, run)
        run.write_summary(summary)
    return summary


def _draw(setup: Setup, trainer: Trainer, run: Run) -> None:
    """Write the pictures of a finished training."""
    progress, task = trainer.progress, setup.task
    assert progress.best is not None and progress.detail is not None, "a config has at least one epoch"
    title = f"{setup.config.model} on {setup.data.name}"
    write_figure(run.curves, draw_curves(progress.rows, int(progress.best["epoch"]), title))
    write_figure(run.path / task.picture, task.draw(progress.detail.numpy(), title))


def check_unchanged(before: TrainConfig, now: TrainConfig, force: bool) -> None:
    """Refuse to go on with a run that was told something else, unless forced.

    Raises:
        UserError: With each value that differs, or that not even force changes.
    """
    old, new = before.to_dict(), now.to_dict()
    differing = [key for key in new if key != "output" and old.get(key) != new[key]]
    changed = [f"{key} was {old.get(key)!r}, now {new[key]!r}" for key in differing]
    if fixed := [line for key, line in zip(differing, changed, strict=True) if key in _FIXED]:
        raise UserError(
            f"{now.output} cannot go on so: {'; '.join(fixed)}; start a new run from its weights, with"
            f" --checkpoint {now.output}"
        )
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
        *setup.notes,
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
    """Name the devices, as a reader of the numbers needs it."""
    device, processes = setup.accelerator.device, setup.accelerator.num_processes
    threads = torch.get_num_threads()
    name = f"{device.type} with {threads} thread{'s' if threads > 1 else ''}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return name if processes == 1 else f"{processes} x {name}"


def _summarise(setup: Setup, trainer: Trainer) -> dict[str, Any]:
    """Return the result of a training, all but its duration."""
    config, data, rows, best = setup.config, setup.data, trainer.progress.rows, trainer.progress.best
    assert best is not None, "a config has at least one epoch"
    main, *others = (f"val_{name}" for name in setup.task.metrics)
    return {
        "model": config.model,
        "model_args": config.model_args,
        "data": config.data,
        **{f"best_{name}": best[name] for name in (main, *others, "val_loss")},
        "best_epoch": best["epoch"],
        f"last_{main}": rows[-1][main],
        "epochs": len(rows),
        "params": setup.params,
        "macs": setup.macs,
        "classes": len(data.classes),
        "images": {"train": len(data.train), "val": len(data.val)},
        "bad_images": trainer.bad_images,
        "device": _device_name(setup),
        "processes": setup.accelerator.num_processes,
        "amp": config.amp,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS_OF},
    }
