"""`xnext demo`: a page to try networks on."""

import os
import tempfile
from pathlib import Path

from jsonargparse import Namespace

from xnext._parser import Parser
from xnext.cli._common import CHECKPOINT_HELP, Verb, at_least
from xnext.data._decode import MAX_PIXELS
from xnext.errors import UserError
from xnext.evaluation.predict import Classifier, knows_its_network, load_classifier
from xnext.training.interrupts import clean_exit

_MOST = 2  # networks beside each other
_MOST_MEGAPIXELS = MAX_PIXELS // 10**6
_PORTS = 2**16


def _options(parser: Parser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, nargs="+", metavar="RUN|FILE",
        help=f"{CHECKPOINT_HELP} Two are shown side by side.",
    )  # fmt: skip
    parser.add_argument(
        "--model", type=str, nargs="+", metavar="NAME",
        help="Network that a checkpoint belongs to if it does not say so itself; any further one is shown "
        "too, with its published weights.",
    )  # fmt: skip
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", metavar="ADDRESS",
        help="Address to listen on; 0.0.0.0 lets everyone in who can reach this machine.",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="Port; 0 takes any that is free.")
    parser.add_argument(
        "--max-megabytes", type=int, default=20, metavar="N", help="Largest file that is taken."
    )
    parser.add_argument(
        "--max-megapixels", type=int, default=50, metavar="N",
        help=f"Largest picture that is decoded, up to {_MOST_MEGAPIXELS}.",
    )  # fmt: skip


def _run(arguments: Namespace) -> int:
    at_least(arguments, "max_megabytes", 1)
    at_least(arguments, "port", 0)
    if at_least(arguments, "max_megapixels", 1) > _MOST_MEGAPIXELS:
        raise UserError(
            f"--max-megapixels is {arguments.max_megapixels}; it must be at most {_MOST_MEGAPIXELS}"
        )
    if arguments.port >= _PORTS:
        raise UserError(f"--port is {arguments.port}; it must be below {_PORTS}")
    with clean_exit(), tempfile.TemporaryDirectory(prefix="xnext-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # before Gradio is imported, which asks then
        _serve(arguments)
    return 0


def _serve(arguments: Namespace) -> None:
    from xnext.demo import build_page, listen, serve  # needs Gradio, and seconds

    with listen(arguments.host, arguments.port) as listening:
        networks = _load(arguments.checkpoint or [], arguments.model or [])
        page = build_page(networks, arguments.max_megabytes, 10**6 * arguments.max_megapixels)
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        serve(page, listening)


def _load(checkpoints: list[Path], models: list[str]) -> list[tuple[str, Classifier]]:
    """Load the networks, and say where each comes from."""
    left = list(models)
    wanted: list[tuple[Path | None, str | None]] = [
        (path, left.pop(0) if left and not knows_its_network(path) else None) for path in checkpoints
    ]
    wanted += [(None, name) for name in left]
    if not 1 <= len(wanted) <= _MOST:
        raise UserError("give one network or two, by --checkpoint RUN or --model NAME; see xnext demo --help")
    loaded = [(path, load_classifier(path, name)) for path, name in wanted]
    return [("published weights" if path is None else str(path), one) for path, one in loaded]


VERB = Verb(
    "Try one network, or two side by side, on a page on this machine.", _options, _run,
    (
        "xnext demo --checkpoint runs/photos",
        "xnext demo --checkpoint runs/photos --model inceptionnext_tiny --port 8000",
    ),
)  # fmt: skip
