"""`xnext report`: a search as a page to read."""

from pathlib import Path

from jsonargparse import Namespace

from xnext._parser import Parser
from xnext.cli._common import Verb
from xnext.search import Search


def _options(parser: Parser) -> None:
    parser.add_argument("search", type=Path, metavar="DIR", help="Folder that `xnext search` left.")
    parser.add_argument(
        "--output",
        type=Path | None,
        metavar="FILE.html",
        help="Where to; default: report.html in the folder.",
    )


def _run(arguments: Namespace) -> int:
    from xnext.search.report import write_report

    search = Search.open(arguments.search)
    path = arguments.output or search.path / "report.html"
    write_report(search, path)
    print(f"-> {path}")
    return 0


VERB = Verb(
    "Write what came of a search as one HTML file, which needs no network.", _options, _run,
    ("xnext report searches/photos",),
)  # fmt: skip
