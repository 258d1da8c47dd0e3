"""Segmentation as a task of the one training loop: its loss, its measure, its picture."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from xnext._processes import add_up, gather
from xnext.errors import UserError
from xnext.evaluation.accuracy import Measurement
from xnext.segmentation.data import IGNORE
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
        was_training = model.training
        model.eval()
        counts = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64, device=device)
        sums = torch.zeros(2, dtype=torch.float64, device=device)  # losses, and places that have one
        images, bad_images = 0, list[int]()
        try:
            with torch.inference_mode():
                for pictures, masks, bad in loader:
                    bad_images += bad[bad >= 0].tolist()
                    readable = bad < 0
                    if not readable.any():
                        continue
                    images += int(readable.sum())
                    masks = masks[readable].to(device)
                    logits = model(pictures[readable].to(device)).float()
                    logits = F.interpolate(logits, masks.shape[1:], mode="bilinear", align_corners=False)
                    counts += count_places(logits.argmax(1), masks, len(self.classes))
                    sums += torch.stack(
                        [_cross_entropy(logits, masks).double().sum(), (masks != IGNORE).sum()]
                    )
        finally:
            model.train(was_training)
        images, bad_images = sum(gather([images])), sorted(gather(bad_images))
        if images == 0:
            raise UserError(f"none of the {len(bad_images)} images could be read: nothing to measure")
        counts, sums = add_up(counts), add_up(sums)
        metrics, per_class = summarise(counts.cpu().numpy())
        loss = float(sums[0] / sums[1].clamp_min(1))
        return Measurement(
            metrics={"loss": loss, **metrics}, detail=per_class, images=images, bad_images=bad_images
        )

    def draw(self, detail: np.ndarray, title: str) -> Figure:
        """Draw the intersection over union of the classes."""
        return draw_precision(detail, self.classes, title, ("intersection over union", "mIoU"))

    def _build_loss(self, config: TrainConfig) -> nn.Module:
        return nn.Identity()  # `loss` is all


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
    counts = counts.astype(np.float64)
    right, true, answered = np.diag(counts), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore"):
        per_class = right / (true + answered - right)
        recall = right / true
    metrics = {
        "miou": _mean(per_class), "mean_accuracy": _mean(recall),
        "accuracy": 100 * float(right.sum() / max(true.sum(), 1)),
    }  # fmt: skip
    return metrics, per_class


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return 100 * float(known.mean()) if len(known) else 0.0
