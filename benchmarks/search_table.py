"""Train every network of a part of the space ``nexception``: the table on which optimisers are compared.

    python -m benchmarks.search_table --work FOLDER [--workers 2] [--output benchmarks/results]

The task is scikit-learn's digits from 24 pictures a class, so that networks differ by far more than a seed
does. Each is trained as `xnext search` trains it, for 1, 3 and 9 epochs, each going on from the one before;
with two seeds, of which the mean counts. Seconds are those of the process on one core. FOLDER holds a line
a training, and a run that was stopped goes on. With all there, the table is written to
``search_table.csv.xz``, and the best, the median and the worst network, trained with further seeds, to
``search_table.json``.
"""

import argparse
import csv
import datetime
import io
import json
import lzma
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from xnext._files import make_folder, write_atomic
from xnext.data import Preprocessing, load_data, write_packed
from xnext.data._sources import SubsetSource
from xnext.models._registry import create_variant
from xnext.search.space import Point, Space
from xnext.search.trial import TRAINING
from xnext.training import Run, TrainConfig, train

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "benchmarks" / "search_table.yaml"
TABLE = ROOT / "benchmarks" / "results" / "search_table.csv.xz"
BUDGETS = (1, 3, 9)
PICTURES = 24  # a class
SIZE = 16
WIDTH = 1 / 16
SEEDS = 2
"""Trainings of a network, whose mean stands in the table."""

MORE_SEEDS = 10
"""Further trainings of the best, the median and the worst, which tell how much a seed does."""


def write_digits(folder: Path) -> None:
    """Pack the pictures of the task."""
    data = load_data("digits", seed=0)
    labels = np.asarray(data.train.labels)
    generator = np.random.default_rng(0)
    chosen = [generator.permutation(np.flatnonzero(labels == c))[:PICTURES] for c in range(len(data.classes))]
    few = replace(data, train=SubsetSource(data.train, np.concatenate(chosen)))
    architecture = Space.load(str(SPACE)).architecture(next(Space.load(str(SPACE)).points()), WIDTH)
    network = create_variant(architecture.model, architecture.model_args, num_classes=len(data.classes))
    write_packed(few, Preprocessing.for_model(network, SIZE, crop_pct=1.0), folder)


def measure(point: Point, seed: int, data: Path) -> dict[str, Any]:
    """Return accuracy and seconds of a network at each budget."""
    torch.set_num_threads(1)
    architecture = Space.load(str(SPACE)).architecture(point, WIDTH)
    row: dict[str, Any] = dict(point)
    seconds = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig(
            model=architecture.model, model_args=dict(architecture.model_args), data=f"packed:{data}",
            output=Path(scratch) / "run", epochs=BUDGETS[-1], batch_size=16, image_size=SIZE, seed=seed,
            device="cpu", **dict(TRAINING),
        )  # fmt: skip
        for budget in BUDGETS:
            started = time.process_time()
            train(config, Console(file=io.StringIO()), resume=budget > BUDGETS[0], until=budget)
            seconds += time.process_time() - started
            row[f"top1_{budget}"] = round(Run(config.output).read_metrics()[-1]["val_top1"], 4)
            row[f"seconds_{budget}"] = round(seconds, 3)
    return row


def measure_all(
    tasks: Iterable[tuple[Point, int]], path: Path, data: Path, workers: int
) -> list[dict[str, Any]]:
    """Return the rows of all tasks; those that the file holds already are not measured again."""
    known = {}
    if path.exists():
        *lines, _ = path.read_text().split("\n")  # of which a kill may have cut the last
        write_atomic(path, "".join(f"{line}\n" for line in lines).encode())
        known = {(_key(row["point"]), row["seed"]): row["row"] for row in map(json.loads, lines)}
    wanted = [(point, seed) for point, seed in tasks]
    missing = [(point, seed) for point, seed in wanted if (_key(point), seed) not in known]
    with ProcessPoolExecutor(workers) as pool, path.open("a") as stream:
        futures = {pool.submit(measure, point, seed, data): (point, seed) for point, seed in missing}
        for future in track(as_completed(futures), path.stem, total=len(futures)):
            point, seed = futures[future]
            known[_key(point), seed] = future.result()
            stream.write(json.dumps({"point": point, "seed": seed, "row": future.result()}) + "\n")
            stream.flush()
    return [known[_key(point), seed] for point, seed in wanted]


def average(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of the trainings of a network."""
    return {
        name: round(statistics.mean(row[name] for row in rows), 4) if isinstance(value, float) else value
        for name, value in rows[0].items()
    }


def spread(rows: list[dict[str, Any]], folder: Path, data: Path, workers: int) -> dict[str, Any]:
    """Return what further seeds make of the best, the median and the worst network."""
    space = Space.load(str(SPACE))
    ranked = sorted(rows, key=lambda row: -row[f"top1_{BUDGETS[-1]}"])
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    result = {}
    for name, row in chosen.items():
        point = {choice: row[choice] for choice in space.choices}
        tasks = [(point, seed) for seed in range(SEEDS, SEEDS + MORE_SEEDS)]
        seeds = measure_all(tasks, folder / "seeds.jsonl", data, workers)
        values = [seed[f"top1_{BUDGETS[-1]}"] for seed in seeds]
        result[name] = {
            "point": point, "in_table": row[f"top1_{BUDGETS[-1]}"], "seeds": values,
            "mean": round(statistics.mean(values), 3), "sd": round(statistics.stdev(values), 3),
        }  # fmt: skip
    return result


def read_table(path: Path = TABLE) -> list[dict[str, Any]]:
    """Return the rows of the table: choices as text, numbers as numbers."""
    lines = lzma.decompress(path.read_bytes()).decode().splitlines()
    numbers = tuple(f"{what}_{budget}" for what in ("top1", "seconds") for budget in BUDGETS)
    return [
        {name: float(value) if name in numbers else value for name, value in row.items()}
        for row in csv.DictReader(lines)
    ]


def _key(point: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(point.items())


def _compress(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return lzma.compress(stream.getvalue().encode(), preset=9)


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of what is done so far")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    parser.add_argument("--output", type=Path, default=TABLE.parent, help="folder of the table")
    arguments = parser.parse_args()
    make_folder(arguments.work)
    data = arguments.work.absolute() / "digits"
    shutil.rmtree(data, ignore_errors=True)
    write_digits(data)
    points = list(Space.load(str(SPACE)).points())
    tasks = [(point, seed) for seed in range(SEEDS) for point in points]
    measured = measure_all(tasks, arguments.work / "points.jsonl", data, arguments.workers)
    rows = [average(measured[place :: len(points)]) for place in range(len(points))]
    about = {
        "networks": spread(rows, arguments.work, data, arguments.workers),
        "points": len(rows),
        "seeds_a_point": SEEDS,
        "task": {"pictures_a_class": PICTURES, "image_size": SIZE, "width": WIDTH, "budgets": BUDGETS},
        "versions": {name: version(name) for name in ("xnext", "torch", "timm")},
        "device": f"{platform.machine()}, one core a training",
        "date": datetime.date.today().isoformat(),
    }
    make_folder(arguments.output)
    write_atomic(arguments.output / TABLE.name, _compress(rows))
    write_atomic(arguments.output / "search_table.json", (json.dumps(about, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
