"""`xnext evaluate`: how good a trained network is."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace

from xnext._files import make_folder, write_atomic
from xnext._parser import Parser
from xnext.cli._common import Verb, new_table, print_table
from xnext.cli._measured import add_measured_options, open_data, open_pass
from xnext.data.corruptions import SEVERITIES
from xnext.errors import UserError
from xnext.evaluation.accuracy import METRICS
from xnext.evaluation.report import measure_corrupted, measure_data, measure_set, measure_several
from xnext.evaluation.sets import CLASSES, SETS

_CORRUPTED = "corrupted"
_SETS = {name: kind.what for name, kind in SETS.items()} | {_CORRUPTED: "any images, made worse"}
_LABELS = METRICS | {"calibration_error": "calibration error"}


def _evaluate_options(parser: Parser) -> None:
    add_measured_options(parser, _SETS)
    parser.add_argument(
        "--output", type=Path | None, metavar="FOLDER",
        help="Write report.json, classes.csv, confusions.csv and reliability.png there.",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")


def _evaluate(arguments: Namespace) -> int:
    started = time.perf_counter()
    how, source = open_pass(arguments, "evaluate", _SETS)
    if arguments.output is not None:
        make_folder(arguments.output)  # what cannot be written to is told before an hour of work
    report: dict[str, Any] = {"model": how.classifier.name}
    if arguments.set in SETS:
        report |= measure_set(how, arguments.set, arguments.data, arguments.output)
    else:
        data = open_data(arguments.data, how.classifier, source)
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
