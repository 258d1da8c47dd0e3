"""`xnext evaluate`: how good a trained network is."""

import json
import math
import time
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

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
from xnext.errors import UserError
from xnext.evaluation.accuracy import METRICS, evaluate
from xnext.evaluation.predict import Classifier, load_classifier


def _evaluate_options(parser: Parser) -> None:
    parser.add_argument(
        "run", type=Path | None, nargs="?", metavar="RUN", help="Folder that `xnext train` left."
    )
    parser.add_argument("--checkpoint", type=Path | None, metavar="FILE", help="Weights, instead of a RUN.")
    parser.add_argument("--model", type=str | None, metavar="NAME", help=MODEL_HELP)
    parser.add_argument(
        "--data",
        type=str | None,
        metavar="SPEC",
        help=f"{DATA_HELP} Default: what RUN held out of its training.",
    )
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
    batch_size, workers = at_least(arguments, "batch_size", 1), at_least(arguments, "workers", 0)
    if (arguments.run is None) == (arguments.checkpoint is None):
        raise UserError("give either a RUN or --checkpoint FILE; see xnext evaluate --help")
    checkpoint = arguments.run or arguments.checkpoint
    classifier = load_classifier(checkpoint, arguments.model)
    data = _evaluation_data(arguments.data, classifier, checkpoint)
    _require_same_classes(classifier, data, checkpoint)
    dataset = ImageDataset(data.val, build_eval_transform(classifier.preprocessing), training=False)
    loader = build_loader(dataset, batch_size=batch_size, workers=workers)
    result = evaluate(
        classifier.model,
        watched(loader, "evaluating"),
        num_classes=len(data.classes),
        device=classifier.device,
        multilabel=data.multilabel,
    )
    if not math.isfinite(result.metrics["loss"]):
        raise UserError(f"the outputs of {checkpoint} are not finite; train again, or take other weights")
    report = {
        "model": classifier.name,
        "data": data.name,
        **result.metrics,
        "images": result.images,
        "bad_images": [data.val.name(index) for index in result.bad_images],
        "seconds": round(time.perf_counter() - started, 3),
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        _print_report(report)
    return 0


def _evaluation_data(spec: str | None, classifier: Classifier, checkpoint: Path) -> ImageData:
    """Load the data of a spec, by default those of the training; split as for it."""
    if spec is None and classifier.data is None:
        raise UserError(f"{checkpoint} does not say which images to take; add --data SPEC")
    try:
        return load_data(spec or str(classifier.data), seed=classifier.seed)
    except UserError as error:
        raise (
            error if spec else UserError(f"{error} (what {checkpoint} was trained on; add --data SPEC)")
        ) from error


def _require_same_classes(classifier: Classifier, data: ImageData, checkpoint: Path) -> None:
    """Refuse data whose labels mean something else to the network, in a line that lists the difference."""
    if classifier.named and classifier.multilabel != data.multilabel:
        kinds = ("one class an image", "several classes an image")
        raise UserError(
            f"{checkpoint} was trained for {kinds[classifier.multilabel]}, but {data.name} has"
            f" {kinds[data.multilabel]}; give other --data"
        )
    if classifier.classes == data.classes:
        return
    sizes = f"{checkpoint} knows {len(classifier.classes)} classes and {data.name} has {len(data.classes)}"
    if not classifier.named:
        if len(classifier.classes) == len(data.classes):
            return
        raise UserError(f"{sizes}; give other --data")
    try:
        check_same_classes(sizes, classifier.classes, data.classes, ("the checkpoint", "the data"))
    except UserError as error:
        raise UserError(f"{error}; give other --data") from error


def _print_report(report: dict[str, Any]) -> None:
    metrics = [name for name in METRICS if name in report]
    headings = [f">{METRICS[name]} %" for name in metrics]
    table = new_table("model", "data", *headings, ">loss", ">images", ">bad images", ">seconds")
    bad = report["bad_images"]
    numbers = [*(f"{report[name]:.2f}" for name in metrics), f"{report['loss']:.4f}", str(report["images"])]
    table.add_row(report["model"], report["data"], *numbers, str(len(bad)), f"{report['seconds']:.1f}")
    print_table(table)
    for name in bad:
        print(f"unreadable, not counted: {name}")


VERB = Verb(
    "Measure a trained network on held-out images.", _evaluate_options, _evaluate,
    (
        "xnext evaluate runs/digits",
        "xnext evaluate --model inceptionnext_tiny --checkpoint inceptionnext_tiny.pth --data imagenet/",
    ),
)  # fmt: skip
