"""`xnext demo`: a page to try networks on."""

import os
import tempfile
from pathlib import Path

from jsonargparse import Namespace

from xnext._interrupts import clean_exit
from xnext._parser import Parser
from xnext.cli._common import CHECKPOINT_HELP, Verb, at_least
from xnext.cli._measured import FURTHER_MODELS_HELP, load_networks
from xnext.data._decode import MAX_PIXELS
from xnext.errors import UserError

_MOST_MEGAPIXELS = MAX_PIXELS // 10**6
_PORTS = 2**16


def _options(parser: Parser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, nargs="+", metavar="RUN|FILE",
        help=f"{CHECKPOINT_HELP} Two are shown side by side.",
    )  # fmt: skip
    parser.add_argument("--model", type=str, nargs="+", metavar="NAME", help=FURTHER_MODELS_HELP)
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
        networks = load_networks(arguments.checkpoint or [], arguments.model or [], "demo", most=2)
        page = build_page(networks, arguments.max_megabytes, 10**6 * arguments.max_megapixels)
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        serve(page, listening)


VERB = Verb(
    "Try one network, or two side by side, on a page on this machine.", _options, _run,
    (
        "xnext demo --checkpoint runs/photos",
        "xnext demo --checkpoint runs/photos --model inceptionnext_tiny --port 8000",
    ),
)  # fmt: skip
