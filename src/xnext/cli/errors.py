"""`xnext errors`: what a network gets wrong, as a page to look at."""

from pathlib import Path

from jsonargparse import Namespace

from xnext._files import require_writable
from xnext._parser import Parser
from xnext.cli._common import Verb, at_least, require_ending
from xnext.cli._measured import add_measured_options, open_data, open_pass
from xnext.errors import UserError, shown
from xnext.evaluation.mistakes import Mistakes
from xnext.evaluation.report import imagenet_set, own_set
from xnext.evaluation.sets import SETS

_PAGE = Path("errors.html")


def _options(parser: Parser) -> None:
    add_measured_options(parser, {name: kind.what for name, kind in SETS.items()})
    parser.add_argument(
        "--count", type=int, default=24, metavar="N",
        help="Most mistakes to show, of the worst and of the most surprising.",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path | None, metavar="PAGE.html",
        help=f"Page to write. Default: {_PAGE} in RUN, or here where there is no RUN.",
    )  # fmt: skip


def _run(arguments: Namespace) -> int:
    from xnext.evaluation.mistakes_page import write_mistakes  # needs OpenCV

    run, output = arguments.run, arguments.output
    if output is None:
        output = run / _PAGE if run is not None and run.is_dir() else _PAGE
    require_ending(output, ".html")
    require_writable(output)  # told before an hour of work
    at_least(arguments, "count", 1)
    how, source = open_pass(arguments, "errors", SETS)
    if arguments.set:
        test, title = imagenet_set(how.classifier, arguments.set, arguments.data), arguments.data
    else:
        data = open_data(arguments.data, how.classifier, source)
        if data.multilabel:
            raise UserError(
                f"{data.name} has several classes an image; mistakes are told of one class an image"
            )
        test, title = own_set(data), data.name
    mistakes = Mistakes.of(how.ask(test, "evaluating"))
    write_mistakes(output, how, test, f"{source} on {title}", mistakes, arguments.count)
    print(mistakes.summary)
    for index in mistakes.answers.bad_images:
        print(f"unreadable, not counted: {shown(test.source.name(index))}")
    print(f"wrote {output}")
    return 0


VERB = Verb(
    "Show the worst and the most surprising mistakes, with maps, as one HTML file.", _options, _run,
    (
        "xnext errors runs/photos --data more-photos/",
        "xnext errors inceptionnext_tiny --data imagenet-a/ --set a --count 100 --output mistakes.html",
    ),
)  # fmt: skip
