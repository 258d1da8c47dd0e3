"""`xnext benchmark`: images a second, side by side with the peers."""

import json
import time
from collections.abc import Collection
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import torch
from jsonargparse import Namespace

from xnext._files import write_atomic
from xnext._parser import Parser
from xnext._progress import watched
from xnext.cli._common import Verb, at_least, new_table, print_table
from xnext.cli._speed import speed_options, speed_plan
from xnext.deploy import FORMATS, Runtime
from xnext.deploy._artefact import Mode
from xnext.errors import UserError
from xnext.evaluation.throughput import (
    PEERS,
    Plan,
    Row,
    Size,
    benchmark,
    check_network,
    describe,
    list_published,
    measure_size,
)


def _options(parser: Parser) -> None:
    parser.add_argument(
        "models", type=str, nargs="*", metavar="MODEL",
        help="Networks of `xnext models` or timm; by default all of the papers.",
    )  # fmt: skip
    parser.add_argument(
        "--against", type=str, nargs="+", default=[], metavar="NAME",
        help="Networks of timm to measure in turn with each of them.",
    )  # fmt: skip
    parser.add_argument(
        "--peers", action="store_true", help="Measure the networks too that the papers compare with."
    )
    parser.add_argument(
        "--artefact", type=Path, nargs="+", default=[], metavar="FILE",
        help="What `xnext export` wrote, to measure in turn with one network: each with a batch at a time, "
        "and with several at once.",
    )  # fmt: skip
    parser.add_argument(
        "--model", type=str | None, metavar="NAME", help="The network, where --artefact stands before it."
    )
    parser.add_argument("--train", action="store_true", help="Measure steps of training, not inference.")
    parser.add_argument(
        "--image-size", type=int | None, metavar="N", help="Pixels a side; by default each network's own."
    )
    speed_options(parser, compiled=True)
    parser.add_argument("--json", type=Path | None, metavar="FILE", help="Write the figures there too.")


def _run(arguments: Namespace) -> int:
    plan = _plan(arguments)
    named = arguments.models + ([] if arguments.model is None else [arguments.model])
    artefacts = _open_artefacts(arguments.artefact, named, plan)
    runtimes = [runtime for runtime, _ in artefacts]
    models = named or ([] if arguments.peers else list_published())
    models += [peer for peer in PEERS if arguments.peers and peer not in models]
    sizes, tables = [], []
    for model in models:
        sizes.append(measure_size(model, plan))
        watch = partial(watched, title=model)
        tables.append(benchmark(model, plan, arguments.against, watch, artefacts=runtimes))
    record = describe(plan) | {"date": date.today().isoformat()}
    packages = {FORMATS[runtime.artefact.format].package for runtime in runtimes}
    record["versions"] |= {package: version(package) for package in sorted(packages)}
    _show(models, sizes, tables, plan, {runtime.path.name for runtime, _ in artefacts})
    _show_artefacts(artefacts)
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    print(f"{record['device']}, {record['threads']} threads, {record['task']}; {versions}")
    if arguments.json is not None:
        record |= {"networks": [asdict(size) for size in sizes]}
        record |= {
            "artefacts": [
                {"file": str(runtime.path), "bytes": runtime.size, "load_seconds": seconds}
                for runtime, seconds in artefacts
            ]
        }
        record |= {"rows": [asdict(row) for rows in tables for row in rows]}
        write_atomic(arguments.json, (json.dumps(record, indent=2) + "\n").encode())
    return 0


def _plan(arguments: Namespace) -> Plan:
    """Return what to measure, after checking all that was said.

    Raises:
        UserError: Something of it cannot be.
    """
    if arguments.image_size is not None:
        at_least(arguments, "image_size", 1)
    if arguments.json is not None:
        if not arguments.json.absolute().parent.is_dir():
            raise UserError(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
        if arguments.json.is_dir():
            raise UserError(f"--json {arguments.json} is a folder; give the name of a file")
    for name in (*arguments.models, *arguments.against, *([arguments.model] if arguments.model else [])):
        check_network(name)
    return speed_plan(arguments, arguments.image_size, arguments.train)


def _open_artefacts(files: list[Path], models: list[str], plan: Plan) -> list[tuple[Runtime, float]]:
    """Return exported networks, each for a batch at a time and for several at once, with their load times.

    Raises:
        UserError: They cannot be measured so.
    """
    if files and len(models) != 1:
        raise UserError("--artefact needs one network beside it: --model NAME")
    if files and plan.training:
        raise UserError("--artefact is for inference; leave --train out")
    threads, opened = torch.get_num_threads(), []
    for file in files:
        for mode in get_args(Mode):
            started = time.perf_counter()
            runtime = Runtime(file, threads=threads, mode=mode)
            if (theirs := runtime.artefact.model_name) != models[0]:
                raise UserError(f"{file} holds {theirs}; compare it with --model {theirs}, not {models[0]}")
            if mode == "latency" or runtime.workers > 1:
                opened.append((runtime, round(time.perf_counter() - started, 2)))
    return opened


def _show_artefacts(artefacts: list[tuple[Runtime, float]]) -> None:
    """Print how large files are and how long they take to load."""
    table = new_table("file", ">MB", ">loads in s")
    for runtime, seconds in {runtime.path: (runtime, seconds) for runtime, seconds in artefacts}.values():
        table.add_row(str(runtime.path), f"{runtime.size / 1e6:.1f}", f"{seconds:.2f}")
    if artefacts:
        print_table(table)


def _show(
    models: list[str], sizes: list[Size], tables: list[list[Row]], plan: Plan, exported: Collection[str]
) -> None:
    """Print sizes, figures and, for each network, the fastest way and how it compares with its peers.

    Args:
        models: The networks.
        sizes: How large they are.
        tables: The figures of each and of what was measured beside it.
        plan: What was measured.
        exported: What exported networks are called among the figures.
    """
    table = new_table("network", ">pixels", ">params (M)", ">MACs (G)", ">activations (M)")
    for size in sizes:
        table.add_row(
            size.network, str(size.image_size), f"{size.params / 1e6:.2f}", f"{size.macs / 1e9:.3f}",
            f"{size.activations / 1e6:.2f}",
        )  # fmt: skip
    print_table(table)
    print()
    table = new_table(
        "network", "way", "layout", "type", ">batch", ">images/s", ">10 %", ">90 %", ">mean", ">sd", ">ratio",
        ">peak MiB",
    )  # fmt: skip
    for rows in tables:
        first = rows[0].median
        for row in rows:
            table.add_row(
                row.network, row.way, row.layout, row.dtype, str(row.batch_size),
                *(f"{speed:,.1f}" for speed in (row.median, row.p10, row.p90, row.mean, row.sd)),
                f"{row.median / first:.2f}",
                f"{row.memory_mib:,.1f}",
            )  # fmt: skip
    print_table(table)
    for model, rows in zip(models, tables, strict=True):
        own = [row for row in rows if row.network == model]
        best = _fastest(own)
        print(f"fastest for {model}: {_describe(best)}, {best.median:,.1f} images/s")
        best = _fastest([row for row in own if row.dtype == plan.dtype])
        others = dict.fromkeys(row.network for row in rows if row.network != model)
        for network in [name for name in others if name not in exported]:
            peer = _fastest([row for row in rows if row.network == network])
            ratio = best.median / peer.median
            print(f"{model}, {_describe(best)}: {ratio:.2f} times {network}, {_describe(peer)}")
        for file in exported:
            fastest = _fastest([row for row in rows if row.network == file])
            ratio = fastest.median / rows[0].median
            print(f"{file}, {_describe(fastest)}: {ratio:.2f} times {rows[0].network}, {_describe(rows[0])}")


def _fastest(rows: list[Row]) -> Row:
    return max(rows, key=lambda row: row.median)


def _describe(row: Row) -> str:
    return f"{row.way} {row.layout} {row.dtype}"


VERB = Verb(
    "Measure inference or training of networks, fused and not, side by side with timm's.", _options, _run,
    (
        "xnext benchmark inceptionnext_tiny nexception_t xception --threads 2",
        "xnext benchmark --artefact tiny.xml tiny.onnx --model inceptionnext_tiny --threads 2",
        "xnext benchmark --peers --batch-size 128 --dtype tf32 --json speed.json",
        "xnext benchmark inceptionnext_tiny --against convnext_tiny --train --dtype bf16 --batch-size 128",
    ),
)  # fmt: skip
