"""`xnext models`: the networks and their size."""

import json
from typing import Any

import torch
from jsonargparse import Namespace

from xnext._parser import Parser
from xnext.cli._common import Verb, new_table, print_table
from xnext.errors import UserError
from xnext.evaluation.complexity import count_macs, count_parameters
from xnext.models import create_model, list_models


def _models_options(parser: Parser) -> None:
    parser.add_argument(
        "--filter", type=str, default="*", metavar="GLOB", help="Names to list, e.g. 'inceptionnext_*'."
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print one JSON list, with the address of weights, and nothing else.",
    )


def _models(arguments: Namespace) -> int:
    names = list_models(arguments.filter)
    if not names:
        raise UserError(f"no model matches --filter {arguments.filter!r}; `xnext models` lists all of them")
    rows = [_describe_model(name) for name in names]
    if arguments.json:
        print(json.dumps(rows))
        return 0
    table = new_table("model", ">input", ">params (M)", ">MACs (G)", "published weights")
    for row in rows:
        millions, billions = f"{row['params'] / 1e6:.2f}", f"{row['macs'] / 1e9:.3f}"
        where = "" if row["weights"] is None else "a file" if "://" in row["weights"] else "on the hub"
        table.add_row(row["model"], str(row["input"]), millions, billions, where)
    print_table(table)
    return 0


def _describe_model(name: str) -> dict[str, Any]:
    """Count a network without giving it memory."""
    with torch.device("meta"):
        model = create_model(name)
    source: Any = model.pretrained_cfg
    return {
        "model": name,
        "input": source["input_size"][-1],
        "params": count_parameters(model),
        "macs": count_macs(model, source["input_size"]),
        "weights": source.get("hf_hub_id") or source.get("url") or source.get("origin_url") or None,
    }


VERB = Verb(
    "List the networks with their size.", _models_options, _models,
    ("xnext models --filter 'inceptionnext_*'",),
)  # fmt: skip
