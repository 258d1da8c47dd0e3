"""Segmentation as a task of the one training loop: its loss, its measure, its picture."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from xnext._processes import add_up
from xnext.evaluation.accuracy import Measurement, measure
from xnext.segmentation.data import IGNORE
from xnext.segmentation.networks import enlarge
from xnext.training.config import TrainConfig
from xnext.training.pictures import draw_precision
from xnext.training.task import Task

_AUXILIARY = 0.4
"""Weight of the loss of UPerNet's auxiliary head."""


class Segmentation(Task):
    """A class for every place: cross-entropy over the places, without those that are ignored."""

    metrics = ("miou", "mean_accuracy")
    picture = "iou.png"

    def loss(self, logits: Tensor | tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """Return the mean over all places, ignored ones as 0, so that parts of a batch add up.

        Args:
            logits: [N, classes, H, W], or these and those of the auxiliary head.
            targets: int64 [N, H, W].
        """
        parts = logits if isinstance(logits, tuple) else (logits,)
        losses = [_cross_entropy(part, targets).mean() for part in parts]
        return losses[0] + _AUXILIARY * sum(losses[1:], torch.zeros_like(losses[0]))

    def evaluate(
        self, model: nn.Module, loader: Iterable[tuple[Tensor, Tensor, Tensor]], device: torch.device
    ) -> Measurement:
        """Measure the network over images, each at its own size."""
        return measure(model, loader, _Places(len(self.classes), device), device)

    def draw(self, detail: np.ndarray, title: str) -> Figure:
        """Draw the intersection over union of the classes."""
        return draw_precision(detail, self.classes, title, ("intersection over union", "mIoU"))

    def _build_loss(self, config: TrainConfig) -> nn.Module:
        return nn.Identity()  # `loss` is all


class _Places:
    """Right and wrong at the places of masks, at their size."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = enlarge(logits, labels.shape[1:])
        self._counts += count_places(logits.argmax(1), labels, len(self._counts))
        return _cross_entropy(logits, labels)[labels != IGNORE]

    def compute(self) -> tuple[dict[str, float], Tensor]:
        metrics, per_class = summarise(add_up(self._counts).cpu().numpy())
        return metrics, torch.from_numpy(per_class)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="none")


def count_places(answers: Tensor, masks: Tensor, num_classes: int) -> Tensor:
    """Return how many places of each class, a row, have each answer, a column: int64 [classes, classes].

    Args:
        answers: int64 [N, H, W].
        masks: int64 [N, H, W] of classes and ``IGNORE``.
        num_classes: How many there are.
    """
    counted = masks != IGNORE
    pairs = masks[counted] * num_classes + answers[counted]
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def summarise(counts: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Return mIoU, mean and overall accuracy in percent, and the IoU of each class.

    A class that neither masks nor answers have has no IoU (NaN) and is in no mean; one that only answers
    have has an IoU of 0; mean accuracy is of the classes that masks have.

    Args:
        counts: [classes, classes], a row a true class.
    """
    per_class, recall = shares(counts)
    metrics = {
        "miou": _mean(per_class), "mean_accuracy": _mean(recall),
        "accuracy": 100 * float(np.trace(counts) / max(counts.sum(), 1)),
    }  # fmt: skip
    return metrics, per_class


def shares(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the IoU and the accuracy of each class, 0 to 1, NaN where there is nothing to divide by.

    Args:
        counts: [classes, classes], a row a true class.
    """
    counts = counts.astype(np.float64)
    right, true, answered = np.diag(counts), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore"):
        return right / (true + answered - right), right / true


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return 100 * float(known.mean()) if len(known) else 0.0
