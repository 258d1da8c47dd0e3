"""Networks whose depthwise convolutions the kernels compute."""

import copy
import io
import math
import pickle
from itertools import islice

import pytest
import timm
import torch
import torchvision
from quick import quick_kernels
from rich.console import Console
from torch.nn.utils import prune

import xnext
from xnext.errors import UserError
from xnext.kernels import _backend, accelerate, functional, use_backend
from xnext.training import Run, TrainConfig, train
from xnext.training.setup import prepare
from xnext.training.trainer import Trainer

DEBUG = xnext.list_models("*_debug")


def depthwise(model: torch.nn.Module) -> set[str]:
    return {
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1
    }


@pytest.mark.parametrize("name", DEBUG)
def test_our_networks_compute_the_same(device, name):
    """In Triton's own interpreter, at its table's sizes."""
    model = xnext.create_model(name, num_classes=5).to(device).eval()
    x = torch.randn(1, 3, 16, 16, device=device)
    before, names, expected = list(model.state_dict()), depthwise(model), model(x)
    replaced = accelerate(model)
    assert list(model.state_dict()) == before
    assert torch.equal(model(x), expected), "auto is PyTorch where nothing was measured"
    with use_backend("triton"):
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    covered = {name for name in names if any(name == key or name.startswith(f"{key}.") for key in replaced)}
    assert covered == names and accelerate(model) == {}


@pytest.mark.parametrize(
    ("build", "count", "kinds"),
    [
        (lambda: timm.create_model("inception_next_atto"), 12, {"inception"}),
        (lambda: timm.create_model("convnext_atto"), 12, {"depthwise 7x7"}),
        (lambda: timm.create_model("efficientnet_b0"), 16, {"depthwise 3x3", "depthwise 5x5"}),
        (lambda: torchvision.models.mobilenet_v2(), 17, {"depthwise 3x3"}),
        (lambda: timm.create_model("resnet18"), 0, set()),
        (lambda: timm.create_model("resnetblur50"), 1, {"max-blur pool"}),
        (lambda: xnext.create_model("convnext_debug", mixer="partial", kernel_size=3), 5, {"partial"}),
        (lambda: xnext.create_model("inceptionnext_debug", bands="sequential"), 15, None),
    ],
    ids=[
        "inception_next", "convnext", "efficientnet", "mobilenet", "resnet", "resnetblur", "partial",
        "sequential",
    ],
)  # fmt: skip
def test_any_network(build, count, kinds):
    replaced = accelerate(build())
    assert len(replaced) == count
    assert kinds is None or set(replaced.values()) == kinds


def test_layers_that_are_no_plain_depthwise_convolutions_stay():
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, groups=4),
        torch.nn.Conv2d(4, 4, 3, groups=2),
        torch.nn.Conv2d(4, 4, 3, groups=4, padding="same"),
        torch.nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"),
        torch.nn.Conv2d(1, 1, 3),
        timm.create_model("tf_efficientnet_b0").blocks[1][0].conv_dw,
    )
    assert accelerate(layers) == {}


def changed(name: str) -> torch.nn.Module:
    """Return timm's mixer with something about one of its layers that must not be passed over."""
    mixer = timm.models.inception_next.InceptionDWConv2d(16)
    if name == "class":

        class Twice(torch.nn.Conv2d):
            def forward(self, x):
                return 2 * super().forward(x)

        mixer.dwconv_hw = Twice(2, 2, 3, padding=1, groups=2)
    elif name == "hook":
        mixer.dwconv_hw.register_forward_hook(lambda module, inputs, y: y * 0)
    else:
        prune.random_unstructured(mixer.dwconv_hw, "weight", 0.5)
    return mixer


@pytest.mark.parametrize("name", ["class", "hook", "pruned"])
def test_mixers_whose_layers_were_changed_are_not_taken_as_a_whole(name):
    mixer, x = changed(name), torch.randn(1, 16, 8, 8)
    expected = mixer(x)
    replaced = accelerate(mixer)
    assert "" not in replaced and "dwconv_w" in replaced
    assert torch.equal(mixer(x), expected)


def test_single_images_and_symbolic_traces(device):
    layer = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4, padding=1)).to(device)
    x = torch.randn(2, 4, 6, 6, device=device)
    expected = layer(x)
    accelerate(layer)
    torch.testing.assert_close(layer(x[0]), expected[0])
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), expected)
    model = timm.create_model("inception_next_atto").eval()
    accelerate(model)
    nodes = {node.target for node in torch.fx.symbolic_trace(model.stages[0].blocks[0]).graph.nodes}
    assert functional.inception_dwconv2d in nodes


def test_copies_pickles_and_hooks_go_on(device):
    model = xnext.create_model("convnext_debug").to(device).eval()
    accelerate(model)
    x, seen = torch.randn(1, 3, 32, 32, device=device), []
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    model.stages[0].blocks[0].register_forward_hook(lambda *_: seen.append(1))
    model(x)
    assert seen


@pytest.fixture
def config(tmp_path):
    def make(**changes) -> TrainConfig:
        plain = {"data": "digits", "output": tmp_path / "run", "device": "cpu", "batch_size": 4, "epochs": 1}
        return TrainConfig(**plain | changes)

    return make


def first_steps(config: TrainConfig, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    setup = prepare(config)
    trainer = Trainer(setup, Run(config.output))
    start = copy.deepcopy(setup.network.state_dict())
    setup.freeze(False, 0)
    setup.batches.order.set_epoch(1)
    with use_backend(config.kernels):
        losses = [
            trainer._step(images, labels).loss.item()
            for images, labels, _ in islice(setup.batches.train, steps)
        ]
    return losses, {name: value - start[name] for name, value in setup.network.state_dict().items()}


# SGD, since gradients that are zero but for rounding are steps of full length for Adam. Batch norms of so few
# values magnify rounding, and with larger steps PyTorch differs from itself in another memory layout.
ON_GPU = torch.cuda.is_available()
SIZES = {"image_size": 32, "batch_size": 32} if ON_GPU else {"image_size": 16, "batch_size": 4}
LEARNING_RATES = {
    "convnext_debug": 1e-3,
    "inceptionnext_debug": 1e-3,
    "nexception_debug": 1e-5,
    "nexception_tp_debug": 1e-4,
    "xception_debug": 1e-4,
}


def both_trainings(
    config, steps: int, large: bool = False, **options
) -> list[tuple[list[float], dict[str, torch.Tensor]]]:
    """Return losses and what was added to the weights, without the kernels and with them."""
    if "next_debug" in options["model"]:  # whose LayerScale begins with so little that mixers hardly count
        options["model_args"] = {"layer_scale": 1.0}
    options |= {"optimizer": "sgd", "device": "auto", **SIZES}
    with quick_kernels(large):
        return [first_steps(config(**options, kernels=kernels), steps) for kernels in ("torch", "triton")]


@pytest.mark.parametrize(("model", "decoder"), [*((name, None) for name in DEBUG), ("convnext_debug", "fpn")])
def test_a_step_of_training_is_the_same(config, pairs, model, decoder):
    """A learning rate of 1 shows the gradients as they are."""
    options = {} if decoder is None else {"decoder": decoder, "data": str(pairs)}
    (plain, added), (ours, ours_added) = both_trainings(config, 1, model=model, lr=1.0, **options)
    assert ours == pytest.approx(plain, rel=1e-5)
    share, floor = (1e-2, 1e-5) if ON_GPU else (1e-4, 1e-7)
    for name, expected in added.items():
        off = (ours_added[name] - expected).double().norm()
        assert off <= share * expected.double().norm() + floor * expected.numel() ** 0.5, name


@pytest.mark.parametrize("model", DEBUG)
def test_a_training_goes_the_same_way(config, model):
    (plain, _), (ours, _) = both_trainings(config, 50, large=True, model=model, lr=LEARNING_RATES[model])
    assert all(map(math.isfinite, plain)) and len(ours) == 50 and plain[0] != plain[-1]
    assert ours == pytest.approx(plain, rel=1e-2 if ON_GPU else 1e-5)


def test_training_asks_whom_it_was_told(config, monkeypatch):
    """With triton the first layer that cannot be computed ends it in a line; with torch none is replaced."""
    monkeypatch.setattr(_backend, "INTERPRETED", False)
    quiet = Console(file=io.StringIO())
    with pytest.raises(UserError, match="kernels triton: cpu is no NVIDIA or AMD GPU"):
        train(config(model="convnext_debug", kernels="triton"), quiet)
    assert not config(model="convnext_debug").output.exists()
    replaced = {
        kernels: accelerate(prepare(config(model="convnext_debug", kernels=kernels)).network)
        for kernels in ("auto", "torch")
    }
    assert len(replaced["torch"]) == 5 and not replaced["auto"], "which had replaced them already"
