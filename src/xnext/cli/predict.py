"""`xnext predict`: the classes of pictures."""

import json
from pathlib import Path

from jsonargparse import Namespace

from xnext._parser import Parser
from xnext.cli._bulk import add_bulk_options, predict_into, refuse_bulk_options
from xnext.cli._common import CHECKPOINT_HELP, MODEL_HELP, Verb, at_least, fail, new_table, print_table
from xnext.data import find_images
from xnext.evaluation.predict import load_classifier, predict


def _predict_options(parser: Parser) -> None:
    parser.add_argument(
        "images", type=str, nargs="+", metavar="IMAGE|FOLDER|SPEC",
        help="Pictures to classify; with --output also `TABLE.csv`, `hf:NAME_OR_FOLDER` or `wds:SHARDS`.",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN|FILE", help=CHECKPOINT_HELP)
    parser.add_argument("--model", type=str | None, metavar="NAME", help=MODEL_HELP)
    parser.add_argument(
        "--topk",
        type=int | None,
        metavar="K",
        help="Most probable classes to print an image. Default: one, and where an image may have several "
        "all of at least 50 %%.",
    )
    parser.add_argument(
        "--json", action="store_true", help="Print one JSON object a line an image and nothing else."
    )
    add_bulk_options(parser)


def _predict(arguments: Namespace) -> int:
    topk = None if arguments.topk is None else at_least(arguments, "topk", 1)
    if arguments.output is not None:
        return predict_into(arguments, topk)
    refuse_bulk_options(arguments)
    images = find_images([Path(image) for image in arguments.images])
    classifier = load_classifier(arguments.checkpoint, arguments.model)
    table = new_table("image", "class", ">probability")
    code = 0
    for prediction in predict(classifier, images, topk):
        if prediction.error is not None:
            code = fail(prediction.error)
        if arguments.json:
            classes = [{"class": name, "probability": value} for name, value in prediction.classes]
            print(json.dumps({"image": str(prediction.image), "classes": classes, "error": prediction.error}))
        for rank, (name, value) in enumerate(prediction.classes):
            table.add_row("" if rank else str(prediction.image), name, f"{value:.1%}")
    if not arguments.json and table.row_count:
        print_table(table)
    return code


VERB = Verb(
    "Name the class of pictures.", _predict_options, _predict,
    (
        "xnext predict seven.png photos/ --checkpoint runs/digits --topk 3",
        "xnext predict 'wds:photos-{000..127}.tar' --checkpoint runs/photos --output predictions",
        "xnext predict 'wds:photos-{000..127}.tar' --checkpoint runs/photos --output predictions --resume",
        "xnext predict 'hf:photos?split=test' --checkpoint runs/photos --output tested"
        " --scheduler tcp://10.0.0.1:8786",
    ),
)  # fmt: skip
