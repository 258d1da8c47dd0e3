"""Using a trained network: load it from what a training left, and name the class of pictures."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from xnext.data import (
    BadImageError,
    FileSource,
    ImageSource,
    Preprocessing,
    build_eval_transform,
    unlabelled,
)
from xnext.deploy import Runtime, is_artefact
from xnext.deploy.network import Served
from xnext.errors import UserError, shorten, suggest
from xnext.models import create_model, list_models, load_checkpoint, read_metadata
from xnext.models._checkpoints import load_unchanged, read_tensors, read_weights
from xnext.models._registry import create_variant
from xnext.training.run import Run

_PROBABLE = 0.5  # of classes that do not exclude each other, those that rather are in an image


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained network with all that its use takes.

    Attributes:
        model: Maps images [N, C, H, W] to logits [N, classes]; in evaluation mode, on ``device``.
        name: The model's name.
        classes: Name of each class. For published weights, which carry none: ImageNet's English names if
            there are 1,000 classes, otherwise the indices.
        named: Whether the checkpoint itself named the classes.
        preprocessing: How an image becomes the network's input.
        device: Where the model is.
        data: The data spec that it was trained on, if the checkpoint says so.
        seed: The seed of that training, which may have decided what was held out.
        multilabel: Whether an image may have several classes, each with a probability of its own.
    """

    model: nn.Module
    name: str
    classes: tuple[str, ...]
    named: bool
    preprocessing: Preprocessing
    device: torch.device
    data: str | None = None
    seed: int = 0
    multilabel: bool = False

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each class for logits [N, classes]."""
        return logits.float().sigmoid() if self.multilabel else logits.float().softmax(dim=1)

    def class_index(self, target: str) -> int:
        """Return the index of a class given by its name or, failing that, by its index.

        Raises:
            UserError: There is no such class; the line gives the nearest names.
        """
        if target in self.classes:
            return self.classes.index(target)
        if target.isdecimal() and int(target) < len(self.classes):
            return int(target)
        hint = suggest(target, self.classes) or f" It knows {shorten(self.classes, limit=20)}."
        raise UserError(f"{self.name} knows no class {target!r}.{hint}")


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    Attributes:
        image: The file.
        classes: Class names and probabilities (0 to 1), the most probable first; empty if unreadable.
        error: Why the image could not be read, or None.
    """

    image: Path
    classes: tuple[tuple[str, float], ...]
    error: str | None = None


def knows_its_network(checkpoint: Path) -> bool:
    """Return whether a run or a weight file says itself which network it belongs to.

    Raises:
        UserError: A file cannot be read.
    """
    return not checkpoint.is_file() or is_artefact(checkpoint) or read_metadata(checkpoint) is not None


def weights_file(checkpoint: Path) -> Path:
    """Return the best weights of a run folder; a weight file is its own.

    Raises:
        UserError: There are none.
    """
    if checkpoint.is_dir():
        best = Run.open(checkpoint).best
        if not best.exists():
            raise UserError(f"{checkpoint} holds no weights, since no epoch was finished; train again")
        return best
    if not checkpoint.exists():
        raise UserError(f"there is no run and no weight file {checkpoint}")
    return checkpoint


def choose_device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def load_classifier(checkpoint: Path | None, model: str | None = None) -> Classifier:
    """Load a trained network onto the accelerator if there is one, else the CPU.

    Args:
        checkpoint: A run folder (its best weights are taken), a checkpoint of ours, what `xnext export`
            wrote, or published weights; None: those of the hub.
        model: Name of the network that published weights belong to, this project's or timm's.

    Raises:
        UserError: Nothing usable is there, or it belongs to another network.
    """
    if checkpoint is not None and is_artefact(checkpoint):
        return _load_artefact(checkpoint, model)
    path, training, multilabel = checkpoint and weights_file(checkpoint), {}, False
    metadata = None if path is None else read_metadata(path)
    if path is not None and metadata is not None:
        name = metadata["model_name"]
        extra = metadata.get("extra", {})
        training, multilabel = extra.get("train_config", {}), bool(extra.get("multilabel"))
        if decoder := training.get("decoder"):
            raise UserError(
                f"{checkpoint} is a segmentation network ({name} with {decoder}), no classifier; use"
                " `xnext segment evaluate` or `xnext segment predict`"
            )
        if model not in (None, name):
            raise UserError(f"{path} holds the network {name}, not {model}; leave --model out")
        classes = tuple(metadata["classes"])
        preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
        sizes = {"num_classes": len(classes), "in_chans": preprocessing.in_chans}
        network = create_variant(name, metadata["model_args"], **sizes)
        if (report := load_checkpoint(network, path)).new_classes:
            raise UserError(
                f"{path} has damaged metadata: {len(classes)} classes, but {report.new_classes[0]} outputs"
            )
    elif model is not None:
        name = model
        network, classes = _load_published(path, name)
        preprocessing = Preprocessing.for_model(network, tested=True)
    else:
        raise UserError(
            f"{path} does not say which network it belongs to; add --model NAME (see `xnext models`)"
        )
    device = choose_device()
    return Classifier(
        model=network.to(device).eval(),
        name=name,
        classes=classes,
        named=metadata is not None,
        data=training.get("data"),
        seed=training.get("seed", 0),
        multilabel=multilabel,
        preprocessing=preprocessing,
        device=device,
    )


def predict(
    classifier: Classifier, images: Sequence[Path], topk: int | None = 5, batch_size: int = 32
) -> Iterator[Prediction]:
    """Yield a prediction for every image, in order, batch by batch.

    Args:
        classifier: What :func:`load_classifier` returned.
        images: Image files.
        topk: As ``answer``.
        batch_size: As ``answer``.
    """
    source = FileSource(images, unlabelled(len(images)))
    for path, said in zip(images, answer(classifier, source, topk, batch_size), strict=True):
        if isinstance(said, BadImageError):
            yield Prediction(path, (), str(said))
        else:
            yield Prediction(path, said)


def answer(
    classifier: Classifier,
    source: ImageSource,
    topk: int | None,
    batch_size: int,
    threads: int | None = None,
) -> Iterator[tuple[tuple[str, float], ...] | BadImageError]:
    """Yield the classes of every image of a source with their probabilities, or why it cannot be read.

    Args:
        classifier: What :func:`load_classifier` returned.
        source: The images.
        topk: Classes to name for each image, the most probable first; all of them if there are fewer. None:
            the most probable one, and if an image may have several all that are as probable as not.
        batch_size: Images that go through the network at once; the next ones are read meanwhile.
        threads: That read images; by default as many as are usual on this machine.
    """
    transform = build_eval_transform(classifier.preprocessing)

    def read(index: int) -> Tensor | BadImageError:
        try:
            return transform(source.read(index))
        except BadImageError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, len(source), batch_size)
        batches = (pool.map(read, range(start, min(start + batch_size, len(source)))) for start in starts)
        ahead = next(batches, iter(()))
        while inputs := list(ahead):
            ahead = next(batches, iter(()))
            readable = [x for x in inputs if isinstance(x, Tensor)]
            answers = iter(most_probable(classifier, torch.stack(readable), topk) if readable else ())
            for x in inputs:
                yield x if isinstance(x, BadImageError) else next(answers)


def most_probable(
    classifier: Classifier, inputs: Tensor, topk: int | None
) -> list[tuple[tuple[str, float], ...]]:
    """Return for each image of a batch [N, C, H, W] its classes with their probabilities, as ``predict``."""
    with torch.inference_mode():
        logits = classifier.model(inputs.to(classifier.device))
    if not logits.isfinite().all():
        raise UserError(
            f"the outputs of {classifier.name} are not finite; train again, or take other weights"
        )
    several = topk is None and classifier.multilabel
    count = len(classifier.classes) if several else min(topk or 1, len(classifier.classes))
    top = classifier.probabilities(logits).topk(count)
    return [
        tuple(
            (classifier.classes[index], probability)
            for place, (index, probability) in enumerate(zip(*row, strict=True))
            if not several or place == 0 or probability >= _PROBABLE
        )
        for row in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _load_artefact(path: Path, model: str | None) -> Classifier:
    """Load what `xnext export` wrote, which says all of itself, into the place of a network."""
    runtime = Runtime(path, threads=torch.get_num_threads())
    about = runtime.artefact
    if model not in (None, about.model_name):
        raise UserError(f"{path} holds the network {about.model_name}, not {model}; leave --model out")
    network = Served(runtime).eval()
    return Classifier(
        model=network, name=about.model_name, classes=about.classes, named=True,
        preprocessing=network.preprocessing, device=torch.device("cpu"), multilabel=about.multilabel,
    )  # fmt: skip


def _load_published(path: Path | None, name: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Load weights that say nothing about themselves; return the network and names for its classes."""
    if path is None:
        network: Any = create_model(name, pretrained=True)
    elif name in list_models():
        head = read_weights(path)[1].get("head.fc.weight")
        network = create_model(name) if head is None else create_model(name, num_classes=len(head))
        load_checkpoint(network, path)
    else:
        network = create_model(name)
        state = read_tensors(path)
        head = state.get(f"{network.pretrained_cfg.get('classifier')}.weight")
        if head is not None and len(head) != network.num_classes:
            network = create_model(name, num_classes=len(head))
        load_unchanged(network, state, str(path))
    imagenet, count = ImageNetInfo(), network.num_classes
    if count == imagenet.num_classes():
        return network, tuple(imagenet.index_to_description(index).split(",")[0] for index in range(count))
    return network, tuple(map(str, range(count)))
