"""`xnext search`: a network found for these images, and what came of the search."""

import shlex
import sys
import time
from argparse import REMAINDER
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from xnext._parser import Parser
from xnext.cli._common import DATA_HELP, Verb, new_table, print_table
from xnext.errors import UserError
from xnext.search import Record, Search, SearchConfig, Space, point_line, write_best
from xnext.search.history import in_epochs
from xnext.search.trial import SIZES, STATUSES, SUCCESS

_REFRESH = 1.0  # seconds between two looks at a search
_ROWS = 10  # of the table of the best
_FIELDS = [field.name for field in fields(SearchConfig) if field.name != "data"]


def _options(parser: Parser) -> None:
    parser.add_argument(
        "what", type=str, nargs="*", metavar="SPEC | show DIR | best DIR",
        help=f"{DATA_HELP} Or a word and the folder of a search.",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path | None, metavar="DIR",
        help="Folder of the search: a new one, or with --resume that of one begun.",
    )  # fmt: skip
    parser.add_argument(
        "--objective", action="append", type=str, metavar="NAME",
        help="top1, and any of latency_ms, macs and params, an option each (default: top1)",
    )  # fmt: skip
    parser.add_argument(
        "--limit", action="append", type=str, metavar="NAME<=X",
        help="What no network may exceed: latency_ms<=5, macs<=1e8 or params<=1e6, an option each.",
    )  # fmt: skip
    parser.add_options(SearchConfig, without=("data", "objective", "limit"), given=True)
    parser.add_argument("--resume", action="store_true", help="Go on with the search in --output.")
    parser.add_argument("--count", action="store_true", help="Count the networks of --space, and end.")
    parser.add_argument(
        "--train", nargs=REMAINDER, metavar="OPTION",
        help="With best: train it at once, with these options of `xnext train`; stands last.",
    )  # fmt: skip


def _run(arguments: Namespace) -> int:
    options = {name: arguments[name] for name in _FIELDS if arguments.get(name) is not None}
    words = arguments.what or []
    _refuse_unused(arguments, words)
    if arguments.count:
        name = options.get("space", SearchConfig.space)
        print(f"{Space.load(name).count():,} distinct networks in {name}")
        return 0
    if words and words[0] in _WORDS:
        if len(words) != 2:
            raise UserError(f"give one folder of a search: xnext search {words[0]} DIR")
        return _WORDS[words[0]](Path(words[1]), arguments)
    if arguments.output is None:
        raise UserError("missing --output, the folder of the search; see xnext search --help")
    if arguments.resume:
        if words:
            raise UserError("--resume goes on with the images of the search; leave them out")
        search = Search.open(arguments.output)
        search.resume(options)
    else:
        if len(words) != 1:
            raise UserError("give the images to search for, once; see xnext search --help")
        search = Search.create(arguments.output, SearchConfig(data=words[0], **options))
    search.run(_watch)
    _print_best(search)
    return 0


def _refuse_unused(arguments: Namespace, words: Sequence[str]) -> None:
    """Refuse what the user said that what is asked for makes no use of.

    Raises:
        UserError: Naming it.
    """
    asked = "--count" if arguments.count else words[0] if words and words[0] in _WORDS else ""
    given = [name for name, value in vars(arguments).items() if value is not None and value is not False]
    unused = [f"--{name.replace('_', '-')}" for name in given if name not in ("what", *_USED[asked])]
    unused += map(repr, words if arguments.count else ())
    if unused:
        command = f"xnext search {asked}".strip()
        raise UserError(f"`{command}` makes no use of {', '.join(unused)}; leave it out")


def _watch(search: Search, record: Record) -> None:
    """Print a line of a trial that ended."""
    best = search.history.best
    what = ", ".join(f"{name} {value:.4g}" for name, value in record.values.items())
    if record.status != SUCCESS:
        what = f"{record.status}: {record.reason}"
    where = (
        f", best {best.values['top1']:.2f} (trial {best.number}, {in_epochs(best.query.epochs)})"
        if best
        else ""
    )
    Console(soft_wrap=True, markup=False, highlight=False).print(
        f"trial {record.number}: {in_epochs(record.query.epochs)}, {record.seconds:.1f} s, {what}{where}"
    )


def _show(path: Path, _: Namespace) -> int:
    """Print how far a search is, and its best; on a terminal again and again, while it runs."""
    search = Search.open(path)
    if sys.stdout.isatty() and search.is_running:
        with Live(Group(*_status(search)), auto_refresh=False) as live:
            while search.is_running:
                time.sleep(_REFRESH)
                search = Search.open(path)
                live.update(Group(*_status(search)), refresh=True)
        return 0
    lines, table = _status(search)
    print(lines)
    if table.row_count:
        print_table(table)
    return 0


def _status(search: Search) -> tuple[str, Table]:
    """Return how far a search is: trials by status and the time left; the best or the front."""
    history, config = search.history, search.config
    counts = {status: sum(record.status == status for record in history.records) for status in STATUSES}
    counts["running or waiting"] = len(history.records) - history.finished
    known = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "no trials yet"
    table = new_table(">trial", ">epochs", *(f">{name}" for name in ("top1", *_sizes(search))), "network")
    for record in history.front[:_ROWS] if len(config.objective) > 1 else _best(search):
        sizes = (f"{record.values[name]:.4g}" for name in _sizes(search))
        table.add_row(
            str(record.number), str(record.query.epochs), f"{record.values['top1']:.2f}", *sizes,
            point_line(record.query.point),
        )  # fmt: skip
    what = "the front:" if len(config.objective) > 1 else "the best:"
    times = f"{history.elapsed / 60:.1f} minutes so far; {_left(search)}"
    return "\n".join([known, times, what if table.row_count else "none has succeeded yet"]), table


def _best(search: Search) -> list[Record]:
    """Return the best trials, the longest first."""
    order = sorted(search.history.successes, key=lambda record: (-record.query.epochs, record.costs))
    return order[:_ROWS]


def _sizes(search: Search) -> list[str]:
    known = {name for record in search.history.successes for name in record.values}
    return [name for name in SIZES if name in known]


def _left(search: Search) -> str:
    """Return what is left to do, in words."""
    history, config = search.history, search.config
    if search.exhausted:
        return "nothing is left to try"
    times = []
    if config.trials is not None and history.finished:
        rest = max(0, config.trials - history.finished)
        times.append(history.elapsed / history.finished * rest)
    if config.hours is not None:
        times.append(max(0.0, 3600 * config.hours - history.elapsed))
    if not times:
        return "the time left is not known yet"
    return f"about {min(times) / 60:.0f} minutes left" if min(times) else "at its end"


def _print_best(search: Search) -> None:
    best, path = search.history.best, shlex.quote(str(search.path))
    if search.exhausted:
        print("the search has nothing left to try: all networks of the space were tried")
    if best is None:
        last = next((record for record in reversed(search.history.records) if record.status), None)
        reason = f", the last one so: {last.status} ({last.reason})" if last else ""
        raise UserError(f"{search.path}: no trial succeeded{reason}; xnext search show {path}")
    print(f"best: {best.values['top1']:.2f} % top-1, trial {best.number}: {point_line(best.query.point)}")
    print(f"next: xnext search best {path}, or xnext report {path}")


def _take_best(path: Path, arguments: Namespace) -> int:
    """Write the winner at full size; train it if that is wanted."""
    search = Search.open(path)
    target = path / "best.yaml"
    record = write_best(search, target)
    print(f"trial {record.number}: {point_line(record.query.point)} -> {target}")
    if arguments.train is None:
        model, data = shlex.quote(str(target)), shlex.quote(search.config.data)
        print(f"next: xnext train --model {model} --data {data} --output RUN")
        return 0
    if any(word == "--model" or word.startswith("--model=") for word in arguments.train):
        raise UserError("--train trains the winner; leave --model out")
    return _train(["--model", str(target), *arguments.train])


def _train(words: Sequence[str]) -> int:
    from xnext.cli import main

    sys.stdout.flush()
    return main(["train", *words])


_WORDS = {"show": _show, "best": _take_best}
_USED: dict[str, Sequence[str]] = {
    "": (*_FIELDS, "output", "resume"),
    "--count": ("count", "space"),
    "show": (),
    "best": ("train",),
}
"""Options of the words, of counting, and of a search."""

VERB = Verb(
    "Search for a network that suits these images, and a budget.", _options, _run,
    (
        "xnext search photos/ --output searches/photos --hours 2 --workers 2",
        "xnext search photos/ --output searches/small --trials 200 --objective top1 --objective latency_ms",
        "xnext search photos/ --output searches/tiny --hours 2 --limit 'params<=1e6' --limit 'macs<=5e7'",
        "xnext search --resume --output searches/photos",
        "xnext search show searches/photos",
        "xnext search best searches/photos --train --data photos/ --epochs 100 --output runs/photos",
    ),
)  # fmt: skip
