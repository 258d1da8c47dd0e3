"""`xnext compare`: the results and curves of several runs."""

import json
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from xnext._figures import write_figure
from xnext._parser import Parser
from xnext.cli._common import Verb, new_table, print_table, require_ending
from xnext.errors import UserError, shown
from xnext.evaluation.accuracy import METRICS
from xnext.training.compare import MOST_CURVES, draw_comparison, read_runs


def _compare_options(parser: Parser) -> None:
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="Folders that `xnext train` left, or is filling."
    )
    parser.add_argument("--output", type=Path | None, metavar="PNG", help="Picture of the curves to write.")
    parser.add_argument("--json", action="store_true", help="Print one JSON list and nothing else.")


def _compare(arguments: Namespace) -> int:
    output = arguments.output
    if output is not None:
        require_ending(output, ".png")
    runs = read_runs(arguments.runs)
    if output is not None:
        if len(runs) > MOST_CURVES:
            raise UserError(f"one picture shows up to {MOST_CURVES} runs, not {len(runs)}; give fewer")
        write_figure(output, draw_comparison(runs))
    results = [run.to_dict() for run in runs]
    if arguments.json:
        print(json.dumps(results))
        return 0
    _print_results(results)
    print("add --output compare.png to see their curves" if output is None else f"wrote {output}")
    return 0


def _print_results(results: list[dict[str, Any]]) -> None:
    kinds = [key for key in METRICS if any(result["metric"] == key for result in results)]
    table = new_table(
        "run", "model", "data", *(f">best\n{METRICS[kind]} %" for kind in kinds), ">epoch", ">last",
        ">val\nloss", ">params\n(M)", ">MACs\n(G)", ">seconds", ">images\n/s", "epochs",
    )  # fmt: skip
    for result in results:
        names = (shown(result[key]) for key in ("run", "model", "data"))
        best = (_number(result["best"] if result["metric"] == kind else None, ".2f") for kind in kinds)
        table.add_row(
            *names, *best, str(result["best_epoch"]), f"{result['last']:.2f}",
            _number(result["val_loss"], ".4f"), _number(result["params"], ".2f", 1e6),
            _number(result["macs"], ".3f", 1e9), f"{result['seconds']:.1f}",
            _number(result["images_per_second"], ".0f"), _epochs(result),
        )  # fmt: skip
    print_table(table)


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else format(value / unit, form)


def _epochs(result: dict[str, Any]) -> str:
    done, asked = result["epochs_done"], result["epochs"]
    return str(done) if result["finished"] else f"{done} of {asked or '?'}, unfinished"


VERB = Verb(
    "Compare runs: a table of their results, a picture of their curves.", _compare_options, _compare,
    (
        "xnext compare runs/digits runs/digits-lr1e-3 --output compare.png",
    ),
)  # fmt: skip
