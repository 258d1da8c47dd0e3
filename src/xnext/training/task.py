"""What a network is trained for: the loss of a batch and the measure of its success."""

from collections.abc import Iterable

import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from xnext.evaluation.accuracy import Accuracy, evaluate
from xnext.training.config import TrainConfig


class Classification:
    """One class an image: cross-entropy, with label smoothing, mixup and cutmix as configured."""

    def __init__(self, config: TrainConfig, num_classes: int) -> None:
        """Choose the loss and the mixing.

        Args:
            config: Its `loss`, `bce_threshold`, `mixup`, `cutmix` and `label_smoothing` are used.
            num_classes: Width of the network's output.
        """
        self.num_classes = num_classes
        self._mix: Mixup | None = None
        smoothing = config.label_smoothing
        if config.mixes:
            self._mix = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                label_smoothing=smoothing,
                num_classes=num_classes,
            )
            smoothing = 0.0  # it is in the blended targets
        self._criterion: nn.Module
        if config.loss == "bce":
            self._criterion = BinaryCrossEntropy(smoothing, target_threshold=config.bce_threshold)
        else:
            self._criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def blend(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch as configured; return the images and what ``loss`` takes as their targets.

        Args:
            images: float32 [N, channels, height, width]; mixing overwrites them.
            labels: int64 [N], on the same device.
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
    ) -> Accuracy:
        """Measure the network over a loader of held-out images."""
        return evaluate(model, loader, num_classes=self.num_classes, device=device)
