"""Several runs side by side: their results and their curves."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from xnext._figures import COLOURS
from xnext._yaml import read_yaml
from xnext.errors import UserError
from xnext.evaluation.accuracy import METRICS
from xnext.training.run import Run

_LOSSES = {"train_loss": "training loss", "val_loss": "held-out loss"}
_NUMBERS = ("epoch", *_LOSSES, *(f"val_{name}" for name in METRICS), "seconds", "images_per_second")

_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":")
MOST_CURVES = len(COLOURS) * len(_STYLES)
"""How many runs one picture tells apart."""

_LONGEST_NAME = 60  # characters in the legend
_PANEL = 5  # inches


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run directory tells of its training.

    Attributes:
        path: The folder.
        model: The network's name.
        data: The data spec.
        epochs: How many it was told to train, if its config says so.
        rows: The finished epochs, at least one, as in `metrics.jsonl`.
        metric: What it is judged by: the first of ``METRICS`` that it measured.
        summary: `summary.json`; None while the training is not at its end.
    """

    path: Path
    model: str
    data: str
    epochs: int | None
    rows: list[dict[str, float]]
    metric: str
    summary: dict[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        """Read a run directory, of a training that may still be going on or was killed.

        Raises:
            UserError: It is no run, a file is damaged, or no epoch is finished; the line names it.
        """
        run = Run.open(path)
        config = read_yaml(run.config)
        for key in ("model", "data"):
            if not isinstance(config.get(key), str):
                raise UserError(f"{run.config}: key {key!r} is missing; mend the file, or leave the run out")
        rows = read_rows(run)
        metric = next((name for name in METRICS if f"val_{name}" in rows[0]), None)
        if metric is None or any(f"val_{metric}" not in row for row in rows):
            raise UserError(f"{run.metrics} is damaged (an epoch has no result); leave the run out")
        return cls(
            path=path,
            model=config["model"],
            data=config["data"],
            epochs=config.get("epochs"),
            rows=rows,
            metric=metric,
            summary=_read_summary(run),
        )

    @property
    def key(self) -> str:
        """The key of the metric in the rows."""
        return f"val_{self.metric}"

    @property
    def best(self) -> dict[str, float]:
        """The epoch with the best result, and of equal ones that with the lowest loss."""
        return max(self.rows, key=lambda row: (row[self.key], -row.get("val_loss", 0)))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as what JSON can hold; None stands for what the run does not say."""
        summary = self.summary or {}
        speeds = [row["images_per_second"] for row in self.rows if "images_per_second" in row]
        return {
            "run": str(self.path),
            "model": self.model,
            "data": self.data,
            "metric": self.metric,
            "best": self.best[self.key],
            "best_epoch": self.best["epoch"],
            "last": self.rows[-1][self.key],
            "val_loss": self.best.get("val_loss"),
            "epochs": self.epochs,
            "epochs_done": len(self.rows),
            "finished": self.summary is not None,
            "params": summary.get("params"),
            "macs": summary.get("macs"),
            "seconds": round(sum(row.get("seconds", 0) for row in self.rows), 3),
            "images_per_second": median(speeds) if speeds else None,
        }


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Read runs, each once, and sort them by their best result within each kind.

    Raises:
        UserError: One of them cannot be read.
    """
    different: dict[str, Path] = {}
    for path in paths:
        different.setdefault(os.path.realpath(path), path)
    runs = [RunRecord.read(path) for path in different.values()]
    return sorted(runs, key=lambda run: (list(METRICS).index(run.metric), -run.best[run.key]))


def draw_comparison(runs: Sequence[RunRecord]) -> Figure:
    """Draw losses and results of runs over their epochs, with each one's best epoch marked.

    Args:
        runs: Up to ``MOST_CURVES`` runs.
    """
    measured = [name for name in METRICS if any(run.metric == name for run in runs)]
    panels = _LOSSES | {f"val_{name}": f"held-out {METRICS[name]}" for name in measured}
    names = _distinct_names([run.path for run in runs])
    width = _PANEL * len(panels)
    columns = max(1, min(3, 13 * width // (max(map(len, names)) + 45)))  # 13 characters an inch
    height = 4.4 + 0.22 * -(-len(runs) // columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    specs = {run.data for run in runs}
    title = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    figure.suptitle(f"{title} on {specs.pop()}" if len(specs) == 1 else title, fontsize=11)
    for axes, (key, name) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        _draw_curves(axes, runs, key)
        axes.set(title=name, xlabel="epoch", ylabel="nats" if key in _LOSSES else "%")
    handles = [
        Line2D([], [], color=colour, linestyle=style, label=_legend(run, name))
        for run, name, (style, colour) in zip(runs, names, product(_STYLES, COLOURS), strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _draw_curves(axes: Axes, runs: Sequence[RunRecord], key: str) -> None:
    """Draw one column of the metrics of all runs that have it."""
    for run, (style, colour) in zip(runs, product(_STYLES, COLOURS), strict=False):
        rows = [row for row in run.rows if key in row]
        marker = "o" if len(rows) == 1 else None  # one point makes no line
        epochs, values = [row["epoch"] for row in rows], [row[key] for row in rows]
        axes.plot(epochs, values, color=colour, linestyle=style, marker=marker)
        if key != "train_loss" and key in run.best:
            axes.plot(run.best["epoch"], run.best[key], "o", color=colour, markerfacecolor="white")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(run: RunRecord, name: str) -> str:
    unfinished = "" if run.summary is not None else ", unfinished"
    return f"{name}: best {run.best[run.key]:.2f} % at epoch {run.best['epoch']}{unfinished}"


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the folders' names, with as many of the folders above as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    tails = (["/".join(p[-length:]) for p in parts] for length in count(1))
    names = next(names for names in tails if len(set(names)) == len(names))
    half = _LONGEST_NAME // 2
    return [n if len(n) <= _LONGEST_NAME else f"{n[: half - 1]}…{n[-half:]}" for n in names]


def read_rows(run: Run) -> list[dict[str, float]]:
    """Return the finished epochs of a run after checking them.

    Raises:
        UserError: There are none, or the file is damaged.
    """
    try:
        rows = run.read_metrics() if run.metrics.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"{run.metrics} is damaged ({error}); leave the run out") from error
    if not rows:
        raise UserError(f"{run.path} has no finished epoch; leave the run out, or wait for one")
    for number, row in enumerate(rows, start=1):
        values = [row.get(key, 0) for key in _NUMBERS] if isinstance(row, dict) and "epoch" in row else [None]
        if not all(isinstance(value, int | float) for value in values):
            raise UserError(f"{run.metrics} is damaged (line {number} is no epoch); leave the run out")
    return rows


def _read_summary(run: Run) -> dict[str, Any] | None:
    """Return the result of a run, None without one."""
    if not run.summary.exists():
        return None
    try:
        summary = json.loads(run.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{run.summary} is damaged ({error}); leave the run out") from error
    values = [summary.get(key, 0) for key in ("params", "macs")] if isinstance(summary, dict) else [None]
    if not all(isinstance(value, int | float) for value in values):
        raise UserError(f"{run.summary} is damaged (it holds no result); leave the run out")
    return summary
