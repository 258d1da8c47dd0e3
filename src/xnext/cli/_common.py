"""What the verbs share: what one is, tables, bars, errors, words of the help."""

import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from jsonargparse import Namespace
from rich.table import Table

from xnext._parser import Parser
from xnext._processes import is_first
from xnext.errors import UserError, suggest
from xnext.training.progress import Screen

DATA_HELP = "Images: `digits`, a folder, `TABLE.csv`, `hf:NAME_OR_FOLDER`, `wds:SHARDS` or `torch/NAME`."
MODEL_HELP = "Network that published weights belong to; a RUN and its checkpoints know their own."
CHECKPOINT_HELP = (
    "Folder that `xnext train` left (its best weights), a weight file, or what `xnext export` wrote."
)

_MISTAKE = 2
_NARROWEST = 8  # characters of a column of words


class Verb(NamedTuple):
    """What a command does, in a line; its options; its code; examples of its use."""

    summary: str
    options: Callable[[Parser], None]
    run: Callable[[Namespace], int]
    examples: tuple[str, ...]


def add_verbs(parser: Parser, verbs: Mapping[str, Verb]) -> None:
    """Add a command for each verb."""
    parsers = {}
    for name, verb in verbs.items():
        examples = "\n".join(f"  {line}" for line in verb.examples)
        parsers[name] = Parser(description=verb.summary, epilog=f"examples:\n{examples}")
    parser.add_verbs(parsers)
    for name, verb in verbs.items():  # last, since a verb may have verbs of its own
        verb.options(parsers[name])


def fail(message: str) -> int:
    """Print one error line and return the exit code that goes with it."""
    process = "" if is_first() else f" (process {os.environ['RANK']})"
    print(f"xnext: error{process}:", " ".join(message.split()), file=sys.stderr)
    return _MISTAKE


def print_table(table: Table) -> None:
    """Print a table: unwrapped into a file or pipe; as wide as a terminal, but never with numbers cut."""
    screen = Screen(markup=False, emoji=False, highlight=False, width=1000)
    if sys.stdout.isatty():
        screen.width = max(Screen().width, screen.measure(table).minimum)
    screen.print(table)


def new_table(*headings: str) -> Table:
    """Return an empty table; a heading that starts with `>` is of a column of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        if heading.startswith(">"):
            table.add_column(heading[1:], justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold", min_width=_NARROWEST)
    return table


def at_least(arguments: Namespace, name: str, least: int) -> int:
    """Return the value of an option after checking that it is not too small."""
    if arguments[name] < least:
        raise UserError(f"--{name.replace('_', '-')} is {arguments[name]}; it must be at least {least}")
    return arguments[name]


def require_ending(path: Path, ending: str) -> None:
    """Refuse an ``--output`` whose name says that it is something else, before any work is done."""
    if path.suffix.lower() != ending:
        raise UserError(f"--output {path} must end in {ending}, since that is what it will be")


def require_known(name: str, value: str, known: Collection[str]) -> None:
    """Refuse a value that is not among those there are.

    Args:
        name: What it is of: an option, `--method`, or a word as `table`.
        value: As the user gave it.
        known: What it may be.
    """
    if value not in known:
        hint = suggest(value, known) or f" Choose from {', '.join(known)}."
        raise UserError(f"{name} {value!r} is unknown.{hint}")
