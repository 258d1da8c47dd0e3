"""`xnext evaluate`: how good a trained network is."""

import csv
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
from jsonargparse import Namespace

from xnext._figures import write_figure
from xnext._files import make_folder, write_atomic
from xnext._parser import Parser
from xnext.cli._common import DATA_HELP, MODEL_HELP, Verb, at_least, new_table, print_table, watched
from xnext.data import (
    ImageData,
    ImageDataset,
    build_eval_transform,
    build_loader,
    check_same_classes,
    load_data,
)
from xnext.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from xnext.errors import UserError, suggest
from xnext.evaluation.accuracy import METRICS, evaluate
from xnext.evaluation.answers import (
    Answers,
    collect,
    count_classes,
    count_confusions,
    draw_reliability,
    summarise,
)
from xnext.evaluation.predict import Classifier, load_classifier
from xnext.evaluation.sets import CLASSES, SETS, TestSet, load_set

_CORRUPTED = "corrupted"
_MOST_CONFUSED = 5
_LABELS = METRICS | {"calibration_error": "calibration error"}


def _evaluate_options(parser: Parser) -> None:
    parser.add_argument(
        "run", type=Path | None, nargs="?", metavar="RUN|MODEL",
        help="Folder that `xnext train` left, or a network of this project or timm, with published weights.",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=Path | None, metavar="FILE", help="Weights, instead of a RUN.")
    parser.add_argument("--model", type=str | None, metavar="NAME", help=MODEL_HELP)
    parser.add_argument(
        "--data",
        type=str | None,
        metavar="SPEC",
        help=f"{DATA_HELP} Default: what RUN held out of its training.",
    )
    kinds = "; ".join(f"{name}: {kind.what}" for name, kind in SETS.items())
    parser.add_argument(
        "--set", type=str | None, metavar="NAME",
        help=f"What the images are. {kinds}; {_CORRUPTED}: any images, made worse.",
    )  # fmt: skip
    parser.add_argument(
        "--tta", action="store_true", help="Look at each image mirrored too, and average the probabilities."
    )
    parser.add_argument(
        "--output", type=Path | None, metavar="FOLDER",
        help="Write report.json, classes.csv, confusions.csv and reliability.png there.",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="Images at once.")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="Processes that load images; 0: the command itself.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")


def _evaluate(arguments: Namespace) -> int:
    started = time.perf_counter()
    at_least(arguments, "batch_size", 1)
    at_least(arguments, "workers", 0)
    if arguments.set not in (None, *SETS, _CORRUPTED):
        names = [*SETS, _CORRUPTED]
        nearest = suggest(arguments.set, names) or f" Choose from {', '.join(names)}."
        raise UserError(f"--set {arguments.set!r} is unknown.{nearest}")
    if arguments.set in SETS and arguments.data is None:
        raise UserError(f"--set {arguments.set} needs --data FOLDER, where its images are")
    classifier, source = _load(arguments)
    report: dict[str, Any] = {"model": classifier.name}
    if arguments.set in SETS:
        report |= _measure_set(arguments, classifier)
    else:
        data = _evaluation_data(arguments.data, classifier, source)
        _require_same_classes(classifier, data, source)
        report |= {"data": data.name} | _measure_data(arguments, classifier, data)
    report["seconds"] = round(time.perf_counter() - started, 3)
    if arguments.output is not None:
        write_atomic(arguments.output / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    if arguments.json:
        print(json.dumps(report))
    else:
        _print_report(report)
        if arguments.output is not None:
            print(f"wrote {arguments.output}")
    return 0


def _load(arguments: Namespace) -> tuple[Classifier, str]:
    """Return the network, and what it is called in messages."""
    if (arguments.run is None) == (arguments.checkpoint is None):
        raise UserError("give either a RUN or --checkpoint FILE; see xnext evaluate --help")
    name = str(arguments.run)
    if arguments.run is not None and not arguments.run.exists() and timm.is_model(name.partition(".")[0]):
        return load_classifier(None, name), name
    checkpoint = arguments.run or arguments.checkpoint
    return load_classifier(checkpoint, arguments.model), str(checkpoint)


def _measure_data(arguments: Namespace, classifier: Classifier, data: ImageData) -> dict[str, Any]:
    """Measure the network on the held-out images of a set with its own classes."""
    if data.multilabel:
        if arguments.set or arguments.tta or arguments.output:
            raise UserError("--set, --tta and --output are for one class an image; leave them out")
        dataset = ImageDataset(data.val, build_eval_transform(classifier.preprocessing), training=False)
        result = evaluate(
            classifier.model, watched(_loader(arguments, dataset), "evaluating"),
            num_classes=len(data.classes), device=classifier.device, multilabel=True,
        )  # fmt: skip
        if not np.isfinite(result.metrics["loss"]):
            raise UserError("the outputs of the network are not finite; train again, or take other weights")
        bad = [data.val.name(index) for index in result.bad_images]
        return {**result.metrics, "images": result.images, "bad_images": bad}
    right = np.zeros((len(data.val), len(data.classes)), dtype=bool)
    right[np.arange(len(right)), data.val.labels] = True
    test = TestSet(data.val, right)
    answers = _ask(arguments, classifier, test, "evaluating")
    report = _describe(arguments, classifier, test, answers)
    if arguments.set == _CORRUPTED:
        report |= _measure_corrupted(arguments, classifier, test)
    return report


def _measure_set(arguments: Namespace, classifier: Classifier) -> dict[str, Any]:
    """Measure the network on one of the sets of ImageNet."""
    if len(classifier.classes) != CLASSES:
        raise UserError(
            f"--set {arguments.set} is for networks with ImageNet's {CLASSES} classes; this one has"
            f" {len(classifier.classes)}"
        )
    test = load_set(arguments.set, arguments.data)
    report: dict[str, Any] = {"data": arguments.data, "set": arguments.set}
    if test.columns is None:
        return report | _describe(
            arguments, classifier, test, _ask(arguments, classifier, test, arguments.set)
        )
    everything = TestSet(test.source, test.right)
    free = summarise(_ask(arguments, classifier, everything, f"{arguments.set}, all classes"))
    answers = _ask(arguments, classifier, test, f"{arguments.set}, its own classes")
    return report | _describe(arguments, classifier, test, answers) | {
        "among": len(test.columns),
        "among_all": {name: asdict(estimate) for name, estimate in free.items()},
    }  # fmt: skip


def _measure_corrupted(arguments: Namespace, classifier: Classifier, test: TestSet) -> dict[str, Any]:
    """Measure the network on images that were made worse, each in every way and severity."""
    found: dict[str, list[float]] = {}
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            change = partial(corrupt, name=name, severity=severity)
            answers = _ask(arguments, classifier, test, f"{name}, severity {severity}", change)
            found.setdefault(name, []).append(100 * float(answers.hits[:, 0].mean()))
    mean = float(np.mean([value for values in found.values() for value in values]))
    return {"set": _CORRUPTED, "corrupted_top1": mean, "corrupted": found}


def _ask(
    arguments: Namespace,
    classifier: Classifier,
    test: TestSet,
    title: str,
    change: Callable[..., Any] | None = None,
) -> Answers:
    """Ask the network about all images of a set."""
    transform = build_eval_transform(classifier.preprocessing, change)
    dataset = ImageDataset(test.source, transform, training=False)
    right = test.right if test.columns is None else test.right[:, test.columns]
    return collect(
        classifier.model, watched(_loader(arguments, dataset), title), right, classifier.device,
        columns=test.columns, mirrored=arguments.tta,
    )  # fmt: skip


def _loader(arguments: Namespace, dataset: ImageDataset) -> Any:
    return build_loader(dataset, batch_size=arguments.batch_size, workers=arguments.workers)


def _describe(
    arguments: Namespace, classifier: Classifier, test: TestSet, answers: Answers
) -> dict[str, Any]:
    """Return what follows from a network's answers; write what is wanted of it."""
    places = range(len(classifier.classes)) if test.columns is None else test.columns.tolist()
    names = [classifier.classes[place] for place in places]
    estimates = summarise(answers)
    confusions = [(names[true], names[said], count) for true, said, count in count_confusions(answers)]
    if arguments.output is not None:
        make_folder(arguments.output)
        rows = [
            (names[index], images, recognised, answered, f"{100 * recognised / images:.2f}")
            for index, images, recognised, answered in count_classes(answers)
        ]
        _write_csv(arguments.output / "classes.csv", "class,images,recognised,answered,recall", rows)
        _write_csv(arguments.output / "confusions.csv", "true,answered,images", confusions)
        figure = draw_reliability(answers, f"{classifier.name}: {len(answers.loss)} images")
        write_figure(arguments.output / "reliability.png", figure)
    return {
        **{name: estimate.value for name, estimate in estimates.items()},
        "intervals": {name: [estimate.low, estimate.high] for name, estimate in estimates.items()},
        "most_confused": confusions[:_MOST_CONFUSED],
        "images": len(answers.loss),
        "bad_images": [test.source.name(index) for index in answers.bad_images],
    }


def _write_csv(path: Path, header: str, rows: list[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header.split(","))
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode("utf-8", "replace"))


def _evaluation_data(spec: str | None, classifier: Classifier, source: str) -> ImageData:
    """Load the data of a spec, by default those of the training; split as for it."""
    if spec is None and classifier.data is None:
        raise UserError(f"{source} does not say which images to take; add --data SPEC")
    try:
        return load_data(spec or str(classifier.data), seed=classifier.seed)
    except UserError as error:
        raise (
            error if spec else UserError(f"{error} (what {source} was trained on; add --data SPEC)")
        ) from error


def _require_same_classes(classifier: Classifier, data: ImageData, source: str) -> None:
    """Refuse data whose labels mean something else to the network, in a line that lists the difference."""
    if classifier.named and classifier.multilabel != data.multilabel:
        kinds = ("one class an image", "several classes an image")
        raise UserError(
            f"{source} was trained for {kinds[classifier.multilabel]}, but {data.name} has"
            f" {kinds[data.multilabel]}; give other --data"
        )
    if classifier.classes == data.classes:
        return
    sizes = f"{source} knows {len(classifier.classes)} classes and {data.name} has {len(data.classes)}"
    if not classifier.named:
        if len(classifier.classes) == len(data.classes):
            return
        raise UserError(f"{sizes}; give other --data")
    try:
        check_same_classes(sizes, classifier.classes, data.classes, ("the checkpoint", "the data"))
    except UserError as error:
        raise UserError(f"{error}; give other --data") from error


def _print_report(report: dict[str, Any]) -> None:
    metrics = [name for name in _LABELS if name in report]
    headings = [f">{_LABELS[name]} %" for name in metrics]
    among = [">classes"] if "among" in report else []
    table = new_table("model", "data", *among, *headings, ">loss", ">images", ">bad images", ">seconds")
    bad, intervals = report["bad_images"], report.get("intervals", {})
    numbers = [*(f"{report[name]:.2f}" for name in metrics), f"{report['loss']:.4f}", str(report["images"])]
    classes = [str(report["among"])] if among else []
    names = report["model"], str(report["data"])
    table.add_row(*names, *classes, *numbers, str(len(bad)), f"{report['seconds']:.1f}")
    if intervals:
        bounds = [f"{low:.2f} to {high:.2f}" for low, high in (intervals[name] for name in metrics)]
        low, high = intervals["loss"]
        table.add_row("", "95 % interval", *[""] * len(among), *bounds, f"{low:.4f} to {high:.4f}")
    if among:
        free = report["among_all"]
        values = [f"{free[name]['value']:.2f}" for name in metrics]
        table.add_row("", "", str(CLASSES), *values, f"{free['loss']['value']:.4f}")
    print_table(table)
    if _CORRUPTED in report:
        table = new_table("top-1 % by severity", *(f">{severity}" for severity in SEVERITIES), ">mean")
        for name, values in report[_CORRUPTED].items():
            table.add_row(name.replace("_", " "), *(f"{value:.2f}" for value in (*values, np.mean(values))))
        print_table(table)
        print(f"mean over corruptions and severities: {report['corrupted_top1']:.2f} % top-1")
    for true, said, count in report.get("most_confused", ()):
        print(f"{count} of {true} taken for {said}")
    for name in bad:
        print(f"unreadable, not counted: {name}")


VERB = Verb(
    "Measure a trained network on held-out images.", _evaluate_options, _evaluate,
    (
        "xnext evaluate runs/digits --output runs/digits/held-out",
        "xnext evaluate runs/digits --set corrupted",
        "xnext evaluate inceptionnext_tiny --data imagenet/ --set imagenet",
        "xnext evaluate convnext_tiny.in12k_ft_in1k --data imagenet-a/ --set a",
    ),
)  # fmt: skip
