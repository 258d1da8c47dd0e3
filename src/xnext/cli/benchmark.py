"""`xnext benchmark`: images a second, side by side with the peers."""

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch
from jsonargparse import Namespace

from xnext._files import write_atomic
from xnext._parser import Parser
from xnext.cli._common import Verb, at_least, new_table, print_table, watched
from xnext.errors import UserError
from xnext.evaluation.throughput import Row, benchmark, describe
from xnext.models import get_config


def _options(parser: Parser) -> None:
    parser.add_argument("models", type=str, nargs="+", metavar="MODEL", help="Networks of `xnext models`.")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="Images a call.")
    parser.add_argument(
        "--image-size", type=int | None, metavar="N", help="Pixels a side; by default each network's own."
    )
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="Calls of each way, in turn.")
    parser.add_argument(
        "--threads", type=int | None, metavar="N", help="Threads on a CPU; by default PyTorch's choice."
    )
    parser.add_argument(
        "--compile", action="store_true", help="Measure compiled networks too; a CPU takes minutes for each."
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
    if arguments.output is not None and not arguments.output.absolute().parent.is_dir():
        raise UserError(f"--output {arguments.output}: there is no folder {arguments.output.parent}")
    for model in arguments.models:
        get_config(model)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    tables = [
        benchmark(
            model, batch_size=arguments.batch_size, image_size=arguments.image_size,
            repeats=arguments.repeats, compiled=arguments.compile, device=device,
        )
        for model in watched(arguments.models, "measuring")
    ]  # fmt: skip
    rows = [row for table in tables for row in table]
    record = describe(device) | {"batch_size": arguments.batch_size, "date": date.today().isoformat()}
    _show(tables, record)
    if arguments.output is not None:
        record |= {"rows": [asdict(row) for row in rows]}
        write_atomic(arguments.output, (json.dumps(record, indent=2) + "\n").encode())
    return 0


def _show(tables: list[list[Row]], record: dict) -> None:
    """Print the figures and, for each network, the fastest way."""
    table = new_table("network", "way", ">images/s", ">10 %", ">90 %", ">ratio", ">GPU MiB")
    for rows in tables:
        first = rows[0].median
        for row in rows:
            table.add_row(
                row.network, row.way, f"{row.median:,.1f}", f"{row.p10:,.1f}", f"{row.p90:,.1f}",
                f"{row.median / first:.2f}", "" if row.memory_mib is None else f"{row.memory_mib:,}",
            )  # fmt: skip
    print_table(table)
    for rows in tables:
        best = max(rows, key=lambda row: row.median)
        ratio = best.median / rows[0].median
        print(
            f"fastest for {rows[-1].network}: {best.way}, {ratio:.2f} times {rows[0].network}, {rows[0].way}"
        )
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    print(f"{record['device']}, {record['threads']} threads, batch {record['batch_size']}; {versions}")


VERB = Verb(
    "Measure inference of networks, fused and not, side by side with timm's.", _options, _run,
    ("xnext benchmark inceptionnext_tiny nexception_t xception --threads 2",),
)  # fmt: skip
