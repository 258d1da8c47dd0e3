"""Exported networks that are damaged, of another version, or cannot be made or run here."""

import importlib.util
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from samples import picture

from xnext import cli
from xnext.deploy import FORMATS, _artefact, read_artefact
from xnext.deploy._artefact import seal

FILES = {"onnx": "a.onnx", "openvino": "a.xml", "torch": "a.pt2"}


@pytest.fixture(scope="session")
def made(made_once, trained):
    def fill(folder):
        for format, name in FILES.items():
            words = ["export", trained, "--format", format, "--output", folder / name]
            assert cli.main([str(word) for word in words]) == 0

    return made_once("artefacts", fill)


@pytest.fixture
def spoilt(made, tmp_path):
    picture().save(tmp_path / "a.png")
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def predict(file):
    return ["predict", file.parent / "a.png", "--checkpoint", file]


def middle(content):
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], middle, lambda b: b""])
@pytest.mark.parametrize("name", [*FILES.values(), "a.bin"])
def test_a_damaged_file(fails, spoilt, name, damage):
    file = spoilt / name
    file.write_bytes(damage(file.read_bytes()))
    opened = file.with_suffix(".xml") if name == "a.bin" else file
    fails(*predict(opened), names=[opened, "truncated, altered, or not from `xnext export`"])


def test_a_file_that_is_not_there_or_of_something_else(fails, spoilt):
    fails(*predict(spoilt / "none.onnx"), names=["there is no file", spoilt / "none.onnx"])
    (spoilt / "a.bin").unlink()
    fails(*predict(spoilt / "a.xml"), names=[spoilt / "a.bin", "cannot be read", "that file and the .xml"])
    fails(*predict(spoilt / "a.onnx"), "--model", "xception", names=["inceptionnext_debug, not xception"])
    (spoilt / "a.onnx").replace(spoilt / "a.pt2")
    fails(*predict(spoilt / "a.pt2"), names=[spoilt / "a.pt2", "no .pt2 file", "give it its ending back"])


@pytest.mark.filterwarnings("ignore:Duplicate name")  # of an archive's metadata, which are written again
@pytest.mark.parametrize(("format", "name"), FILES.items())
def test_a_file_of_another_version(fails, spoilt, monkeypatch, format, name):
    file = spoilt / name
    artefact, _ = read_artefact(file)
    later = replace(artefact, format_version=99, version="9.9.9").to_json()
    seal(file, FORMATS[format].annotate(file, later))
    fails(*predict(file), names=[file, "xnext 9.9.9", "format 99", "reads format 1", "export it again"])
    for damaged in ({"format_version": 1}, [1, 2]):
        seal(file, FORMATS[format].annotate(file, json.dumps(damaged)))
        fails(*predict(file), names=[file, "damaged metadata"])


@pytest.mark.parametrize(("name", "package"), [("a.onnx", "onnxruntime"), ("a.xml", "openvino")])
def test_a_missing_runtime(fails, spoilt, trained, monkeypatch, name, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(_artefact, "find_spec", lambda one: None if one == package else find(one))
    fails(*predict(spoilt / name), names=[f"pip install {package}"])
    format = {"onnxruntime": "onnx"}.get(package, package)
    words = ["export", trained, "--format", format, "--output", spoilt / f"b{FORMATS[format].ending}"]
    fails(*words, names=[f"pip install {package}"])


def test_a_file_beside_another_network(fails, spoilt):
    words = ["benchmark", "--artefact", spoilt / "a.onnx", "--model", "xception_debug"]
    fails(*words, names=[spoilt / "a.onnx", "holds inceptionnext_debug", "not xception_debug"])


def test_what_cannot_be_exported(fails, trained, tmp_path):
    export = ["export", trained, "--format"]
    fails(*export, "onx", "--output", tmp_path / "a.onnx", names=["onx", "Did you mean 'onnx'"])
    fails(*export, "onnx", "--output", tmp_path / "a.xml", names=[tmp_path / "a.xml", ".onnx"])
    fails(*export, "onnx", "--output", tmp_path / "no" / "a.onnx", names=["the folder does not exist"])
    to = ["onnx", "--output", tmp_path / "a.onnx"]
    fails(*export, *to, "--int8", names=["--int8 needs --data"])
    fails(*export, *to, "--int8", "--dtype", "bf16", names=["not both"])
    fails(*export, *to, "--dtype", "bf16", names=["onnx has no bf16; choose fp32"])
    fails(*export, *to, "--dtype", "fp8", names=["onnx has no fp8"])
    fails(*export, *to, "--batch", "two", names=["--batch 'two' must be `dynamic` or a whole number"])
    fails(*export, *to, "--size", "0", names=["--size '0'"])
    fails(*export, *to, "--size", "3", names=["image size 3 is too small for inceptionnext_debug"])
    fails(*export, *to, "--size", "3", names=["use --size"])
    fails(*export, *to, "--batch", "1000000000", names=["1000000000 images of", "smaller --batch"])
    fails(*export, *to, "--max-drop", "1", names=["--max-drop is of --int8"])
    fails(*export, *to, "--data", "digits", names=["'cat', 'dog', 'owl'"])
    fails("export", "--format", *to, names=["give a RUN, --checkpoint FILE or --model NAME"])
    fails(*export, *to, "--checkpoint", "b.pth", names=["either a RUN or --checkpoint"])


def test_what_exists_is_left_alone(fails, trained, tmp_path):
    export = ["export", trained, "--format", "openvino", "--output", tmp_path / "a.xml"]
    (tmp_path / "a.bin").write_text("mine")
    fails(*export, names=[tmp_path / "a.bin", "exists; remove it or choose another --output"])
    (tmp_path / "a.bin").unlink()
    (tmp_path / "a.xml").mkdir()
    fails(*export, names=[tmp_path / "a.xml", "exists"])


def test_an_operator_that_a_format_lacks(fails, trained, tmp_path, monkeypatch):
    def write(program, path, dtype):
        raise RuntimeError("No decompositions registered for aten.magic\nand more")

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=write))
    fails(
        "export", trained, "--format", "onnx", "--output", tmp_path / "a.onnx",
        names=["inceptionnext_debug cannot be exported to onnx (No decompositions", "aten.magic)"],
    )  # fmt: skip


def test_a_full_disk_is_told_before_an_exporter_fails_on_it(fails, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=300_000))
    for format, name in (("torch", "a.pt2"), ("openvino", "a.xml")):
        words = ["export", trained, "--format", format, "--output", tmp_path / name]
        fails(*words, names=[tmp_path / name, "disk is full"])
    assert not list(tmp_path.iterdir())


def test_an_export_that_is_stopped_in_the_middle_leaves_nothing(trained, tmp_path, monkeypatch):
    def write(program, path, dtype):
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=write))
    words = ["export", trained, "--format", "onnx", "--output", tmp_path / "a.onnx"]
    assert cli.main([str(word) for word in words]) == 130
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_measured(fails, spoilt):
    benchmark = ["benchmark", "--artefact", spoilt / "a.onnx"]
    fails(*benchmark, names=["--model NAME"])
    fails(*benchmark, "--model", "inceptionnext_debug", "--train", names=["--train"])
    quick = ["--no-compile", "--repetitions", "1", "--batch-size", "1"]
    other = ["--model", "inceptionnext_debug", "--image-size", "64"]
    fails(*benchmark, *other, *quick, names=[spoilt / "a.onnx", "takes 32 pixels, not 64"])
    fails(*benchmark, "--model", "inceptionnext_debg", names=["inceptionnext_debug"])


def test_a_file_is_not_exported_again_and_shows_no_maps(fails, spoilt):
    words = ["export", spoilt / "a.onnx", "--format", "openvino", "--output", spoilt / "b.xml"]
    fails(*words, names=[spoilt / "a.onnx", "is exported already"])
    words = ["cam", spoilt / "a.png", "--checkpoint", spoilt / "a.onnx", "--output", spoilt / "o.png"]
    fails(*words, names=["an exported network", "RUN"])
