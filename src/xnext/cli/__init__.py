"""The `xnext` command: a module a verb, each one thin, and the table of them."""

import io
import os
import re
import sys
from collections.abc import Sequence

from xnext._interrupts import Stopped
from xnext._parser import Parser, config_first
from xnext._processes import is_first
from xnext._version import __version__
from xnext.cli import (
    benchmark,
    cam,
    compare,
    data,
    demo,
    errors,
    evaluate,
    export,
    figures,
    importance,
    models,
    predict,
    recipes,
    report,
    search,
    segment,
    tables,
    train,
)
from xnext.cli._common import add_verbs, fail
from xnext.errors import UserError

_INTERRUPTED = 128 + 2  # as a shell reports a process that SIGINT ended
_PIPE_CLOSED = 128 + 13  # and SIGPIPE

_VERBS = {
    "data": data.VERB,
    "train": train.VERB,
    "evaluate": evaluate.VERB,
    "compare": compare.VERB,
    "predict": predict.VERB,
    "cam": cam.VERB,
    "errors": errors.VERB,
    "demo": demo.VERB,
    "segment": segment.VERB,
    "export": export.VERB,
    "recipes": recipes.VERB,
    "models": models.VERB,
    "benchmark": benchmark.VERB,
    "tables": tables.VERB,
    "figures": figures.VERB,
    "search": search.VERB,
    "importance": importance.VERB,
    "report": report.VERB,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C.

    Args:
        argv: The words after `xnext`; default: those of the process.

    Raises:
        SystemExit: With 0, after printing the help or the version.
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what a terminal cannot show
    try:
        if any(word == "" or re.fullmatch("--[a-z-]+=", word) for word in words):
            raise UserError("an argument is empty; is a shell variable not set?")
        arguments = _parser().parse_args(config_first(words))
        code = _VERBS[arguments.verb].run(arguments[arguments.verb])
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Stopped as stopped:
        if is_first():
            print("xnext:", stopped, file=sys.stderr)
        return 128 + stopped.signal
    except UserError as error:
        return fail(str(error))
    except BrokenPipeError:
        _drop_unprinted()
        return _PIPE_CLOSED
    except OSError as error:
        if error.errno is None:  # not the system's: a bug
            raise
        _drop_unprinted()
        return fail(f"{error.filename or 'standard output'}: {error.strerror}")
    return code


def _parser() -> Parser:
    """Build the parser of the whole command line."""
    parser = Parser(
        prog="xnext",
        description="Train, measure, use and explain the networks from Xception to InceptionNeXt.",
        epilog="Start with: xnext train --help",
        version=__version__,
    )
    add_verbs(parser, _VERBS)
    return parser


def _drop_unprinted() -> None:
    """If stdout takes nothing more, let Python's flush at exit go nowhere instead of complaining."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
