"""`xnext train`: a network from labelled images; the same for `xnext segment train`."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from xnext._parser import ConfigFile, Parser
from xnext._processes import is_first, is_restarted, leave
from xnext._yaml import read_yaml
from xnext.cli._common import Verb
from xnext.errors import UserError
from xnext.evaluation.accuracy import METRICS
from xnext.training import Run, TrainConfig, train
from xnext.training.config import OF_CLASSIFIERS, OF_SEGMENTATION
from xnext.training.recipes import find_recipe


def add_training_options(
    parser: Parser,
    without: Sequence[str],
    names: Mapping[str, str] = types.MappingProxyType({}),
    texts: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Add the options of a training.

    Args:
        parser: Of the verb.
        without: Fields of the config that it is without.
        names: How the option of a field is called, where not as the field.
        texts: What explains the option of a field, where not the field's own text does.
    """
    metavars = {"data": "SPEC", "output": "RUN", "checkpoint": "FILE", "lr": "RATE", "opt_betas": "LIST"}
    times = {"warmup": "TIME", "decay_every": "TIME", "save_every": "TIME"}
    parser.add_options(TrainConfig, without, metavars | times, names=names, texts=texts)
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

    def explain(self, key: str) -> str:
        kinds = {"xnext segment train": OF_SEGMENTATION, "xnext train": OF_CLASSIFIERS}
        return next((f" It is an option of `{verb}`." for verb, fields in kinds.items() if key in fields), "")


def run_training(arguments: Namespace) -> int:
    """Train as told, and say what came of it and what to do next."""
    known = (field.name for field in dataclasses.fields(TrainConfig))
    values = {name: arguments[name] for name in known if name in arguments}
    if arguments.model.endswith((".yaml", ".yml")):
        values |= _read_network(Path(arguments.model), values["model_args"])
    config = TrainConfig(**values)
    resume = arguments.resume is not None
    if resume:
        if config.output != Path(str(read_yaml(Run.open(arguments.resume).config).get("output"))):
            raise UserError(f"--output {config.output}: a run goes on in its own folder; leave it out")
        config = dataclasses.replace(config, output=arguments.resume)
    elif is_restarted():
        resume = Run(config.output).config.is_file()
    summary = train(config, resume=resume, force=arguments.force)
    leave()
    if is_first():
        run, name = config.output, next(name for name in METRICS if f"best_val_{name}" in summary)
        best = f"{summary[f'best_val_{name}']:.2f} % {METRICS[name]}"
        print(f"best: {best}, after epoch {summary['best_epoch']}; all is in {run}")
        xnext = config.command.removesuffix(" train")
        print(f"next: {xnext} evaluate {run}, or {xnext} predict IMAGE --checkpoint {run}")
    return 0


def _options(parser: Parser) -> None:
    add_training_options(parser, without=OF_SEGMENTATION)


def _read_network(path: Path, model_args: dict[str, Any]) -> dict[str, Any]:
    """Return the network of a file, as a search writes it, with some fields of its config changed."""
    content = read_yaml(path)
    if not isinstance(content.get("model"), str) or not isinstance(content.get("model_args", {}), dict):
        raise UserError(f"{path}: is no network; it must hold `model: NAME`, and fields as `model_args`")
    return {"model": content["model"], "model_args": content.get("model_args", {}) | model_args}


VERB = Verb(
    "Train a network on labelled images and leave a run directory.", _options, run_training,
    (
        "xnext train --model nexception_debug --data digits --output runs/digits",
        "xnext train --config runs/digits/config.yaml --lr 1e-3 --output runs/digits-lr1e-3",
        "xnext train --recipe inceptionnext_tiny --data imagenet/ --output runs/tiny",
    ),
)  # fmt: skip
