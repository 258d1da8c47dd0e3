"""The loss, the measure and a training of segmentation."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from xnext.cli import main
from xnext.errors import UserError
from xnext.models._checkpoints import read_tensors
from xnext.segmentation.data import IGNORE
from xnext.segmentation.task import Segmentation, count_places, summarise
from xnext.training import TrainConfig, train
from xnext.training.setup import prepare


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(2, 6), seed=st.integers(0, 2**16), shown=st.integers(1, 6))
def test_miou_is_that_of_torchmetrics(classes, seed, shown):
    """Of random masks in which some classes may be missing, and places are ignored."""
    from torchmetrics.classification import MulticlassJaccardIndex

    rng = torch.Generator().manual_seed(seed)
    top = min(classes, shown)
    answers, masks = (torch.randint(0, top, (3, 9, 7), generator=rng) for _ in range(2))
    masks[torch.rand(masks.shape, generator=rng) < 0.3] = IGNORE
    counts = count_places(answers, masks, classes)
    metrics, per_class = summarise(counts.numpy())
    theirs = MulticlassJaccardIndex(classes, average="none", ignore_index=IGNORE)(answers, masks).numpy()
    known = ~np.isnan(per_class)
    assert per_class[known] == pytest.approx(theirs[known], abs=1e-6)
    counted = masks != IGNORE
    seen = set(masks[counted].tolist()) | set(answers[counted].tolist())
    assert set(np.flatnonzero(known).tolist()) == seen
    if seen:
        assert metrics["miou"] == pytest.approx(100 * theirs[known].mean(), abs=1e-4)
        assert metrics["accuracy"] == pytest.approx(
            100 * (answers == masks)[counted].float().mean().item(), abs=1e-4
        )


def test_absent_classes():
    """In neither: no IoU. In the answers alone: 0, and no accuracy. In the masks alone: 0 and 0."""
    metrics, per_class = summarise(np.array([[4, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [5, 0, 0, 0]]))
    assert np.isnan(per_class).tolist() == [False, False, True, False]
    assert per_class[[0, 1, 3]] == pytest.approx([0.4, 0, 0])
    assert metrics["miou"] == pytest.approx(100 * 0.4 / 3)
    assert metrics["mean_accuracy"] == pytest.approx(40) and metrics["accuracy"] == pytest.approx(40)
    assert summarise(np.zeros((2, 2)))[0] == {"miou": 0, "mean_accuracy": 0, "accuracy": 0}


def task(classes=3):
    data = type("Data", (), {"classes": tuple("abcdef"[:classes]), "multilabel": False})
    return Segmentation(TrainConfig(model="x", data="x", output=Path("x"), decoder="fpn"), data)


def test_the_loss_adds_up_over_parts_of_a_batch():
    logits, masks = torch.randn(4, 3, 5, 6), torch.randint(0, 3, (4, 5, 6))
    masks[1:3, :2] = IGNORE
    whole = task().loss(logits, masks)
    halves = [task().loss(logits[part], masks[part]) for part in (slice(2), slice(2, 4))]
    assert float(whole) == pytest.approx(float(sum(halves)) / 2, rel=1e-6)
    expected = F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="sum") / masks.numel()
    assert float(whole) == pytest.approx(float(expected), rel=1e-6)
    auxiliary = torch.randn_like(logits)
    both = task().loss((logits, auxiliary), masks)
    assert float(both) == pytest.approx(float(whole + 0.4 * task().loss(auxiliary, masks)), rel=1e-6)
    assert float(task().loss(logits, torch.full_like(masks, IGNORE))) == 0


def test_images_are_measured_at_the_size_of_their_masks():
    """An answer of 2x2 places for a mask of 4x6; an unreadable image counts in nothing."""
    answer = torch.tensor([[[0, 1], [1, 0]]])
    model = nn.Module()
    model.forward = lambda images: 9.0 * F.one_hot(answer, 3).permute(0, 3, 1, 2).float()
    mask = torch.full((1, 4, 6), 2)
    mask[0, :, 0], mask[0, :2, 5] = IGNORE, 1
    nothing = torch.full((1, 4, 6), IGNORE)
    image = torch.zeros(1, 3, 2, 2)
    loader = [(image, mask, torch.tensor([-1])), (image, nothing, torch.tensor([7]))]
    measured = task().evaluate(model, loader, torch.device("cpu"))
    large = F.interpolate(model(None), (4, 6), mode="bilinear", align_corners=False)
    right = (large.argmax(1) == mask)[mask != IGNORE].float().mean().item()
    assert measured.metrics["accuracy"] == pytest.approx(100 * right) and 0 < right < 1
    assert measured.metrics["loss"] == pytest.approx(F.cross_entropy(large, mask, ignore_index=IGNORE).item())
    assert (measured.images, measured.bad_images) == (1, [7])
    ignored = [*loader, (image, nothing, torch.tensor([-1]))]  # which counts as an image, and in no figure
    again = task().evaluate(model, ignored, torch.device("cpu"))
    assert again.metrics == measured.metrics and again.images == 2
    with pytest.raises(UserError, match="none of the 1 images could be read"):
        task().evaluate(model, loader[1:], torch.device("cpu"))


@pytest.fixture
def config(digits, tmp_path):
    def make(name="run", **changes):
        values = {"model": "xception_debug", "decoder": "fpn", "data": str(digits), "image_size": 32}
        values |= {"epochs": 2, "batch_size": 4, "model_ema": 0.9, "output": tmp_path / name}
        return TrainConfig(**values | changes)

    return make


@pytest.mark.parametrize(
    ("decoder", "image_size"), [("fpn", 32), pytest.param("upernet", 16, marks=pytest.mark.slow)]
)
def test_a_training_that_was_cut_goes_on_to_the_same_bits(config, decoder, image_size):
    quiet = Console(file=io.StringIO())
    torch.set_num_threads(1)
    options = {"model": "inceptionnext_debug", "decoder": decoder, "image_size": image_size}
    whole, cut = config("whole", **options), config("cut", **options)
    summary = train(whole, quiet)
    train(cut, quiet, until=1)
    train(cut, quiet, resume=True)
    for name in ("best", "last"):
        one, other = (read_tensors(run.output / f"checkpoints/{name}.safetensors") for run in (whole, cut))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    lines = [
        [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, cut)
    ]
    for row, other in zip(*lines, strict=True):
        kept = {key: row[key] for key in row if key.startswith(("train", "val", "raw"))}
        assert len(kept) == 9 and kept.items() <= other.items()
    assert {"best_val_miou", "best_val_mean_accuracy", "best_val_loss"} <= summary.keys()
    assert (whole.output / "curves.png").exists() and (whole.output / "iou.png").exists()


def test_it_learns(config):
    train(config(epochs=6, augment="none", model_ema=0.0, lr=4e-3), Console(file=io.StringIO()))
    rows = [json.loads(line) for line in (config().output / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train_loss"] < 0.7 * rows[0]["train_loss"]


def test_commands_for_classifiers_refuse_it(config, tmp_path, capsys):
    train(config(epochs=1, model_ema=0.0), Console(file=io.StringIO()))
    image = next((Path(config().data) / "images/val").iterdir())
    for command in ("predict", "cam"):
        words = [command, str(image), "--checkpoint", str(config().output)]
        assert main([*words, *(["--output", str(tmp_path / "cam.png")] if command == "cam" else [])]) == 2
        assert "is a segmentation network (xception_debug with fpn)" in capsys.readouterr().err
    assert main(["evaluate", str(config().output), "--data", "digits"]) == 2
    assert "is a segmentation network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mixup": 0.2}, "mixup 0.2 is for classifiers"),
        ({"loader": "memory"}, "loader 'memory' is for classifiers"),
        ({"decoder": "uppernet"}, "decoder"),
        ({"schedule": "poly", "power": 0}, "power is 0"),
    ],
)
def test_what_does_not_go_together(config, changes, told):
    with pytest.raises(UserError, match=told):
        config(**changes)


def test_a_backbone_that_was_trained_before(config, tmp_path):
    """A classifier gives its backbone, a segmentation network all of it; another network nothing."""
    quiet = Console(file=io.StringIO())
    values = {"model": "xception_debug", "data": "digits", "epochs": 1, "image_size": 16}
    classifier = TrainConfig(**values, batch_size=256, output=tmp_path / "classifier")
    train(classifier, quiet)
    first = prepare(config(checkpoint=classifier.output)).network.state_dict()
    before = read_tensors(classifier.output / "checkpoints" / "best.safetensors")
    backbone = [key for key in before if not key.startswith("head.")]
    assert len(backbone) > 20 and all(torch.equal(first[f"encoder.{key}"], before[key]) for key in backbone)
    train(config(checkpoint=classifier.output, epochs=1, lr=1e-9, model_ema=0.0), quiet)
    again = prepare(config("again", checkpoint=config().output)).network.state_dict()
    saved = read_tensors(config().output / "checkpoints" / "best.safetensors")
    assert saved.keys() == again.keys() and all(torch.equal(again[key], saved[key]) for key in saved)
    with pytest.raises(UserError, match="does not fit the network; missing: stem"):
        prepare(config("third", model="inceptionnext_debug", checkpoint=classifier.output))
