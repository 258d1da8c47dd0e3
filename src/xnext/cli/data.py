"""`xnext data`: what a data set holds, and what is odd about it."""

import json
import time
from pathlib import Path

from jsonargparse import Namespace

from xnext._figures import write_figure
from xnext._parser import Parser
from xnext._progress import watched
from xnext.cli._common import DATA_HELP, Verb, at_least, new_table, print_table, require_ending
from xnext.data import SMALL_SIDE, DataReport, check_data, load_data
from xnext.data.pictures import draw_contact_sheet
from xnext.errors import shown

_MOST_CLASSES = 20  # in the table; of more, the rarest are listed
_RAREST = 5
_CASES = 5  # of a finding that are printed


def _data_options(parser: Parser) -> None:
    parser.add_argument("data", type=str, metavar="SPEC", help=DATA_HELP)
    parser.add_argument(
        "--output", type=Path | None, metavar="PNG", help="Contact sheet to write: images of each class."
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Of the split, where the set has none of its own."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")


def _data(arguments: Namespace) -> int:
    started = time.perf_counter()
    seed = at_least(arguments, "seed", 0)
    if arguments.output is not None:
        require_ending(arguments.output, ".png")
    data = load_data(arguments.data, seed=seed)
    if arguments.output is not None:  # first, since a place that cannot be written to is soon told
        write_figure(arguments.output, draw_contact_sheet(data))
    report = check_data(data, watched)
    seconds = round(time.perf_counter() - started, 3)
    if arguments.json:
        print(json.dumps(report.to_dict() | {"seconds": seconds}))
        return 0
    _print_report(report)
    _print_findings(report)
    print(f"took {seconds:.1f} seconds")
    sheet = arguments.output
    print("add --output sheet.png to see images of each class" if sheet is None else f"wrote {sheet}")
    return 0


def _print_report(report: DataReport) -> None:
    train, val = report.counts["train"], report.counts["val"]
    images = "{train:,} training and {val:,} held-out images".format(**report.images)
    print(f"{shown(report.name)}: {images}, {len(report.classes):,} classes\n")
    many = len(report.classes) > _MOST_CLASSES
    places = range(len(report.classes))
    table = new_table("rarest classes" if many else "class", ">training", ">held out")
    for place in sorted(places, key=lambda place: train[place])[:_RAREST] if many else places:
        table.add_row(shown(report.classes[place]), f"{train[place]:,}", f"{val[place]:,}")
    print_table(table)
    print(f"\ntraining images a class: {report.class_size}")
    print(f"imbalance, largest to smallest class: {report.imbalance:.3g}")
    if report.multilabel:
        print(f"classes a training image: {report.classes_per_image:.2f}")
    print(f"width in pixels: {report.width}")
    print(f"height in pixels: {report.height}")
    print(f"images below {SMALL_SIDE} pixels on a side: {report.small:,}")
    for what, values in (("mean", report.mean), ("standard deviation", report.std)):
        channels = ", ".join(f"{value:.4f}" for value in values)
        print(f"{what} of red, green, blue over the training pixels (0 to 1): {channels}")


def _print_findings(report: DataReport) -> None:
    findings = report.findings()
    if not findings:
        print("\nnothing odd found")
        return
    print(f"\n{len(findings)} finding{'s' * (len(findings) > 1)}:")
    for finding in findings:
        print(f"- {finding}")
        for case in finding.cases[:_CASES]:
            print(f"    {case}")
        if len(finding.cases) > _CASES:
            print(f"    and {len(finding.cases) - _CASES:,} more, which --json lists")


VERB = Verb(
    "Check a set of labelled images before training on it.", _data_options, _data,
    (
        "xnext data photos/ --output photos.png",
        "xnext data 'hf:cifar100/?train=data/train-00000*' --json",
    ),
)  # fmt: skip
