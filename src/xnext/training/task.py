"""What a network is trained for: the loss of a batch and the measure of its success."""

from collections.abc import Iterable

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from xnext.evaluation.accuracy import Accuracy, evaluate
from xnext.training.config import TrainConfig


class Classification:
    """One class an image: cross-entropy, with label smoothing, mixup and cutmix as configured."""

    def __init__(self, config: TrainConfig, num_classes: int) -> None:
        """Choose the loss and the mixing.

        Args:
            config: Its `mixup`, `cutmix` and `label_smoothing` are used.
            num_classes: Width of the network's output.
        """
        self.num_classes = num_classes
        self._mix: Mixup | None = None
        self._criterion: nn.Module
        if config.mixes:
            self._mix = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                label_smoothing=config.label_smoothing,
                num_classes=num_classes,
            )
            self._criterion = SoftTargetCrossEntropy()
        elif config.label_smoothing:
            self._criterion = LabelSmoothingCrossEntropy(config.label_smoothing)
        else:
            self._criterion = nn.CrossEntropyLoss()

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch in nats.

        Args:
            model: Network in training mode.
            images: float32 [N, channels, height, width] on the network's device; mixing overwrites them.
            labels: int64 [N].
        """
        targets = labels
        if self._mix is not None:
            images, targets = self._mix(images, labels)
        return self._criterion(model(images).float(), targets)

    def evaluate(
        self, model: nn.Module, loader: Iterable[tuple[Tensor, Tensor, Tensor]], device: torch.device
    ) -> Accuracy:
        """Measure the network over a loader of held-out images."""
        return evaluate(model, loader, num_classes=self.num_classes, device=device)
