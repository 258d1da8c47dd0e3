import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from untrained import make_classifier

import xnext
from xnext.deploy import FORMATS, Runtime, read_artefact
from xnext.deploy._artefact import How
from xnext.deploy.export import ExportOptions, _make_case
from xnext.deploy.gate import choose_pictures, compare
from xnext.deploy.network import make_program
from xnext.evaluation.throughput import list_published

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "deploy_gate.json"
ALWAYS = ("onnx", "openvino", "torch")


@pytest.mark.parametrize("name", [name for name in xnext.list_models() if name.endswith("_debug")])
def test_every_network_passes_the_gate(name, tmp_path):
    classifier = make_classifier(name)
    pictures, _ = choose_pictures(None, 0, "fp32")
    programs = {}
    for format_name in ALWAYS:
        format = FORMATS[format_name]
        case = _make_case(classifier, ExportOptions(format=format_name, output=tmp_path / "unused"), format)
        if format.channels_last not in programs:
            programs[format.channels_last] = make_program(
                case.exported, torch.zeros(2, 3, 32, 32), dynamic_batch=True, dynamic_size=False
            )
        file = tmp_path / f"{format_name}{format.ending}"
        format.write(programs[format.channels_last], file, "fp32")
        result = compare(format.load(file, How()), case, pictures)
        assert result["passed"], result
        assert (result["agreement"], result["batches"]) == (1, [1, 3, 16])


@pytest.mark.parametrize("format", ALWAYS)
def test_a_file_says_what_it_is(exported, classifier, format):
    artefact, _ = read_artefact(exported[format])
    assert artefact.format == format
    assert artefact.classes == classifier.classes
    assert artefact.pre == classifier.preprocessing
    assert (artefact.model_name, artefact.source, artefact.dtype) == (classifier.name, "a test", "fp32")
    assert artefact.model_args["depths"] == list(classifier.model.config.depths)
    assert (artefact.batch, artefact.size, artefact.version) == (None, None, xnext.__version__)
    assert artefact.gate["passed"] and artefact.gate["error"] <= 1e-4 and artefact.gate["sizes"] == [32, 64]


def test_the_metadata_are_where_others_look_for_them(exported):
    import onnx
    import openvino

    properties = {one.key: one.value for one in onnx.load(exported["onnx"]).metadata_props}
    model = openvino.Core().read_model(exported["openvino"])
    extra = {"xnext.json": ""}
    torch.export.load(exported["torch"], extra_files=extra)
    found = [properties["xnext"], model.get_rt_info(["xnext"]).astype(str), extra["xnext.json"]]
    assert [json.loads(text)["format"] for text in found] == list(ALWAYS)
    onnx.checker.check_model(exported["onnx"])


@pytest.mark.parametrize("format", ALWAYS)
@pytest.mark.parametrize("size", [32, 48])
def test_logits_are_those_of_the_network(exported, classifier, format, size):
    images = np.random.default_rng(1).normal(size=(5, 3, size, size)).astype(np.float32)
    with torch.inference_mode():
        expected = classifier.model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(
        Runtime(exported[format])(images), expected, atol=1e-4 * np.abs(expected).max()
    )


def test_the_page_shows_what_was_measured_of_full_sizes():
    page = (RESULTS.parents[2] / "docs" / "deploy.md").read_text()
    rows = json.loads(RESULTS.read_text())["rows"]
    assert {row["network"] for row in rows} <= set(list_published())
    assert all(row["passed"] and row["error"] <= 1e-4 and row["agreement"] == 1 for row in rows)
    for row in rows:
        (line,) = re.findall(rf"^\| `{row['network']}` \| {row['pixels']} \| (.*) \|$", page, re.MULTILINE)
        assert line.split(" | ")[ALWAYS.index(row["format"])] == f"{row['error']:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("format", ALWAYS)
@pytest.mark.parametrize("name", list_published())
def test_every_network_of_full_size_passes_the_gate(name, format):
    from benchmarks.deploy import check
    from benchmarks.deploy import make_classifier as make_full

    row = check(make_full(name), format)
    assert row["passed"], row


@pytest.mark.slow
def test_a_compiled_package_passes_the_gate_and_serves_batches_at_once(classifier, tmp_path, images):
    from xnext.deploy.export import export

    file = tmp_path / "package.pt2"
    report = export(classifier, ExportOptions(format="aoti", output=file), source="a test")
    assert report.artefact.gate["passed"]
    assert read_artefact(file)[0].format == "aoti"
    runtime = Runtime(file, mode="throughput", threads=2)
    many = np.stack(list(runtime.predict_many(iter(images), batch_size=3)))
    with torch.inference_mode():
        expected = classifier.model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(many, expected, atol=1e-4 * np.abs(expected).max())
