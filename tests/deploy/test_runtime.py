import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from xnext.data import BadImageError, build_eval_transform
from xnext.deploy import Runtime
from xnext.errors import UserError

FORMATS = ("onnx", "openvino", "torch")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def expected(classifier):
    def ask(images):
        with torch.inference_mode():
            return classifier.model(torch.from_numpy(images)).numpy()

    return ask


def near(found, wanted, tolerance=1e-4):
    np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_many_images_come_back_in_order(exported, expected, images, format, mode):
    runtime = Runtime(exported[format], mode=mode, threads=2)
    found = list(runtime.predict_many((image for image in images), batch_size=3))
    near(np.stack(found), expected(images))
    assert runtime.workers == 1 or mode == "throughput"


@pytest.mark.parametrize("format", FORMATS)
def test_several_threads_may_ask_at_once(exported, expected, images, format):
    runtime = Runtime(exported[format], mode="throughput", threads=2)
    parts = [images[start : start + 1 + start % 3] for start in range(8)] * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(runtime, parts))
    for part, answer in zip(parts, answers, strict=True):
        near(answer, expected(part))


def test_no_more_images_are_asked_for_than_keep_it_busy(exported, images):
    runtime = Runtime(exported["openvino"])
    taken = 0

    def endless():
        nonlocal taken
        for image in itertools.cycle(images):
            taken += 1
            yield image

    answers = runtime.predict_many(endless(), batch_size=2)
    first = list(itertools.islice(answers, 5))
    assert len(first) == 5 and taken <= 2 * (3 + 2 * runtime.workers + 1)


def test_a_fixed_batch_takes_any_number(pixels_file, classifier):
    runtime = Runtime(pixels_file)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    assert runtime(pixels[:0]).shape == (0, 7)
    whole = runtime(pixels)
    for count in (1, 4, 5):
        near(runtime(pixels[:count]), whole[:count], 1e-6)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    normalised = (torch.from_numpy(pixels) / 255 - mean) / std
    with torch.inference_mode():
        near(whole, classifier.model(normalised).numpy(), 5e-2)


def test_pictures_are_prepared_as_for_the_network(exported, pixels_file, classifier, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 53, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    wanted = build_eval_transform(classifier.preprocessing)(picture).numpy()
    runtime = Runtime(exported["onnx"])
    for one in (picture, tmp_path / "a.png", str(tmp_path / "a.png"), wanted):
        np.testing.assert_array_equal(runtime.prepare(one), wanted)
    pixels = Runtime(pixels_file).prepare(picture)
    assert pixels.dtype == np.uint8
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))
    np.testing.assert_allclose((pixels / 255 - mean) / std, wanted, atol=1e-5)
    with pytest.raises(BadImageError, match=r"missing\.png"):
        list(runtime.predict_many([picture, tmp_path / "missing.png"]))


def test_probabilities(exported, pixels_file):
    runtime = Runtime(exported["onnx"])
    logits = np.array([[0.0, 800.0, 0.0], [1.0, 2.0, 3.0]], np.float32)
    np.testing.assert_allclose(
        runtime.probabilities(logits), torch.from_numpy(logits).softmax(1).numpy(), atol=1e-6
    )
    object.__setattr__(runtime.artefact, "multilabel", True)
    np.testing.assert_allclose(
        runtime.probabilities(logits[1]), torch.from_numpy(logits[1]).sigmoid().numpy(), atol=1e-6
    )


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((1, 1, 32, 32), np.float32), "takes float32 [N, 3, any, any], not float32 [1, 1, 32, 32]"),
        (np.zeros((1, 3, 32, 32)), "not float64"),
        (np.zeros((3, 32, 32), np.float32), "not float32 [3, 32, 32]"),
        (np.zeros((1, 3, 4, 4), np.float32), "cannot take images of 4x4 pixels"),
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_images_that_it_cannot_take(exported, format, images, words, capfd):
    with pytest.raises(UserError) as caught:
        Runtime(exported[format])(images)
    assert words in str(caught.value) and str(exported[format]) in str(caught.value)
    assert "Exception from" not in str(caught.value) and "onnxruntime" not in capfd.readouterr().err


def test_images_of_another_size_than_the_fixed_one(pixels_file):
    with pytest.raises(UserError, match=r"takes uint8 \[N, 3, 32, 32\], not uint8 \[1, 3, 64, 64\]"):
        Runtime(pixels_file)(np.zeros((1, 3, 64, 64), np.uint8))


LOADED = """
import ctypes, sys
from xnext.deploy import Runtime
from xnext.deploy._openvino import _SignalStack

def stack():
    found = _SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.address, found.flags

before = stack()
runtime = Runtime(sys.argv[1])
runtime(runtime.prepare(sys.argv[2])[None])
print(before == stack())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the stack is Linux's")
def test_openvino_leaves_no_stack_for_signals_behind(exported, tmp_path):
    """Its memory goes with the network; Python's handlers would crash on it."""
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    words = [sys.executable, "-c", LOADED, str(exported["openvino"]), str(tmp_path / "a.png")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "True\n"), done


def test_options_that_there_are_not(exported):
    with pytest.raises(UserError, match="'throughput'"):
        Runtime(exported["onnx"], mode="troughput")
    with pytest.raises(UserError, match="threads is 0"):
        Runtime(exported["onnx"], threads=0)
    with pytest.raises(UserError, match="batch_size is 0"):
        list(Runtime(exported["onnx"]).predict_many([], batch_size=0))
    runtime = Runtime(exported["onnx"])
    large, small = (np.zeros((3, side, side), np.float32) for side in (32, 33))
    for call, told in (
        (lambda: runtime([1, 2]), "not list"),
        (lambda: list(runtime.predict_many([large, small])), "have different shapes"),
        (lambda: list(runtime.predict_many([None])), "not NoneType"),
        (lambda: list(runtime.predict_many("a.png")), "takes a list of pictures"),
        (lambda: Runtime(exported["onnx"], threads="2"), "threads is '2'"),
    ):
        with pytest.raises(UserError, match=told):
            call()
