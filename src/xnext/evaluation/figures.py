"""The papers' figures: accuracy against size or speed, and what convolutions cost by their kernels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

from xnext._figures import COLOURS
from xnext.errors import UserError
from xnext.evaluation.tables import QUANTITIES, Entry, PaperTable, Speeds, count_convolutions
from xnext.models import list_models

_AREA = 9.0  # square points of a bubble, a million parameters
_AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_PLACES = [(across, up, away) for away in (1.0, 2.0, 3.0) for across, up in _AROUND]
"""Where a name may stand, and how many radii away; the first that covers least is taken."""


@dataclass(frozen=True)
class Tradeoff:
    """A figure of accuracy against something.

    Attributes:
        source: The paper and the figure's number.
        tables: Names of the papers' tables with the networks.
        quantity: What accuracy stands against, by its name in ``QUANTITIES``.
        less: Whether less of it is better.
        sizes: Least and most millions of parameters of the networks that are drawn.
    """

    source: str
    tables: tuple[str, ...]
    quantity: str
    less: bool = False
    sizes: tuple[float, float] = (0, math.inf)


TRADEOFFS = {
    "inceptionnext-1": Tradeoff(
        "InceptionNeXt, figure 1", ("inceptionnext-1", "inceptionnext-4"), "train", sizes=(20, 30)
    ),
    "nexception-2": Tradeoff("NEXcepTion, figure 2", ("nexception-1",), "macs", less=True),
    "nexception-3": Tradeoff("NEXcepTion, figure 3", ("nexception-1",), "inference"),
}


def draw_tradeoff(tradeoff: Tradeoff, tables: Mapping[str, PaperTable], speeds: Speeds | None) -> Figure:
    """Draw published accuracy against size or speed, with the Pareto front; bubbles grow with parameters.

    Args:
        tradeoff: Which figure.
        tables: The papers' tables, by name.
        speeds: Measured here, to stand in place of the papers'; None: the papers' own.

    Raises:
        UserError: No speed of these networks was measured.
    """
    quantity = QUANTITIES[tradeoff.quantity]
    points: list[tuple[float, float, Entry]] = []
    for entry in (entry for name in tradeoff.tables for entry in tables[name].entries):
        x = entry.published.get(tradeoff.quantity)
        if speeds is not None and quantity.task is not None:
            measured = speeds[entry, quantity.task]
            x = None if measured is None else measured["mean"]
        low, high = tradeoff.sizes
        if x is not None and low <= entry.published["params"] <= high:
            points.append((x, entry.published["top1"], entry))
    if not points:
        raise UserError(f"no speed for {tradeoff.source} was measured; run xnext tables --measure first")
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    axes = figure.subplots()
    sign = -1 if tradeoff.less else 1
    front = [a for a in points if not any(_beats(b, a, sign) for b in points)]
    front.sort(key=lambda point: point[0])
    axes.plot([x for x, _, _ in front], [y for _, y, _ in front], color="0.6", zorder=1, label="Pareto front")
    for own, colour, label in ((False, "0.55", "others"), (True, COLOURS[0], "Xception to InceptionNeXt")):
        chosen = [point for point in points if _is_own(point[2]) == own]
        areas = [_AREA * point[2].published["params"] for point in chosen]
        places = [x for x, _, _ in chosen], [y for _, y, _ in chosen]
        axes.scatter(*places, s=areas, color=colour, alpha=0.55, edgecolor="white", label=label, zorder=2)
    axes.set_xscale("log")
    here = " here" if speeds is not None and quantity.task is not None else ""
    axes.set(xlabel=quantity.heading + here, ylabel="published top-1 (%)", title=_title(tradeoff, speeds))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.1)
    legend = figure.legend(frameon=False, loc="outside lower center", ncols=3)
    for handle in legend.legend_handles[1:]:
        handle.set_sizes([80])  # type: ignore[union-attr]
    _name_points(figure, axes, points)
    return figure


def _title(tradeoff: Tradeoff, speeds: Speeds | None) -> str:
    if speeds is None or QUANTITIES[tradeoff.quantity].task is None:
        return f"{tradeoff.source}: published figures"
    about = speeds.about
    return f"{tradeoff.source}: measured on {about['device']}, batch {about['batch_size']}, {about['dtype']}"


def _beats(one: tuple[float, float, Entry], other: tuple[float, float, Entry], sign: int) -> bool:
    """Return whether a point is better in one of accuracy and the other axis, and not worse in either."""
    better, worse = (sign * one[0], one[1]), (sign * other[0], other[1])
    return better != worse and all(a >= b for a, b in zip(better, worse, strict=True))


def _is_own(entry: Entry) -> bool:
    """Return whether a network is of this project's lineages, and not a peer that both have."""
    return entry.network in list_models() and not (entry.network or "").startswith("convnext")


def _name_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, Entry]]) -> None:
    """Write each network's name where it covers the fewest others and bubbles."""
    figure.draw_without_rendering()
    taken: list[Bbox] = []
    places = [axes.transData.transform((x, y)) for x, y, _ in points]
    scale = figure.dpi / 72
    for (x, y), (_, _, entry) in zip(places, points, strict=True):
        radius = scale * (_AREA * entry.published["params"]) ** 0.5 / 2
        taken.append(Bbox([[x - radius, y - radius], [x + radius, y + radius]]))
    for (x, y, entry), box in sorted(
        zip(points, taken[:], strict=True), key=lambda pair: -_is_own(pair[0][2])
    ):
        best: tuple[float, Annotation, Bbox, float] | None = None
        for across, up, away in _PLACES:
            reach = away * (box.width / 2 / scale + 2) * (0.75 if across and up else 1)
            text = axes.annotate(
                entry.name, (x, y), (across * reach, up * reach), textcoords="offset points", fontsize=7.5,
                ha=("center", "left", "right")[across], va=("center", "bottom", "top")[up],
                fontweight="bold" if _is_own(entry) else "normal",
            )  # fmt: skip
            extent = text.get_window_extent()
            cost = sum(_overlap(extent, other) for other in taken) + _outside(extent, axes)
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = cost, text, extent, away
            else:
                text.remove()
        assert best is not None
        _, text, extent, away = best
        taken.append(extent)
        if away > 1:  # so far off that a line has to say whose it is
            at = axes.transData.transform((x, y)) + scale * np.array(text.xyann)
            ends = np.array([(x, y), axes.transData.inverted().transform(at)])
            axes.add_artist(Line2D(*ends.T, color="0.5", linewidth=0.7, zorder=1.5))


def _overlap(one: Bbox, other: Bbox) -> float:
    shared = Bbox.intersection(one, other)
    return 0.0 if shared is None else float(shared.width * shared.height)


def _outside(box: Bbox, axes: Axes) -> float:
    whole = axes.get_window_extent()
    return float(box.width * box.height) - _overlap(box, whole)


def draw_kernels(channels: int = 96, size: int = 56) -> Figure:
    """Draw what depthwise and Inception depthwise convolution cost by the kernel's side, as counted."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    lines = count_convolutions(channels, size)
    kinds = ("depthwise", "Inception depthwise")
    for kind, colour, marker in zip(kinds, COLOURS, "os", strict=False):
        rows = [line for line in lines if line["convolution"] == kind]
        kernels = [int(line["kernel"]) for line in rows]
        axes.plot(
            kernels, [float(line["MFLOPs, here"]) for line in rows], marker + "-", color=colour, label=kind
        )
    axes.set(
        xlabel="kernel side", ylabel="MFLOPs", xticks=kernels, ylim=(0, None),
        title=f"InceptionNeXt, figure 3: {channels} channels of {size}x{size}",
    )  # fmt: skip
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
