"""A small set of images and masks, and runs of networks that learned nothing."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from make_digits import make_digits

from xnext.models import save_checkpoint
from xnext.segmentation import create_segmenter
from xnext.training import Run, TrainConfig


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Return a folder of digits on photographs of 64 pixels; leave it as it is."""
    return make_digits(tmp_path_factory.mktemp("digits") / "set", train=12, val=4, side=64)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory, digits):
    """Return what makes the run directory of a network with its first weights, as training makes it."""

    def make(decoder="fpn", classes=("background", "digit"), data=digits, encoder="convnext_debug", **args):
        folder = tmp_path_factory.mktemp("runs") / decoder
        config = TrainConfig(model=encoder, decoder=decoder, data=str(data), output=folder, model_args=args)
        torch.manual_seed(1)
        network = create_segmenter(encoder, decoder, len(classes), model_args=args)
        with torch.no_grad():
            network.head[1].bias[2:] = -1e6  # of more classes than two the others are never answered
        run = Run.create(folder, config.to_yaml())
        save_checkpoint(
            run.best, network, model_name=encoder, model_args=args, classes=classes,
            extra={"train_config": config.to_dict(), "multilabel": False},
            preprocessing={
                "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
                "crop_pct": 1.0, "in_chans": 3,
            },
        )  # fmt: skip
        return folder

    return make


@pytest.fixture(scope="session")
def run(make_run):
    """Return the run of a small network under Semantic FPN; leave it as it is."""
    return make_run(kernel_size=3, depths=[1, 1, 1, 1], strides=[4, 2, 2, 2])
