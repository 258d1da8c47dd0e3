"""What a network is trained for: the loss of a batch, the measure of its success, and what shows it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from xnext.data import ImageData
from xnext.evaluation.accuracy import Measurement, evaluate
from xnext.training.class_weights import read_class_weights
from xnext.training.config import TrainConfig
from xnext.training.pictures import draw_confusion, draw_precision


class Task(ABC):
    """The loss and the measure of one kind of labels; the loop knows no more of them.

    A measure is a dict with ``loss`` and the task's metrics, in percent.

    Attributes:
        metrics: Names of the metrics; networks are compared by the first.
        picture: Name of the picture of what the best network gets right and wrong, in the run's folder.
    """

    metrics: ClassVar[tuple[str, ...]]
    picture: ClassVar[str]

    def __init__(self, config: TrainConfig, data: ImageData) -> None:
        """Choose the loss and the mixing.

        Args:
            config: A resolved config; what it says of loss, mixing, smoothing and class weights is used.
            data: Its classes, and how many images of each there are.

        Raises:
            UserError: The file of class weights does not fit.
        """
        self.classes = data.classes
        weights = read_class_weights(config.class_weights, data)
        self._weights = None if weights is None else torch.from_numpy(weights).float()
        self._criterion = self._build_loss(config)
        self._mix: Mixup | None = None
        if config.mixes:
            self._mix = _MIXUPS[data.multilabel](
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                label_smoothing=config.label_smoothing or 0.0,
                num_classes=len(data.classes),
            )

    def to(self, device: torch.device) -> "Task":
        """Move the weights of the classes to a device."""
        self._criterion.to(device)
        return self

    def blend(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch as configured; return the images and what ``loss`` takes as their targets.

        Args:
            images: float32 [N, channels, height, width]; mixing overwrites them.
            labels: int64 [N], or float32 [N, classes] of 0 and 1; on the same device.
        """
        return (images, labels) if self._mix is None else self._mix(images, labels)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of images in nats.

        Args:
            logits: [N, classes], of any precision.
            targets: What ``blend`` returned for them: labels [N], or shares of the classes [N, classes].
        """
        return self._criterion(logits.float(), targets)

    def evaluate(
        self, model: nn.Module, loader: Iterable[tuple[Tensor, Tensor, Tensor]], device: torch.device
    ) -> Measurement:
        """Measure the network over a loader of held-out images."""
        return evaluate(
            model,
            loader,
            num_classes=len(self.classes),
            device=device,
            multilabel=isinstance(self, MultiLabel),
        )

    @abstractmethod
    def draw(self, detail: np.ndarray, title: str) -> Figure:
        """Draw the ``detail`` of a measurement."""

    @abstractmethod
    def _build_loss(self, config: TrainConfig) -> nn.Module: ...


class Classification(Task):
    """One class an image: cross-entropy, or binary cross-entropy of each class."""

    metrics = ("top1", "top5")
    picture = "confusion.png"

    def draw(self, detail: np.ndarray, title: str) -> Figure:
        """Draw the confusion matrix."""
        return draw_confusion(detail, self.classes, title)

    def _build_loss(self, config: TrainConfig) -> nn.Module:
        smoothing = 0.0 if config.mixes else config.label_smoothing or 0.0  # it is in blended targets
        if config.loss == "bce":
            return BinaryCrossEntropy(
                smoothing, target_threshold=config.bce_threshold, pos_weight=self._weights
            )
        return _CrossEntropy(self._weights, label_smoothing=smoothing)


class MultiLabel(Task):
    """Any number of classes an image: binary cross-entropy of each class."""

    metrics = ("map", "map_at_100")
    picture = "precision.png"

    def draw(self, detail: np.ndarray, title: str) -> Figure:
        """Draw the average precision of the classes."""
        return draw_precision(detail, self.classes, title)

    def _build_loss(self, config: TrainConfig) -> nn.Module:
        return _SmoothBinaryCrossEntropy(
            config.label_smoothing or 0.0, target_threshold=config.bce_threshold, pos_weight=self._weights
        )


def build_task(config: TrainConfig, data: ImageData) -> Task:
    """Return the task of a data set's kind of labels."""
    if config.decoder is not None:
        from xnext.segmentation.task import Segmentation  # here, since it needs this module

        return Segmentation(config, data)
    return (MultiLabel if data.multilabel else Classification)(config, data)


class _CrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy whose mean over a batch is that of its parts, also if classes have weights.

    PyTorch's own divides by the weights of the batch, which the parts do not know.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(
            logits, targets, self.weight, reduction="none", label_smoothing=self.label_smoothing
        ).mean()


class _SmoothBinaryCrossEntropy(BinaryCrossEntropy):
    """Binary cross-entropy of targets [N, classes], each moved towards one half by the smoothing."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return super().forward(x, target * (1 - self.smoothing) + self.smoothing / 2)


class _MultiLabelMixup(Mixup):
    """timm's mixing for targets [N, classes], which are blended as they are."""

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        share = self._mix_batch(x)
        return x, target * share + target.flip(0) * (1 - share)


_MIXUPS: dict[bool, type[Mixup]] = {False: Mixup, True: _MultiLabelMixup}
