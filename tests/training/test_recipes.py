"""Each recipe runs, and builds what its paper's table says, written here once more by hand."""

import dataclasses
import io
import math

import pytest
import yaml
from rich.console import Console
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.loss import BinaryCrossEntropy
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from torch import nn
from torchvision.transforms import CenterCrop

import xnext
from xnext.cli import main
from xnext.data import MemoryLoader
from xnext.errors import UserError
from xnext.training import Run, TrainConfig, train
from xnext.training.recipes import find_recipe, list_recipes
from xnext.training.setup import prepare

NEXCEPTION = {
    "optimizer": "Lamb", "schedule": "cosine", "min_lr": 1e-6, "warmup": 5, "epochs": 300, "decay": 0.02,
    "policy": (7, 0.5), "mixup": 0.1, "cutmix": 1.0, "erasing": 0.0, "smoothing": 0.0, "drop_path": 0.05,
    "loss": "bce", "threshold": 0.2, "repeats": 3, "crop": 0.95, "image_size": 224, "dropout": 0.0,
    "ema": 0.0,
}  # fmt: skip
INCEPTIONNEXT = {
    "optimizer": "AdamW", "schedule": "cosine", "min_lr": 1e-6, "warmup": 20, "epochs": 300, "decay": 0.05,
    "batch": 4096, "lr": 4e-3, "policy": (9, 0.5), "mixup": 0.8, "cutmix": 1.0, "erasing": 0.25,
    "smoothing": 0.1, "loss": "ce", "repeats": 1, "image_size": 224, "dropout": 0.0, "ema": 0.0,
}  # fmt: skip
TABLE = {
    "xception_imagenet": {
        "model": "xception", "optimizer": "SGD", "momentum": 0.9, "lr": 0.045, "schedule": "step",
        "decay_rate": 0.94, "decay_every": 2, "decay": 1e-5, "dropout": 0.5, "ema": 0.9999, "policy": None,
        "erasing": 0.0, "smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "image_size": 299, "drop_path": 0.0,
        "loss": "ce", "repeats": 1, "warmup": 0,
    },
    "nexception_t": {"model": "nexception_t", "lr": 2e-3, "batch": 256} | NEXCEPTION,
    "nexception_tp": {"model": "nexception_tp", "lr": 2e-3, "batch": 256} | NEXCEPTION,
    "nexception_s": {"model": "nexception_s", "lr": 1.4e-3, "batch": 128} | NEXCEPTION,
    "inceptionnext_atto": INCEPTIONNEXT | {
        "model": "inceptionnext_atto", "epochs": 450, "batch": 1280, "lr": 1e-3, "warmup": 5,
        "policy": (5, math.inf), "erasing": 0.1, "mixup": 0.2, "drop_path": 0.1,
    },
    "inceptionnext_tiny": INCEPTIONNEXT | {"model": "inceptionnext_tiny", "drop_path": 0.1},
    "inceptionnext_small": INCEPTIONNEXT | {"model": "inceptionnext_small", "drop_path": 0.3},
    "inceptionnext_base": INCEPTIONNEXT | {"model": "inceptionnext_base", "drop_path": 0.4},
    "inceptionnext_base_384": INCEPTIONNEXT | {
        "model": "inceptionnext_base_384", "epochs": 30, "batch": 1024, "lr": 5e-5, "warmup": 0,
        "mixup": 0.0, "cutmix": 0.0, "drop_path": 0.7, "dropout": 0.5, "ema": 0.9999, "image_size": 384,
    },
    "xception_multilabel": {
        "model": "xception", "optimizer": "RMSpropTF", "momentum": 0.9, "lr": 0.001, "schedule": "step",
        "decay_rate": 0.9, "decay_steps": round(3e6 / 2048), "decay": 1e-5, "dropout": 0.0, "ema": 0.9999,
        "policy": None, "erasing": 0.0, "smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "image_size": 299,
        "drop_path": 0.0, "loss": "bce", "threshold": None, "repeats": 1, "warmup": 0,
    },
    "finetune": {
        "model": "inceptionnext_tiny", "optimizer": "AdamW", "schedule": "cosine", "min_lr": 1e-6,
        "warmup": 2, "epochs": 30, "batch": 64, "lr": 1e-3, "decay": 0.05, "policy": None, "mixup": 0.1,
        "cutmix": 0.0, "erasing": 0.0, "smoothing": 0.1, "drop_path": 0.1, "loss": "ce",
        "repeats": 1, "dropout": 0.0, "ema": 0.998, "image_size": 32,
    },
    "small_images": {
        "model": "nexception_debug", "optimizer": "AdamW", "schedule": "cosine", "min_lr": 2e-5, "warmup": 3,
        "epochs": 30, "batch": 64, "lr": 2e-3, "decay": 0.05, "mixup": 0.0, "cutmix": 0.0, "smoothing": 0.1,
        "drop_path": 0.0, "loss": "ce", "repeats": 1, "dropout": 0.0, "ema": 0.998, "image_size": 32,
    },
}  # fmt: skip
SEGMENTATION = {
    "upernet_ade20k": {
        "decoder": "upernet", "lr": 6e-5, "batch": 16, "steps": 160_000, "power": 1.0, "warmup": 1500,
        "decay": 0.01, "drop_path": 0.2,
    },
    "fpn_ade20k": {
        "decoder": "fpn", "lr": 2e-4, "batch": 32, "steps": 40_000, "power": 0.9, "warmup": 0, "decay": 1e-4,
        "drop_path": 0.1,
    },
}  # fmt: skip
ADE20K = 20_210  # training images
SMALL = {
    "xception": "xception_debug",
    "nexception": "nexception_debug",
    "inceptionnext": "inceptionnext_debug",
}


@pytest.fixture
def load(tmp_path, tagged):
    """Return the config of a recipe; keywords stand for the user's flags."""

    def read(name: str, **changes) -> TrainConfig:
        values = yaml.safe_load(find_recipe(name).path.read_text())
        data = str(tagged) if name == "xception_multilabel" else "digits"
        here = {"data": data, "output": str(tmp_path / "run"), "device": "cpu", "pretrained": False}
        return TrainConfig.from_dict(values | here | changes)

    return read


def small(model: str) -> str:
    """Return the debug size of a network's lineage."""
    return SMALL[model.split("_")[0]]


def test_every_recipe_is_in_a_table():
    assert {recipe.name for recipe in list_recipes()} == TABLE.keys() | SEGMENTATION.keys()


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_headers_say_where_from_how_and_how_well(recipe):
    facts = dataclasses.asdict(recipe)
    assert all(facts.values())
    assert f"--recipe {recipe.name} " in recipe.command and "arXiv" in recipe.source


@pytest.mark.parametrize("name", TABLE)
def test_the_network_is_the_papers(name, load):
    wanted, config = TABLE[name], load(name)
    model = xnext.create_model(config.model, drop_rate=config.drop_rate, drop_path_rate=config.drop_path_rate)
    assert config.model == wanted["model"] and config.epochs == wanted.get("epochs", config.epochs)
    assert config.batch_size == wanted.get("batch", config.batch_size)
    rates = [getattr(m, "drop_prob", 0.0) for m in model.modules()]
    assert max(rates) == pytest.approx(wanted["drop_path"])
    assert model.head.drop.p == wanted["dropout"]


@pytest.mark.parametrize("name", TABLE)
def test_what_is_built_has_the_values_of_the_table(name, load):
    wanted = TABLE[name]
    whole = load(name)
    setup = prepare(dataclasses.replace(whole, model=small(whole.model)))
    groups, optimizer = setup.optimizer.param_groups, setup.optimizer.optimizer
    assert type(optimizer).__name__ == wanted["optimizer"]
    assert {group["weight_decay"] for group in groups} == {0.0, wanted["decay"]}
    assert groups[0].get("momentum", 0.9) == wanted.get("momentum", 0.9)
    if wanted["optimizer"] == "AdamW":
        assert (groups[0]["betas"], groups[0]["eps"]) == ((0.9, 0.999), 1e-8)

    steps, scheduler = len(setup.batches.train), setup.scheduler
    assert scheduler.base_values[0] == pytest.approx(wanted["lr"])
    assert scheduler.warmup_t == wanted["warmup"] * steps
    if wanted["schedule"] == "cosine":
        assert isinstance(scheduler, CosineLRScheduler) and scheduler.lr_min == wanted["min_lr"]
        assert scheduler.t_initial + scheduler.warmup_t == wanted["epochs"] * steps
    else:
        assert isinstance(scheduler, StepLRScheduler)
        decay_steps = wanted["decay_steps"] if "decay_steps" in wanted else wanted["decay_every"] * steps
        assert (scheduler.decay_rate, scheduler.decay_t) == (wanted["decay_rate"], decay_steps)

    mix = setup.task._mix
    alphas = (mix.mixup_alpha, mix.cutmix_alpha) if mix else (0.0, 0.0)
    assert alphas == (wanted["mixup"], wanted["cutmix"])
    criterion = setup.task._criterion
    assert setup.data.multilabel == (name == "xception_multilabel")
    if wanted["loss"] == "bce":
        assert isinstance(criterion, BinaryCrossEntropy) and criterion.target_threshold == wanted["threshold"]
    else:
        assert isinstance(criterion, nn.CrossEntropyLoss)
        smoothing = mix.label_smoothing if mix else criterion.label_smoothing
        assert smoothing == wanted["smoothing"]

    assert setup.batches.order._repeats == wanted["repeats"]
    assert setup.preprocessing.image_size == wanted["image_size"]
    assert (setup.ema.decay if setup.ema else 0.0) == wanted["ema"]


@pytest.mark.parametrize("name", sorted(TABLE.keys() - {"small_images"}))
def test_images_are_changed_as_the_table_says(name, load):
    wanted = TABLE[name]
    setup = prepare(dataclasses.replace(load(name), model="inceptionnext_debug"))
    steps = {type(step): step for step in setup.batches.train.dataset.transform.transforms}
    policy, erasing = steps.get(RandAugment), steps.get(RandomErasing)
    if wanted["policy"] is None:
        assert policy is None
    else:
        assert {(op.magnitude, op.magnitude_std) for op in policy.ops} == {wanted["policy"]}
    assert (erasing.probability if erasing else 0.0) == wanted["erasing"]
    if "crop" in wanted:
        assert setup.preprocessing.crop_pct == wanted["crop"]
        crop = next(s for s in setup.batches.val.dataset.transform.transforms if isinstance(s, CenterCrop))
        assert crop.size == (wanted["image_size"],) * 2


@pytest.mark.parametrize("name", TABLE)
def test_every_recipe_trains(name, load, colours, tagged, tmp_path):
    config = load(
        name, data=str(tagged if "multilabel" in name else colours), epochs=1, image_size=32, batch_size=16,
        warmup="1 step", model=small(TABLE[name]["model"]),
    )  # fmt: skip
    train(config, Console(file=io.StringIO()))
    run = Run.open(tmp_path / "run")
    assert len(run.read_metrics()) == 1
    again = TrainConfig.from_dict(yaml.safe_load(run.config.read_text()))
    assert again.optimizer == config.optimizer and again.schedule == config.schedule


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_is_trained_as_the_paper_says(name, load, pairs):
    wanted, config = SEGMENTATION[name], load(name, data=str(pairs))
    assert (config.model, config.decoder) == ("inceptionnext_tiny", wanted["decoder"])
    assert (config.batch_size, config.image_size) == (wanted["batch"], 512)
    steps = config.epochs * math.ceil(ADE20K / config.batch_size)
    assert steps == pytest.approx(wanted["steps"], rel=0.005)
    setup = prepare(dataclasses.replace(config, model="inceptionnext_debug", image_size=32, epochs=2000))
    assert len(setup.batches.train) == 1
    optimizer, scheduler = setup.optimizer.optimizer, setup.scheduler
    assert type(optimizer).__name__ == "AdamW"
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, wanted["decay"]}
    assert isinstance(scheduler, PolyLRScheduler) and scheduler.power == wanted["power"]
    assert scheduler.base_values[0] == pytest.approx(wanted["lr"]) and scheduler.lr_min == 0
    assert scheduler.warmup_t == wanted["warmup"]
    rates = [getattr(m, "drop_prob", 0.0) for m in setup.network.modules()]
    assert max(rates) == pytest.approx(wanted["drop_path"])
    steps = setup.batches.train.dataset.transform.transforms
    changes = {kind.__name__ for step in steps for kind in type(step).__mro__}
    assert {"RandomShortestSize", "RandomCrop", "RandomHorizontalFlip", "RandomPhotometricDistort"} <= changes


def test_a_recipe_of_the_other_kind_names_its_command(capsys):
    rest = ["--data", "x", "--output", "y"]
    assert main(["train", "--recipe", "fpn_ade20k", *rest]) == 2
    assert "option of `xnext segment train`" in capsys.readouterr().err
    assert main(["segment", "train", "--recipe", "nexception_t", "--decoder", "fpn", *rest]) == 2
    assert "option of `xnext train`" in capsys.readouterr().err


def test_small_images_are_shifted_and_mirrored_in_memory(load):
    batches = prepare(load("small_images", data="digits")).batches
    assert isinstance(batches.train, MemoryLoader)
    assert [type(step).__name__ for step in batches.transform] == ["ShiftAndMirror", "ToUnit", "Normalise"]
    assert batches.transform[0].most == 4


def test_finetuning_is_slow_near_the_image_and_begins_with_the_classifier(load):
    config = load("finetune")
    assert (config.freeze, config.patience) == ("1 epoch", 8)
    assert find_recipe("finetune").path.read_text().count("\npretrained: true\n") == 1
    setup = prepare(dataclasses.replace(config, model="inceptionnext_debug"))
    scales = {}
    names = {id(weight): name for name, weight in setup.network.named_parameters()}
    for group in setup.optimizer.param_groups:
        scales |= {names[id(weight)]: group["lr_scale"] for weight in group["params"]}
    assert scales["head.fc.weight"] == 1.0
    assert scales["stem.conv1.weight" if "stem.conv1.weight" in scales else "stem.0.weight"] < 0.5
    assert all(scale == pytest.approx(0.75 ** round(math.log(scale, 0.75))) for scale in scales.values())


def test_xception_has_the_two_layers_of_jft_if_asked(load):
    config = load("xception_multilabel", model_args={"head_widths": [4096, 4096]})
    model = xnext.create_model("xception", **config.model_args)
    widths = [layer.out_features for layer in model.head.modules() if isinstance(layer, nn.Linear)]
    assert widths == [4096, 4096, 1000]


def test_a_misspelt_recipe_names_the_nearest():
    with pytest.raises(UserError, match=r"no recipe 'nexception_x'.*'nexception_t'"):
        find_recipe("nexception_x")
