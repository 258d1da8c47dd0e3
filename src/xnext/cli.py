"""The `xnext` command: train, evaluate, predict, explain, list; one thin function a verb."""

import dataclasses
import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.progress import track
from rich.table import Table

from xnext._figures import write_figure
from xnext._parser import ConfigFile, Parser, config_first
from xnext._processes import is_first, is_restarted, leave
from xnext._version import __version__
from xnext.data import (
    ImageData,
    ImageDataset,
    build_eval_transform,
    build_loader,
    check_same_classes,
    decode_image,
    find_images,
    load_data,
)
from xnext.errors import UserError
from xnext.evaluation.accuracy import METRICS, evaluate
from xnext.evaluation.complexity import count_macs, count_parameters
from xnext.evaluation.predict import Classifier, load_classifier, predict
from xnext.models import create_model, list_models
from xnext.training import Run, TrainConfig, train
from xnext.training.interrupts import Stopped
from xnext.training.progress import Screen
from xnext.training.recipes import find_recipe, list_recipes

_MISTAKE = 2
_INTERRUPTED = 128 + 2  # as a shell reports a process that SIGINT ended
_PIPE_CLOSED = 128 + 13  # and SIGPIPE
_MOST_IN_ONE_PICTURE = 64

_DATA_HELP = "Images: `digits`, a folder, `TABLE.csv`, `hf:NAME_OR_FOLDER`, `wds:SHARDS` or `torch/NAME`."
_MODEL_HELP = "Network that published weights belong to; a RUN and its checkpoints know their own."
_CHECKPOINT_HELP = "Folder that `xnext train` left (its best weights), or a weight file."


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
        return _fail(str(error))
    except BrokenPipeError:
        _drop_unprinted()
        return _PIPE_CLOSED
    except OSError as error:
        if error.errno is None:  # not the system's: a bug
            raise
        _drop_unprinted()
        return _fail(f"{error.filename or 'standard output'}: {error.strerror}")
    return code


def _fail(message: str) -> int:
    """Print one error line and return the exit code that goes with it."""
    process = "" if is_first() else f" (process {os.environ['RANK']})"
    print(f"xnext: error{process}:", " ".join(message.split()), file=sys.stderr)
    return _MISTAKE


def _drop_unprinted() -> None:
    """If stdout takes nothing more, let Python's flush at exit go nowhere instead of complaining."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_table(table: Table) -> None:
    """Print a table: as wide as the terminal, or unwrapped into a file or pipe."""
    Screen(markup=False, highlight=False, width=None if sys.stdout.isatty() else 1000).print(table)


def _table(*headings: str) -> Table:
    """Return an empty table; a heading that starts with `>` is of a column of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for heading in headings:
        number = heading.startswith(">")
        table.add_column(
            heading.lstrip(">"), justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    return table


def _at_least(arguments: Namespace, name: str, least: int) -> int:
    """Return the value of an option after checking that it is not too small."""
    if arguments[name] < least:
        raise UserError(f"--{name.replace('_', '-')} is {arguments[name]}; it must be at least {least}")
    return arguments[name]


# --- train -------------------------------------------------------------------------------------------------


def _train_options(parser: Parser) -> None:
    times = {"warmup": "TIME", "decay_every": "TIME", "save_every": "TIME"}
    parser.add_options(
        TrainConfig, data="SPEC", output="RUN", checkpoint="FILE", lr="RATE", opt_betas="LIST", **times
    )
    parser.add_argument(
        "--config", "--recipe", action=_Options, metavar="FILE|NAME",
        help="YAML file of these options (a run's config.yaml is one), or the name of a recipe that "
        "`xnext recipes` lists; flags win over both, and FILE over NAME.",
    )  # fmt: skip

    parser.add_argument(
        "--resume", type=Path | None, metavar="RUN",
        help="Go on with a run that was stopped or killed; it needs no other option.",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true", help="Go on with --resume although an option differs from the run's."
    )


class _Options(ConfigFile):
    """A file of options, given by its path or as a recipe by its name."""

    def find(self, option: str | None, value: str) -> Path:
        return find_recipe(value).path if option == "--recipe" else Path(value)


def _train(arguments: Namespace) -> int:
    values = vars(arguments)
    config = TrainConfig(**{field.name: values[field.name] for field in dataclasses.fields(TrainConfig)})
    resume = arguments.resume is not None
    if resume:
        config = dataclasses.replace(config, output=arguments.resume)
    elif is_restarted():
        resume = Run(config.output).config.is_file()
    summary = train(config, resume=resume, force=arguments.force)
    leave()
    if is_first():
        run, name = config.output, next(name for name in METRICS if f"best_val_{name}" in summary)
        best = f"{summary[f'best_val_{name}']:.2f} % {METRICS[name]}"
        print(f"best: {best}, after epoch {summary['best_epoch']}; all is in {run}")
        print(f"next: xnext evaluate {run}, or xnext predict IMAGE --checkpoint {run}")
    return 0


# --- evaluate ----------------------------------------------------------------------------------------------


def _evaluate_options(parser: Parser) -> None:
    parser.add_argument(
        "run", type=Path | None, nargs="?", metavar="RUN", help="Folder that `xnext train` left."
    )
    parser.add_argument("--checkpoint", type=Path | None, metavar="FILE", help="Weights, instead of a RUN.")
    parser.add_argument("--model", type=str | None, metavar="NAME", help=_MODEL_HELP)
    parser.add_argument(
        "--data",
        type=str | None,
        metavar="SPEC",
        help=f"{_DATA_HELP} Default: what RUN held out of its training.",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="Images at once.")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="Processes that load images; 0: the command itself.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")


def _evaluate(arguments: Namespace) -> int:
    started = time.perf_counter()
    batch_size, workers = _at_least(arguments, "batch_size", 1), _at_least(arguments, "workers", 0)
    if (arguments.run is None) == (arguments.checkpoint is None):
        raise UserError("give either a RUN or --checkpoint FILE; see xnext evaluate --help")
    checkpoint = arguments.run or arguments.checkpoint
    classifier = load_classifier(checkpoint, arguments.model)
    data = _evaluation_data(arguments.data, classifier, checkpoint)
    _require_same_classes(classifier, data, checkpoint)
    dataset = ImageDataset(data.val, build_eval_transform(classifier.preprocessing), training=False)
    loader = build_loader(dataset, batch_size=batch_size, workers=workers)
    progress = Console(stderr=True)
    result = evaluate(
        classifier.model,
        track(loader, "evaluating", console=progress, transient=True, disable=not progress.is_terminal),
        num_classes=len(data.classes),
        device=classifier.device,
    )
    if not math.isfinite(result.metrics["loss"]):
        raise UserError(f"the outputs of {checkpoint} are not finite; train again, or take other weights")
    report = {
        "model": classifier.name,
        "data": data.name,
        **result.metrics,
        "images": result.images,
        "bad_images": [data.val.name(index) for index in result.bad_images],
        "seconds": round(time.perf_counter() - started, 3),
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        _print_report(report)
    return 0


def _evaluation_data(spec: str | None, classifier: Classifier, checkpoint: Path) -> ImageData:
    """Load the data of a spec, by default those of the training; split as for it."""
    if spec is None and classifier.data is None:
        raise UserError(f"{checkpoint} does not say which images to take; add --data SPEC")
    try:
        return load_data(spec or str(classifier.data), seed=classifier.seed)
    except UserError as error:
        raise (
            error if spec else UserError(f"{error} (what {checkpoint} was trained on; add --data SPEC)")
        ) from error


def _require_same_classes(classifier: Classifier, data: ImageData, checkpoint: Path) -> None:
    """Refuse data whose labels mean something else to the network, in a line that lists the difference."""
    if classifier.classes == data.classes:
        return
    sizes = f"{checkpoint} knows {len(classifier.classes)} classes and {data.name} has {len(data.classes)}"
    if not classifier.named:
        if len(classifier.classes) == len(data.classes):
            return
        raise UserError(f"{sizes}; give other --data")
    try:
        check_same_classes(sizes, classifier.classes, data.classes, ("the checkpoint", "the data"))
    except UserError as error:
        raise UserError(f"{error}; give other --data") from error


def _print_report(report: dict[str, Any]) -> None:
    table = _table("model", "data", ">top-1 %", ">top-5 %", ">loss", ">images", ">bad images", ">seconds")
    bad = report["bad_images"]
    numbers = [f"{report[key]:.2f}" for key in ("top1", "top5")] + [
        f"{report['loss']:.4f}",
        str(report["images"]),
    ]
    table.add_row(report["model"], report["data"], *numbers, str(len(bad)), f"{report['seconds']:.1f}")
    _print_table(table)
    for name in bad:
        print(f"unreadable, not counted: {name}")


# --- predict -----------------------------------------------------------------------------------------------


def _predict_options(parser: Parser) -> None:
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE|FOLDER", help="Pictures to classify.")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN|FILE", help=_CHECKPOINT_HELP)
    parser.add_argument("--model", type=str | None, metavar="NAME", help=_MODEL_HELP)
    parser.add_argument(
        "--topk", type=int, default=1, metavar="K", help="Most probable classes to print an image."
    )
    parser.add_argument(
        "--json", action="store_true", help="Print one JSON object a line an image and nothing else."
    )


def _predict(arguments: Namespace) -> int:
    topk = _at_least(arguments, "topk", 1)
    images = find_images(arguments.images)
    classifier = load_classifier(arguments.checkpoint, arguments.model)
    table = _table("image", "class", ">probability")
    code = 0
    for prediction in predict(classifier, images, topk):
        if prediction.error is not None:
            code = _fail(prediction.error)
        if arguments.json:
            classes = [{"class": name, "probability": value} for name, value in prediction.classes]
            print(json.dumps({"image": str(prediction.image), "classes": classes, "error": prediction.error}))
        for rank, (name, value) in enumerate(prediction.classes):
            table.add_row("" if rank else str(prediction.image), name, f"{value:.1%}")
    if not arguments.json and table.row_count:
        _print_table(table)
    return code


# --- cam ---------------------------------------------------------------------------------------------------


def _cam_options(parser: Parser) -> None:
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="Pictures (or folders) to explain."
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN|FILE", help=_CHECKPOINT_HELP)
    parser.add_argument("--model", type=str | None, metavar="NAME", help=_MODEL_HELP)
    parser.add_argument(
        "--target", type=str | None, metavar="CLASS",
        help="Name or index of the class to look for. Default: the most probable one of each image.",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="PNG", help="Picture to write.")


def _cam(arguments: Namespace) -> int:
    from xnext.evaluation import cam  # here, since it alone needs OpenCV and matplotlib

    if arguments.output.suffix.lower() != ".png":
        raise UserError(f"--output {arguments.output} must end in .png, since that is what it will be")
    files = find_images(arguments.images)
    if len(files) > _MOST_IN_ONE_PICTURE:
        raise UserError(
            f"one picture shows up to {_MOST_IN_ONE_PICTURE} images, not {len(files)}; give fewer"
        )
    classifier = load_classifier(arguments.checkpoint, arguments.model)
    target = None if arguments.target is None else classifier.class_index(arguments.target)
    images = [decode_image(path) for path in files]
    figure = cam.explain(classifier, images, [path.name for path in files], target)
    write_figure(arguments.output, figure, dpi=150)
    print(f"wrote {arguments.output}")
    return 0


# --- models ------------------------------------------------------------------------------------------------


def _models_options(parser: Parser) -> None:
    parser.add_argument(
        "--filter", type=str, default="*", metavar="GLOB", help="Names to list, e.g. 'inceptionnext_*'."
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print one JSON list, with the address of weights, and nothing else.",
    )


def _models(arguments: Namespace) -> int:
    names = list_models(arguments.filter)
    if not names:
        raise UserError(f"no model matches --filter {arguments.filter!r}; `xnext models` lists all of them")
    rows = [_describe_model(name) for name in names]
    if arguments.json:
        print(json.dumps(rows))
        return 0
    table = _table("model", ">input", ">params (M)", ">MACs (G)", "published weights")
    for row in rows:
        millions, billions = f"{row['params'] / 1e6:.2f}", f"{row['macs'] / 1e9:.3f}"
        where = "" if row["weights"] is None else "a file" if "://" in row["weights"] else "on the hub"
        table.add_row(row["model"], str(row["input"]), millions, billions, where)
    _print_table(table)
    return 0


def _describe_model(name: str) -> dict[str, Any]:
    """Count a network without giving it memory."""
    with torch.device("meta"):
        model = create_model(name)
    source: Any = model.pretrained_cfg
    return {
        "model": name,
        "input": source["input_size"][-1],
        "params": count_parameters(model),
        "macs": count_macs(model, source["input_size"]),
        "weights": source.get("hf_hub_id") or source.get("url") or source.get("origin_url") or None,
    }


# --- recipes -----------------------------------------------------------------------------------------------


def _recipes_options(parser: Parser) -> None:
    parser.add_argument("name", type=str | None, nargs="?", metavar="NAME", help="Recipe to print in full.")
    parser.add_argument("--json", action="store_true", help="Print one JSON list and nothing else.")


def _recipes(arguments: Namespace) -> int:
    recipes = list_recipes() if arguments.name is None else (find_recipe(arguments.name),)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(recipe) | {"path": str(recipe.path)} for recipe in recipes]))
    elif arguments.name is not None:
        print(recipes[0].path.read_text(encoding="utf-8"), end="")
    else:
        table = _table("recipe", "what", "accuracy", "source")
        for recipe in recipes:
            table.add_row(recipe.name, recipe.title, recipe.accuracy, recipe.source)
        _print_table(table)
    return 0


class _Verb(NamedTuple):
    """What a command does, in a line; its options; its code; an example of its use."""

    summary: str
    options: Callable[[Parser], None]
    run: Callable[[Namespace], int]
    examples: tuple[str, ...]


_VERBS = {
    "train": _Verb(
        "Train a network on labelled images and leave a run directory.", _train_options, _train,
        (
            "xnext train --model nexception_debug --data digits --output runs/digits",
            "xnext train --config runs/digits/config.yaml --lr 1e-3 --output runs/digits-lr1e-3",
            "xnext train --recipe inceptionnext_tiny --data imagenet/ --output runs/tiny",
        ),
    ),
    "evaluate": _Verb(
        "Measure a trained network on held-out images.", _evaluate_options, _evaluate,
        (
            "xnext evaluate runs/digits",
            "xnext evaluate --model inceptionnext_tiny --checkpoint inceptionnext_tiny.pth --data imagenet/",
        ),
    ),
    "predict": _Verb(
        "Name the class of pictures.", _predict_options, _predict,
        (
            "xnext predict seven.png photos/ --checkpoint runs/digits --topk 3",
        ),
    ),
    "cam": _Verb(
        "Draw where the network looks: class-activation maps.", _cam_options, _cam,
        ("xnext cam seven.png --checkpoint runs/digits --output seven-map.png",),
    ),
    "recipes": _Verb(
        "List the trainings that come with the package, or print one.", _recipes_options, _recipes,
        ("xnext recipes inceptionnext_tiny",),
    ),
    "models": _Verb(
        "List the networks with their size.", _models_options, _models,
        ("xnext models --filter 'inceptionnext_*'",),
    ),
}  # fmt: skip


def _parser() -> Parser:
    """Build the parser of the whole command line."""
    parser = Parser(
        prog="xnext",
        description="Train, measure, use and explain the networks from Xception to InceptionNeXt.",
        epilog="Start with: xnext train --help",
        version=__version__,
    )
    verbs = {}
    for name, verb in _VERBS.items():
        examples = "\n".join(f"  {line}" for line in verb.examples)
        verbs[name] = Parser(description=verb.summary, epilog=f"examples:\n{examples}")
        verb.options(verbs[name])
    parser.add_verbs(verbs)
    return parser
