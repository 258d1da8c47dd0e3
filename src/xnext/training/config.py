"""What a training run is told: one frozen value, written beside its results."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from timm.optim import get_optimizer_info, list_optimizers

from xnext._types import check_types
from xnext.data import Augment
from xnext.errors import UserError, suggest
from xnext.kernels import Backend
from xnext.training.schedule import LEARNING_RATES, learning_rate, parse_duration, parse_rate

_HEADER = """\
# What this run was told. Run it again: {command} --config THIS_FILE --output ANOTHER_FOLDER
# Rates and warm-up are written out; for other epochs or another batch size, remove them to have them
# derived anew.
"""

# The learning rate starts and ends at this share of its peak, unless told otherwise.
_LOWEST = 0.01
_SMOOTHING = 0.1  # of labels, for one class an image
_LARGEST_IMAGE = 4096  # pixels a side; more is a typing error, and takes all memory
_MOST_WORKERS = 512  # likewise

OF_SEGMENTATION = ("decoder",)
OF_CLASSIFIERS = (
    "loss", "bce_threshold", "label_smoothing", "class_weights", "mixup", "cutmix", "auto_augment",
    "random_erasing", "color_jitter", "crop_pct", "drop_rate", "loader",
)  # fmt: skip
"""Fields that only one kind of training has; the config.yaml of the other kind is without them."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run; equal values give equal runs on a CPU.

    Attributes:
        model: Name of the network; `xnext models` lists them. Or the YAML file of a search's winner.
        data: Images to learn from: `digits`, a folder, a table of paths and labels, `hf:NAME_OR_FOLDER`,
            `torch/NAME` or `wds:SHARDS`; for a segmentation a folder or `hf:NAME_OR_FOLDER`, with masks.
        output: Folder to create for the run; it must not exist or be empty.
        epochs: Passes over the training images.
        decoder: What makes a segmentation network of it, which names a class for every place.
        image_size: Side of the square input in pixels; None: the size the network was made for.
        batch_size: Images a training step, over all processes.
        device_batch_size: Most images that a device computes at once; None: all of its share of a batch.
        val_batch_size: Images of a validation step; None: as many as `batch_size`.
        optimizer: Optimiser by its timm name.
        momentum: Momentum of SGD and RMSprop; None: 0.9.
        opt_eps: Epsilon of the optimiser; None: its own.
        opt_betas: Decay rates of the optimiser's averages; None: its own.
        lr: Peak learning rate; `4e-3/4096` is a rate for batches of 4096, scaled to `batch_size`; None: one
            that suits the optimiser and the batch size.
        weight_decay: Decay of the weights; norms and biases have none.
        layer_decay: Factor of the learning rate from each layer to the one before it; None: all alike.
        schedule: Course of the learning rate after the warm-up: cosine, poly, step or constant.
        min_lr: Where the cosine or the polynomial ends; None: a hundredth of `lr`.
        power: Of the polynomial.
        decay_rate: Factor of the learning rate at each decay of the step schedule.
        decay_every: Time between two decays, e.g. `2 epochs` or `3e6 samples`.
        warmup: Time of linear rise to `lr`, e.g. `5 epochs` or `500 steps`; None: a tenth of `epochs`.
        warmup_lr: Where the rise begins; None: a hundredth of `lr`.
        clip_grad: Largest norm of the whole gradient; None: not clipped.
        loss: Cross-entropy (ce), or binary cross-entropy of each class (bce); None: bce where images may have
            several classes, otherwise ce.
        bce_threshold: Above it a blended target counts as 1 for bce, below as 0; None: as blended.
        label_smoothing: Share of the target spread evenly over all classes, 0 to less than 1; None: 0.1,
            or 0 where images may have several classes.
        class_weights: Weight of each class in the loss: none, auto (rare ones weigh more), or a YAML file of
            class names and weights.
        mixup: Beta distribution's alpha for blending pairs of images; 0: off.
        cutmix: Beta distribution's alpha for pasting a box of another image; 0: off.
        augment: Random changes of the training images: none, flip, light or strong.
        auto_augment: Policy by its timm name, such as rand-m9-mstd0.5-inc1; None: that of `augment`.
        random_erasing: Probability of erasing a box of the image; None: that of `augment`.
        color_jitter: Strength of random brightness, contrast and saturation; None: that of `augment`.
        repeats: Times that an image comes in an epoch, which then has as many images less.
        crop_pct: Share of the shorter side that is evaluated; None: what the network was made for.
        drop_rate: Dropout before the classifier, 0 to less than 1.
        drop_path_rate: Largest probability of skipping a residual block, 0 to less than 1.
        model_ema: Decay a step of averaged weights, which are then evaluated and saved; 0: off.
        ema_buffers: Statistics of batch norm in the averaged network: average them too, or copy the last.
        freeze: Time at the start in which only the classifier learns, e.g. `1 epoch`.
        patience: Epochs without a better one after which the training ends; None: never.
        on_nonfinite: When a loss or gradient is not finite: stop, or rollback to the last state and go on
            with half the learning rate, up to 3 times.
        save_every: Time between two states to go on from, e.g. `500 steps`; None: an epoch.
        keep: States to go on from that stay: the newest ones.
        seed: Start of every random choice: weights, order, augmentation, split.
        checkpoint: Weights to start from, a file or a run; a head for other classes is initialised anew.
        pretrained: Start from the network's published weights, unless there is a checkpoint.
        model_args: Further fields of the network's config, e.g. `{"strides": [1, 2, 2, 2]}`.
        loader: images: decode and change them one by one; memory: keep small images, up to 127 pixels,
            decoded in one array and change them in batches on the device.
        workers: Processes that load images, with loader images; 0: the training process itself.
        device: Where to train: auto (a GPU if there is one), cpu or cuda.
        amp: Mixed precision: off, bf16 or fp16 (fp16 needs a GPU).
        channels_last: Keep the channels of images side by side in memory, which depthwise convolutions like.
        kernels: Who computes depthwise convolutions: auto (this project's kernels where they were measured to
            be faster), triton (these, or an error), torch.
        compile: Compile the network with torch.compile, which takes a minute before the first step.
        grad_checkpointing: Compute activations again instead of keeping them: less memory, more time.
        sync_bn: Normalise over the batch of all processes, on GPUs.
        bn_momentum: Share of a batch in the running statistics of batch norms; None: the network's. More than
            its 0.1 suits trainings of few steps, whose statistics would lag behind.
        local_sgd: Steps between two averagings of the processes' weights, which after the warm-up replace
            the averaging of gradients (post-local SGD); None: average gradients.
        tensorboard: Also write the metrics for TensorBoard into the run's folder `tensorboard`.
        max_bad_images: Share of unreadable training images above which the run stops, 0 to 1.
    """

    model: str
    data: str
    output: Path
    epochs: int = 30
    decoder: Literal["upernet", "fpn"] | None = None
    image_size: int | None = None
    batch_size: int = 32
    device_batch_size: int | None = None
    val_batch_size: int | None = None
    optimizer: str = "adamw"
    momentum: float | None = None
    opt_eps: float | None = None
    opt_betas: tuple[float, ...] | None = None
    lr: float | str | None = None
    weight_decay: float = 0.05
    layer_decay: float | None = None
    schedule: Literal["cosine", "poly", "step", "constant"] = "cosine"
    min_lr: float | None = None
    power: float = 1.0
    decay_rate: float = 0.94
    decay_every: float | str = "2 epochs"
    warmup: float | str | None = None
    warmup_lr: float | None = None
    clip_grad: float | None = None
    loss: Literal["ce", "bce"] | None = None
    bce_threshold: float | None = None
    label_smoothing: float | None = None
    class_weights: str = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    augment: Augment = "light"
    auto_augment: str | None = None
    random_erasing: float | None = None
    color_jitter: float | None = None
    repeats: int = 1
    crop_pct: float | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    model_ema: float = 0.0
    ema_buffers: Literal["average", "copy"] = "average"
    freeze: float | str = 0
    patience: int | None = None
    on_nonfinite: Literal["stop", "rollback"] = "stop"
    save_every: float | str | None = None
    keep: int = 2
    seed: int = 0
    checkpoint: Path | None = None
    pretrained: bool = False
    model_args: dict[str, Any] = field(default_factory=dict)
    loader: Literal["images", "memory"] = "images"
    workers: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["off", "bf16", "fp16"] = "off"
    channels_last: bool = True
    kernels: Backend = "auto"
    compile: bool = False
    grad_checkpointing: bool = False
    sync_bn: bool = False
    bn_momentum: float | None = None
    local_sgd: int | None = None
    tensorboard: bool = False
    max_bad_images: float = 0.01

    def __post_init__(self) -> None:
        check_types(self)
        self._check_numbers()
        self._check_optimizer()
        if self.mixes and self.batch_size % 2:
            raise UserError(
                f"mixup and cutmix pair the images of a batch: batch_size {self.batch_size} must be even"
            )
        if self.workers and self.loader == "memory":
            raise UserError("workers load images one by one, which loader memory does not; leave them out")
        if self.decoder is not None:
            self._check_segmentation()
        for name in ("warmup", "decay_every", "save_every", "freeze"):
            try:
                parse_duration(getattr(self, name) or 0)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
        if self.lr is not None:
            parse_rate(self.lr)

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

    def resolve(self, image_size: int, multilabel: bool = False) -> "TrainConfig":
        """Return this config with the values filled in that None stands for, so that it can be run again.

        Args:
            image_size: Side in pixels of the images that the network is fed.
            multilabel: Whether an image may have several classes.

        Raises:
            UserError: There is no learning rate rule for the optimiser, or the loss does not fit the labels.
        """
        rate = learning_rate(self.optimizer, self.batch_size, self.lr)
        if multilabel and self.loss == "ce":
            raise UserError(
                "loss ce is for one class an image, and these images have several; use --loss bce"
            )
        smoothing = 0.0 if multilabel or self.decoder else _SMOOTHING
        return dataclasses.replace(
            self,
            image_size=image_size,
            lr=rate,
            min_lr=_LOWEST * rate if self.min_lr is None else self.min_lr,
            warmup=f"{self.epochs / 10:g} epochs" if self.warmup is None else self.warmup,
            warmup_lr=_LOWEST * rate if self.warmup_lr is None else self.warmup_lr,
            loss=None if self.decoder else self.loss or ("bce" if multilabel else "ce"),
            label_smoothing=smoothing if self.label_smoothing is None else self.label_smoothing,
        )

    @property
    def command(self) -> str:
        """The command that trains by it."""
        return "xnext train" if self.decoder is None else "xnext segment train"

    @property
    def peak_lr(self) -> float:
        """The peak learning rate of a resolved config."""
        assert isinstance(self.lr, float | int), "the config is not resolved"
        return self.lr

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that YAML and JSON hold; paths stay as they were given.

        Fields that are not of its kind, a classifier or a segmentation, are left out.
        """
        plain = {Path: str, tuple: list}
        others = OF_SEGMENTATION if self.decoder is None else OF_CLASSIFIERS
        values = ((key, value) for key, value in dataclasses.asdict(self).items() if key not in others)
        kinds = (
            (key, value, next((k for k in plain if isinstance(value, k)), None)) for key, value in values
        )
        return {key: value if kind is None else plain[kind](value) for key, value, kind in kinds}

    def to_yaml(self) -> str:
        """Return the config as the YAML that ``--config`` takes, with a header that says so."""
        return _HEADER.format(command=self.command) + yaml.safe_dump(
            self.to_dict(), sort_keys=False, allow_unicode=True
        )

    def _check_numbers(self) -> None:
        """Raise a ``UserError`` for the first number that is out of its range."""
        ranges: dict[str, tuple[float, float]] = {
            "epochs": (1, math.inf),
            "image_size": (1, _LARGEST_IMAGE),
            "batch_size": (2, math.inf),
            "device_batch_size": (1, math.inf),
            "val_batch_size": (1, math.inf),
            "bn_momentum": (0, 1),
            "momentum": (0, 1),
            "weight_decay": (0, math.inf),
            "min_lr": (0, math.inf),
            "warmup_lr": (0, math.inf),
            "bce_threshold": (0, 1),
            "random_erasing": (0, 1),
            "color_jitter": (0, math.inf),
            "repeats": (1, math.inf),
            "mixup": (0, math.inf),
            "cutmix": (0, math.inf),
            "keep": (1, math.inf),
            "patience": (1, math.inf),
            "local_sgd": (2, math.inf),
            "seed": (0, 2**32 - 1),
            "workers": (0, _MOST_WORKERS),
            "max_bad_images": (0, 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and value < math.inf):
                limits = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                raise UserError(f"{name} is {value}; it must be {limits}")
        for name in ("label_smoothing", "drop_rate", "drop_path_rate", "model_ema"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0 and less than 1")
        most = {
            "clip_grad": math.inf,
            "power": math.inf,
            "opt_eps": math.inf,
            "decay_rate": 1,
            "layer_decay": 1,
            "crop_pct": 1,
        }
        for name, limit in most.items():
            value = getattr(self, name)
            if value is not None and not (0 < value <= limit and value < math.inf):
                more = "" if limit == math.inf else f" and at most {limit}"
                raise UserError(f"{name} is {value}; it must be more than 0{more}")

    def _check_segmentation(self) -> None:
        """Raise a ``UserError`` for what is only for classifiers."""
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        for name in OF_CLASSIFIERS:
            if (value := getattr(self, name)) not in (fields[name], 0):
                raise UserError(f"{name} {value!r} is for classifiers; leave it out, or the decoder")

    def _check_optimizer(self) -> None:
        """Raise a ``UserError`` for an optimiser that timm does not have, or its betas."""
        known = [str(name) for name in list_optimizers()]
        if self.optimizer not in known:
            hint = (
                suggest(self.optimizer, known)
                or f" There are {', '.join(LEARNING_RATES)} and more of timm's."
            )
            raise UserError(f"optimizer {self.optimizer!r} does not exist.{hint}")
        info, betas = get_optimizer_info(self.optimizer), self.opt_betas
        if betas is not None and info.has_betas and len(betas) != info.num_betas:
            raise UserError(f"opt_betas {list(betas)}: {self.optimizer} has {info.num_betas} of them")
