"""Backbones under decoders: sizes of the paper, any image, every weight."""

import pytest
import torch

import xnext
from xnext.errors import UserError
from xnext.evaluation.complexity import count_macs, count_parameters
from xnext.segmentation import DECODERS, create_segmenter

DEBUG = xnext.list_models("*_debug")
PYRAMIDS = [name for name in xnext.list_models() if not name.endswith(("_iso", "_attn"))]


@pytest.mark.parametrize(
    ("size", "decoder", "width", "params", "macs"),
    [
        ("tiny", "upernet", 2048, 56, 933), ("small", "upernet", 2048, 78, 1020),
        ("base", "upernet", 2048, 115, 1159), ("tiny", "fpn", 512, 28, 44), ("small", "fpn", 512, 50, 65),
        ("base", "fpn", 512, 85, 100),
    ],
)  # fmt: skip
def test_sizes_are_those_of_the_paper(size, decoder, width, params, macs):
    """Tables 6 and 7 of the InceptionNeXt paper."""
    with torch.device("meta"):
        network = create_segmenter(f"inceptionnext_{size}", decoder)
    assert count_parameters(network) / 1e6 == pytest.approx(params, rel=0.02)
    assert count_macs(network, (3, 512, width)) / 1e9 == pytest.approx(macs, rel=0.03)


@pytest.mark.parametrize(
    ("name", "decoder"),
    [(name, "fpn") for name in [*PYRAMIDS, "resnet18", "convnext_atto", "mobilenetv3_small_050"]]
    + [(name, "upernet") for name in [*DEBUG, "xception", "nexception_t", "resnet18"]],
)
def test_every_pyramid_takes_any_size(name, decoder):
    with torch.device("meta"):
        network = create_segmenter(name, decoder, 7)
    sizes = [(65, 97), (96, 64), (128, 75), (2, 3)] if name.endswith("_debug") else [(65, 97)]
    for height, width in sizes:
        image = torch.empty(2, 3, height, width, device="meta")
        logits = network(image)
        logits = logits if isinstance(logits, tuple) else (logits,)
        assert [one.shape for one in logits] == [(2, 7, height, width)] * (1 + (decoder == "upernet"))
    assert network.eval()(image).shape == (2, 7, height, width)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["inceptionnext_debug", "xception_debug", "nexception_tp_debug"])
def test_every_weight_learns(name, decoder):
    torch.manual_seed(0)
    network = create_segmenter(name, decoder, 3)
    logits = network(torch.randn(2, 3, 48, 40))
    sum(one.square().sum() for one in (logits if isinstance(logits, tuple) else (logits,))).backward()
    still = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert not still


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_image_says_the_same_alone_and_where_it_lies(decoder):
    """Alone or in a batch; and a square of it has the colour of that square."""
    torch.manual_seed(0)
    network = create_segmenter("inceptionnext_debug", decoder, 3).eval()
    images = torch.randn(2, 3, 48, 64)
    with torch.inference_mode():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        changed = images.clone()
        changed[:, :, :8, :8] += 3
        moved = (network(changed) - together).abs().mean(dim=(0, 1))
    near, far = moved[:16, :16].mean(), moved[32:, 48:].mean()
    assert near > 3 * far


@pytest.mark.parametrize(
    ("decoder", "side", "part", "inner", "alike"),
    [
        ("fpn", 256, slice(16, 240), slice(96, 128), True),
        ("upernet", 96, slice(16, 80), slice(24, 40), False),
    ],
)
def test_fpn_tells_a_part_as_in_the_whole(decoder, side, part, inner, alike):
    """Its places see no further than their surroundings; UPerNet's see the whole image."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, side, side)
    network = create_segmenter("convnext_debug", decoder, 3, model_args={"kernel_size": 3}).eval()
    with torch.inference_mode():
        whole, alone = network(image), network(image[..., part, part])
    apart = (whole[..., part, part] - alone)[..., inner, inner].abs().max() / whole.std()
    assert (float(apart) < 1e-3) == alike


@pytest.mark.parametrize("decoder", ["fpn", pytest.param("upernet", marks=pytest.mark.slow)])
def test_networks_can_be_exported(decoder):
    network = create_segmenter("convnext_debug", decoder, 3, model_args={"depths": [1, 1, 1, 1]}).eval()
    image = torch.randn(1, 3, 32, 43)
    with torch.inference_mode():
        expected = network(image)
    torch.testing.assert_close(torch.export.export(network, (image,)).module()(image), expected)


@pytest.mark.parametrize("name", ["swinv2_cr_tiny_ns_224", "coatnet_pico_rw_224"])
def test_networks_of_one_size_are_refused(name):
    with pytest.raises(UserError, match="takes images of 224x224 pixels alone"):
        create_segmenter(name, "fpn", 3)


def test_those_of_which_timm_says_so_may_take_others():
    network = create_segmenter("twins_svt_small", "fpn", 3).eval()
    assert network(torch.randn(1, 3, 64, 33)).shape == (1, 3, 64, 33)


def test_published_backbones_keep_their_weights():
    backbone = xnext.create_model("inceptionnext_debug")
    network = create_segmenter("inceptionnext_debug", "fpn", 3)
    ours, theirs = network.encoder.state_dict(), backbone.state_dict()
    assert set(ours) == {key for key in theirs if not key.startswith("head.")}
    assert all(ours[key].shape == theirs[key].shape for key in ours)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("inceptionnext_small_iso",), "have strides 16, 16, 16, 16"),
        (("inceptionnext_debug", "uppernet"), "Did you mean 'upernet'"),
        (("inceptionnext_debug", "fpn", 1), "at least 2 classes"),
        (("inceptionnext_debgu",), "Did you mean 'inceptionnext_debug'"),
    ],
)
def test_mistakes(words, told):
    with pytest.raises(UserError, match=told):
        create_segmenter(*words)
