"""`xnext evaluate`: how good a trained network is."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
from jsonargparse import Namespace

from xnext._files import make_folder, write_atomic
from xnext._parser import Parser
from xnext.cli._common import (
    DATA_HELP,
    MODEL_HELP,
    Verb,
    at_least,
    new_table,
    print_table,
    require_known,
    watched,
)
from xnext.data import ImageData, check_same_classes, load_data
from xnext.data.corruptions import SEVERITIES
from xnext.errors import UserError
from xnext.evaluation.accuracy import METRICS
from xnext.evaluation.predict import Classifier, load_classifier
from xnext.evaluation.report import Pass, measure_corrupted, measure_data, measure_set, measure_several
from xnext.evaluation.sets import CLASSES, SETS

_CORRUPTED = "corrupted"
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
    if arguments.set is not None:
        require_known("--set", arguments.set, [*SETS, _CORRUPTED])
    if arguments.set in SETS and arguments.data is None:
        raise UserError(f"--set {arguments.set} needs --data FOLDER, where its images are")
    classifier, source = _load(arguments)
    how = Pass(
        classifier=classifier, batch_size=arguments.batch_size, workers=arguments.workers,
        mirrored=arguments.tta, watch=watched,
    )  # fmt: skip
    if arguments.output is not None:
        make_folder(arguments.output)  # what cannot be written to is told before an hour of work
    report: dict[str, Any] = {"model": classifier.name}
    if arguments.set in SETS:
        report |= measure_set(how, arguments.set, arguments.data, arguments.output)
    else:
        data = _evaluation_data(arguments.data, classifier, source)
        _require_same_classes(classifier, data, source)
        report |= {"data": data.name}
        if not data.multilabel:
            report |= measure_data(how, data, arguments.output)
            report |= measure_corrupted(how, data) if arguments.set else {}
        elif arguments.set or arguments.tta or arguments.output:
            raise UserError("--set, --tta and --output are for one class an image; leave them out")
        else:
            report |= measure_several(how, data)
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
