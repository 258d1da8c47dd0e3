"""What `xnext predict --output` does: predictions of any number of images into a folder."""

import time
from pathlib import Path

from jsonargparse import Namespace

from xnext._parser import Parser
from xnext._progress import watched
from xnext.cli._common import at_least
from xnext.data import load_pictures
from xnext.deploy._pool import open_pool
from xnext.deploy.bulk import BATCH_SIZE, CHUNK_SIZE, Network, Predictions
from xnext.errors import UserError, shorten

_OWN = ("resume", "batch_size", "chunk_size", "workers", "scheduler")


def add_bulk_options(parser: Parser) -> None:
    """Add the options of predictions into a folder."""
    parser.add_argument(
        "--output", type=Path | None, metavar="DIR",
        help="Write the predictions into a folder of Parquet files instead of printing them.",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="Go on with the folder in --output, after a kill."
    )
    parser.add_argument(
        "--batch-size", type=int | None, metavar="N",
        help=f"With --output: images that go through the network at once (default: {BATCH_SIZE})",
    )  # fmt: skip
    parser.add_argument(
        "--chunk-size", type=int | None, metavar="N",
        help=f"With --output: images of a file, and those to do again after a kill (default: {CHUNK_SIZE})",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int | None, metavar="N",
        help="With --output: processes. Default: one a core, or one alone where there is a GPU.",
    )  # fmt: skip
    parser.add_argument(
        "--scheduler", type=str | None, metavar="tcp://HOST:PORT",
        help="With --output: the Dask cluster that predicts, instead of this machine.",
    )  # fmt: skip


def refuse_bulk_options(arguments: Namespace) -> None:
    """Refuse options that mean nothing where predictions are printed.

    Raises:
        UserError: Naming one.
    """
    for name in _OWN:
        if arguments[name] is not None and arguments[name] is not False:
            raise UserError(f"--{name.replace('_', '-')} is for predictions into a folder; add --output DIR")
    for spec in arguments.images:
        if spec.startswith(("hf:", "wds:")):
            raise UserError(f"{spec}: its predictions go into a folder; add --output DIR")


def predict_into(arguments: Namespace, topk: int | None) -> int:
    """Predict all images that the arguments name into ``--output``; return the exit code."""
    options = {
        name: at_least(arguments, name, 1)
        for name in ("batch_size", "chunk_size", "workers")
        if arguments[name] is not None
    }
    if arguments.json:
        raise UserError("--json is for printed predictions; leave it or --output out")
    if arguments.scheduler and "workers" in options:
        raise UserError("--workers are processes of this machine, and --scheduler has its own; give one")
    started = time.monotonic()
    with open_pool(options.pop("workers", None), arguments.scheduler) as pool:
        source = load_pictures(arguments.images)
        network = Network.of(arguments.checkpoint, arguments.model)
        begin = Predictions.resume if arguments.resume else Predictions.create
        if topk is not None:
            options["topk"] = topk
        predictions = begin(arguments.output, arguments.images, source, network, **options)
        missing = len(predictions.missing)
        done = sum(watched(predictions.run(pool), "predicting", total=missing))
        predictions.close()
    seconds = time.monotonic() - started
    print(
        f"wrote {arguments.output}: {len(source):,} images in {predictions.chunks:,} parts; now {done:,} in"
        f" {seconds:.1f} s ({done / seconds:.0f} images/s)"
    )
    if names := predictions.unreadable():
        print(f"unreadable, with the reason in the column `error`: {shorten(names)}, {len(names):,} in all")
    return 0
