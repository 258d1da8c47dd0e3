"""Trials an hour of `xnext search` and of the same trials as one would write them with timm, on a CPU.

    python -m benchmarks.trials --data FOLDER [--trials 24] [--epochs 1] [--width 0.0625] [--output FOLDER]

FOLDER holds ``train`` and ``val``, with a folder of pictures a class. The other way is a script that is
started once a trial: timm's ``create_loader`` (the best of 0 to 2 workers, found before), AdamW, cosine,
validation after each epoch, all cores on one trial. How long the script takes to start is measured apart.
Both train the same networks on the same pictures as often, with mirrored and shifted or cropped pictures.
"""

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timm.data import create_dataset, create_loader
from timm.scheduler import create_scheduler_v2
from torch import nn

import xnext
from xnext._files import make_folder, write_atomic
from xnext.search import Search, SearchConfig, Space

BATCH_SIZE = 64
SIZE = 32


def plain_trial(arguments: argparse.Namespace) -> None:
    """Train one network as a script does; print its accuracy."""
    task = json.loads(arguments.plain)
    torch.manual_seed(0)
    sets = [create_dataset("", str(arguments.data), split=split) for split in ("train", "val")]
    train, val = (
        create_loader(
            one, input_size=(3, SIZE, SIZE), batch_size=BATCH_SIZE, is_training=training,
            scale=(0.7, 1.0), num_workers=task["workers"], use_prefetcher=False, crop_pct=1.0,
        )
        for one, training in zip(sets, (True, False), strict=True)
    )  # fmt: skip
    classes = len(sets[0].reader.class_to_idx)
    model = xnext.create_model(task["model"], num_classes=classes, **task["model_args"])
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=max(1, arguments.epochs), warmup_epochs=0
    )
    for epoch in range(arguments.epochs):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in val)
        schedule.step(epoch + 1)
        print(100 * right / len(sets[1]))


def time_plain(
    arguments: argparse.Namespace, points: list[dict[str, str]], workers: int, epochs: int | None = None
) -> float:
    """Return seconds of a script a network."""
    epochs = arguments.epochs if epochs is None else epochs
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    started = time.perf_counter()
    for point in points:
        architecture = Space.load("nexception").architecture(point, arguments.width)
        task = {"model": architecture.model, "model_args": dict(architecture.model_args), "workers": workers}
        options = ["--data", str(arguments.data), "--epochs", str(epochs)]
        command = [sys.executable, "-m", "benchmarks.trials", *options, "--plain", json.dumps(task)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return (time.perf_counter() - started) / len(points)


def time_search(arguments: argparse.Namespace) -> tuple[float, float, list[dict[str, str]]]:
    """Return seconds a trial of a search and before its first one, and the networks that it tried."""
    with tempfile.TemporaryDirectory() as scratch:
        config = SearchConfig(
            data=str(arguments.data), trials=arguments.trials, min_epochs=arguments.epochs,
            max_epochs=arguments.epochs, optimizer="random", workers=os.cpu_count() or 1,
            width=arguments.width, image_size=SIZE, batch_size=BATCH_SIZE, device="cpu",
        )  # fmt: skip
        started = time.perf_counter()
        search = Search.create(Path(scratch) / "search", config)
        before = time.perf_counter() - started
        search.run()
        seconds = time.perf_counter() - started
        assert all(record.status == "success" for record in search.history.records)
        return (
            seconds / arguments.trials,
            before,
            [dict(record.query.point) for record in search.history.records],
        )


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--width", type=float, default=0.0625)
    parser.add_argument("--output", type=Path, help="folder for the result")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        plain_trial(arguments)
        return
    ours, before, points = time_search(arguments)
    few = random.Random(0).sample(points, 1)
    workers = min((0, 1, 2), key=lambda workers: time_plain(arguments, few, workers))
    theirs = time_plain(arguments, points, workers)
    start = time_plain(arguments, few, workers, epochs=0)
    pictures = {split: sum(1 for _ in (arguments.data / split).rglob("*.png")) for split in ("train", "val")}
    result: dict[str, Any] = {
        "trials": arguments.trials, "epochs": arguments.epochs, "width": arguments.width,
        "pictures": pictures,
        "seconds_a_trial": {"xnext search": ours, "timm and a loop": theirs}, "seconds_to_decode": before,
        "seconds_of_which_the_script_starts": start,
        "timm_workers": workers, "ratio": theirs / ours, "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("xnext", "torch", "timm")},
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    table = Table(
        title=f"{arguments.trials} networks, {arguments.epochs} epochs of {pictures['train']} pictures"
    )
    for column in ("way", "seconds a trial", "trials an hour"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, seconds in result["seconds_a_trial"].items():
        table.add_row(way, f"{seconds:.2f}", f"{3600 / seconds:.0f}")
    Console().print(table, f"{result['ratio']:.1f} times as many; the script starts for {start:.1f} s")
    if arguments.output:
        make_folder(arguments.output)
        write_atomic(
            arguments.output / f"trials_{pictures['train']}.json",
            (json.dumps(result, indent=2) + "\n").encode(),
        )


if __name__ == "__main__":
    main()
