"""How often a network is right: one pass over a data loader, whatever is asked of the network."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xnext._processes import gather
from xnext.errors import UserError

# torchmetrics is imported where something is measured: it takes longer than all else that a command needs.

METRICS = {
    "top1": "top-1", "top5": "top-5", "map": "mAP", "map_at_100": "MAP@100",
    "miou": "mIoU", "mean_accuracy": "mean accuracy", "accuracy": "accuracy",
}  # fmt: skip
"""What a measurement may hold beside ``loss``, all in percent, and how it is called."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one pass over a labelled data set measured.

    Attributes:
        metrics: ``loss``, the mean in nats, and in percent: for one class an image ``top1`` and ``top5``
            (100 of up to five classes); for several ``map`` and ``map_at_100``. The second entry is the one
            that networks are compared by.
        detail: For one class an image the confusion matrix, int64 [classes, classes], a row a true class, a
            column a predicted one; for several the average precision of each class, [classes], 0 to 1, NaN
            for a class that no image has.
        images: Images that were read and counted.
        bad_images: Source indices of the images that could not be read; they count in nothing else.
    """

    metrics: dict[str, float]
    detail: np.ndarray
    images: int
    bad_images: list[int]


class Meters(Protocol):
    """Adds up what batches of logits and labels say, of all processes."""

    def update(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Take a batch; return its losses, each of which counts alike, in nats."""

    def compute(self) -> tuple[dict[str, float], Tensor]:
        """Return the metrics in percent, and what a ``Measurement`` has as its detail."""


class _OneClass:
    """Right and wrong where an image has one class."""

    def __init__(self, num_classes: int, device: torch.device | str) -> None:
        from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

        self._confusion = MulticlassConfusionMatrix(num_classes).to(device)
        self._top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro").to(device)

    def update(self, logits: Tensor, labels: Tensor) -> Tensor:
        self._confusion.update(logits, labels)
        self._top5.update(logits, labels)
        return F.cross_entropy(logits, labels, reduction="none")

    def compute(self) -> tuple[dict[str, float], Tensor]:
        counts = self._confusion.compute()
        right = float(counts.trace()) / float(counts.sum())
        return {"top1": 100 * right, "top5": 100 * self._top5.compute().item()}, counts


class _SeveralClasses:
    """Ranks where an image may have several classes."""

    def __init__(self, num_classes: int, device: torch.device | str) -> None:
        from xnext.evaluation.multilabel import RankingPrecision

        self._precision = RankingPrecision(num_classes).to(device)
        nothing = torch.zeros(0, num_classes, device=device)  # a process without images has a shape to tell
        self._precision.update(nothing, nothing)

    def update(self, logits: Tensor, labels: Tensor) -> Tensor:
        self._precision.update(logits, labels)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)

    def compute(self) -> tuple[dict[str, float], Tensor]:
        result = self._precision.compute()
        return {name: 100 * result[name].item() for name in ("map", "map_at_100")}, result[
            "per_class"
        ].reshape(-1)


_METERS: dict[bool, Callable[..., Meters]] = {False: _OneClass, True: _SeveralClasses}


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    num_classes: int,
    device: torch.device | str,
    multilabel: bool = False,
) -> Measurement:
    """Measure a classifier; the model comes back in the mode (training or evaluation) it had.

    With several processes each brings its own batches, and all get the measure of all images.

    Args:
        model: Maps images [N, channels, height, width] to logits [N, num_classes]; already on ``device``.
        loader: Batches of images, labels [N] or, if ``multilabel``, [N, num_classes], and source indices [N]
            of what could not be read (-1: was read).
        num_classes: Classes that labels and logits run over.
        device: Where the forward pass and the counting happen.
        multilabel: Whether an image may have several classes.

    Raises:
        UserError: Not one image of the loader could be read.
    """
    return measure(model, loader, _METERS[multilabel](num_classes, device), device)


def measure(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor, Tensor]],
    meters: Meters,
    device: torch.device | str,
) -> Measurement:
    """Measure a network by meters; otherwise as :func:`evaluate`."""
    from torchmetrics import MeanMetric

    loss = MeanMetric(nan_strategy="disable").to(device)  # a loss that is not finite must stay so
    bad_images: list[int] = []
    images_read = 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for images, labels, bad in loader:
                bad_images += bad[bad >= 0].tolist()
                readable = bad < 0
                if not readable.any():
                    continue
                images_read += int(readable.sum())
                labels = labels[readable].to(device, non_blocking=True)
                logits = model(images[readable].to(device, non_blocking=True)).float()
                loss.update(meters.update(logits, labels))
    finally:
        model.train(was_training)

    images_read, bad_images = sum(gather([images_read])), sorted(gather(bad_images))
    if images_read == 0:
        raise UserError(f"none of the {len(bad_images)} images could be read, so there is nothing to measure")
    metrics, detail = meters.compute()
    return Measurement(
        metrics={"loss": loss.compute().item(), **metrics},
        detail=detail.cpu().numpy(),
        images=images_read,
        bad_images=bad_images,
    )
