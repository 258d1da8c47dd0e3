"""A network for the tests of exported ones: of random weights, each part of which counts."""

import torch

import xnext
from xnext.data import Preprocessing
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
