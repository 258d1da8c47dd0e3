"""`xnext importance`: which choices of a search mattered."""

from pathlib import Path

from jsonargparse import Namespace

from xnext._figures import write_figure
from xnext._parser import Parser
from xnext.cli._common import Verb, new_table, print_table, require_known
from xnext.errors import UserError
from xnext.search import Search
from xnext.search.history import in_epochs
from xnext.search.importance import METHODS, Importance, draw_importance, measure_importance

_ROWS = 20


def _options(parser: Parser) -> None:
    parser.add_argument("search", type=Path, metavar="DIR", help="Folder that `xnext search` left.")
    parser.add_argument(
        "--method", type=str, default="lpi", metavar="lpi|fanova",
        help="Around the best network (lpi), or over the whole space and for pairs too (fanova).",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=str, default="all", metavar="EPOCHS|all", help="Length of the trials that count."
    )
    parser.add_argument(
        "--objective", type=str, default="top1", metavar="NAME", help="What it mattered for, of the search's."
    )


def _run(arguments: Namespace) -> int:
    require_known("--method", arguments.method, METHODS)
    search = Search.open(arguments.search)
    lengths = sorted({record.query.epochs for record in search.history.successes})
    if arguments.budget != "all":
        if not arguments.budget.isdecimal():
            raise UserError(f"--budget {arguments.budget!r} is neither a number of epochs nor all")
        lengths = [int(arguments.budget)]
    found: dict[int, list[Importance]] = {}
    problems: dict[str, None] = {}  # once, where it is the same for all lengths
    for epochs in lengths:
        try:
            found[epochs] = measure_importance(search.history, arguments.method, epochs, arguments.objective)
        except UserError as error:
            problems[str(error)] = None
    if not found:
        raise UserError(f"{search.path}: {'; '.join(problems) or 'no trial has succeeded yet'}")
    _print(found)
    for problem in problems:
        print(f"left out: {problem}")
    picture = search.path / f"importance_{arguments.method}.png"
    title = {"lpi": "Local parameter importance", "fanova": "Functional ANOVA"}[arguments.method]
    write_figure(picture, draw_importance(found, f"{title}: {search.space.name}, {search.config.data}"))
    print(f"-> {picture}")
    return 0


def _print(found: dict[int, list[Importance]]) -> None:
    """Print the shares in the order of the longest trials."""
    table = new_table("choice", *(f">{in_epochs(epochs)}" for epochs in found))
    by_name = {epochs: {one.name: one for one in importances} for epochs, importances in found.items()}
    for one in found[max(found)][:_ROWS]:
        cells = [by_name[epochs].get(one.name) for epochs in found]
        table.add_row(
            one.name,
            *("" if cell is None else f"{cell.share:.3f} ({cell.low:.2f}-{cell.high:.2f})" for cell in cells),
        )
    print_table(table)
    print("shares: the mean of a forest's trees, and in brackets one standard deviation to both sides")


VERB = Verb(
    "Tell which choices of a search mattered, as a table and a picture.", _options, _run,
    ("xnext importance searches/photos", "xnext importance searches/photos --method fanova --budget 9"),
)  # fmt: skip
