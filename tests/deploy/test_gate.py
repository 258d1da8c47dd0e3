import copy
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from untrained import make_classifier

from xnext.deploy import FORMATS
from xnext.deploy.export import ExportOptions, _make_case, export
from xnext.deploy.gate import GateError, _agrees, _error, _photographs, _split, choose_pictures, compare
from xnext.deploy.network import round_all
from xnext.errors import UserError

CASES = [("openvino", "stages.1.blocks.0.layers.0"), ("onnx", "head.fc")]


@pytest.fixture
def sabotage(monkeypatch):
    """Let the exporter of a format change one weight of what it writes."""

    def change(name, layer):
        format = FORMATS[name]

        def write(program, path, dtype):
            key = next(key for key in program.state_dict if key.endswith(f"{layer}.weight"))
            weight = program.state_dict[key]
            before = weight.clone()
            weight.view(-1)[0] += 1
            format.write(program, path, dtype)
            weight.copy_(before)  # which the network itself shares

        monkeypatch.setitem(FORMATS, name, replace(format, write=write))

    return change


@pytest.mark.parametrize(("name", "layer"), CASES)
def test_a_changed_weight_leaves_no_file_and_is_found(sabotage, classifier, tmp_path, name, layer):
    sabotage(name, layer)
    output = tmp_path / f"a{FORMATS[name].ending}"
    with pytest.raises(GateError, match=rf"first layer that differs is {layer}(\.0)?,") as caught:
        export(classifier, ExportOptions(format=name, output=output), source="a test")
    assert str(output) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_no_numbers_fail():
    expected = np.array([[1.0, 2.0]])
    assert _error(np.array([[np.nan, 2.0]]), expected) == np.inf
    assert _error(expected[:, :1], expected) == np.inf
    assert _error(np.array([[1.0, 2.2]]), expected) == pytest.approx(0.1)


def test_another_class_counts_unless_both_were_equally_probable():
    expected = np.array([[1.0, 3.0, 2.0], [4.0, 4.0, 0.0], [5.0, 0.0, 1.0]])
    found = np.array([[1.0, 2.0, 3.0], [3.9, 4.1, 0.0], [5.0, 0.0, 1.0]])
    assert _agrees(found, expected).tolist() == [False, True, True]


def test_batches_are_of_each_size_and_cover_all_pictures():
    assert [len(part) for part in _split(20, None)] == [1, 3, 16]
    assert [len(part) for part in _split(45, None)] == [1, 3, 16, 16, 9]
    assert np.unique(np.concatenate(list(_split(20, 8)))).tolist() == list(range(20))
    assert [len(part) for part in _split(20, 8)] == [8, 8, 8]


def test_every_batch_is_tried_also_with_few_pictures(classifier):
    sizes = []

    class Right:
        computes = "fp32"

        def __call__(self, images):
            sizes.append(len(images))
            with torch.inference_mode():
                return [classifier.model(torch.from_numpy(images)).numpy()]

    options = ExportOptions(format="onnx", output=Path("a.onnx"))
    case = _make_case(classifier, options, FORMATS["onnx"])
    result = compare(Right(), case, list(_photographs(5)))
    assert sizes == [1, 3, 16] and result["batches"] == [1, 3, 16]
    assert result["passed"] and result["pictures"] == 5


def test_pictures_are_held_out_ones_of_the_training_or_photographs(caplog):
    found, where = choose_pictures("digits", 0, "fp32")
    assert len(found) == 20 and where == "20 held out pictures of digits"
    with caplog.at_level(logging.WARNING, logger="xnext"):
        photographs, where = choose_pictures("/nowhere/at/all", 0, "bf16")
    assert "/nowhere/at/all" in caplog.text and "photographs" in where
    assert len({image.tobytes() for image in photographs}) == 100
    assert all(isinstance(image, Image.Image) for image in photographs)


def test_a_network_of_infinite_outputs_is_refused(tmp_path):
    classifier = make_classifier()
    classifier.model.head.fc.bias.data[0] = np.inf
    options = ExportOptions(format="openvino", output=tmp_path / "a.xml")
    with pytest.raises(UserError, match="not finite"):
        export(classifier, options, source="a test")
    assert list(tmp_path.iterdir()) == []


def test_a_network_whose_classes_differ_by_less_than_bf16_holds_fails_on_any_cpu(tmp_path):
    classifier = make_classifier()
    head = classifier.model.head.fc
    with torch.no_grad():
        head.weight.copy_(head.weight[:1] + torch.randn(head.weight.shape) / 1e4)
        head.bias.fill_(10)
    options = ExportOptions(format="openvino", output=tmp_path / "a.xml", dtype="bf16")
    with pytest.raises(GateError, match="99% must be"):
        export(classifier, options, source="a test")
    assert list(tmp_path.iterdir()) == []


def test_rounding_is_that_of_the_type():
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    x = torch.randn(5, 64).bfloat16()
    with torch.no_grad():
        expected = copy.deepcopy(network).bfloat16()(x).float()
        exact = network(x.float())
        found = round_all(network, "bf16")(x.float())
    assert (found == expected).float().mean() > 0.9 and not torch.equal(found, exact)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
