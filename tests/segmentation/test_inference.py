"""Images seen whole, in windows, in tiles and at several scales."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision import tv_tensors

from xnext.errors import UserError
from xnext.segmentation import create_segmenter
from xnext.segmentation.batches import MaskDataset, build_eval_masks
from xnext.segmentation.data import decode_mask, load_masks
from xnext.segmentation.evaluate import evaluate_masks
from xnext.segmentation.inference import (
    MULTI_SCALE,
    Tiles,
    Views,
    answer,
    answer_in_tiles,
    ask,
    find_reach,
    load_trained,
    slide_over,
)
from xnext.segmentation.networks import enlarge
from xnext.segmentation.pictures import draw_legend, draw_mask, draw_overlay, palette
from xnext.segmentation.task import Segmentation
from xnext.training import Run


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def trained(run):
    return load_trained(run)


def double_loop(network, x, window):
    """Slide a window over an image in two plain loops, place by place."""
    height, width = x.shape[-2:]
    step = round(window * 2 / 3)
    sums, counts = torch.zeros(2, height, width), torch.zeros(height, width)
    top = 0
    while True:
        y = max(0, min(top, height - window))
        left = 0
        while True:
            z = max(0, min(left, width - window))
            logits = network(x[:, :, y : y + window, z : z + window])[0]
            for row in range(logits.shape[1]):
                for column in range(logits.shape[2]):
                    sums[:, y + row, z + column] += logits[:, row, column]
                    counts[y + row, z + column] += 1
            if left + window >= width:
                break
            left += step
        if top + window >= height:
            break
        top += step
    return (sums / counts)[None]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(2, 9))
def test_a_sliding_window_is_a_double_loop(height, width, window):
    torch.manual_seed(0)
    network = nn.Conv2d(3, 2, 3, padding=1)
    x = torch.randn(1, 3, height, width)
    with torch.inference_mode():
        torch.testing.assert_close(slide_over(network, x, window), double_loop(network, x, window))


def test_one_view_is_the_network_at_the_size_of_the_mask(trained):
    image = picture(50, 40)
    x = build_eval_masks(trained.preprocessing)(tv_tensors.Image(image))[None]
    assert x.shape[-2:] == (32, 40)
    with torch.inference_mode():
        expected = enlarge(trained.network(x.as_subclass(torch.Tensor)), (70, 90)).softmax(1)[0]
    torch.testing.assert_close(ask(trained, image, (70, 90)), expected)


def test_several_views_are_averaged(trained):
    image, size = picture(50, 40), (40, 50)
    mirror = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    views = [ask(trained, image, size, Views(scales=(scale,))) for scale in (0.5, 1.5)]
    torch.testing.assert_close(ask(trained, image, size, Views(scales=(0.5, 1.5))), sum(views) / 2)
    both = (ask(trained, image, size) + ask(trained, mirror, size).flip(-1)) / 2
    torch.testing.assert_close(ask(trained, image, size, Views(mirrored=True)), both, rtol=1e-4, atol=1e-5)
    assert MULTI_SCALE.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75) and MULTI_SCALE.mirrored
    long = picture(80, 32)
    slid, whole = (ask(trained, long, (32, 80), Views(slide=slide)) for slide in (True, False))
    assert not torch.allclose(slid, whole)
    assert torch.allclose(slid.sum(0), torch.ones(32, 80))


def test_evaluation_is_that_of_the_training(trained, run):
    data = load_masks(trained.data)
    loader = torch.utils.data.DataLoader(
        MaskDataset(data.val, build_eval_masks(trained.preprocessing), training=False)
    )
    task = Segmentation(Run.open(run).read_config(), data)
    expected = task.evaluate(trained.network, loader, torch.device("cpu"))
    report = evaluate_masks(trained, data.val)
    for name, value in report.metrics.items():
        assert value == pytest.approx(expected.metrics[name]), name
    assert report.counts.sum() == 4 * 64 * 64 and report.images == 4 and not report.bad_images


@pytest.mark.parametrize("size", [(50, 40), (1, 1), (7, 300), (33, 31)])
def test_an_answer_has_the_size_of_its_image(trained, monkeypatch, size):
    image = picture(*size)
    expected = ask(trained, image, size[::-1]).argmax(0).numpy()
    assert np.array_equal(answer(trained, image), expected)
    monkeypatch.setattr("xnext.segmentation.inference._MOST_VALUES", 1)  # one class after the other
    assert np.array_equal(answer(trained, image), expected)
    assert answer_in_tiles(trained, image, Tiles.of(trained)).shape == size[::-1]


SMALL = {"kernel_size": 3, "depths": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def near_sighted(make_run):
    """Return a network that sees little, and answers both classes about as often."""
    trained = load_trained(make_run(**SMALL))
    with torch.no_grad():
        logits = trained.network(torch.randn(1, 3, 64, 64))[0]
        trained.network.head[1].bias[1] -= (logits[1] - logits[0]).median()
    return trained


@pytest.mark.parametrize("turned", [False, True])
def test_fpn_tells_tiles_as_the_whole(near_sighted, turned):
    reach = near_sighted.reach
    assert reach is not None and reach <= 160
    length = 4 * reach + 100
    image = picture(24, length) if turned else picture(length, 24)
    whole = answer_in_tiles(near_sighted, image, Tiles(16 * length, 0))
    assert 0.1 < whole.mean() < 0.9, "there is something to tell"
    cut = answer_in_tiles(near_sighted, image, Tiles.of(near_sighted, 2 * reach + 64, reach))
    assert (cut == whole).mean() > 0.999
    short = answer_in_tiles(near_sighted, image, Tiles.of(near_sighted, 64, 0))
    assert (short == whole).mean() < 0.999


def test_how_far_a_network_sees(near_sighted):
    network, reach = near_sighted.network, near_sighted.reach
    image = torch.randn(1, 3, 16, 2 * reach + 64)
    changed = image.clone()
    changed[..., 0] += 9.0
    with torch.inference_mode():
        moved = (network(image) - network(changed)).abs().amax(dim=(0, 1, 2))
    assert moved[reach:].max() == 0 and moved[: reach - 4 * network.stride].min() > 0


@pytest.mark.parametrize(("name", "decoder"), [("convnext_debug", "upernet"), ("xception_debug", "fpn")])
def test_networks_that_tell_no_part_as_the_whole(name, decoder):
    """Pyramid pooling sees everything; levels that are not twice as large lie otherwise in a part."""
    assert find_reach(create_segmenter(name, decoder, 2).eval()) is None


def test_tiles(trained):
    assert Tiles.of(trained, 1024, 100) == Tiles(1024, 128)
    assert Tiles.of(trained, 200) == Tiles(224, 32)
    assert Tiles.of(trained, 4096).overlap == trained.reach
    assert Tiles.of(trained, 64, 20) == Tiles(96, 32), "in whole strides, and something is left of a tile"
    wrong = {(100, 50): "--overlap is 50 and --tile 100", (64, -1): "overlap is -1", (0, 0): "tile is 0"}
    for (side, overlap), told in wrong.items():
        with pytest.raises(UserError, match=told):
            Tiles.of(trained, side, overlap)


def test_outputs_that_are_not_finite(make_run):
    trained = load_trained(make_run())
    with torch.no_grad():
        trained.network.head[1].weight.fill_(torch.inf)
    for use in (lambda: answer(trained, picture(9, 9)), lambda: ask(trained, picture(9, 9), (9, 9))):
        with pytest.raises(UserError, match="convnext_debug are not finite"):
            use()


def test_pictures_of_masks():
    assert len({tuple(colour) for colour in palette(255)}) == 255
    assert np.array_equal(palette(255)[:7], palette(7))
    mask = np.arange(250, dtype=np.uint8).reshape(10, 25)
    assert np.array_equal(decode_mask(draw_mask(mask, 250), "mask"), mask)
    with Image.open(io.BytesIO(draw_mask(mask, 250))) as drawn:
        assert np.array_equal(np.asarray(drawn.convert("RGB")).reshape(-1, 3), palette(250))
    grey = Image.new("RGB", (25, 10), (100, 100, 100))
    with Image.open(io.BytesIO(draw_overlay(grey, mask, 250))) as laid:
        expected = (palette(250).astype(int) + 100) / 2
        assert np.abs(np.asarray(laid).reshape(-1, 3) - expected).max() <= 1
    names = [text.get_text() for text in draw_legend(["a", "$b$" * 20]).legends[0].get_texts()]
    assert names[0] == "0  a" and names[1].startswith("1  $b$") and len(names[1]) < 40
