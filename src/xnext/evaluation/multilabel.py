"""How well a network ranks pictures that may have several classes: mAP, and MAP@100 as for JFT."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

_DEPTH = 100


class RankingPrecision(Metric):
    """Average precision of each class, over all images and over the first 100 of them.

    Every score is kept, and with several processes those of all are put together before anything is ranked.
    """

    full_state_update = False
    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take the logits [N, classes] of a batch and its labels [N, classes], 0 or 1."""
        self.scores.append(logits)
        self.targets.append(labels.bool())

    def compute(self) -> dict[str, Tensor]:
        """Return ``map`` and ``map_at_100``, 0 to 1, and the average precision ``per_class`` [classes].

        ``map`` is the mean over the classes that any image has; the others have a precision of NaN.
        """
        scores, targets = dim_zero_cat(self.scores), dim_zero_cat(self.targets)  # tensors once exchanged
        per_class = torch.full((self.num_classes,), torch.nan, dtype=torch.float64, device=scores.device)
        for label in targets.any(dim=0).nonzero().flatten().tolist():
            # In double precision, since it takes the sigmoid, which makes large scores equal in single.
            per_class[label] = binary_average_precision(
                scores[:, label].double(), targets[:, label].long(), validate_args=False
            )
        return {
            "map": per_class.nanmean(),
            "map_at_100": map_at_100(scores, targets),
            "per_class": per_class,
        }


def map_at_100(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean average precision of the first 100 images, weighted by how common a class is.

    For each class the images are ranked by its score. With ``hit(k)`` being 1 if the image at rank k has the
    class, ``precision(k)`` the share of hits among the first k, and ``images`` the number that have it,

        AP@100 = sum over k <= 100 of precision(k) * hit(k), divided by min(images, 100),

    and the result is the mean of AP@100 over the classes, weighted by ``images``. So the Xception paper
    (section 4.1) measures on FastEval14k: "MAP@100", each class weighted by an estimate of how common it is.
    There the estimate is of another collection of images; here it is the frequency in what is measured.

    Args:
        scores: [N, classes]; higher is more probable.
        targets: bool [N, classes].

    Returns:
        A scalar, 0 to 1; NaN if no image has a class.
    """
    depth = min(_DEPTH, len(scores))
    order = scores.topk(depth, dim=0).indices
    hits = targets.gather(0, order).double()
    ranks = torch.arange(1, depth + 1, device=scores.device, dtype=torch.float64)[:, None]
    images = targets.sum(dim=0).double()
    precision = (hits.cumsum(dim=0) / ranks * hits).sum(dim=0) / images.clamp(1, _DEPTH)
    return (precision * images).sum() / images.sum()
