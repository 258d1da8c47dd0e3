"""Measuring a network on a set: what `xnext evaluate` tells and writes."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xnext._figures import write_figure
from xnext._files import write_atomic
from xnext.data import ImageData, ImageDataset, build_eval_transform, build_loader
from xnext.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from xnext.errors import UserError
from xnext.evaluation.accuracy import evaluate
from xnext.evaluation.answers import (
    Answers,
    collect,
    count_classes,
    count_confusions,
    draw_reliability,
    summarise,
)
from xnext.evaluation.predict import Classifier
from xnext.evaluation.sets import CLASSES, TestSet, load_set

_MOST_CONFUSED = 5


@dataclass(frozen=True, kw_only=True)
class Pass:
    """How a network is shown the images of a set.

    Attributes:
        classifier: The network.
        batch_size: Images at once.
        workers: Processes that load images.
        mirrored: Whether each image is seen mirrored too.
        watch: Passes batches on under a title, to show progress.
    """

    classifier: Classifier
    batch_size: int = 64
    workers: int = 0
    mirrored: bool = False
    watch: Callable[[Iterable[Any], str], Iterable[Any]] = lambda batches, title: batches

    def batches(self, dataset: ImageDataset, title: str) -> Iterable[Any]:
        """Return the batches of a set."""
        return self.watch(build_loader(dataset, batch_size=self.batch_size, workers=self.workers), title)

    def ask(self, test: TestSet, title: str, change: Callable[..., Any] | None = None) -> Answers:
        """Ask the network about all images of a set.

        Args:
            test: The set.
            title: What is being done.
            change: What is done to each picture once it has the network's size.
        """
        transform = build_eval_transform(self.classifier.preprocessing, change)
        dataset = ImageDataset(test.source, transform, training=False)
        right = test.right if test.columns is None else test.right[:, test.columns]
        return collect(
            self.classifier.model, self.batches(dataset, title), right, self.classifier.device,
            columns=test.columns, mirrored=self.mirrored,
        )  # fmt: skip


def measure_several(how: Pass, data: ImageData) -> dict[str, Any]:
    """Measure a network of several classes an image on held-out images.

    Raises:
        UserError: Its outputs are not finite, or no image can be read.
    """
    dataset = ImageDataset(data.val, build_eval_transform(how.classifier.preprocessing), training=False)
    result = evaluate(
        how.classifier.model, how.batches(dataset, "evaluating"), num_classes=len(data.classes),
        device=how.classifier.device, multilabel=True,
    )  # fmt: skip
    if not np.isfinite(result.metrics["loss"]):
        raise UserError("the outputs of the network are not finite; train again, or take other weights")
    bad = [data.val.name(index) for index in result.bad_images]
    return {**result.metrics, "images": result.images, "bad_images": bad}


def measure_data(how: Pass, data: ImageData, folder: Path | None = None) -> dict[str, Any]:
    """Measure a network on held-out images of its own classes.

    Args:
        how: The network, and how it is asked.
        data: Of which the held-out images are taken.
        folder: Where tables and pictures are written; None: nowhere.
    """
    test = own_set(data)
    return describe(how.classifier, test, how.ask(test, "evaluating"), folder)


def measure_corrupted(how: Pass, data: ImageData) -> dict[str, Any]:
    """Measure a network on held-out images that were made worse, each in every way and severity."""
    test, found = own_set(data), dict[str, list[float]]()
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            change = partial(corrupt, name=name, severity=severity)
            answers = how.ask(test, f"{name}, severity {severity}", change)
            found.setdefault(name, []).append(100 * float(answers.hits[:, 0].mean()))
    mean = float(np.mean([value for values in found.values() for value in values]))
    return {"set": "corrupted", "corrupted_top1": mean, "corrupted": found}


def measure_set(how: Pass, name: str, spec: str, folder: Path | None = None) -> dict[str, Any]:
    """Measure a network on one of the sets of ImageNet.

    Args:
        how: The network, and how it is asked.
        name: One of ``SETS``.
        spec: Where its images are.
        folder: Where tables and pictures are written; None: nowhere.

    Raises:
        UserError: The network has other classes, or the images are not such a set.
    """
    test = imagenet_set(how.classifier, name, spec)
    report: dict[str, Any] = {"data": spec, "set": name}
    if test.columns is None:
        return report | describe(how.classifier, test, how.ask(test, name), folder)
    free = summarise(how.ask(TestSet(test.source, test.right), f"{name}, all classes"))
    answers = how.ask(test, f"{name}, its own classes")
    return report | describe(how.classifier, test, answers, folder) | {
        "among": len(test.columns),
        "among_all": {key: asdict(estimate) for key, estimate in free.items()},
    }  # fmt: skip


def imagenet_set(classifier: Classifier, name: str, spec: str) -> TestSet:
    """Load one of the sets of ImageNet for a network.

    Args:
        classifier: The network.
        name: One of ``SETS``.
        spec: Where its images are.

    Raises:
        UserError: The network has other classes, or the images are not such a set.
    """
    if (count := len(classifier.classes)) != CLASSES:
        raise UserError(
            f"--set {name} is for networks with ImageNet's {CLASSES} classes; this one has {count}"
        )
    return load_set(name, spec)


def own_set(data: ImageData) -> TestSet:
    """Return the held-out images of data of one class an image, as a set."""
    right = np.zeros((len(data.val), len(data.classes)), dtype=bool)
    right[np.arange(len(right)), data.val.labels] = True
    return TestSet(data.val, right)


def describe(
    classifier: Classifier, test: TestSet, answers: Answers, folder: Path | None = None
) -> dict[str, Any]:
    """Return what follows from a network's answers; write tables and the reliability picture.

    Args:
        classifier: The network.
        test: What it was asked about.
        answers: What it said.
        folder: Where to write, which exists; None: nowhere.
    """
    names = [classifier.classes[place] for place in test.places]
    estimates = summarise(answers)
    confusions = [(names[true], names[said], count) for true, said, count in count_confusions(answers)]
    if folder is not None:
        rows = [
            (names[index], images, recognised, answered, f"{100 * recognised / images:.2f}")
            for index, images, recognised, answered in count_classes(answers)
        ]
        _write_csv(folder / "classes.csv", ("class", "images", "recognised", "answered", "recall"), rows)
        _write_csv(folder / "confusions.csv", ("true", "answered", "images"), confusions)
        figure = draw_reliability(answers, f"{classifier.name}: {len(answers.loss)} images")
        write_figure(folder / "reliability.png", figure)
    return {
        **{name: estimate.value for name, estimate in estimates.items()},
        "intervals": {name: [estimate.low, estimate.high] for name, estimate in estimates.items()},
        "most_confused": confusions[:_MOST_CONFUSED],
        "images": len(answers.loss),
        "bad_images": [test.source.name(index) for index in answers.bad_images],
    }


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode("utf-8", "replace"))
