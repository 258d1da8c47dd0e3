import dataclasses
from pathlib import Path

import docstring_parser
import pytest
import yaml

from xnext.errors import UserError
from xnext.training import TrainConfig
from xnext.training.schedule import learning_rate


def make(**changes):
    return TrainConfig(**{"model": "m", "data": "digits", "output": Path("run")} | changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("image_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("weight_decay", -1.0),
        ("lr", "fast"),
        ("lr", "1e-3/0"),
        ("lr", "1e-3/x"),
        ("warmup", -1.0),
        ("warmup", "5 weeks"),
        ("decay_every", "often"),
        ("decay_rate", 0.0),
        ("layer_decay", 1.5),
        ("crop_pct", 0.0),
        ("opt_betas", "0.9"),
        ("device_batch_size", 0),
        ("val_batch_size", 0),
        ("bn_momentum", 1.5),
        ("repeats", 0),
        ("bce_threshold", 2.0),
        ("random_erasing", -0.5),
        ("schedule", "cosin"),
        ("loss", "mse"),
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
    assert (resolved.image_size, resolved.warmup) == (48, "2 epochs")
    assert resolved.lr == learning_rate("adamw", 64)
    assert resolved.min_lr == resolved.warmup_lr == pytest.approx(resolved.lr / 100)
    given = make(lr=0.3, warmup=0.0, min_lr=0.0, warmup_lr=1e-6).resolve(48)
    assert (given.lr, given.warmup, given.min_lr, given.warmup_lr) == (0.3, 0.0, 0.0, 1e-6)
    assert make(lr="4e-3/4096", batch_size=1024).resolve(48).lr == pytest.approx(2e-3)


def test_yaml_holds_the_whole_config():
    values = {
        "model_args": {"strides": [1, 2, 2, 2]},
        "checkpoint": Path("a/b.pth"),
        "opt_betas": (0.9, 0.99),
    }
    config = make(**values).resolve(32)
    assert TrainConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


def test_every_field_is_explained():
    explained = [parameter.arg_name for parameter in docstring_parser.parse(TrainConfig.__doc__).params]
    assert explained == [field.name for field in dataclasses.fields(TrainConfig)]
