"""What the tests of exported networks share: exports take seconds, so each is made once."""

import numpy as np
import pytest
from untrained import make_classifier

from xnext.deploy import FORMATS
from xnext.deploy.export import ExportOptions, export


@pytest.fixture(scope="session")
def classifier():
    """A network of random weights, each part of which counts."""
    return make_classifier()


@pytest.fixture(scope="session")
def exported(classifier, made_once):
    """The network as a file of each format that needs no compiler, for any number and size of images."""
    names = {name: f"{name}{FORMATS[name].ending}" for name in ("onnx", "openvino", "torch")}

    def fill(folder):
        for name, file in names.items():
            options = ExportOptions(format=name, output=folder / file, size=0)
            export(classifier, options, source="a test")

    folder = made_once("exported", fill)
    return {name: folder / file for name, file in names.items()}


@pytest.fixture(scope="session")
def pixels_file(classifier, made_once):
    """The network for batches of four, with its normalisation inside, in bf16."""

    def fill(folder):
        options = ExportOptions(
            format="openvino", output=folder / "pixels.xml", batch=4, dtype="bf16", include_preprocessing=True
        )
        export(classifier, options, source="a test")

    return made_once("pixels", fill) / "pixels.xml"


@pytest.fixture
def images():
    """Prepared images of 32 pixels."""
    return np.random.default_rng(0).normal(size=(10, 3, 32, 32)).astype(np.float32)
