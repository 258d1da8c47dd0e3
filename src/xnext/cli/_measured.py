"""What the verbs share that measure a network on images: which network, which images, how it is asked."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import timm
from jsonargparse import Namespace

from xnext._parser import Parser
from xnext._progress import watched
from xnext.cli._common import DATA_HELP, MODEL_HELP, at_least, require_known
from xnext.data import ImageData, check_same_classes, load_data
from xnext.errors import UserError
from xnext.evaluation.predict import Classifier, knows_its_network, load_classifier
from xnext.evaluation.report import Pass
from xnext.evaluation.sets import SETS

FURTHER_MODELS_HELP = (
    "Network that a checkpoint belongs to if it does not say so itself; any further one is shown too, with"
    " its published weights."
)


def add_measured_options(parser: Parser, sets: Mapping[str, str]) -> None:
    """Add the options of the network, of the images and of how it is asked.

    Args:
        parser: Of the verb.
        sets: What ``--set`` takes: names, and in a few words what they are.
    """
    parser.add_argument(
        "run", type=Path | None, nargs="?", metavar="RUN|FILE|MODEL",
        help="Folder that `xnext train` left, a weight file, or a network of this project or timm, with "
        "published weights.",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=Path | None, metavar="FILE", help="Weights, instead of a RUN.")
    parser.add_argument("--model", type=str | None, metavar="NAME", help=MODEL_HELP)
    parser.add_argument(
        "--data", type=str | None, metavar="SPEC",
        help=f"{DATA_HELP} Default: what RUN held out of its training.",
    )  # fmt: skip
    kinds = "; ".join(f"{name}: {what}" for name, what in sets.items())
    parser.add_argument("--set", type=str | None, metavar="NAME", help=f"What the images are. {kinds}.")
    parser.add_argument(
        "--tta", action="store_true", help="Look at each image mirrored too, and average the probabilities."
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="Images at once.")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N",
        help="Processes that load images; 0: the command itself.",
    )  # fmt: skip


def open_pass(arguments: Namespace, verb: str, sets: Collection[str]) -> tuple[Pass, str]:
    """Check the options, load the network; return it with how it is asked, and its name in messages.

    Args:
        arguments: Of the verb.
        verb: The verb, for messages.
        sets: What ``--set`` takes.

    Raises:
        UserError: The options do not go together, or there is no such network.
    """
    at_least(arguments, "batch_size", 1)
    at_least(arguments, "workers", 0)
    if arguments.set is not None:
        require_known("--set", arguments.set, sets)
    if arguments.set in SETS and arguments.data is None:
        raise UserError(f"--set {arguments.set} needs --data FOLDER, where its images are")
    if (arguments.run is None) == (arguments.checkpoint is None):
        raise UserError(f"give either a RUN or --checkpoint FILE; see xnext {verb} --help")
    name = str(arguments.run or arguments.checkpoint)
    if arguments.run is not None and not arguments.run.exists() and timm.is_model(name.partition(".")[0]):
        classifier = load_classifier(None, name)
    else:
        classifier = load_classifier(arguments.run or arguments.checkpoint, arguments.model)
    how = Pass(
        classifier=classifier, batch_size=arguments.batch_size, workers=arguments.workers,
        mirrored=arguments.tta, watch=watched,
    )  # fmt: skip
    return how, name


def load_networks(
    checkpoints: Sequence[Path], models: Sequence[str], verb: str, most: int | None = None
) -> list[tuple[str, Classifier]]:
    """Load networks that are shown beside each other; return each with where it comes from.

    Args:
        checkpoints: Runs and weight files.
        models: Names for the files that do not say theirs, in their order, and of further networks with
            published weights.
        verb: For messages.
        most: How many may be given.

    Raises:
        UserError: There is none, there are too many, or one cannot be loaded.
    """
    left = list(models)
    wanted: list[tuple[Path | None, str | None]] = [
        (path, left.pop(0) if left and not knows_its_network(path) else None) for path in checkpoints
    ]
    wanted += [(None, name) for name in left]
    if not wanted or (most is not None and len(wanted) > most):
        some = "networks" if most is None else "one network or two"
        raise UserError(f"give {some} by --checkpoint RUN or --model NAME; see xnext {verb} --help")
    loaded = [(path, load_classifier(path, name)) for path, name in wanted]
    return [("published weights" if path is None else str(path), one) for path, one in loaded]


def open_data(spec: str | None, classifier: Classifier, source: str) -> ImageData:
    """Load the data of a spec, by default those of the training, split as for it.

    Args:
        spec: The data spec, or None.
        classifier: The network.
        source: What it is called in messages.

    Raises:
        UserError: There are no such data, or their labels mean something else to the network.
    """
    if spec is None and classifier.data is None:
        raise UserError(f"{source} does not say which images to take; add --data SPEC")
    try:
        data = load_data(spec or str(classifier.data), seed=classifier.seed)
    except UserError as error:
        raise (
            error if spec else UserError(f"{error} (what {source} was trained on; add --data SPEC)")
        ) from error
    _require_same_classes(classifier, data, source)
    return data


def _require_same_classes(classifier: Classifier, data: ImageData, source: str) -> None:
    """Refuse data whose labels mean something else to the network, in a line that lists the difference."""
    if classifier.named and classifier.multilabel != data.multilabel:
        kinds = ("one class an image", "several classes an image")
        raise UserError(
            f"{source} was trained for {kinds[classifier.multilabel]}, but {data.name} has"
            f" {kinds[data.multilabel]}; give other --data"
        )
    if classifier.classes == data.classes:
        return
    sizes = f"{source} knows {len(classifier.classes)} classes and {data.name} has {len(data.classes)}"
    if not classifier.named:
        if len(classifier.classes) == len(data.classes):
            return
        raise UserError(f"{sizes}; give other --data")
    try:
        check_same_classes(sizes, classifier.classes, data.classes, ("the checkpoint", "the data"))
    except UserError as error:
        raise UserError(f"{error}; give other --data") from error
