"""What a training run is told: one frozen value, written beside its results."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from timm.optim import list_optimizers

from xnext._types import check_types
from xnext.errors import UserError, suggest

# Learning rate for a batch of 256 images, and the power of (batch size / 256) that it grows with. SGD follows
# the linear rule of Goyal et al. 2017; the adaptive optimisers the square-root rule of Krizhevsky 2014.
LEARNING_RATES: dict[str, tuple[float, float]] = {
    "sgd": (0.1, 1.0),
    "adam": (2e-3, 0.5),
    "adamw": (4e-3, 0.5),
    "nadamw": (4e-3, 0.5),
    "lamb": (1e-2, 0.5),
    "lion": (4e-4, 0.5),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run; equal values give equal runs on a CPU.

    Attributes:
        model: Name of the network; `xnext models` lists them.
        data: Images to learn from: `digits`, a folder, `hf:NAME_OR_FOLDER` or `torch/NAME`.
        output: Folder to create for the run; it must not exist or be empty.
        epochs: Passes over the training images.
        image_size: Side of the square input in pixels; None: the size the network was made for.
        batch_size: Images a training step, over all processes.
        optimizer: Optimiser by its timm name.
        lr: Peak learning rate; None: a base rate of the optimiser, scaled with the batch size.
        weight_decay: Decay of the weights; norms and biases have none.
        warmup_epochs: Epochs of linear rise to `lr` before the cosine decay; None: a tenth of `epochs`.
        clip_grad: Largest norm of the whole gradient; None: not clipped.
        label_smoothing: Share of the target spread evenly over all classes, 0 to less than 1.
        mixup: Beta distribution's alpha for blending pairs of images; 0: off.
        cutmix: Beta distribution's alpha for pasting a box of another image; 0: off.
        augment: Random changes of the training images: none, light or strong.
        drop_rate: Dropout before the classifier, 0 to less than 1.
        drop_path_rate: Largest probability of skipping a residual block, 0 to less than 1.
        model_ema: Decay a step of averaged weights, which are then evaluated and saved; 0: off.
        seed: Start of every random choice: weights, order, augmentation, split.
        checkpoint: Weights to start from, a file or a run; a head for other classes is initialised anew.
        model_args: Further fields of the network's config, e.g. `{"strides": [1, 2, 2, 2]}`.
        workers: Processes that load images; 0: the training process itself.
        device: Where to train: auto (a GPU if there is one), cpu or cuda.
        amp: Mixed precision: off, bf16 or fp16 (fp16 needs a GPU).
        max_bad_images: Share of unreadable training images above which the run stops, 0 to 1.
    """

    model: str
    data: str
    output: Path
    epochs: int = 30
    image_size: int | None = None
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float = 0.05
    warmup_epochs: float | None = None
    clip_grad: float | None = None
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    augment: Literal["none", "light", "strong"] = "light"
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    model_ema: float = 0.0
    seed: int = 0
    checkpoint: Path | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    workers: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["off", "bf16", "fp16"] = "off"
    max_bad_images: float = 0.01

    def __post_init__(self) -> None:
        check_types(self)
        self._check_numbers()
        self._check_optimizer()
        if self.mixes and self.batch_size % 2:
            raise UserError(
                f"mixup and cutmix pair the images of a batch: batch_size {self.batch_size} must be even"
            )
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise UserError(
                f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}; lower it"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Read what ``to_dict`` wrote.

        Raises:
            UserError: A key is missing or unknown, or a value is none of its field's.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"unknown key {key!r}.{suggest(str(key), known)}")
        for name in ("model", "data", "output"):
            if name not in values:
                raise UserError(f"key {name!r} is missing")
        paths = {
            name: Path(values[name]) for name in ("output", "checkpoint") if isinstance(values.get(name), str)
        }
        return cls(**{**values, **paths})

    @property
    def mixes(self) -> bool:
        """Whether batches are blended, which needs an even number of images."""
        return self.mixup > 0 or self.cutmix > 0

    def resolve(self, image_size: int) -> "TrainConfig":
        """Return this config with the values filled in that None stands for, so that it can be run again.

        Args:
            image_size: Side in pixels of the images that the network is fed.

        Raises:
            UserError: There is no learning rate rule for the optimiser.
        """
        return dataclasses.replace(
            self,
            image_size=image_size,
            lr=learning_rate(self.optimizer, self.batch_size) if self.lr is None else self.lr,
            warmup_epochs=self.epochs / 10 if self.warmup_epochs is None else self.warmup_epochs,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that YAML and JSON hold; paths stay as they were given."""
        values = dataclasses.asdict(self)
        return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}

    def to_yaml(self) -> str:
        """Return the config as the YAML that `xnext train --config` takes."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def _check_numbers(self) -> None:
        """Raise a ``UserError`` for the first number that is out of its range."""
        ranges: dict[str, tuple[float, float]] = {
            "epochs": (1, math.inf),
            "image_size": (1, math.inf),
            "batch_size": (2, math.inf),
            "weight_decay": (0, math.inf),
            "warmup_epochs": (0, math.inf),
            "mixup": (0, math.inf),
            "cutmix": (0, math.inf),
            "seed": (0, 2**32 - 1),
            "workers": (0, math.inf),
            "max_bad_images": (0, 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high):
                limits = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                raise UserError(f"{name} is {value}; it must be {limits}")
        for name in ("label_smoothing", "drop_rate", "drop_path_rate", "model_ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0 and less than 1")
        for name in ("lr", "clip_grad"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} is {value}; it must be more than 0")

    def _check_optimizer(self) -> None:
        """Raise a ``UserError`` for an optimiser that timm does not have, with the nearest ones."""
        known = [str(name) for name in list_optimizers()]
        if self.optimizer not in known:
            hint = (
                suggest(self.optimizer, known)
                or f" There are {', '.join(LEARNING_RATES)} and more of timm's."
            )
            raise UserError(f"optimizer {self.optimizer!r} does not exist.{hint}")


def learning_rate(optimizer: str, batch_size: int) -> float:
    """Return the peak learning rate for an optimiser and the images of a step.

    Raises:
        UserError: No rule is known for the optimiser, so the user has to give the rate.
    """
    if optimizer not in LEARNING_RATES:
        known = ", ".join(LEARNING_RATES)
        raise UserError(
            f"no learning rate rule for optimizer {optimizer!r} (only for {known}); give lr, e.g. --lr 1e-3"
        )
    base, power = LEARNING_RATES[optimizer]
    return base * (batch_size / 256) ** power
