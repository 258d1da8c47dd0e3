"""`xnext benchmark`: images a second, side by side with the peers."""

import json
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path

import torch
from jsonargparse import Namespace

from xnext._files import write_atomic
from xnext._parser import Parser
from xnext.cli._common import Verb, at_least, new_table, print_table, watched
from xnext.errors import UserError, suggest
from xnext.evaluation.throughput import DTYPES, Plan, Row, benchmark, check_network, describe


def _options(parser: Parser) -> None:
    parser.add_argument(
        "models", type=str, nargs="+", metavar="MODEL", help="Networks of `xnext models` or timm."
    )
    parser.add_argument(
        "--against", type=str, nargs="+", default=[], metavar="NAME",
        help="Networks of timm to measure beside each of them.",
    )  # fmt: skip
    parser.add_argument("--training", action="store_true", help="Measure steps of training, not inference.")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="Images a call.")
    parser.add_argument(
        "--image-size", type=int | None, metavar="N", help="Pixels a side; by default each network's own."
    )
    parser.add_argument("--dtype", type=str, default="fp32", metavar="TYPE", help="`fp32` or `bf16`.")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="Calls of each way, in turn.")
    parser.add_argument(
        "--threads", type=int | None, metavar="N", help="Threads on a CPU; by default PyTorch's choice."
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="Leave out compiled networks, which take a minute each."
    )
    parser.add_argument(
        "--output", type=Path | None, metavar="FILE.json", help="Write the figures there too."
    )


def _run(arguments: Namespace) -> int:
    for name in ("batch_size", "repeats"):
        at_least(arguments, name, 1)
    for name in ("image_size", "threads"):
        if arguments[name] is not None:
            at_least(arguments, name, 1)
    if arguments.dtype not in DTYPES:
        raise UserError(f"--dtype {arguments.dtype!r} is unknown.{suggest(arguments.dtype, DTYPES)}")
    if arguments.output is not None:
        if not arguments.output.absolute().parent.is_dir():
            raise UserError(f"--output {arguments.output}: there is no folder {arguments.output.parent}")
        if arguments.output.is_dir():
            raise UserError(f"--output {arguments.output} is a folder; give the name of a file")
    for name in (*arguments.models, *arguments.against):
        check_network(name)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    plan = Plan(
        torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"),
        arguments.training, arguments.batch_size, arguments.image_size, arguments.repeats, arguments.dtype,
        not arguments.no_compile,
    )  # fmt: skip
    tables = [
        benchmark(model, plan, arguments.against, partial(watched, title=model)) for model in arguments.models
    ]
    record = describe(plan) | {"date": date.today().isoformat()}
    _show(arguments.models, tables, plan)
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    print(f"{record['device']}, {record['threads']} threads, batch {record['batch_size']}; {versions}")
    if arguments.output is not None:
        record |= {"rows": [asdict(row) for rows in tables for row in rows]}
        write_atomic(arguments.output, (json.dumps(record, indent=2) + "\n").encode())
    return 0


def _show(models: list[str], tables: list[list[Row]], plan: Plan) -> None:
    """Print the figures and, for each network, the fastest way and how it compares with its peers."""
    table = new_table(
        "network", "way", "layout", "type", ">images/s", ">10 %", ">90 %", ">ratio",
        *([">GPU MiB"] if plan.device.type == "cuda" else []),
    )  # fmt: skip
    for rows in tables:
        first = rows[0].median
        for row in rows:
            table.add_row(
                row.network, row.way, row.layout, row.dtype,
                f"{row.median:,.1f}", f"{row.p10:,.1f}", f"{row.p90:,.1f}", f"{row.median / first:.2f}",
                *([] if row.memory_mib is None else [f"{row.memory_mib:,}"]),
            )  # fmt: skip
    print_table(table)
    for model, rows in zip(models, tables, strict=True):
        own = [row for row in rows if row.network == model]
        best = _fastest(own)
        print(f"fastest for {model}: {_describe(best)}, {best.median:,.1f} images/s")
        best = _fastest([row for row in own if row.dtype == plan.dtype])
        for network in dict.fromkeys(row.network for row in rows if row.network != model):
            peer = _fastest([row for row in rows if row.network == network])
            ratio = best.median / peer.median
            print(f"{model}, {_describe(best)}: {ratio:.2f} times {network}, {_describe(peer)}")


def _fastest(rows: list[Row]) -> Row:
    return max(rows, key=lambda row: row.median)


def _describe(row: Row) -> str:
    return f"{row.way} {row.layout} {row.dtype}"


VERB = Verb(
    "Measure inference or training of networks, fused and not, side by side with timm's.", _options, _run,
    (
        "xnext benchmark inceptionnext_tiny nexception_t xception --threads 2",
        "xnext benchmark inceptionnext_tiny --against convnext_tiny --training --dtype bf16 --batch-size 128",
    ),
)  # fmt: skip
