"""Pictures of a training: its curves, which classes it confuses, and which it finds."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xnext._figures import COLOURS, printable
from xnext.evaluation.accuracy import METRICS

_BLUE, _ORANGE, _GREEN, *_ = COLOURS
_GREY = "#8A8A8A"

_MOST_CLASSES_WITH_NAMES = (
    20  # above it the names would overlap: a list of the worst confusions takes their place
)
_LISTED_CONFUSIONS = 20
_LISTED_CLASSES = 40
_LONGEST_NAME = 18  # characters


def draw_curves(rows: Sequence[Mapping[str, float]], best_epoch: int, title: str) -> Figure:
    """Draw losses and held-out metrics over the epochs, with the best epoch marked.

    Args:
        rows: The epochs, as in `metrics.jsonl`.
        best_epoch: Epoch whose weights were kept as the best, from 1.
        title: What was trained on what.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    losses, metrics = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) == 1 else None  # one point makes no line
    main, second, *_ = (name for name in METRICS if f"val_{name}" in rows[0])
    for axes, key, label, color in (
        (losses, "train_loss", "training", _ORANGE),
        (losses, "val_loss", "held out", _BLUE),
        (metrics, f"val_{main}", METRICS[main], _BLUE),
        (metrics, f"val_{second}", METRICS[second], _GREEN),
        (metrics, f"raw_val_{main}", f"{METRICS[main]}, weights not averaged", _GREY),
    ):
        if key in rows[0]:
            axes.plot(epochs, [row[key] for row in rows], label=label, color=color, marker=marker)
    best = next(row for row in rows if row["epoch"] == best_epoch)
    for axes, key, value in ((losses, "val_loss", "{:.3f}"), (metrics, f"val_{main}", "best: {:.2f} %")):
        axes.axvline(best_epoch, color=_GREY, linestyle=":", linewidth=1, zorder=0)
        label = f"{value.format(best[key])} at epoch {best_epoch}"
        axes.plot(best_epoch, best[key], "o", color=_BLUE, markersize=7, markerfacecolor="white", label=label)
    losses.set(title="loss", ylabel="nats")
    metrics.set(title="held out", ylabel="%")
    for axes in (losses, metrics):
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, len(rows) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return figure


def draw_precision(
    precision: np.ndarray,
    classes: Sequence[str],
    title: str,
    names: tuple[str, str] = ("average precision", "mAP"),
) -> Figure:
    """Draw the average precision of the classes, or another share, as bars, of many classes the lowest.

    Args:
        precision: [classes], 0 to 1; NaN for a class that no image has, which is left out.
        classes: Names in the same order.
        title: What was evaluated on what.
        names: Of the share, and of its mean over the classes.
    """
    known = [index for index in np.argsort(precision, kind="stable") if not np.isnan(precision[index])]
    shown = known[:_LISTED_CLASSES]
    figure = Figure(figsize=(8, 1.6 + 0.28 * len(shown)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots()
    bars = axes.barh(range(len(shown)), [100 * precision[index] for index in shown], color=_BLUE)
    axes.set_yticks(range(len(shown)), [cut_name(classes[index]) for index in shown])
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 108), xlabel=f"{names[0]}, %")
    rest = f", the lowest {len(shown)} of {len(known)} classes" if len(shown) < len(known) else ""
    axes.set_title(f"{names[1]} {100 * np.nanmean(precision):.2f} %{rest}", fontsize=10)
    axes.tick_params(axis="y", labelsize=9, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def draw_confusion(confusion: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix, each row as shares of its true class.

    Up to 20 classes have names and numbers in the matrix; with more, the matrix shows the pattern and a list
    beside it names the commonest confusions.

    Args:
        confusion: Counts [classes, classes]; a row is a true class, a column a predicted one.
        classes: Names in the order of the rows.
        title: What was evaluated on what.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    names = [cut_name(name) for name in classes]
    if len(classes) <= _MOST_CLASSES_WITH_NAMES:
        side = 3.2 + 0.42 * len(classes)
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.subplots()
        _name_classes(axes, names)
        _write_shares(axes, shares)
        norm = Normalize(0, 1)
    else:
        figure = Figure(figsize=(14, 7.6), layout="constrained")
        axes, worst = figure.subplots(1, 2, width_ratios=(1.5, 1))
        axes.set(xticks=[], yticks=[])
        _list_confusions(worst, shares, names)
        norm = PowerNorm(0.5, 0, 1)  # lifts the small shares, which are no longer written out
    figure.suptitle(title, fontsize=11)
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046, pad=0.02)
    return figure


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    """Put the classes' names at both axes, slanted at the bottom when they are long."""
    ticks = range(len(names))
    long = max(map(len, names)) > 3
    axes.set_xticks(ticks, names, rotation=45 if long else 0, ha="right" if long else "center")
    axes.set_yticks(ticks, names)


def _write_shares(axes: Axes, shares: np.ndarray) -> None:
    """Write every share that is not zero into its cell, in percent."""
    for row, column in zip(*np.nonzero(shares), strict=True):
        share = shares[row, column]
        text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
        axes.text(
            column, row, text, ha="center", va="center", fontsize=8, color="white" if share > 0.5 else "black"
        )


def _list_confusions(axes: Axes, shares: np.ndarray, names: Sequence[str]) -> None:
    """Draw the largest shares off the diagonal as bars with the names of the two classes."""
    mistakes = shares.copy()
    np.fill_diagonal(mistakes, 0)
    worst = np.argsort(mistakes, axis=None, kind="stable")[::-1][:_LISTED_CONFUSIONS]
    pairs = [divmod(int(flat), len(names)) for flat in worst if mistakes.flat[flat] > 0]
    bars = axes.barh(range(len(pairs)), [100 * mistakes[pair] for pair in pairs], color=_BLUE)
    axes.set_yticks(range(len(pairs)), [f"{names[true]} → {names[predicted]}" for true, predicted in pairs])
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_title("commonest confusions: true → predicted", fontsize=10)
    axes.set_xlabel("% of the true class")
    axes.tick_params(axis="y", labelsize=9, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def cut_name(name: str, longest: int = _LONGEST_NAME) -> str:
    """Cut a long class name, so that it leaves room for the picture."""
    name = printable(name)
    return name if len(name) <= longest else name[: longest - 1] + "…"
