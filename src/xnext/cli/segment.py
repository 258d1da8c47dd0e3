"""`xnext segment`: a class for every place of an image; trained, measured, used."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from xnext._parser import Parser
from xnext._progress import watched
from xnext.cli._common import (
    Verb,
    add_verbs,
    at_least,
    fail,
    new_table,
    print_table,
)
from xnext.cli.train import add_training_options, run_training
from xnext.data import check_same_classes
from xnext.errors import UserError, shown
from xnext.evaluation.accuracy import METRICS
from xnext.training.config import OF_CLASSIFIERS, TrainConfig

if TYPE_CHECKING:
    from xnext.segmentation.check import MaskReport
    from xnext.segmentation.data import MaskData
    from xnext.segmentation.inference import Tiles

# xnext.segmentation is imported where it is used: it needs segmentation-models-pytorch.

_SPEC_HELP = "Images with masks: a folder, or `hf:NAME_OR_FOLDER`."
_DATA_HELP = f"{_SPEC_HELP} Default: what RUN held out of its training."
_RUN_HELP = "Folder that `xnext segment train` left (its best weights), or a checkpoint in it."
_CASES = 5  # of a finding that are printed
_NAMED = 3  # classes of an image that are printed


def _check_options(parser: Parser) -> None:
    parser.add_argument("data", type=str, metavar="SPEC", help=_SPEC_HELP)
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Of the split, where the set has none of its own."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")


def _check(arguments: Namespace) -> int:
    from xnext.segmentation.check import check_masks
    from xnext.segmentation.data import load_masks

    data = load_masks(arguments.data, seed=at_least(arguments, "seed", 0), partial=True)
    report = check_masks(data, watched)
    if arguments.json:
        print(json.dumps(report.to_dict()))
    else:
        _print_check(data, report)
    report.require_sound(TrainConfig.max_bad_images)  # as a training would
    return 0


def _print_check(data: "MaskData", report: "MaskReport") -> None:
    images = f"{len(data.train):,} training and {len(data.val):,} held-out images with masks"
    print(f"{shown(data.name)}: {images}, {len(data.classes)} classes\n")
    table = new_table("class", ">training masks", ">% of places", ">held-out masks", ">% of places")
    whole = report.to_dict()
    for row in whole["classes"]:
        cells = (cell for part in ("train", "val") for cell in _share(row[part]))
        table.add_row(shown(row["class"]), *cells)
    train, val = (f"{100 * whole['ignored'][part]:.2f}" for part in ("train", "val"))
    table.add_row("(ignored)", "", train, "", val)
    print_table(table)
    for what, cases in report.odd().items():
        print(f"\n{what}:")
        for case in cases[:_CASES]:
            print(f"    {shown(case)}")
        if len(cases) > _CASES:
            print(f"    and {len(cases) - _CASES:,} more, which --json lists")


def _share(part: Mapping[str, Any]) -> tuple[str, str]:
    return f"{part['masks']:,}", f"{100 * part['share']:.2f}"


def _train_options(parser: Parser) -> None:
    add_training_options(
        parser, without=OF_CLASSIFIERS, names={"model": "encoder"}, texts={"data": f"{_SPEC_HELP} Required."}
    )


def _train(arguments: Namespace) -> int:
    if arguments.decoder is None:
        raise UserError("missing --decoder, upernet or fpn; see xnext segment train --help")
    return run_training(arguments)


def _evaluate_options(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help=_RUN_HELP)
    parser.add_argument("--data", type=str | None, metavar="SPEC", help=_DATA_HELP)
    parser.add_argument(
        "--slide", action="store_true",
        help="Let a window of the training's size slide over each image, instead of showing it as a whole.",
    )  # fmt: skip
    parser.add_argument(
        "--multi-scale", action="store_true",
        help="Show each image at six scales from 0.5 to 1.75, and mirrored, and average.",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")


def _evaluate(arguments: Namespace) -> int:
    from xnext.segmentation.data import load_masks
    from xnext.segmentation.evaluate import describe_views, evaluate_masks
    from xnext.segmentation.inference import MULTI_SCALE, ONE_VIEW, load_trained

    started = time.perf_counter()
    trained = load_trained(arguments.run)
    try:
        data = load_masks(arguments.data or trained.data, seed=trained.seed)
    except UserError as error:
        if arguments.data is not None:
            raise
        raise UserError(f"{error} (what {arguments.run} was trained on; add --data SPEC)") from error
    check_same_classes(data.name, trained.classes, data.classes, (str(arguments.run), "the data"))
    views = replace(MULTI_SCALE if arguments.multi_scale else ONE_VIEW, slide=arguments.slide)
    report: dict[str, Any] = {"model": trained.name, "decoder": trained.decoder, "data": data.name}
    report |= describe_views(views) | evaluate_masks(trained, data.val, views, watched).to_dict()
    report["seconds"] = round(time.perf_counter() - started, 3)
    if arguments.json:
        print(json.dumps(report))
    else:
        _print_report(report)
    return 0


def _print_report(report: Mapping[str, Any]) -> None:
    total = sum(row["places"] for row in report["classes"])
    table = new_table("class", ">IoU %", ">accuracy %", ">places %")
    for row in report["classes"]:
        share = 100 * row["places"] / max(total, 1)
        table.add_row(shown(row["class"]), _figure(row["iou"]), _figure(row["accuracy"]), f"{share:.2f}")
    print_table(table)
    absent = sum(row["iou"] is None for row in report["classes"])
    if absent:
        others = len(report["classes"]) - absent
        print(f"nan: in neither masks nor answers; the means are over the other {others}")
    print()
    metrics = ("miou", "mean_accuracy", "accuracy")
    headings = [f">{METRICS[name]} %" for name in metrics]
    table = new_table("model", "data", *headings, ">images", ">bad images", ">seconds")
    bad = report["bad_images"]
    table.add_row(
        f"{report['model']} {report['decoder']}", shown(report["data"]),
        *(f"{report[name]:.2f}" for name in metrics), str(report["images"]), str(len(bad)),
        f"{report['seconds']:.1f}",
    )  # fmt: skip
    print_table(table)
    for one in bad:
        print(f"unreadable, not counted: {shown(one['name'])}: {one['reason']}")


def _figure(value: float | None) -> str:
    return "nan" if value is None else f"{value:.2f}"


def _predict_options(parser: Parser) -> None:
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE|FOLDER", help="Pictures of any size.")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN|FILE", help=_RUN_HELP)
    parser.add_argument(
        "--output", type=Path, default=Path("segmented"), metavar="DIR",
        help="Folder for masks/, overlays/, classes.txt and legend.png.",
    )  # fmt: skip
    parser.add_argument(
        "--overlay", action="store_true", help="Write each image under the colours of its classes, too."
    )
    parser.add_argument(
        "--full-size", action="store_true",
        help="Look at each image at its own size, not at that of the training: for maps and scans, of which "
        "the network learned parts.",
    )  # fmt: skip
    parser.add_argument(
        "--tile", type=int | None, metavar="N",
        help="With --full-size: pixels a side that are looked at at once, by default 1024; larger images are "
        "cut into tiles that overlap.",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", type=int | None, metavar="N",
        help="With --full-size: pixels that a tile sees beyond what is taken of it. Default: as far as the "
        "network sees, but at most a quarter of the tile.",
    )  # fmt: skip


def _predict(arguments: Namespace) -> int:
    from xnext.segmentation.inference import Tiles, load_trained
    from xnext.segmentation.predict import plan_files, write_masks

    given = {"side": arguments.tile, "overlap": arguments.overlap}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not arguments.full_size:
        raise UserError("--tile and --overlap are of --full-size; add it, or leave them out")
    planned = plan_files(arguments.images, arguments.output)
    trained = load_trained(arguments.checkpoint)
    tiles = Tiles.of(trained, **given) if arguments.full_size else None
    table, code, tiled = new_table("image", "classes"), 0, False
    results = write_masks(trained, planned, arguments.output, tiles, arguments.overlay)
    for result in watched(results, "predicting", len(planned)):
        if result.error is not None:
            code = fail(result.error)
            continue
        tiled |= result.tiled
        named = [f"{name} {share:.1%}" for name, share in result.shares[:_NAMED]]
        rest = len(result.shares) - len(named)
        table.add_row(shown(str(result.image)), ", ".join(named) + (f" and {rest} more" if rest else ""))
    if table.row_count:
        print_table(table)
        print(f"wrote {arguments.output}")
    if tiles is not None and tiled:
        print(_of_tiles(tiles, trained.reach))
    return code


def _of_tiles(tiles: "Tiles", reach: int | None) -> str:
    """Return what it means that images were seen in tiles."""
    seen = f"images were seen in tiles of {tiles.side} pixels with an overlap of {tiles.overlap}"
    if reach is None:
        return f"{seen}; this network sees whole images, so each tile is told for itself, not as in the whole"
    if reach > tiles.overlap:
        return (
            f"{seen}; this network sees {reach} pixels far, so places near the edges of tiles may be told"
            f" otherwise than in the whole (--tile {max(tiles.side, 4 * reach)} makes them alike)"
        )
    return f"{seen}, which is as far as this network sees: told as in the whole"


_WORDS = {
    "check": Verb(
        "Look at every image and its mask before a training: shares of the classes, and what is odd.",
        _check_options, _check,
        ("xnext segment check streets/", "xnext segment check ADEChallengeData2016/ --json"),
    ),
    "train": Verb(
        "Train a segmentation network on images with masks and leave a run directory.",
        _train_options, _train,
        (
            "xnext segment train --encoder inceptionnext_atto --decoder fpn --data streets/ --output runs/a",
            "xnext segment train --recipe upernet_ade20k --data ADEChallengeData2016/ --output runs/ade",
        ),
    ),
    "evaluate": Verb(
        "Measure a segmentation network on held-out images with masks.", _evaluate_options, _evaluate,
        (
            "xnext segment evaluate runs/ade",
            "xnext segment evaluate runs/ade --data ADE/ --slide --multi-scale --json",
        ),
    ),
    "predict": Verb(
        "Write the class of every place of pictures as masks.", _predict_options, _predict,
        (
            "xnext segment predict street.jpg photos/ --checkpoint runs/ade --overlay --output streets",
            "xnext segment predict map.tif --checkpoint runs/land --full-size --tile 2048",
        ),
    ),
}  # fmt: skip


def _options(parser: Parser) -> None:
    add_verbs(parser, _WORDS)


def _run(arguments: Namespace) -> int:
    return _WORDS[arguments.verb].run(arguments[arguments.verb])


VERB = Verb(
    "Train, measure and use networks that name a class for every place of an image.", _options, _run,
    tuple(word.examples[0] for word in _WORDS.values()),
)  # fmt: skip
