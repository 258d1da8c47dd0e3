"""Checkpoints that are damaged, dangerous or of something else."""

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples import picture

import xnext

# --- checkpoints --------------------------------------------------------------------------------------------


def test_data_of_other_classes_than_the_checkpoint(fails, trained, data):
    fails("evaluate", trained, names=["'cat', 'dog', 'owl'", "'3', '4' and 5 more", trained])
    (data / "val" / "owl").rename(data / "val" / "wolf")
    (data / "train" / "owl").rename(data / "train" / "wolf")
    fails("evaluate", trained, "--data", data, names=["owl", "wolf"])


def test_published_weights_of_another_number_of_classes(fails, data, tmp_path):
    weights = tmp_path / "seven.pth"
    torch.save(xnext.create_model("xception_debug", num_classes=7).state_dict(), weights)
    words = ["evaluate", "--model", "xception_debug", "--checkpoint", weights, "--data", data]
    fails(*words, names=[weights, "7 classes", "3"])


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 100])
@pytest.mark.parametrize("name", ["damaged.safetensors", "damaged.pth"])
def test_a_damaged_checkpoint(fails, trained, tmp_path, damage, name):
    picture().save(tmp_path / "a.png")
    file = tmp_path / name
    if name.endswith(".pth"):
        torch.save(xnext.create_model("xception_debug").state_dict(), file)
    else:
        shutil.copy(trained / "checkpoints" / "best.safetensors", file)
    file.write_bytes(damage(file.read_bytes()))
    fails("predict", tmp_path / "a.png", "--checkpoint", file, "--model", "xception_debug", names=[file])


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pickle_that_runs_code_is_refused(fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture().save("a.png")
    torch.save({"state_dict": Evil()}, "evil.pth")
    fails("predict", "a.png", "--checkpoint", "evil.pth", "--model", "xception_debug", names=["evil.pth"])


def test_checkpoint_mistakes(fails, trained, tmp_path):
    picture().save(tmp_path / "a.png")
    predict = ["predict", tmp_path / "a.png", "--checkpoint"]
    fails(*predict, tmp_path / "none", names=["no run and no weight file", tmp_path / "none"])
    fails(*predict, tmp_path, names=[tmp_path, "config.yaml"])
    weights = tmp_path / "w.pth"
    torch.save(xnext.create_model("xception_debug").state_dict(), weights)
    fails(*predict, weights, names=[weights, "--model"])
    fails(*predict, weights, "--model", "xception_debu", names=["'xception_debug'"])
    fails(*predict, weights, "--model", "convnext_debug", names=[weights])
    fails(*predict, trained, "--model", "xception_debug", names=["inceptionnext_debug"])
    fails("evaluate", names=["RUN", "--checkpoint"])
    fails("evaluate", trained, "--checkpoint", weights, names=["RUN", "--checkpoint"])
    fails("evaluate", "--checkpoint", weights, "--model", "xception_debug", names=["--data"])


# --- numbers that are none ----------------------------------------------------------------------------------


@pytest.fixture
def damaged(trained, tmp_path):
    """Write the trained checkpoint anew with other metadata or weights."""

    def write(weights=None, **metadata):
        source = trained / "checkpoints" / "best.safetensors"
        values = load_file(source) | (weights or {})
        header = json.loads(safe_open(source, "pt").metadata()["xnext"])
        preprocessing = header["preprocessing"] | metadata.pop("preprocessing", {})
        header |= {"preprocessing": preprocessing} | metadata
        save_file(values, tmp_path / "damaged.safetensors", {"xnext": json.dumps(header)})
        picture().save(tmp_path / "a.png")
        return tmp_path / "damaged.safetensors"

    return write


def test_outputs_that_are_not_finite(fails, damaged, data, tmp_path):
    file = damaged(
        {"head.fc.weight": torch.full((3, 264), 3e38), "stem.conv1.weight": torch.full((24, 3, 2, 2), 1e30)}
    )
    fails("predict", tmp_path / "a.png", "--checkpoint", file, "--json", names=["not finite"])
    fails("evaluate", "--checkpoint", file, "--data", data, "--json", names=["not finite"])


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        ({"classes": None}, ["classes"]),
        ({"classes": [1, 2, 3]}, ["classes"]),
        ({"classes": ["a"]}, ["1 classes", "3 outputs"]),
        ({"model_name": 5}, ["model_name"]),
        ({"model_name": "nothing"}, ["unknown model"]),
        ({"model_args": [1]}, ["model_args"]),
        ({"model_args": {"pretrained": True}}, ["pretrained"]),
        ({"preprocessing": {"image_size": -3}}, ["image_size"]),
        ({"preprocessing": {"image_size": "big"}}, ["image_size"]),
        ({"preprocessing": {"interpolation": "foo"}}, ["interpolation"]),
        ({"preprocessing": {"mean": [0.5]}}, ["mean"]),
        ({"preprocessing": {"std": [0, 0, 0]}}, ["std"]),
    ],
    ids=str,
)
def test_damaged_metadata(fails, damaged, tmp_path, damage, names):
    fails("predict", tmp_path / "a.png", "--checkpoint", damaged(**damage), names=names)
