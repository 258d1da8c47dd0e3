"""Options of speed, memory and course do what they say, seen by their effect."""

import io
import itertools

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from xnext._interrupts import Interrupts
from xnext.errors import UserError
from xnext.training import Run, TrainConfig, train
from xnext.training import setup as building
from xnext.training.progress import Display
from xnext.training.setup import prepare
from xnext.training.trainer import Trainer


def quiet(config: TrainConfig, **how):
    console = Console(file=io.StringIO(), width=300)
    return train(config, console, **how), console.file.getvalue()


def first_batch(setup):
    return next(iter(setup.batches.train))


def weights(config) -> dict[str, torch.Tensor]:
    return load_file(Run(config.output).last)


@pytest.mark.parametrize("wanted", [True, False])
def test_channels_last_is_how_weights_and_images_lie_in_memory(config, wanted, monkeypatch):
    setup = prepare(config(channels_last=wanted))
    kernels = [m.weight for m in setup.network.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    kernels = [kernel for kernel in kernels if kernel.shape[1] > 1 and kernel.shape[2] > 1]
    assert kernels
    assert all(k.is_contiguous(memory_format=torch.channels_last) == wanted for k in kernels)
    seen = []
    setup.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    quiet_trainer = Trainer(setup, Run.create(config().output, ""))
    quiet_trainer._step(*first_batch(setup)[:2])
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == wanted


def saved_bytes(setup) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images, _, _ = first_batch(setup)
    setup.train_mode()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        setup.network(images)
    return sum(kept.values())


@pytest.mark.parametrize("model", ["inceptionnext_debug", "nexception_debug", "xception_debug"])
def test_grad_checkpointing_keeps_less_and_computes_the_same(config, model, tmp_path):
    torch.set_num_threads(1)
    options = {"model": model, "image_size": 32, "epochs": 1}
    kept = [saved_bytes(prepare(config(**options, grad_checkpointing=on))) for on in (False, True)]
    assert kept[1] < 0.7 * kept[0]
    plain, checkpointed = (
        config(**options, grad_checkpointing=on, output=tmp_path / str(on)) for on in (False, True)
    )
    quiet(plain)
    quiet(checkpointed)
    pairs = zip(weights(plain).values(), weights(checkpointed).values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)  # statistics of batch norm too


def test_compile_hands_the_network_to_the_compiler(config, monkeypatch):
    """The compiler itself is another project; here it is one that counts and runs what it gets."""
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: whole(self, backend=count))
    compiled = config(compile=True, epochs=1)
    quiet(compiled)
    assert len(graphs) >= 1 and sum(len(graph.graph.nodes) for graph in graphs) > 20
    assert not any(name.startswith("_orig_mod") for name in weights(compiled))


@pytest.mark.slow
def test_compiled_by_inductor_it_learns_the_same(config, tmp_path):
    plain, compiled = (config(compile=on, output=tmp_path / str(on)) for on in (False, True))
    first, second = quiet(plain)[0], quiet(compiled)[0]
    assert first["best_val_loss"] == pytest.approx(second["best_val_loss"], rel=0.05)


def test_a_frozen_backbone_stays_and_then_learns(config, tmp_path):
    """33 images in batches of 16: 3 steps an epoch, of which the first 4 leave the backbone alone."""
    config = config(freeze="4 steps", model="nexception_debug", image_size=32, batch_size=12, epochs=2)
    setup = prepare(config)
    before = {name: tensor.clone() for name, tensor in setup.network.state_dict().items()}
    trainer = Trainer(setup, Run.create(config.output, ""))
    moved = []

    def watch(self_step=trainer._step):
        def step(*batch):
            result = self_step(*batch)
            after = setup.network.state_dict()
            moved.append({name.split(".")[0] for name in after if not torch.equal(after[name], before[name])})
            return result

        return step

    trainer._step = watch()
    display = Display(Console(file=io.StringIO()), 2, 3, setup.task.metrics, torch.device("cpu"))
    with Interrupts() as interrupts, display:
        trainer.train(display, interrupts)
    assert moved[:4] == [{"head"}] * 4  # not even the statistics of batch norm move
    assert moved[-1] >= {"head", "stem", "stages"}


def test_a_training_ends_when_it_gets_no_better(config, monkeypatch):
    from xnext.training.task import Classification

    whole, made = Classification.evaluate, itertools.count()

    def evaluate(self, *args):
        measured = whole(self, *args)
        measured.metrics["top1"] = [50.0, 70.0, 60.0, 65.0, 90.0][next(made)]
        return measured

    monkeypatch.setattr(Classification, "evaluate", evaluate)
    config = config(epochs=5, patience=2)
    summary, output = quiet(config)
    assert [row["epoch"] for row in Run(config.output).read_metrics()] == [1, 2, 3, 4]
    assert (summary["best_epoch"], summary["epochs"]) == (2, 4)
    assert "no better for 2 epochs" in output
    again, _ = quiet(config, resume=True)  # it is finished, and stays so
    assert again["epochs"] == 4


def test_both_raw_and_averaged_weights_are_measured(config):
    config = config(model_ema=0.95, epochs=3)
    quiet(config)
    rows = Run(config.output).read_metrics()
    assert all({"val_loss", "raw_val_loss", "val_top1", "raw_val_top1"} <= row.keys() for row in rows)
    assert all(row["val_loss"] != row["raw_val_loss"] for row in rows)


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_statistics_of_batch_norm_are_averaged_or_copied(config, buffers):
    config = config(model="nexception_debug", image_size=32, model_ema=0.9, ema_buffers=buffers, epochs=1)
    setup = prepare(config)
    trainer = Trainer(setup, Run.create(config.output, ""))
    for batch in itertools.islice(setup.batches.train, 3):
        setup.freeze(False, 0)
        trainer._step(*batch[:2])
    raw, averaged = setup.network.state_dict(), setup.ema.module.state_dict()
    means = [name for name in raw if name.endswith("running_mean")]
    assert means
    assert all(torch.equal(raw[name], averaged[name]) for name in means) == (buffers == "copy")
    assert not torch.equal(raw["head.fc.weight"], averaged["head.fc.weight"])


def test_the_averages_decay_warms_up(config):
    """After few steps an average of 0.9999 would still be the first, random weights."""
    config = config(model_ema=0.9999, epochs=1, batch_size=6)
    setup = prepare(config)
    first = setup.network.get_parameter("head.fc.weight").detach().clone()
    trainer = Trainer(setup, Run.create(config.output, ""))
    setup.freeze(False, 0)
    for batch in setup.batches.train:
        trainer._step(*batch[:2])
    moved = (setup.network.get_parameter("head.fc.weight") - first).norm()
    behind = (setup.network.get_parameter("head.fc.weight") - setup.ema.module.head.fc.weight).norm()
    assert behind < 0.8 * moved


def test_tensorboard_has_every_metric_of_every_epoch_once(config, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = config(tensorboard=True, epochs=3, model_ema=0.5)
    quiet(config)
    rows = Run(config.output).read_metrics()
    events = EventAccumulator(str(config.output / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == rows[0].keys() - {"epoch"}
    for name in events.Tags()["scalars"]:
        points = [(point.step, point.value) for point in events.Scalars(name)]
        assert points == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in rows]


def test_without_tensorboard_nothing_of_it_is_written(config):
    quiet(config(epochs=1))
    assert not (config().output / "tensorboard").exists()


def test_published_weights_are_asked_for_unless_a_checkpoint_is_given(config, monkeypatch, tmp_path):
    quiet(config(epochs=1))
    asked = []
    whole = building.create_variant
    monkeypatch.setattr(
        building,
        "create_variant",
        lambda *args, pretrained, **rest: asked.append(pretrained) or whole(*args, **rest),
    )
    building.prepare(config(pretrained=True))
    report = building.prepare(config(pretrained=True, checkpoint=config().output)).report
    assert asked == [True, False] and report is not None


def test_in_memory_it_learns_from_the_same_images_in_the_same_order(config, tmp_path):
    """Without augmentation the two ways differ in nothing but where the images are."""
    torch.set_num_threads(1)
    one, other = (config(augment="none", loader=way, output=tmp_path / way) for way in ("images", "memory"))
    quiet(one)
    quiet(other)
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))
    measured = [
        [row[key] for row in Run(c.output).read_metrics() for key in ("train_loss", "val_loss", "val_top1")]
        for c in (one, other)
    ]
    assert measured[0] == measured[1]


def test_in_memory_batches_are_changed_as_the_config_says(config, monkeypatch):
    torch.set_num_threads(1)
    setup = building.prepare(config(loader="memory", augment="strong", random_erasing=0.7))
    images, _, _ = first_batch(setup)
    assert images.dtype == torch.uint8
    changed = setup.batches.transform(images)
    assert changed.dtype == torch.float32 and not torch.equal(changed[0], setup.batches.transform(images)[0])
    erase = [step for step in setup.batches.transform if type(step).__name__ == "Erase"]
    assert erase and erase[0].probability == 0.7


def test_in_memory_nothing_is_left_behind(config, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    quiet(config(loader="memory", epochs=1))
    assert not list((tmp_path / "tmp").iterdir())


def test_photographs_are_not_for_memory(config):
    with pytest.raises(UserError, match="below 128 pixels"):
        building.prepare(config(loader="memory", image_size=128))


def test_workers_are_not_for_memory(config):
    with pytest.raises(UserError, match="workers load images one by one, which loader memory does not"):
        config(loader="memory", workers=2)
