import io

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

import xnext
from xnext.cli import cam as command
from xnext.data import Preprocessing, build_eval_transform
from xnext.errors import UserError
from xnext.evaluation import cam

DEBUG = ["inceptionnext_debug", "convnext_debug", "xception_debug", "nexception_debug", "nexception_tp_debug"]
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic"}


class Linear(nn.Module):
    """Features, their average, a linear classifier: its Grad-CAM has a closed form."""

    def __init__(self, inplace=False):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.act(self.features(x)).mean((2, 3)))


def closed_form(model, images, targets):
    """Return relu(sum of channel weight x activation), scaled to 0..1."""
    activation = model.features(images).detach()
    gradient = (activation > 0).float().mean((2, 3)) * model.head.weight[targets] / activation[0, 0].numel()
    maps = (gradient[:, :, None, None] * activation).sum(1).relu()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low).clamp(min=1e-12)).detach().numpy()


@pytest.mark.parametrize("inplace", [False, True])
def test_every_image_of_a_batch_gets_the_map_of_its_own_target(inplace):
    model, images, targets = Linear(inplace), torch.randn(5, 3, 9, 7), [4, 0, 2, 2, 1]
    maps = cam.activation_maps(model, images, targets, model.features)
    np.testing.assert_allclose(maps, closed_form(model, images, targets), atol=1e-4)


@pytest.mark.parametrize("name", DEBUG)
@pytest.mark.parametrize("size", [32, 64])
def test_a_batch_equals_its_images_one_by_one(name, size):
    model = xnext.create_model(name, num_classes=6).eval()
    images, targets = torch.randn(3, 3, size, size), [5, 0, 3]
    together = cam.activation_maps(model, images, targets)
    alone = [cam.activation_maps(model, images[i : i + 1], targets[i : i + 1])[0] for i in range(3)]
    assert together.shape == (3, size, size)
    np.testing.assert_allclose(together, np.stack(alone), atol=2e-3)
    assert together.min() >= 0
    assert together.max() <= 1


def test_the_command_knows_every_method():
    """It names them itself, since the module of the methods needs OpenCV."""
    assert tuple(cam.METHODS) == command._METHODS


@pytest.mark.parametrize("method", cam.METHODS)
@pytest.mark.parametrize("name", ["inceptionnext_debug", "nexception_debug"])
def test_every_method_works_on_batches_of_any_size_and_on_fused_networks(name, method):
    model = cam_ready(name)
    images, targets = torch.randn(3, 3, 40, 56), [5, 0, 3]
    together = cam.activation_maps(model, images, targets, method=method)
    alone = [
        cam.activation_maps(model, images[i : i + 1], targets[i : i + 1], method=method)[0] for i in range(3)
    ]
    assert together.shape == (3, 40, 56) and together.any() and together.max() <= 1
    np.testing.assert_allclose(together, np.stack(alone), atol=2e-3)
    fused = cam.activation_maps(xnext.fuse(model), images, targets, method=method)
    np.testing.assert_allclose(fused, together, atol=1e-2)


def cam_ready(name):
    """Return a network whose branches count, though it was not trained."""
    torch.manual_seed(0)
    model = xnext.create_model(name, num_classes=6).eval()
    for key, parameter in model.named_parameters():
        if key.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
    return model


def test_methods_differ():
    """Before the last stage: its gradients are the same everywhere, so that some of them agree there."""
    model, images = cam_ready("inceptionnext_debug"), torch.randn(2, 3, 64, 64)
    layer = model.stages[1]
    maps = [cam.activation_maps(model, images, [0, 1], layer, method) for method in cam.METHODS]
    assert all(not np.allclose(one, other) for i, one in enumerate(maps) for other in maps[:i])


def test_several_networks_side_by_side():
    views, maps = [Image.new("RGB", (64, 64), "teal")] * 2, np.zeros((2, 8, 8), np.float32)
    maps[0, 2:4] = 1
    ones = [cam.Explanation(name, views, maps, ["cat (1.0%)", "dog (2.0%)"]) for name in ("a", "b", "c")]
    figure = cam.draw_grid(["first.png", "second.png"], ones)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 8 and titles[0] == "first.png" and titles[1] == "a\ncat (1.0%)"
    assert titles[7] == "c\ndog (2.0%)\n(no place stands out)" and ones[0].silent == [1]
    assert png(figure).width > 800


def test_another_target_gives_another_map():
    model, image = Linear(), torch.randn(1, 3, 8, 8)
    first, second = (cam.activation_maps(model, image, [target], model.features) for target in (0, 1))
    assert not np.allclose(first, second)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_frozen_parameters_and_inference_mode_do_not_matter_and_nothing_changes(frozen, training):
    model = xnext.create_model("inceptionnext_debug", num_classes=4)
    images = torch.randn(2, 3, 32, 32)
    expected = cam.activation_maps(model.eval(), images, [0, 1])
    assert expected.any()
    model.requires_grad_(not frozen).train(training)
    kept = torch.ones_like(model.head.fc.weight)
    model.head.fc.weight.grad = kept
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        maps = cam.activation_maps(model, images.clone(), [0, 1])
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    assert all(module.training == training for module in model.modules())
    assert all(p.requires_grad != frozen for p in model.parameters())
    assert model.head.fc.weight.grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("weight", [-1.0, 0.0, float("nan")])
def test_a_map_without_evidence_is_zero_and_can_be_drawn(weight):
    model = Linear()
    nn.init.constant_(model.features.weight, 0.1)
    nn.init.constant_(model.head.weight, weight)
    maps = cam.activation_maps(model, torch.rand(2, 3, 8, 8), [0, 1], model.features)
    np.testing.assert_array_equal(maps, 0)
    picture = png(cam.draw(["a", "b"], [Image.new("RGB", (8, 8), "white")] * 2, maps, ["x", "y"]))
    assert np.asarray(picture).mean() > 200  # the white images, not black


@pytest.mark.parametrize("name", DEBUG)
def test_the_target_layer_is_the_last_stage_unless_the_image_is_small(name):
    model = xnext.create_model(name)
    assert cam.target_layer(model, 224) is model.stages[-1]
    small = cam.target_layer(model, 32)
    sizes = []
    small.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    model.eval()(torch.randn(1, 3, 32, 32))
    assert sizes[0] >= 4
    assert cam.target_layer(model, 1) is model.stages[-1]


@pytest.mark.parametrize("size", [(200, 120), (120, 200), (64, 64), (10, 500)])
@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_the_view_shows_what_the_network_sees(size, crop):
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    image = Image.fromarray(np.stack([across, down, 0 * down], -1).astype(np.uint8))
    preprocessing = Preprocessing(image_size=64, crop_pct=crop, **PLAIN)
    seen = build_eval_transform(preprocessing)(image).permute(1, 2, 0).numpy() * 255
    view = cam.network_view(image, preprocessing).resize((64, 64), Image.Resampling.BOX)
    # Within three pixels of the network's input: the ends of the ramp that the crop leaves.
    tolerance = 3 * 255 / 64
    np.testing.assert_allclose(np.asarray(view)[::63, ::63], seen[::63, ::63], atol=tolerance)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_picture_shows_every_image_beside_its_map(count):
    views = [Image.new("RGB", (320, 320), "teal")] * count
    maps = np.zeros((count, 32, 32), np.float32)
    maps[:, 8:16, 8:16] = 1
    figure = cam.draw([f"{i}" * 60 for i in range(count)], views, maps, ["cat (99.0%)"] * count)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 2 * count
    assert max(map(len, titles)) <= 32
    pixels = np.asarray(png(figure).convert("RGB")).astype(int)
    teal = (abs(pixels - [0, 128, 128]) < 8).all(-1)
    warm = (pixels[..., 0] > pixels[..., 1] + 60) & (pixels[..., 0] > pixels[..., 2] + 60)
    grey = (abs(pixels - pixels.mean(-1, keepdims=True)) < 3).all(-1) & (pixels[..., 0] < 200)
    # Of the pictures' area one half is the images and, where the map is zero, the other half grey.
    assert teal.mean() > 0.25 * min(1, count / 3)
    assert warm.any()
    assert grey.mean() > 0.15 * min(1, count / 3)


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_places_of_networks_with_channels_last_or_tokens(name):
    """As pytorch-grad-cam's own map of the same layer, with a transform of ours."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    images = torch.randn(1, 3, 224, 224)
    images[..., 60:120, 20:90] += 3
    layer = cam.target_layer(model, 224)

    def places(x):
        if x.dim() == 4:
            return x.permute(0, 3, 1, 2)
        return x[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)

    theirs = GradCAM(model, [layer], reshape_transform=places)(images, [ClassifierOutputTarget(3)])
    ours = cam.activation_maps(model, images, [3])
    assert ours.any() and np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999


def test_features_without_places():
    model = timm.create_model("levit_128s").eval()
    with pytest.raises(UserError, match="without places"):
        cam.activation_maps(model, torch.randn(1, 3, 224, 224), [3])
