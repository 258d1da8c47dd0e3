"""What mattered: how much of the accuracy each choice of a space decides.

A random forest learns costs from points. Local parameter importance (Biedenkapp et al., 2018) is how much
its prediction varies around the best point when one choice varies; functional ANOVA (Hutter et al., 2014) how
much it varies over the whole space, divided among choices and pairs of them. Both are shares of 1, computed
for each tree: their mean counts, and their standard deviation tells how far the trees agree.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from xnext.errors import UserError
from xnext.search.history import History, in_epochs
from xnext.search.space import Point, Space

FEWEST = 5
"""Trials of one length from which importance is computed."""

_TREES = 128
_SHOWN = 12  # choices and pairs in a picture


@dataclass(frozen=True)
class Importance:
    """How much a choice, or a pair of them, decides.

    Attributes:
        choices: The names of one choice, or of two.
        share: Of what varies, 0 to 1: the mean over the trees.
        low: The share less the standard deviation over the trees, at least 0.
        high: The share and the standard deviation, at most 1.
    """

    choices: tuple[str, ...]
    share: float
    low: float
    high: float

    @property
    def name(self) -> str:
        """What a table calls it."""
        return " × ".join(self.choices)


def measure_importance(
    history: History, method: str, epochs: int, objective: str = "top1", seed: int = 0
) -> list[Importance]:
    """Return what mattered in the trials of one length, the most important first.

    Args:
        history: Of the search.
        method: A name in ``METHODS``.
        epochs: Of the trials.
        objective: What of them.
        seed: Of the forest.

    Raises:
        UserError: There are too few such trials, or all were alike.
    """
    if objective not in history.objectives:
        raise UserError(f"the search had no objective {objective!r}, but {', '.join(history.objectives)}")
    place = history.objectives.index(objective)
    records = [record for record in history.successes if record.query.epochs == epochs]
    if len(records) < FEWEST:
        trials = f"{len(records)} trial{'' if len(records) == 1 else 's'} of {in_epochs(epochs)} succeeded"
        raise UserError(
            f"{trials}, and importance needs {FEWEST}; let the search go on, or choose another budget"
        )
    costs = np.array([record.costs[place] for record in records])
    points = [record.query.point for record in records]
    return METHODS[method](history.space, points, costs, seed)


def local_importance(
    space: Space, points: Sequence[Point], costs: np.ndarray, seed: int = 0
) -> list[Importance]:
    """Return local parameter importance around the point of the lowest cost.

    Args:
        space: Of the points.
        points: What was tried, ``[N]``.
        costs: What each cost, ``[N]``.
        seed: Of the forest.

    Raises:
        UserError: All points cost the same.
    """
    encoding = _Encoding(space)
    forest = _fit(encoding, points, costs, seed)
    best = points[int(costs.argmin())]
    rows = encoding.encode([best]).repeat(sum(map(len, space.choices.values())), axis=0)
    parts: dict[str, slice] = {}
    start = 0
    for choice, values in space.choices.items():
        parts[choice] = slice(start, start + len(values))
        if choice in best:
            rows[parts[choice], encoding.columns[choice]] = np.eye(len(values))
        start += len(values)
    predictions = np.stack([tree.predict(rows) for tree in forest.estimators_])
    variances: dict[tuple[str, ...], np.ndarray] = {
        (choice,): predictions[:, part].var(axis=1) for choice, part in parts.items()
    }
    return _shares(variances, np.sum(list(variances.values()), axis=0))


def functional_anova(
    space: Space, points: Sequence[Point], costs: np.ndarray, seed: int = 0
) -> list[Importance]:
    """Return the shares of single choices, and what pairs add to their two.

    What three and more choices do together is what the shares leave to 1. All values of a choice are equally
    likely; a choice that does not exist at a point counts as its first value.

    Args:
        space: Of the points.
        points: What was tried, ``[N]``.
        costs: What each cost, ``[N]``.
        seed: Of the forest.

    Raises:
        UserError: All points cost the same.
    """
    encoding = _Encoding(space)
    forest = _fit(encoding, points, costs, seed)
    variances: dict[tuple[str, ...], list[float]] = {}
    totals = []
    for tree in forest.estimators_:
        values, allowed = _leaves(tree.tree_, encoding)
        parts = {
            choice: mask.mean(axis=1) for choice, mask in allowed.items()
        }  # shares of the values, a leaf
        volume = np.prod(list(parts.values()), axis=0)
        mean = float(volume @ values)
        totals.append(float(volume @ (values - mean) ** 2))
        for choice, mask in allowed.items():
            marginal = (volume / parts[choice] * (values - mean)) @ mask
            alone = float((marginal**2).mean()) if mask.shape[1] > 1 else 0.0
            variances.setdefault((choice,), []).append(alone)
        for one, other in itertools.combinations(allowed, 2):
            weights = volume / parts[one] / parts[other] * (values - mean)
            marginal = np.einsum("l,lv,lw->vw", weights, allowed[one], allowed[other])
            both = float((marginal**2).mean()) - variances[one,][-1] - variances[other,][-1]
            variances.setdefault((one, other), []).append(max(both, 0.0))
    return _shares({name: np.array(values) for name, values in variances.items()}, np.array(totals))


class _Encoding:
    """Points as rows of zeros and ones, a column for each value of each choice."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.columns: dict[str, slice] = {}
        start = 0
        for choice, values in space.choices.items():
            self.columns[choice] = slice(start, start + len(values))
            start += len(values)
        self.width = start

    def encode(self, points: Sequence[Point]) -> np.ndarray:
        rows = np.zeros((len(points), self.width))
        for row, point in zip(rows, points, strict=True):
            for choice, values in self.space.choices.items():
                place = list(values).index(point[choice]) if choice in point else 0
                row[self.columns[choice].start + place] = 1
        return rows


def _fit(encoding: _Encoding, points: Sequence[Point], costs: np.ndarray, seed: int) -> Any:
    from sklearn.ensemble import RandomForestRegressor  # which half a second of every command would go into

    if np.ptp(costs) == 0:
        raise UserError("all of these trials cost the same, so that nothing mattered")
    forest = RandomForestRegressor(n_estimators=_TREES, random_state=seed)
    return forest.fit(encoding.encode(points), costs)


def _leaves(tree: Any, encoding: _Encoding) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the values of a tree's leaves ``[L]``, and the values of choices that lead there ``[L, V]``."""
    masks: list[np.ndarray] = []
    values: list[float] = []
    stack = [(0, np.ones(encoding.width, bool))]
    owner = {column: part for part in encoding.columns.values() for column in range(part.start, part.stop)}
    while stack:
        node, mask = stack.pop()
        if tree.children_left[node] < 0:
            masks.append(mask)
            values.append(float(tree.value[node].item()))
            continue
        column = int(tree.feature[node])
        without, only = mask.copy(), mask.copy()
        without[column] = False
        only[owner[column]] &= np.arange(owner[column].start, owner[column].stop) == column
        for child, part in ((tree.children_left[node], without), (tree.children_right[node], only)):
            if part[owner[column]].any():  # a choice of one value has no other side
                stack.append((child, part))
    stacked = np.stack(masks)
    return np.array(values), {choice: stacked[:, part] for choice, part in encoding.columns.items()}


def _shares(variances: Mapping[tuple[str, ...], np.ndarray], totals: np.ndarray) -> list[Importance]:
    """Return shares of the total over the trees in which anything varies, the largest first."""
    varies = totals > 0
    if not varies.any():
        raise UserError("the forest finds no difference between these trials, so that nothing mattered")
    found = []
    for choices, values in variances.items():
        shares = (values[varies] / totals[varies]).clip(max=1.0)  # which it exceeds by rounding alone
        mean, deviation = float(shares.mean()), float(shares.std())
        found.append(Importance(choices, mean, max(mean - deviation, 0.0), min(mean + deviation, 1.0)))
    return sorted(found, key=lambda importance: -importance.share)


METHODS: dict[str, Callable[..., list[Importance]]] = {"lpi": local_importance, "fanova": functional_anova}
"""Ways to measure importance, by name."""


def draw_importance(found: Mapping[int, Sequence[Importance]], title: str) -> Figure:
    """Draw the importance of choices, for each number of epochs a bar with its interval over the trees.

    Args:
        found: What ``measure_importance`` returned, by epochs.
        title: Of the picture.
    """
    largest: dict[str, float] = {}
    for importances in found.values():
        for one in importances:
            largest[one.name] = max(largest.get(one.name, 0.0), one.share)
    names = sorted(largest, key=lambda name: -largest[name])[:_SHOWN]
    figure = Figure(figsize=(8, 1.2 + 0.25 * len(names) * (1 + 0.6 * len(found))), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(found)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.8, len(found)))
    for place, (epochs, importances) in enumerate(sorted(found.items())):
        by_name = {one.name: one for one in importances}
        rows = [(i, by_name[name]) for i, name in enumerate(names) if name in by_name]
        y = [i + (place - (len(found) - 1) / 2) * height for i, _ in rows]
        shares = np.array([one.share for _, one in rows])
        spread = np.array([[one.share - one.low, one.high - one.share] for _, one in rows]).T
        axes.barh(y, shares, height, color=colours[place], label=in_epochs(epochs))
        axes.errorbar(shares, y, xerr=spread, fmt="none", ecolor="0.3", elinewidth=1, capsize=2)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.set_xlabel("share of the variation; lines: standard deviation over the trees")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    if len(found) > 1:
        axes.legend(frameon=False)
    return figure
