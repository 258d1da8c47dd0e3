"""What the tests of exported networks share: exports take seconds, so each is made once."""

import shutil

import numpy as np
import pytest
import torch

import xnext
from xnext.data import Preprocessing
from xnext.deploy import FORMATS
from xnext.deploy.export import ExportOptions, export
from xnext.evaluation.predict import Classifier
from xnext.evaluation.throughput import _stir

CLASSES = ("apple", "banana", "cherry", "date", "elderberry", "fig", "grape")


def make_classifier(name="inceptionnext_debug", **changes):
    torch.manual_seed(0)
    model = _stir(xnext.create_model(name, num_classes=len(CLASSES))).eval()
    with torch.no_grad():
        model.head.fc.weight.normal_()
    values = {
        "model": model, "name": name, "classes": CLASSES, "named": True, "device": torch.device("cpu"),
        "preprocessing": Preprocessing.for_model(model),
    }  # fmt: skip
    return Classifier(**values | changes)


@pytest.fixture(scope="session")
def classifier():
    """A network of random weights, each part of which counts."""
    return make_classifier()


@pytest.fixture(scope="session")
def exported(classifier, tmp_path_factory):
    """The network as a file of each format that needs no compiler, for any number and size of images."""
    folder = tmp_path_factory.mktemp("exported")
    files = {name: folder / f"{name}{FORMATS[name].ending}" for name in ("onnx", "openvino", "torch")}
    for name, file in files.items():
        export(classifier, ExportOptions(format=name, output=file, size=0), source="a test")
    return files


@pytest.fixture(scope="session")
def pixels_file(classifier, tmp_path_factory):
    """The network for batches of four, with its normalisation inside, in bf16."""
    file = tmp_path_factory.mktemp("pixels") / "pixels.xml"
    options = ExportOptions(format="openvino", output=file, batch=4, dtype="bf16", include_preprocessing=True)
    export(classifier, options, source="a test")
    return file


@pytest.fixture
def copied(exported, tmp_path):
    """Copies of the files, to be spoilt."""
    found = {}
    for name, file in exported.items():
        for one in file.parent.glob(f"{file.stem}.*"):
            shutil.copy(one, tmp_path)
        found[name] = tmp_path / file.name
    return found


@pytest.fixture
def images():
    """Prepared images of 32 pixels."""
    return np.random.default_rng(0).normal(size=(10, 3, 32, 32)).astype(np.float32)
