import dataclasses
from pathlib import Path

import docstring_parser
import pytest
import yaml

from xnext.errors import UserError
from xnext.training import TrainConfig
from xnext.training.config import LEARNING_RATES, learning_rate


def make(**changes):
    return TrainConfig(**{"model": "m", "data": "digits", "output": Path("run")} | changes)


def test_sgd_rate_grows_linearly_and_adaptive_rates_with_the_square_root():
    assert learning_rate("sgd", 256) == 0.1
    assert learning_rate("sgd", 1024) == pytest.approx(0.4)
    for name in ("adam", "adamw", "nadamw", "lamb", "lion"):
        assert learning_rate(name, 1024) == pytest.approx(2 * learning_rate(name, 256))


def test_every_rate_belongs_to_an_optimizer_of_timm():
    for name in LEARNING_RATES:
        make(optimizer=name)


def test_optimizer_without_a_rule_needs_a_rate():
    with pytest.raises(UserError, match=r"'adafactor'.*--lr"):
        make(optimizer="adafactor").resolve(32)
    assert make(optimizer="adafactor", lr=0.5).resolve(32).lr == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("image_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("weight_decay", -1.0),
        ("warmup_epochs", -1.0),
        ("warmup_epochs", 30.0),
        ("clip_grad", 0.0),
        ("label_smoothing", 1.0),
        ("mixup", -0.1),
        ("cutmix", -0.1),
        ("drop_rate", 1.0),
        ("drop_path_rate", -0.1),
        ("model_ema", 1.0),
        ("seed", -1),
        ("workers", -1),
        ("max_bad_images", 1.5),
        ("augment", "heavy"),
        ("device", "tpu"),
        ("amp", "fp8"),
        ("optimizer", "adamx"),
        ("epochs", None),
        ("epochs", 1.5),
        ("epochs", True),
        ("image_size", "32"),
        ("model_args", [1]),
        ("model_args", {1: 2}),
        ("output", "run"),
    ],
)
def test_value_out_of_range_is_named(name, value):
    with pytest.raises(UserError, match=name):
        make(**{name: value})


def test_misspelt_optimizer_gets_the_nearest_names():
    with pytest.raises(UserError, match=r"'adamm'.*'adam'"):
        make(optimizer="adamm")


def test_mixing_needs_an_even_batch():
    make(batch_size=15)
    with pytest.raises(UserError, match="batch_size 15 must be even"):
        make(batch_size=15, cutmix=1.0)


def test_resolving_fills_in_what_is_open_and_keeps_the_rest():
    resolved = make(epochs=20, batch_size=64).resolve(48)
    assert (resolved.image_size, resolved.warmup_epochs) == (48, 2.0)
    assert resolved.lr == learning_rate("adamw", 64)
    given = make(lr=0.3, warmup_epochs=0.0).resolve(48)
    assert (given.lr, given.warmup_epochs) == (0.3, 0.0)


def test_yaml_holds_the_whole_config():
    config = make(model_args={"strides": [1, 2, 2, 2]}, checkpoint=Path("a/b.pth"), amp="bf16").resolve(32)
    fields = yaml.safe_load(config.to_yaml())
    fields |= {"output": Path(fields["output"]), "checkpoint": Path(fields["checkpoint"])}
    assert TrainConfig(**fields) == config


def test_every_field_is_explained():
    explained = [parameter.arg_name for parameter in docstring_parser.parse(TrainConfig.__doc__).params]
    assert explained == [field.name for field in dataclasses.fields(TrainConfig)]
