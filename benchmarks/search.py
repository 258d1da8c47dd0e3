"""Replay SMAC, evolution and random search on the table of ``search_table``, side by side.

    python -m benchmarks.search [--seeds 40] [--workers 2] [--output benchmarks/results] [--picture FILE.png]

Time is the training time that the table tells; a network that goes on from a shorter trial pays the
difference. The value of a network is its accuracy after all epochs, so that a trial of fewer finds nothing by
itself. Printed and written: the training time until one of the best 1 % of the table is found, and the
regret, in points of accuracy to the best of the table, on the way, at the end and long after it.
"""

import argparse
import datetime
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.search_table import BUDGETS, SPACE, TABLE, read_table
from xnext._figures import COLOURS, write_figure
from xnext._files import make_folder, write_atomic
from xnext.search.optimizers import OPTIMIZERS, Task
from xnext.search.space import Space

TRAININGS = 100
"""How long a replay goes on, in mean trainings for all epochs."""

END = 50
"""After how many of them a search is compared: later, so many have found the best network of the table, below
which nothing is, that their medians become equal."""

MARKS = (25, END, 100)
"""After how many of them regrets are told."""

SHORTEST = 3
"""Epochs of SMAC's shortest trials: the order of networks after one tells nothing of that after nine."""

BEST = 0.01
"""Share of the table that counts as found."""


@dataclass(frozen=True)
class Replay:
    """One search on the table.

    Attributes:
        optimizer: Its name.
        seed: Of all that it drew.
        found: Seconds of training until one of the best was found, or None.
        regret: Points of accuracy to the best network after all of the time.
        trials: Asked.
        overhead: Seconds that the optimiser took itself.
        course: Seconds and regret, each time that it fell.
    """

    optimizer: str
    seed: int
    found: float | None
    regret: float
    trials: int
    overhead: float
    course: list[tuple[float, float]]


def replay(optimizer: str, seed: int, rows: list[dict[str, Any]], most: float) -> Replay:
    """Search the table for so many seconds of training."""
    space = Space.load(str(SPACE))
    table = {tuple(row[choice] for choice in space.choices): row for row in rows}
    ranked = sorted((row[f"top1_{BUDGETS[-1]}"] for row in rows), reverse=True)
    good = ranked[int(len(ranked) * BEST) - 1]
    task = Task(space=space, min_epochs=SHORTEST, max_epochs=BUDGETS[-1], objectives=("top1",), seed=seed)
    asked = OPTIMIZERS[optimizer](task)
    trained: dict[tuple[str, ...], float] = {}
    elapsed, found, regret, course, trials = 0.0, None, ranked[0], [(0.0, ranked[0])], 0
    started = time.perf_counter()
    while (query := asked.ask()) is not None:
        key = tuple(query.point[choice] for choice in space.choices)
        row = table[key]
        seconds = row[f"seconds_{query.epochs}"]
        elapsed += max(0.0, seconds - trained.get(key, 0.0))
        if elapsed > most:
            break
        trained[key] = max(seconds, trained.get(key, 0.0))
        accuracy = row[f"top1_{query.epochs}"]
        trials += 1
        asked.tell(query, (1 - accuracy / 100,))
        if query.epochs == BUDGETS[-1]:
            if accuracy >= good and found is None:
                found = elapsed
            if ranked[0] - accuracy < regret:
                regret = ranked[0] - accuracy
                course.append((elapsed, regret))
    return Replay(optimizer, seed, found, regret, trials, time.perf_counter() - started, course)


def summarise(replays: list[Replay], most: float) -> dict[str, Any]:
    """Return medians over the seeds of an optimiser."""
    found = [most * 10 if one.found is None else one.found for one in replays]
    median = statistics.median(found)
    after = {mark: [_at(one.course, mark / TRAININGS * most) for one in replays] for mark in MARKS}
    return {
        "median_seconds_to_best": median if median <= most else None,
        "seeds_that_found": sum(one.found is not None for one in replays),
        "mean_regret": statistics.mean(one.regret for one in replays),
        "median_regret_after": {str(mark): statistics.median(regrets) for mark, regrets in after.items()},
        "seeds_at_the_best_after": {str(mark): regrets.count(0) for mark, regrets in after.items()},
        "median_trials": statistics.median(one.trials for one in replays),
        "median_overhead_seconds": statistics.median(one.overhead for one in replays),
    }


def draw(replays: dict[str, list[Replay]], most: float, path: Path) -> None:
    """Draw the median regret over the training time, with its quartiles."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    times = np.linspace(0, most, 400)
    for colour, (name, ones) in zip(COLOURS, replays.items(), strict=False):
        values = np.array([[_at(one.course, t) for t in times] for one in ones])
        low, median, high = np.percentile(values, [25, 50, 75], axis=0)
        axes.plot(times, median, color=colour, label=name)
        axes.fill_between(times, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axvline(END / TRAININGS * most, color="0.6", linestyle=":", label=f"{END} trainings")
    axes.set_yscale("symlog", linthresh=0.3)
    axes.set_ylim(0, 30)
    ticks = (0, 0.3, 1, 3, 10, 30)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("regret in points of accuracy")
    axes.legend(frameon=False)
    write_figure(path, figure)


def _at(course: list[tuple[float, float]], seconds: float) -> float:
    return next(regret for when, regret in reversed(course) if when <= seconds)


def main() -> None:
    """Replay all and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="replays at a time")
    parser.add_argument("--output", type=Path, help="folder for the result")
    parser.add_argument("--picture", type=Path, help="where to draw it")
    arguments = parser.parse_args()
    rows = read_table(arguments.table)
    most = TRAININGS * statistics.mean(row[f"seconds_{BUDGETS[-1]}"] for row in rows)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    tasks = [(name, seed) for name in arguments.optimizers for seed in seeds]
    with ProcessPoolExecutor(arguments.workers) as pool:
        futures = [pool.submit(replay, name, seed, rows, most) for name, seed in tasks]
        done = [future.result() for future in track(futures, "replays")]
    replays = {name: [one for one in done if one.optimizer == name] for name in arguments.optimizers}
    summary = {name: summarise(ones, most) for name, ones in replays.items()}
    table = Table(title=f"{arguments.seeds} seeds, {most:.0f} seconds of training each, {len(rows)} networks")
    table.add_column("optimizer")
    regrets = [f"regret after {mark} (at 0)" for mark in MARKS]
    for column in ("seconds to the best 1 %", "seeds that found it", *regrets, "trials", "own seconds"):
        table.add_column(column, justify="right")
    for name, values in summary.items():
        to_best = values["median_seconds_to_best"]
        table.add_row(
            name, "not found" if to_best is None else f"{to_best:.0f}", str(values["seeds_that_found"]),
            *(
                f"{regret:.2f} ({values['seeds_at_the_best_after'][mark]})"
                for mark, regret in values["median_regret_after"].items()
            ),
            f"{values['median_trials']:.0f}",
            f"{values['median_overhead_seconds']:.1f}",
        )  # fmt: skip
    Console(width=max(110, Console().width)).print(table)
    if arguments.picture:
        draw(replays, most, arguments.picture)
    if arguments.output:
        about = {
            "summary": summary, "seconds": most, "seeds": arguments.seeds, "first_seed": arguments.first,
            "versions": {name: version(name) for name in ("xnext", "smac", "ConfigSpace")},
            "date": datetime.date.today().isoformat(), "replays": [asdict(one) for one in done],
        }  # fmt: skip
        make_folder(arguments.output)
        write_atomic(arguments.output / "search_benchmark.json", (json.dumps(about) + "\n").encode())


if __name__ == "__main__":
    main()
