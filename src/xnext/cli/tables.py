"""`xnext tables`: the papers' tables, with what is measured here beside what they published."""

from functools import cache, partial
from pathlib import Path

from jsonargparse import Namespace

from xnext._files import make_folder, write_atomic
from xnext._parser import Parser
from xnext._progress import watched
from xnext.cli._common import Verb, new_table, print_table, require_known
from xnext.cli._speed import speed_options, speed_plan
from xnext.evaluation.tables import (
    QUANTITIES,
    TASKS,
    MeasuredSpeeds,
    PaperTable,
    Speeds,
    compare,
    count_convolutions,
    count_size,
    load_published,
    to_csv,
    to_markdown,
)

_CONVOLUTIONS = "inceptionnext-2"  # which has formulas, and so is no table of networks


def _options(parser: Parser) -> None:
    names = ", ".join(sorted([*load_published(), _CONVOLUTIONS]))
    parser.add_argument("tables", type=str, nargs="*", metavar="TABLE", help=f"{names}; by default all.")
    parser.add_argument(
        "--measure", type=str, nargs="+", default=[], metavar="TASK",
        help=f"Measure speeds too: {' or '.join(TASKS)}, or both. Parameters and MACs are always counted.",
    )  # fmt: skip
    speed_options(parser, compiled=False)
    parser.add_argument(
        "--output", type=Path | None, metavar="FOLDER",
        help="Write each table there as CSV and Markdown; speeds are kept there, and not measured again.",
    )  # fmt: skip


def _run(arguments: Namespace) -> int:
    published = load_published()
    known = sorted([*published, _CONVOLUTIONS])
    for task in arguments.measure:
        require_known("--measure", task, TASKS)
    for name in arguments.tables:
        require_known("table", name, known)
    plan = speed_plan(arguments)
    if arguments.output is not None:
        make_folder(arguments.output)
    path = arguments.output / "speeds.json" if arguments.output is not None else None
    speeds = MeasuredSpeeds(path, plan)
    sizes = cache(partial(count_size, plan=plan))
    for name in arguments.tables or known:
        if name == _CONVOLUTIONS:
            lines, notes = count_convolutions(), "InceptionNeXt, table 2: formulas, and counts of 96 channels"
        else:
            table = published[name]
            _measure(table, speeds, arguments.measure)
            lines, notes = compare(table, speeds, sizes), _notes(table, speeds)
        _show(name, lines, notes)
        if arguments.output is not None:
            text = f"# {name}\n\n{notes}\n\n{to_markdown(lines)}"
            write_atomic(arguments.output / f"{name}.csv", to_csv(lines).encode())
            write_atomic(arguments.output / f"{name}.md", text.encode())
    if arguments.output is not None:
        print(f"wrote {arguments.output}")
    return 0


def _measure(table: PaperTable, speeds: MeasuredSpeeds, tasks: list[str]) -> None:
    """Measure the speeds of which the table has figures."""
    wanted = {QUANTITIES[name].task for name in table.quantities}
    for task in (task for task in tasks if task in wanted):
        for entry in table.entries:
            speeds.measure(entry, task, partial(watched, title=f"{entry.name}, {task}"))


def _notes(table: PaperTable, speeds: Speeds) -> str:
    """Return what a reader of the table has to know."""
    ways: dict[str, list[str]] = {}
    for name, how in table.setting.items():
        ways.setdefault(how, []).append(QUANTITIES[name].heading.partition(" (")[0])
    papers = "; ".join(f"{' and '.join(names)} by {how}" for how, names in ways.items())
    about = speeds.about
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    here = f"{about['device']}, {about['threads']} threads, batch {about['batch_size']}, {about['dtype']}"
    return (
        f"{table.source}: {table.title}. The paper measured {papers}. Here: {here}, mean of"
        f" {about['repetitions']} calls of the network as it is, in the faster of two layouts; {versions}."
        f" Differences of speeds are those of the ratio to {table.baseline}."
    )


def _show(name: str, lines: list[dict[str, str]], notes: str) -> None:
    first, *rest = lines[0]
    table = new_table(first, *(f">{heading.replace(', ', chr(10))}" for heading in rest))
    for line in lines:
        table.add_row(*line.values())
    print(f"{name}: {notes}")
    print_table(table)
    print()


VERB = Verb(
    "Print the papers' tables with what is counted and measured here.", _options, _run,
    (
        "xnext tables inceptionnext-8",
        "xnext tables --measure inference train --batch-size 128 --dtype tf32 --output tables",
    ),
)  # fmt: skip
