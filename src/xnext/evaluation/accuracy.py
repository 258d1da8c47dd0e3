"""How often a classifier is right: top-1, top-5, loss and the confusion matrix over one data loader."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from xnext.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What one pass over a labelled data set measured.

    Attributes:
        top1: Images whose most probable class is the true one, in percent.
        top5: Images whose true class is among the five most probable, in percent (100 of up to five classes).
        loss: Mean cross-entropy, in nats.
        confusion: Counts, int64 [classes, classes]; a row is a true class, a column a predicted one.
        images: Images that were read and counted.
        bad_images: Source indices of the images that could not be read; they count in nothing else.
    """

    top1: float
    top5: float
    loss: float
    confusion: np.ndarray
    images: int
    bad_images: list[int]


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    num_classes: int,
    device: torch.device | str,
) -> Accuracy:
    """Measure a classifier; the model comes back in the mode (training or evaluation) it had.

    Args:
        model: Maps images [N, channels, height, width] to logits [N, num_classes]; already on ``device``.
        loader: Batches of images, labels [N] and source indices [N] of what could not be read (-1: was read).
        num_classes: Classes that labels and logits run over.
        device: Where the forward pass and the counting happen.

    Raises:
        UserError: Not one image of the loader could be read.
    """
    confusion = MulticlassConfusionMatrix(num_classes).to(device)
    top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro").to(device)
    loss = MeanMetric(nan_strategy="disable").to(device)  # a loss that is not finite must stay so
    bad_images: list[int] = []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for images, labels, bad in loader:
                bad_images += bad[bad >= 0].tolist()
                readable = bad < 0
                if not readable.any():
                    continue
                labels = labels[readable].to(device, non_blocking=True)
                logits = model(images[readable].to(device, non_blocking=True)).float()
                confusion.update(logits, labels)
                top5.update(logits, labels)
                loss.update(F.cross_entropy(logits, labels, reduction="none"))
    finally:
        model.train(was_training)

    counts = confusion.compute().cpu().numpy() if confusion.update_called else np.zeros((num_classes,) * 2)
    images_read = int(counts.sum())
    if images_read == 0:
        raise UserError(f"none of the {len(bad_images)} images could be read, so there is nothing to measure")
    return Accuracy(
        top1=100.0 * float(np.trace(counts)) / images_read,
        top5=100.0 * top5.compute().item(),
        loss=loss.compute().item(),
        confusion=counts.astype(np.int64),
        images=images_read,
        bad_images=sorted(bad_images),
    )
