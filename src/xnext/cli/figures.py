"""`xnext figures`: the papers' figures, from what they published, what was measured and real trainings."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from xnext._figures import write_figure
from xnext._files import make_folder
from xnext._parser import Parser
from xnext._yaml import read_yaml
from xnext.cli._common import DATA_HELP, Verb, at_least, require_known
from xnext.errors import UserError
from xnext.evaluation.figures import TRADEOFFS, draw_kernels, draw_tradeoff
from xnext.evaluation.tables import Speeds, load_published
from xnext.training import Run, TrainConfig, train
from xnext.training.compare import draw_comparison, read_runs
from xnext.training.recipes import find_recipe

KERNELS = "inceptionnext-3"
PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "xception-9": {"with-residual": {"residual": True}, "without-residual": {"residual": False}},
    "xception-10": {
        "no-activation": {"inner_act": None},
        "relu": {"inner_act": "relu"},
        "elu": {"inner_act": "elu"},
    },
}
"""Figures of trainings: what differs between the networks, by the names of their runs."""

_NAMES = sorted([*TRADEOFFS, KERNELS, *PROFILES])


def _options(parser: Parser) -> None:
    parser.add_argument(
        "figures", type=str, nargs="*", metavar="FIGURE", help=f"{', '.join(_NAMES)}; by default all."
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER",
        help="Where the pictures go; the trainings stay there too, and are not done again.",
    )  # fmt: skip
    parser.add_argument(
        "--tables", type=Path | None, metavar="FOLDER",
        help="Draw the speeds that `xnext tables --measure` left there, instead of the papers'.",
    )  # fmt: skip
    parser.add_argument("--data", type=str, default="digits", metavar="SPEC", help=DATA_HELP)
    parser.add_argument(
        "--model", type=str, default="xception_debug", metavar="NAME",
        help="Network of Xception's lineage that the training profiles are of.",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="Of the training profiles.")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="Of the training profiles.")


def _run(arguments: Namespace) -> int:
    for name in arguments.figures:
        require_known("figure", name, _NAMES)
    at_least(arguments, "epochs", 1)
    speeds = None if arguments.tables is None else Speeds.open(arguments.tables / "speeds.json")
    make_folder(arguments.output)
    for name in arguments.figures or _NAMES:
        if name == KERNELS:
            figure = draw_kernels()
        elif name in TRADEOFFS:
            figure = draw_tradeoff(TRADEOFFS[name], load_published(), speeds)
        else:
            figure = draw_comparison(read_runs(_train(name, arguments)))
        write_figure(arguments.output / f"{name}.png", figure)
        print(f"wrote {arguments.output / f'{name}.png'}")
    return 0


def _train(name: str, arguments: Namespace) -> list[Path]:
    """Train the networks of a figure, unless that was done; return their runs."""
    paths = []
    recipe = read_yaml(find_recipe("small_images").path)
    for label, difference in PROFILES[name].items():
        path = arguments.output / "runs" / name / label
        values = recipe | {
            "model": arguments.model, "model_args": difference, "data": arguments.data, "output": path,
            "epochs": arguments.epochs, "seed": arguments.seed, "warmup": "0 epochs",
        }  # fmt: skip
        try:
            train(TrainConfig(**values), resume=Run(path).config.is_file())
        except UserError as error:
            if not Run(path).config.is_file():
                raise
            told = str(error).partition("; add --force")[0]
            raise UserError(f"{told}; choose another --output, or remove {path}") from error
        paths.append(path)
    return paths


VERB = Verb(
    "Draw the papers' figures, from published and measured figures and from trainings.", _options, _run,
    (
        "xnext figures nexception-2 nexception-3 inceptionnext-1 inceptionnext-3 --output figures",
        "xnext figures xception-9 xception-10 --data digits --epochs 10 --output figures",
    ),
)  # fmt: skip
