import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import xnext
from xnext.data import EpochSampler
from xnext.errors import UserError
from xnext.models import read_metadata
from xnext.training import Run, TrainConfig
from xnext.training import train as train_in_console
from xnext.training.states import States
from xnext.training.task import Classification

METRICS = [
    "epoch",
    "train_loss",
    "val_loss",
    "val_top1",
    "val_top5",
    "lr",
    "images_per_second",
    "memory_mib",
    "seconds",
]


def train(config, **terminal):
    console = Console(file=io.StringIO(), width=200, **terminal)
    summary = train_in_console(config, console)
    return summary, console.file.getvalue()


def measured(run: Run) -> list[dict]:
    """The metrics that do not depend on the clock."""
    return [{key: row[key] for key in METRICS[:6]} for row in run.read_metrics()]


def newest_state(run: Run) -> dict:
    state, damaged = States(run.best.parent).load()
    assert not damaged
    return state


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_training_learns_and_leaves_a_run(config):
    summary, output = train(config(epochs=6))
    run = Run.open(config().output)
    rows = run.read_metrics()
    assert [list(row) for row in rows] == [METRICS] * 6
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert summary["best_val_top1"] == max(row["val_top1"] for row in rows) >= 90
    assert rows[summary["best_epoch"] - 1]["val_top1"] == summary["best_val_top1"]
    assert json.loads(run.summary.read_text()) == summary
    assert summary["images"] == {"train": 33, "val": 12} and summary["classes"] == 3
    assert summary["params"] == sum(weight.numel() for weight in model_of(run).parameters())
    assert summary["bad_images"] == {"train": [], "val": []} and not run.bad_images.exists()
    for picture in (run.curves, run.path / "confusion.png"):
        Image.open(picture).verify()
    assert len(re.findall(r"^ +\d ", output, flags=re.MULTILINE)) == 6


def model_of(run: Run) -> torch.nn.Module:
    metadata = read_metadata(run.last)
    model = xnext.create_model(
        metadata["model_name"], num_classes=len(metadata["classes"]), **metadata["model_args"]
    )
    xnext.load_checkpoint(model, run.last)
    return model


def test_checkpoint_says_what_it_is(config):
    train(config(epochs=1, model_args={"act": "relu"}))
    metadata = read_metadata(Run.open(config().output).best)
    assert metadata["classes"] == ["blue", "green", "red"]
    assert metadata["model_args"] == {"act": "relu"}
    assert metadata["preprocessing"]["image_size"] == 16
    assert metadata["extra"]["epoch"] == 1
    assert metadata["extra"]["train_config"]["lr"] > 0


def test_same_config_gives_the_same_run_and_another_seed_another(config, tmp_path):
    changes = {"augment": "strong", "mixup": 0.5, "cutmix": 1.0, "drop_rate": 0.2, "drop_path_rate": 0.1}
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        torch.manual_seed(hash(name) % 1000)  # what came before must not matter
        train(config(output=tmp_path / name, seed=seed, **changes))
    one, two, other = (Run.open(tmp_path / name) for name in ("one", "two", "other"))
    assert measured(one) == measured(two) != measured(other)
    assert same_weights(one.last, two.last) and not same_weights(one.last, other.last)


def test_config_file_repeats_the_run(config, tmp_path):
    train(config(batch_size=10, mixup=0.2))
    run = Run.open(config().output)
    fields = yaml.safe_load(run.config.read_text())
    train(TrainConfig(**fields | {"output": tmp_path / "again"}))
    again = Run.open(tmp_path / "again")
    assert measured(again) == measured(run)
    assert same_weights(again.last, run.last)


def test_last_batch_of_one_image_is_left_out(config):
    summary, _ = train(config(batch_size=16, epochs=1))  # 33 images: two batches and one image
    assert summary["images"]["train"] == 33
    assert newest_state(Run(config().output))["progress"]["updates"] == 2


def test_state_beside_the_weights_is_whole(config):
    train(config(model_ema=0.9))
    state = newest_state(Run(config().output))
    assert (state["progress"]["epoch"], state["progress"]["updates"]) == (3, 4)
    assert state["optimizer"]["state"]
    assert state["model"].keys() == state["ema"].keys() == load_file(Run(config().output).last).keys()


def test_averaged_weights_are_saved(config, tmp_path):
    train(config(model_ema=0.2, epochs=1))
    train(config(output=tmp_path / "plain", epochs=1))
    run, plain = Run(config().output), Run(tmp_path / "plain")
    trained, averaged = newest_state(run)["model"], load_file(run.last)
    unaveraged = load_file(plain.last)
    assert all(torch.equal(trained[name], unaveraged[name]) for name in unaveraged)
    # The first of the two steps is copied; from there the second moves the average by the rest of the decay.
    assert 0 < moved(averaged, trained) < moved(trained, start(config, output=tmp_path / "still", lr=1e-12))


@pytest.mark.parametrize(
    "bad",
    [
        {"model": "inceptionnext_debgu"},
        {"model_args": {"strids": 1}},
        {"data": "nowhere"},
        {"image_size": 1},
        {"optimizer": "adafactor"},
        {"checkpoint": Path("nowhere.pth")},
    ],
)
def test_failed_start_leaves_nothing(config, bad):
    with pytest.raises(UserError):
        train(config(**bad))
    assert not config().output.exists()


def test_existing_run_is_refused_before_any_work(config, monkeypatch):
    config().output.mkdir()
    (config().output / "note").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        train(config(data="nowhere"))
    assert [path.name for path in config().output.iterdir()] == ["note"]


def test_size_too_small_for_the_network_names_the_smallest(config):
    with pytest.raises(
        UserError, match=r"image size 1 is too small for inceptionnext_debug.*--image-size \d+"
    ):
        train(config(image_size=1))


def test_loss_that_is_not_finite_stops_and_keeps_earlier_checkpoints(config, monkeypatch):
    whole, calls = Classification.loss, []

    def loss(self, logits, targets):
        calls.append(1)
        value = whole(self, logits, targets)
        return value * float("inf") if len(calls) == 4 else value

    monkeypatch.setattr(Classification, "loss", loss)
    with pytest.raises(UserError, match=r"loss is inf in epoch 2, step 2 \(lr 0\.000\d+\); lower --lr"):
        train(config(epochs=3))
    run = Run.open(config().output)
    assert [row["epoch"] for row in run.read_metrics()] == [1]
    assert all(weight.isfinite().all() for weight in load_file(run.last).values())


def fake_accuracies(monkeypatch, *accuracies: tuple[float, float]):
    """Let each epoch's measurement come out as a given top-1 and loss."""
    whole, results = Classification.evaluate, iter(accuracies)

    def evaluate(self, model, loader, device):
        top1, loss = next(results)
        measured = whole(self, model, loader, device)
        return dataclasses.replace(measured, metrics=measured.metrics | {"top1": top1, "loss": loss})

    monkeypatch.setattr(Classification, "evaluate", evaluate)


def test_weights_that_burst_in_the_last_step_are_not_saved(config, monkeypatch):
    fake_accuracies(monkeypatch, (50.0, float("nan")))
    with pytest.raises(UserError, match=r"held-out loss is nan after epoch 1 .*--lr"):
        train(config())
    assert not config().output.exists()


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("finished", [0, 1])
def test_a_failure_leaves_the_finished_epochs_or_nothing(config, monkeypatch, existed, finished):
    """The same command can be given again, unless there is something to lose."""
    if existed:
        config().output.mkdir()
    fake_accuracies(monkeypatch, *[(50.0, 1.0)] * finished, (50.0, float("inf")))
    with pytest.raises(UserError, match="held-out loss is inf"):
        train(config(epochs=3))
    if not finished:
        assert config().output.exists() == existed and not list(config().output.glob("*"))
        return
    run = Run.open(config().output)
    assert [row["epoch"] for row in run.read_metrics()] == [1]
    assert read_metadata(run.best)["extra"]["epoch"] == read_metadata(run.last)["extra"]["epoch"] == 1


def test_interrupting_the_first_epoch_leaves_nothing(config, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Classification, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config())
    assert not config().output.exists()


def test_best_epoch_has_the_highest_accuracy_and_of_equal_ones_the_lowest_loss(config, monkeypatch):
    fake_accuracies(monkeypatch, (50.0, 1.0), (90.0, 0.9), (90.0, 0.8), (90.0, 0.85), (60.0, 0.1))
    summary, output = train(config(epochs=5))
    assert (summary["best_epoch"], summary["best_val_top1"], summary["last_val_top1"]) == (3, 90.0, 60.0)
    run = Run.open(config().output)
    assert read_metadata(run.best)["extra"]["epoch"] == 3
    assert read_metadata(run.last)["extra"]["epoch"] == 5
    assert [line.endswith("*") for line in output.splitlines()[-5:]] == [True, True, True, False, False]


def test_each_epoch_has_an_order_of_its_own(config, monkeypatch):
    epochs, whole = [], EpochSampler.set_epoch
    monkeypatch.setattr(
        EpochSampler, "set_epoch", lambda self, epoch: epochs.append(epoch) or whole(self, epoch)
    )
    train(config(epochs=3))
    assert sorted(set(epochs)) == [0, 1, 2, 3]  # 0 at its construction


def damage(folder: Path, count: int) -> list[Path]:
    files = sorted(folder.rglob("*.png"))[-count:]
    for file in files:
        file.write_bytes(file.read_bytes()[:60])
    return files


def read_late(monkeypatch):
    """Make the data set look at one picture, the first, before it is asked for others."""
    monkeypatch.setattr("xnext.data._dataset.CACHE_BUDGET", 0)
    monkeypatch.setattr("xnext.data._dataset._SAMPLE", 1)


@pytest.mark.parametrize("cached", [True, False])
def test_unreadable_images_are_listed_once(config, colours, tmp_path, monkeypatch, cached):
    if not cached:
        read_late(monkeypatch)
    data = shutil.copytree(colours, tmp_path / "data")
    bad = {"train": damage(data / "train", 2), "val": damage(data / "val", 1)}
    summary, _ = train(config(data=str(data), max_bad_images=0.07))
    assert {part: sorted(names) for part, names in summary["bad_images"].items()} == {
        part: [str(file) for file in files] for part, files in bad.items()
    }
    listed = Run(config().output).bad_images.read_text().splitlines()
    assert sorted(listed) == sorted(str(file) for files in bad.values() for file in files)


def test_too_many_unreadable_images_stop_the_start(config, colours, tmp_path):
    data = shutil.copytree(colours, tmp_path / "data")
    bad = damage(data / "train", 4)
    expected = rf"4 of 33 training images cannot be read \({bad[0]}, .*, …\), more than --max-bad-images 0.1 "
    with pytest.raises(UserError, match=expected):
        train(config(data=str(data), max_bad_images=0.1))
    assert not config().output.exists()


def test_too_many_unreadable_images_stop_a_run_that_meets_them_later(config, tmp_path, monkeypatch, draw):
    read_late(monkeypatch)
    draw(tmp_path / "data" / "train", 30, 0)
    draw(tmp_path / "data" / "val", 4, 1)
    damage(tmp_path / "data" / "train", 29)
    with pytest.raises(UserError, match="of 90 training images cannot be read"):
        train(config(data=str(tmp_path / "data"), max_bad_images=0.2))
    assert not config().output.exists()


def start(config, **changes):
    """Weights after one epoch of plain SGD without warm-up."""
    quick = {"optimizer": "sgd", "lr": 0.1, "warmup": 0.0, "epochs": 1, "weight_decay": 0.0}
    chosen = config(**quick | changes)
    train(chosen)
    return load_file(Run(chosen.output).last)


def moved(one, other) -> float:
    """Length of the way between two sets of weights, without batch norm's statistics."""
    names = [name for name in one if "running" not in name and "tracked" not in name]
    return sum(((one[name] - other[name]) ** 2).sum() for name in names).sqrt().item()


def test_clipping_limits_every_step(config, tmp_path):
    still = start(config, output=tmp_path / "still", lr=1e-12)
    free = start(config, output=tmp_path / "free")
    clipped = start(config, output=tmp_path / "clipped", clip_grad=0.01)
    # Two steps with Nesterov momentum 0.9 move at most (1.9 + 2.71) times rate times norm.
    assert moved(still, clipped) <= 0.1 * 0.01 * (1.9 + 2.71) < moved(still, free)


@pytest.mark.parametrize("blend", [{}, {"mixup": 1.0}])
def test_a_batch_in_parts_takes_the_same_step(config, tmp_path, blend):
    """Of convnext, whose norm does not depend on the batch; 33 images leave a part of one."""
    options = {"model": "convnext_debug", "augment": "none", "seed": 3, **blend}
    whole = start(config, output=tmp_path / "whole", **options)
    parts = start(config, output=tmp_path / "parts", device_batch_size=5, **options)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6)
    assert measured(Run(tmp_path / "parts"))[0]["train_loss"] == pytest.approx(
        measured(Run(tmp_path / "whole"))[0]["train_loss"], rel=1e-5
    )


def test_weight_decay_shrinks_the_weights(config, tmp_path):
    plain = start(config, output=tmp_path / "plain", optimizer="adamw", lr=1e-3)
    decayed = start(config, output=tmp_path / "decayed", optimizer="adamw", lr=1e-3, weight_decay=50.0)
    name = next(name for name, weight in plain.items() if weight.ndim == 4)
    assert decayed[name].norm() < 0.97 * plain[name].norm()


def test_bf16_computes_with_fewer_digits_and_keeps_full_weights(config, tmp_path):
    full = start(config, output=tmp_path / "full")
    half = start(config, output=tmp_path / "half", amp="bf16")
    assert {weight.dtype for weight in half.values()} == {weight.dtype for weight in full.values()}
    assert 0 < moved(full, half) < 0.2 * moved(start(config, output=tmp_path / "still", lr=1e-12), full)


def test_training_goes_on_from_a_checkpoint(config, tmp_path):
    train(config(epochs=4))
    source = Run(config().output)
    for name, checkpoint in (("file", source.last), ("folder", source.path)):
        start(config, output=tmp_path / name, checkpoint=checkpoint, lr=1e-12)
    from_file, from_run = Run(tmp_path / "file"), Run(tmp_path / "folder")
    assert moved(load_file(source.last), load_file(from_file.last)) < 1e-6
    assert moved(load_file(source.best), load_file(from_run.last)) < 1e-6


def test_other_classes_get_a_new_head_and_it_is_said_once(config, tmp_path, colours, caplog):
    train(config(epochs=1))
    data = shutil.copytree(colours, tmp_path / "data")
    for part in ("train", "val"):
        shutil.rmtree(data / part / "red")
    summary, output = train(
        config(data=str(data), output=tmp_path / "two", checkpoint=Run(config().output).best, epochs=1)
    )
    assert summary["classes"] == 2
    assert re.search(r"classifier is new.* 3 classes, not 2", caplog.text)
    assert "loaded" not in output


def test_output_without_a_terminal_is_plain_lines(config):
    _, output = train(config(epochs=2))
    assert "\x1b" not in output and "\r" not in output
    heading = next(line for line in output.splitlines() if "train loss" in line)
    row = next(line for line in output.splitlines() if line.lstrip().startswith("2 "))
    assert len(row.removesuffix("  *")) == len(heading)


def test_terminal_shows_a_bar_with_loss_speed_and_time_left(config):
    _, output = train(config(epochs=1), force_terminal=True)
    assert re.search(r"images/s  \d+ MiB  time left", output) and "epoch 1/1" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "least"),
    [
        ("nexception_debug", 99),
        ("xception_debug", 99),
        ("nexception_tp_debug", 98),
        ("inceptionnext_debug", 98),
        ("convnext_debug", 98),
    ],
)
def test_defaults_read_digits(tmp_path, model, least):
    summary, _ = train(TrainConfig(model=model, data="digits", output=tmp_path / "run", device="cpu"))
    assert summary["best_val_top1"] >= least
