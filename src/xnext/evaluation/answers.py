"""What a network says of each image, and what follows: accuracy, calibration, confusions, intervals."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from xnext._figures import COLOURS
from xnext.errors import UserError

BINS = 15
"""Of confidence, as the calibration error is usually told with."""

_TOP = 5
_RESAMPLES = 1000
_LEVEL = 95  # per cent of the resamples that an interval holds


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a network said of N images.

    Attributes:
        right: bool [N, classes], the classes that count as right, of which an image has at least one.
        top: int64 [N, up to 5], the most probable classes, the first one first.
        confidence: float64 [N], probability of the first.
        loss: float64 [N], negative log-likelihood of the right class, the most probable where there are more.
        nearest: int64 [N], that class.
        sources: int64 [N], places of the images in their source.
        bad_images: Places of the images that could not be read.
    """

    right: np.ndarray
    top: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    nearest: np.ndarray
    sources: np.ndarray
    bad_images: list[int]

    @property
    def hits(self) -> np.ndarray:
        """Whether a right class is among the first k: bool [N, up to 5]."""
        found = np.take_along_axis(self.right, self.top, axis=1)
        return np.logical_or.accumulate(found, axis=1)

    @property
    def labels(self) -> np.ndarray:
        """The right class, the first where there are more: int64 [N]."""
        return self.right.argmax(axis=1)


def collect(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor, Tensor]],
    right: np.ndarray,
    device: torch.device | str,
    *,
    columns: np.ndarray | None = None,
    mirrored: bool = False,
) -> Answers:
    """Ask a network about all images of a loader.

    Args:
        model: Maps images [N, C, H, W] to logits [N, classes]; on ``device``, in evaluation mode.
        loader: Batches of images, labels and places of what could not be read, in the order of the source.
        right: bool [images, classes], the right classes of all images of the source, readable or not.
        device: Where.
        columns: Places of the classes that may be answered; None: all. ``right`` has these alone.
        mirrored: Whether each image is seen mirrored too, and the two probabilities averaged.

    Raises:
        UserError: Not one image could be read, or the outputs are not finite or of other classes.
    """
    tops, confidences, losses, nearest, sources, bad_images = [], [], [], [], [], []
    place = 0
    with torch.inference_mode():
        for images, _, bad in loader:
            places = np.arange(place, place + len(images))
            place += len(images)
            readable = bad < 0
            bad_images += bad[~readable].tolist()
            if not readable.any():
                continue
            places = places[readable.numpy()]
            logits = _answer(model, images[readable].to(device), mirrored)
            if columns is not None:
                logits = logits[:, columns]
            if logits.shape[1] != right.shape[1]:
                raise UserError(f"the network knows {logits.shape[1]} classes, the images {right.shape[1]}")
            if not logits.isfinite().all():
                raise UserError(
                    "the outputs of the network are not finite; train again, or take other weights"
                )
            top = logits.topk(min(_TOP, logits.shape[1])).indices.cpu()
            logs = logits.double().log_softmax(dim=1).cpu()
            tops.append(top.numpy())
            confidences.append(logs.gather(1, top[:, :1])[:, 0].exp().numpy())
            best = logs.masked_fill(~torch.from_numpy(right[places]), -torch.inf).max(dim=1)
            losses.append(-best.values.numpy())
            nearest.append(best.indices.numpy())
            sources.append(places)
    if not sources:
        raise UserError(f"none of the {len(bad_images)} images could be read, so there is nothing to measure")
    kept = np.concatenate(sources)
    return Answers(
        right=right[kept], top=np.concatenate(tops), confidence=np.concatenate(confidences),
        loss=np.concatenate(losses), nearest=np.concatenate(nearest), sources=kept, bad_images=bad_images,
    )  # fmt: skip


def _answer(model: nn.Module, images: Tensor, mirrored: bool) -> Tensor:
    logits = model(images).float()
    if not mirrored:
        return logits
    both = torch.stack([logits, model(images.flip(-1)).float()])
    return both.log_softmax(dim=2).logsumexp(dim=0)


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval, in which 95 % of the bootstrap's resamples of the images lie."""

    value: float
    low: float
    high: float


def summarise(answers: Answers, seed: int = 0) -> dict[str, Estimate]:
    """Return ``top1``, ``top5`` and ``calibration_error`` in per cent, and ``loss`` in nats.

    The calibration error is the mean distance of confidence and accuracy over 15 bins of confidence,
    weighted by their images (Guo et al., 2017).

    Args:
        answers: Of a network.
        seed: Of the bootstrap.
    """
    hits = answers.hits
    columns = {"top1": 100.0 * hits[:, 0], "top5": 100.0 * hits[:, -1], "loss": answers.loss}
    rng = np.random.default_rng(seed)
    count = len(hits)
    draws = [rng.integers(0, count, count) for _ in range(_RESAMPLES)]
    result = {
        name: _interval(float(values.mean()), [values[draw].mean() for draw in draws])
        for name, values in columns.items()
    }

    def error(places: np.ndarray | slice) -> float:
        return calibration_error(answers.confidence[places], hits[places, 0])

    result["calibration_error"] = _interval(error(slice(None)), [error(draw) for draw in draws])
    return result


def _interval(value: float, resampled: list[float]) -> Estimate:
    low, high = np.percentile(resampled, [50 - _LEVEL / 2, 50 + _LEVEL / 2])
    return Estimate(value, float(low), float(high))


def bins_of(confidence: np.ndarray, correct: np.ndarray) -> list[tuple[int, float, float]]:
    """Return images, mean confidence and accuracy of each bin of confidence; zeros where there are none."""
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(number, minlength=BINS)
    sums = [np.bincount(number, values, minlength=BINS) for values in (confidence, correct)]
    means = [values / np.maximum(counts, 1) for values in sums]
    return list(zip(counts.tolist(), means[0].tolist(), means[1].tolist(), strict=True))


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error in per cent."""
    bins = bins_of(confidence, correct)
    return 100 * sum(count * abs(sure - right) for count, sure, right in bins) / len(confidence)


def count_classes(answers: Answers) -> list[tuple[int, int, int, int]]:
    """Return for each class that an image has: its index, its images, those recognised, times answered."""
    labels, first = answers.labels, answers.top[:, 0]
    classes = answers.right.shape[1]
    images, answered = (np.bincount(values, minlength=classes) for values in (labels, first))
    recognised = np.bincount(labels[answers.hits[:, 0]], minlength=classes)
    return [
        (index, int(images[index]), int(recognised[index]), int(answered[index]))
        for index in range(classes)
        if images[index]
    ]


def count_confusions(answers: Answers) -> list[tuple[int, int, int]]:
    """Return true class, answered class and number of such mistakes, the most frequent first."""
    wrong = ~answers.hits[:, 0]
    pairs = np.stack([answers.labels[wrong], answers.top[wrong, 0]], axis=1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    rows = [(int(true), int(said), int(n)) for (true, said), n in zip(found, counts, strict=True)]
    return sorted(rows, key=lambda row: (-row[2], row[:2]))


def draw_reliability(answers: Answers, title: str) -> Figure:
    """Draw accuracy by confidence, and how many images have which confidence."""
    bins = bins_of(answers.confidence, answers.hits[:, 0])
    figure = Figure(figsize=(5, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    edges = np.arange(BINS) / BINS
    error = calibration_error(answers.confidence, answers.hits[:, 0])
    upper.bar(
        edges, [100 * right for _, _, right in bins], width=1 / BINS, align="edge", color=COLOURS[0],
        edgecolor="white", label=f"accuracy (calibration error {error:.2f} %)",
    )  # fmt: skip
    upper.plot([0, 1], [0, 100], "--", color="0.4", label="as confident as right")
    upper.set(ylabel="right (%)", title=title, ylim=(0, 100), xlim=(0, 1))
    upper.legend(frameon=False, loc="upper left", fontsize=9)
    shares = [100 * count / len(answers.confidence) for count, _, _ in bins]
    lower.bar(edges, shares, width=1 / BINS, align="edge", color="0.6", edgecolor="white")
    lower.set(xlabel="confidence", ylabel="images (%)")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
