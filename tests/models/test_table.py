"""The model table of the README: name, input size, parameters, multiply-accumulates."""

import pytest
import timm
import torch

import xnext
from xnext.evaluation.complexity import (
    check_image_size,
    count_macs,
    count_parameters,
    smallest_image_size,
)

# Parameters are exact where the reference is public; the isotropic ones are known to two digits.
EXACT = {
    "xception": (299, 22_855_952, 8.357),
    "nexception_t": (224, 24_544_976, 4.600),
    "nexception_s": (224, 43_386_944, 8.402),
    "nexception_tp": (224, 26_559_112, 4.320),
    "inceptionnext_atto": (224, 4_156_520, 0.503),
    "inceptionnext_tiny": (224, 28_055_680, 4.189),
    "inceptionnext_small": (224, 49_374_016, 8.356),
    "inceptionnext_base": (224, 86_672_136, 14.841),
    "inceptionnext_base_384": (384, 86_672_136, 43.603),
}
ROUNDED = {
    "inceptionnext_small_iso": (224, 22, 4.2),
    "convnext_small_iso": (224, 22, 4.3),
    "metanext_small_attn": (224, 22, 4.6),
}
CONVNEXT = {
    "convnext_tiny_k5": 28_430_152,
    "convnext_tiny_k3": 28_324_168,
    "convnext_tiny_k3_par1_2": 28_291_048,
    "convnext_tiny_k3_par3_8": 28_282_768,
    "convnext_tiny_k3_par1_4": 28_274_488,
    "convnext_tiny_k3_par1_8": 28_266_208,
    "convnext_tiny_k3_par1_16": 28_262_068,
}
DEBUG = ["convnext_debug", "inceptionnext_debug", "nexception_debug", "nexception_tp_debug", "xception_debug"]


def build(name: str) -> torch.nn.Module:
    return timm.create_model(name, device="meta")


def input_size(model: torch.nn.Module) -> tuple[int, int, int]:
    return tuple(model.pretrained_cfg["input_size"])


def test_every_registered_network_is_in_the_table():
    assert xnext.list_models() == sorted([*EXACT, *ROUNDED, *CONVNEXT, *DEBUG])


@pytest.mark.parametrize("name", EXACT)
def test_exact_counts(name):
    size, parameters, gmacs = EXACT[name]
    model = build(name)
    assert input_size(model) == (3, size, size)
    assert count_parameters(model) == parameters
    assert round(count_macs(model, (3, size, size)) / 1e9, 3) == gmacs


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_counts(name):
    size, millions, gmacs = ROUNDED[name]
    model = build(name)
    assert round(count_parameters(model) / 1e6) == millions
    assert round(count_macs(model, (3, size, size)) / 1e9, 1) == gmacs


@pytest.mark.parametrize("name", CONVNEXT)
def test_convnext_counts(name):
    model = build(name)
    assert input_size(model) == (3, 224, 224)
    assert count_parameters(model) == CONVNEXT[name]
    assert round(count_macs(model, (3, 224, 224)) / 1e9, 1) == 4.4


@pytest.mark.parametrize("name", DEBUG)
def test_debug_networks_are_small(name):
    model = build(name)
    assert input_size(model) == (3, 32, 32)
    assert count_parameters(model) < 500_000


def test_xception_has_36_convolution_layers():
    """Figure 5 of the paper counts a separable convolution as one layer, and no shortcut."""
    model = build("xception")
    depthwise = [n for n, m in model.named_modules() if n.endswith("conv_dw")]
    stem = [n for n, m in model.stem.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(depthwise) + len(stem) == 36


def test_counting_leaves_the_network_as_it_was():
    model = timm.create_model("convnext_debug").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_macs(model, (3, 32, 32))
    smallest_image_size(model)
    assert model.training and all(p.device.type == "cpu" for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_macs_of_a_hand_counted_network():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 3 * 8 * 9 * 16 positions
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),  # 8 * 9 * 16
        torch.nn.BatchNorm2d(8),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 10),  # 128 * 10
    )
    assert count_macs(network, (3, 8, 8)) == 3 * 8 * 9 * 16 + 8 * 9 * 16 + 128 * 10


@pytest.mark.parametrize("name", DEBUG)
def test_smallest_image_size_is_the_smallest(name):
    model = timm.create_model(name).eval()
    size = smallest_image_size(model)
    with torch.no_grad():
        assert model(torch.randn(1, 3, size, size)).shape == (1, 1000)
        with pytest.raises(RuntimeError):
            model(torch.randn(1, 3, size - 1, size - 1))
    check_image_size(model, size)
    with pytest.raises(xnext.UserError, match=f"use --image-size {size} or more"):
        check_image_size(model, size - 1, name)


def test_a_network_of_one_size_names_it():
    model = timm.create_model("vit_tiny_patch16_224")
    with pytest.raises(
        xnext.UserError, match="vit does not take images of 288 pixels; --size 224 is one that it"
    ):
        check_image_size(model, 288, "vit", option="--size")
    with pytest.raises(xnext.UserError, match="image size 64 is too small for vit; use --size 224 or more"):
        check_image_size(model, 64, "vit", option="--size")
