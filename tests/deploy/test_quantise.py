from dataclasses import replace

import numpy as np
import pytest
import torch
from untrained import CLASSES, make_classifier

import xnext
from xnext.data import ArraySource, ImageData
from xnext.deploy import FORMATS, Runtime, read_artefact
from xnext.deploy.export import ExportOptions, _make_case, export
from xnext.deploy.gate import GateError
from xnext.deploy.quantise import QUANTISERS, Quantiser, quantise
from xnext.errors import UserError


@pytest.fixture(scope="module")
def data():
    """Pictures of one grey each, which tells their class."""
    labels = np.arange(70) % 7
    images = np.full((70, 32, 32, 3), (labels * 40).astype(np.uint8).reshape(-1, 1, 1, 1))
    source = ArraySource(images, labels, "greys")
    return ImageData("greys", CLASSES, train=source, val=source)


class Pretended:
    """A session that is right, but for one class in seven for each layer that is quantised and matters."""

    computes, workers = "fp32", 1

    def __init__(self, path, how):
        quantised = set(path.read_text().split())
        self.wrong = {"b": 1, "d": 2}
        self.wrong = [place for layer, place in self.wrong.items() if layer in quantised]

    def __call__(self, images):
        assert len(images) == 2 and images.dtype == np.uint8
        labels = images[:, 0, 0, 0] // 40
        labels = np.where(np.isin(labels, self.wrong), 0, labels)
        return [np.eye(7, dtype=np.float32)[labels]]


@pytest.mark.parametrize(("max_drop", "kept"), [(100, []), (15, ["d"]), (0.5, ["d", "b"])])
def test_layers_that_cost_accuracy_stay_as_they_were(tmp_path, data, max_drop, kept):
    layers = ["a", "b", "c", "d"]
    calls = []

    def write(path, inputs, left, output):
        calls.append(list(left))
        assert all(images.shape == (2, 3, 32, 32) and images.dtype == np.uint8 for images in inputs)
        output.write_text(" ".join(layer for layer in layers if layer not in left))

    class Sensitive(Pretended):
        def __call__(self, images):
            (logits,) = super().__call__(images)
            return [logits * (2 if 2 in self.wrong else 1)]  # so that "d" changes more than "b"

    format = replace(FORMATS["onnx"], load=Sensitive)
    options = ExportOptions(
        format="onnx", output=tmp_path / "a.onnx", batch=2, include_preprocessing=True, max_drop=max_drop
    )
    case = _make_case(make_classifier(), options, format)
    path = tmp_path / "a.onnx"
    path.write_text("")
    found = quantise(format, Quantiser(lambda _: layers, write, ()), path, case, data, max_drop)
    assert found["kept"] == kept
    assert (found["metric"], found["fp32"], found["images"], found["layers"]) == ("top-1", 100, 70, 4)
    assert found["drop"] == pytest.approx(100 - found["int8"]) and found["drop"] <= max_drop
    assert path.read_text().split() == [layer for layer in layers if layer not in kept]
    assert calls[0] == []


def test_a_quantiser_that_spoils_a_file_whatever_it_leaves(tmp_path, data):
    def write(path, inputs, left, output):
        output.write_text("b d")

    format = replace(FORMATS["onnx"], load=Pretended)
    path = tmp_path / "a.onnx"
    path.write_text("")
    options = ExportOptions(format="onnx", output=path, batch=2, include_preprocessing=True)
    case = _make_case(make_classifier(), options, format)
    with pytest.raises(
        GateError,
        match=r"drops from 100.00 to 71.43 % even with 1 of 2 layers left as they were.* larger --max-drop",
    ):
        quantise(format, Quantiser(lambda _: ["b", "d"], write, ()), path, case, data, 0.5)


@pytest.mark.parametrize("name", xnext.list_models("*_debug"))
def test_what_is_left_as_it_was_is_all_that_openvino_would_round(tmp_path, name):
    options = ExportOptions(format="openvino", output=tmp_path / "a.xml")
    export(make_classifier(name), options, source="a test")
    inputs = [np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)]
    quantiser, new = QUANTISERS["openvino"], tmp_path / "b.xml"
    quantiser.quantise(options.output, inputs, [], new)
    layers = quantiser.list_layers(new)
    assert {"Convolution", "Add"} <= {name.split("/")[-1].split("_")[0] for name in layers}
    assert 'type="FakeQuantize"' in new.read_text()
    quantiser.quantise(options.output, inputs, layers, new)
    assert 'type="FakeQuantize"' not in new.read_text()


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_int8_files_hold_whole_numbers_and_answer_alike(tmp_path, data, format):
    classifier = make_classifier()
    output = tmp_path / f"a{FORMATS[format].ending}"
    options = ExportOptions(format=format, output=output, dtype="int8", max_drop=100)
    report = export(classifier, options, source="a test", data=data)
    about = read_artefact(output)[0]
    assert about.dtype == "int8" and about.gate["int8"]["kept"] == []
    assert about.gate["int8"]["layers"] == len(QUANTISERS[format].list_layers(output))
    parameters = sum(value.numel() for value in classifier.model.parameters())
    weights = output.with_suffix(".bin") if format == "openvino" else output
    assert parameters < weights.stat().st_size < 2.5 * parameters  # of four bytes each before
    assert report.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    images = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        expected = classifier.model(torch.from_numpy(images)).numpy()
    error = np.linalg.norm(Runtime(output)(images) - expected) / np.linalg.norm(expected)
    assert 1e-3 < error < 0.2


def test_int8_needs_data_and_a_format_that_has_it(tmp_path, data):
    classifier = make_classifier()
    options = ExportOptions(format="onnx", output=tmp_path / "a.onnx", dtype="int8")
    with pytest.raises(UserError, match="--data"):
        export(classifier, options, source="a test")
    options = ExportOptions(format="torch", output=tmp_path / "a.pt2", dtype="int8")
    with pytest.raises(UserError, match="--format torch has no int8; choose fp32"):
        export(classifier, options, source="a test", data=data)
    options = ExportOptions(format="onnx", output=tmp_path / "a.onnx", dtype="int8", max_drop=-1)
    with pytest.raises(UserError, match="--max-drop"):
        export(classifier, options, source="a test", data=data)
    assert not list(tmp_path.iterdir())
