"""`xnext export`, and the commands that take its files."""

import json
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image
from untrained import CLASSES

from forked import begin
from xnext import cli
from xnext.evaluation.predict import load_classifier, predict
from xnext.models import save_checkpoint


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def run(capsys, *words):
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


@pytest.fixture
def checkpoint(tmp_path, classifier):
    save_checkpoint(
        tmp_path / "a.safetensors", classifier.model, model_name=classifier.name, model_args={},
        classes=CLASSES, preprocessing=classifier.preprocessing.to_dict(),
    )  # fmt: skip
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_export_that_is_ended_leaves_no_file(checkpoint, tmp_path, number, code):
    """After SIGTERM nothing at all; after SIGKILL a hidden folder, beside which the next export works."""
    (tmp_path / "out").mkdir()
    words = ["export", "--checkpoint", str(checkpoint), "--format", "openvino"]
    process = begin([*words, "--output", str(tmp_path / "out/a.xml")])
    deadline = time.monotonic() + 300
    while not list((tmp_path / "out").iterdir()):
        assert process.exitcode is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, number)
    process.join(300)
    assert process.exitcode == code
    assert all(path.name.startswith(".a.xml.") for path in (tmp_path / "out").iterdir())
    assert number == signal.SIGKILL or not list((tmp_path / "out").iterdir())


def test_a_checkpoint_becomes_a_file_that_predicts_the_same(capsys, tmp_path, checkpoint, pictures):
    output = tmp_path / "a.xml"
    words = [
        "--format",
        "openvino",
        "--output",
        output,
        "--batch",
        2,
        "--size",
        48,
        "--include-preprocessing",
    ]
    said = json.loads(run(capsys, "export", "--checkpoint", checkpoint, *words, "--json"))
    assert said["files"] == [str(output), str(tmp_path / "a.bin")]
    assert said["bytes"] == output.stat().st_size + (tmp_path / "a.bin").stat().st_size
    assert (said["batch"], said["size"], said["gate"]["batches"], said["gate"]["sizes"]) == (2, 48, [2], [48])

    served = load_classifier(output)
    assert served.preprocessing.image_size == 48 and served.named
    original = load_classifier(checkpoint)
    object.__setattr__(original.preprocessing, "image_size", 48)
    for found, wanted in zip(predict(served, pictures, 7), predict(original, pictures, 7), strict=True):
        assert [name for name, _ in found.classes] == [name for name, _ in wanted.classes]
        np.testing.assert_allclose([p for _, p in found.classes], [p for _, p in wanted.classes], rtol=1e-3)


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch"])
def test_the_commands_of_a_checkpoint_take_a_file(capsys, exported, classifier, pictures, format):
    lines = run(capsys, "predict", *pictures, "--checkpoint", exported[format], "--json").splitlines()
    found = [json.loads(line)["classes"][0] for line in lines]
    wanted = [prediction.classes[0] for prediction in predict(classifier, pictures, 1)]
    assert [one["class"] for one in found] == [name for name, _ in wanted]
    np.testing.assert_allclose([one["probability"] for one in found], [p for _, p in wanted], rtol=1e-3)


def test_files_are_measured_beside_the_network(capsys, tmp_path, exported):
    words = ["--artefact", exported["onnx"], exported["openvino"], "--model", "inceptionnext_debug"]
    quick = ["--no-compile", "--threads", 1, "--repetitions", 2, "--batch-size", 2]
    said = run(capsys, "benchmark", *words, *quick, "--json", tmp_path / "speed.json")
    record = json.loads((tmp_path / "speed.json").read_text())
    rows = {row["network"]: row for row in record["rows"]}
    assert list(rows) == ["inceptionnext_debug", "onnx.onnx", "openvino.xml"]
    assert rows["onnx.onnx"]["way"] == "onnx, one batch" and rows["onnx.onnx"]["median"] > 0
    assert {"onnxruntime", "openvino"} <= set(record["versions"])
    sizes = {one["file"]: one["bytes"] for one in record["artefacts"]}
    assert sizes[str(exported["onnx"])] == exported["onnx"].stat().st_size
    assert "openvino.xml, openvino, one batch NCHW fp32: " in said
    assert "times inceptionnext_debug, eager NCHW fp32" in said
