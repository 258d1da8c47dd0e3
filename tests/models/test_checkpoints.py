"""Weight files: every layout, wrapper and file type; every misfit and every damaged or dangerous file."""

import argparse
import json
import os
import pickle

import pytest
import safetensors.torch
import timm
import torch
from test_golden import reference

import xnext
from xnext.models import CheckpointError, read_metadata, save_checkpoint


def equal_states(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def debug(**options) -> torch.nn.Module:
    return xnext.create_model("inceptionnext_debug", **options)


@pytest.fixture
def atto() -> tuple[dict, torch.nn.Module]:
    _, state, _ = reference("inceptionnext_atto")
    model = xnext.create_model("inceptionnext_atto")
    xnext.load_checkpoint(model, state)
    return state, model


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_wrappers_and_prefixes(tmp_path, atto, suffix, wrapper, prefix):
    state, expected = atto
    state = {prefix + key: value for key, value in state.items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        if wrapper:
            pytest.skip("safetensors holds tensors alone")
        safetensors.torch.save_file(state, path)
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    model = xnext.create_model("inceptionnext_atto")
    report = xnext.load_checkpoint(model, path)
    assert equal_states(model, expected)
    assert report.layout == "InceptionNeXt" and str(path) in str(report)


def test_averaged_weights_come_first(atto):
    state, expected = atto
    raw = {key: torch.zeros_like(value) for key, value in state.items()}
    model = xnext.create_model("inceptionnext_atto")
    xnext.load_checkpoint(model, {"state_dict": raw, "state_dict_ema": state})
    assert equal_states(model, expected)


@pytest.mark.parametrize(
    ("theirs", "ours", "layout"),
    [
        ("inception_next_atto", "inceptionnext_atto", "InceptionNeXt"),
        ("legacy_xception", "xception", "legacy_xception"),
    ],
)
def test_timms_networks_compute_the_same_with_their_weights(theirs, ours, layout):
    source = timm.create_model(theirs, num_classes=11).eval()
    target = xnext.create_model(ours, num_classes=11).eval()
    assert xnext.load_checkpoint(target, source.state_dict()).layout == layout
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(target(image), source(image), rtol=1e-5, atol=1e-6)


def test_isotropic_convnext_layout():
    """The published network keeps its 18 blocks in one list."""
    target = xnext.create_model("convnext_small_iso")
    published = {}
    blocks = [block for stage in target.stages for block in stage.blocks]
    for i, block in enumerate(blocks):
        for key, value in block.state_dict().items():
            key = key.replace("mixer", "dwconv").replace("mlp.fc", "pwconv")
            value = value.flatten(1) if "pwconv" in key and value.ndim == 4 else value
            published[f"blocks.{i}.{key}"] = torch.randn_like(value)
    for old, new in (("stem.conv1", "stem"), ("head.norm", "norm"), ("head.fc", "head")):
        for part in ("weight", "bias"):
            published[f"{new}.{part}"] = torch.randn_like(target.state_dict()[f"{old}.{part}"])
    assert xnext.load_checkpoint(target, published).layout == "isotropic ConvNeXt"
    assert torch.equal(blocks[6].mixer.weight, published["blocks.6.dwconv.weight"])
    assert torch.equal(
        target.stages[2].blocks[8].mlp.fc2.weight.flatten(1), published["blocks.14.pwconv2.weight"]
    )


def test_another_number_of_classes_leaves_the_head_and_says_so(atto, caplog):
    state, source = atto
    model = xnext.create_model("inceptionnext_atto", num_classes=10)
    head = model.head.fc.weight.clone()
    report = xnext.load_checkpoint(model, state)
    assert report.new_classes == (1000, 10)
    assert "the file has 1000 classes, not 10" in str(report) and "1000 classes" in caplog.text
    assert torch.equal(model.head.fc.weight, head)
    assert torch.equal(model.head.hidden.fc1.weight, source.head.hidden.fc1.weight)


def test_headless_network_takes_a_file_with_a_head(atto):
    state, _ = atto
    model = xnext.create_model("inceptionnext_atto", num_classes=0)
    assert xnext.load_checkpoint(model, state).new_classes == (1000, 0)


def test_our_own_file_holds_everything(tmp_path):
    model = debug(num_classes=3, band_kernel_size=7).to(memory_format=torch.channels_last)
    path = tmp_path / "best.safetensors"
    save_checkpoint(
        path,
        model,
        model_name="inceptionnext_debug",
        model_args={"band_kernel_size": 7},
        classes=("a", "b", "ç"),
        preprocessing={"image_size": 32, "mean": [0.5] * 3},
        extra={"epoch": 4},
    )
    metadata = read_metadata(path)
    assert metadata["model_name"] == "inceptionnext_debug" and metadata["model_args"] == {
        "band_kernel_size": 7
    }
    assert metadata["classes"] == ["a", "b", "ç"] and metadata["extra"] == {"epoch": 4}
    again = debug(num_classes=3, **metadata["model_args"])
    assert xnext.load_checkpoint(again, path).layout == "xnext"
    assert equal_states(again, model)


def test_saving_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "best.safetensors"
    save = {"model_name": "x", "model_args": {}, "classes": (), "preprocessing": {}}
    save_checkpoint(path, debug(), **save)
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(xnext.UserError, match=r"cannot write .*best\.safetensors: the disk is full"):
        save_checkpoint(path, debug(), **save)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_foreign_files_have_no_metadata(tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(1)}, path)
    assert read_metadata(path) is None
    torch.save({"weight": torch.zeros(1)}, tmp_path / "foreign.pth")
    assert read_metadata(tmp_path / "foreign.pth") is None


def test_all_misfits_are_listed():
    model = debug()
    state = dict(model.state_dict())
    del state["stem.conv1.bias"], state["stages.3.blocks.0.gamma"]
    state["extra.weight"] = torch.zeros(1)
    state["stem.conv1.weight"] = torch.zeros(24, 1, 2, 2)
    with pytest.raises(CheckpointError) as error:
        xnext.load_checkpoint(model, state)
    line = str(error.value)
    assert "missing: stem.conv1.bias, stages.3.blocks.0.gamma" in line
    assert "unexpected: extra.weight" in line
    assert "stem.conv1.weight is (24, 1, 2, 2), not (24, 3, 2, 2)" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (float("nan"), "not finite: stem.conv1.bias"),
        (float("inf"), "not finite: stem.conv1.bias"),
        (torch.int8, "wrong type: stem.conv1.bias is torch.int8"),
    ],
    ids=str,
)
def test_values_that_are_no_weights_are_refused(value, what):
    model = debug()
    state = dict(model.state_dict())
    bias = state["stem.conv1.bias"]
    state["stem.conv1.bias"] = bias.to(value) if isinstance(value, torch.dtype) else bias + value
    with pytest.raises(CheckpointError, match=what):
        xnext.load_checkpoint(model, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_loaded(dtype):
    source, model = debug(), debug()
    state = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in source.state_dict().items()
    }
    xnext.load_checkpoint(model, state)
    assert torch.equal(model.stem.conv1.weight, state["stem.conv1.weight"].float())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "module.model."])
def test_prefixes_of_wrappers_are_taken_off(prefix):
    source, model = debug(), debug()
    state = {prefix + key: value for key, value in source.state_dict().items()}
    xnext.load_checkpoint(model, {"state_dict": state})
    assert equal_states(model, source)


def test_missing_batch_counters_are_kept_and_reported():
    source, model = debug(), debug()
    counter = "stem.norm1.num_batches_tracked"
    state = {key: value for key, value in source.state_dict().items() if key != counter}
    report = xnext.load_checkpoint(model, state)
    assert report.kept_counters == (counter,) and counter in str(report)
    assert equal_states(model, source)


@pytest.mark.parametrize("text", ["{", "{}", "[]", "3", '{"model_name": "m"}'])
def test_damaged_metadata(tmp_path, text):
    path = tmp_path / "best.safetensors"
    safetensors.torch.save_file(debug().state_dict(), path, {"xnext": text})
    with pytest.raises(CheckpointError, match=r"best.safetensors has damaged metadata"):
        read_metadata(path)


def test_weights_of_another_lineage_are_refused_and_nothing_is_loaded(atto):
    state, _ = atto
    model = xnext.create_model("nexception_debug")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="does not fit the network"):
        xnext.load_checkpoint(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Dangerous:
    def __reduce__(self):
        return (os.system, ("touch /tmp/xnext-was-here",))


@pytest.mark.parametrize(
    ("content", "needs"),
    [(Dangerous(), "posix.system"), ({"args": argparse.Namespace(lr=1)}, "argparse.Namespace")],
    ids=["code", "namespace"],
)
def test_pickles_that_need_more_than_tensors_are_refused(tmp_path, content, needs):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=needs) as error:
        xnext.load_checkpoint(debug(), path)
    assert str(path) in str(error.value) and not os.path.exists("/tmp/xnext-was-here")  # noqa: PTH110


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "flipped"])
def test_damaged_files(tmp_path, suffix, damage):
    whole = tmp_path / f"whole{suffix}"
    state = debug().state_dict()
    if suffix == ".pth":
        torch.save(state, whole)
    else:
        safetensors.torch.save_file(state, whole)
    data = whole.read_bytes()
    content = {
        "empty": b"",
        "truncated": data[: len(data) // 2],
        "text": b"<!doctype html><title>Not found</title>",
        "flipped": bytes(255 - byte for byte in data[:200]) + data[200:],
    }[damage]
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"damaged{suffix}"):
        xnext.load_checkpoint(debug(), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no state dict"),
        ([1, 2], "no state dict"),
        ({"epoch": 3}, "'epoch' are no tensors"),
        (7, "no state dict"),
    ],
    ids=str,
)
def test_files_without_weights(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        xnext.load_checkpoint(debug(), path)


def test_paths_that_are_no_weight_files(tmp_path):
    for path, message in (
        (tmp_path / "missing.pth", "there is no weight file"),
        (tmp_path, "is a folder"),
        (tmp_path / "notes.txt", "must end in one of .safetensors"),
    ):
        if path.suffix == ".txt":
            path.write_text("hello")
        with pytest.raises(CheckpointError, match=message):
            xnext.load_checkpoint(debug(), path)


def test_plain_pickle_is_refused(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(CheckpointError):
        xnext.load_checkpoint(debug(), path)


# pretrained=True


def test_preprocessing_of_published_weights():
    xception = timm.get_pretrained_cfg("xception")
    assert xception.hf_hub_id == "timm/legacy_xception.tf_in1k"
    assert (xception.mean, xception.std, xception.crop_pct) == ((0.5,) * 3, (0.5,) * 3, 0.8975)
    crops = {"atto": 0.875, "tiny": 0.875, "small": 0.875, "base": 0.95, "base_384": 1.0}
    for size, crop in crops.items():
        ours, theirs = timm.get_pretrained_cfg(f"inceptionnext_{size}"), None
        name, _, resolution = size.partition("_")
        tag = f"sail_in1k_{resolution}" if resolution else "sail_in1k"
        theirs = timm.get_pretrained_cfg(f"inception_next_{name}.{tag}")
        assert ours.hf_hub_id == theirs.hf_hub_id == f"timm/inception_next_{name}.{tag}"
        assert ours.crop_pct == theirs.crop_pct == crop
        for field in ("input_size", "mean", "std", "interpolation", "pool_size"):
            assert getattr(ours, field) == getattr(theirs, field)


def test_pretrained_goes_through_timms_loader(tmp_path, atto):
    """The same path as a hub download: a file in the published layout, another head, another input."""
    state, source = atto
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path)
    overlay = {"file": str(path)}
    model = xnext.create_model("inceptionnext_atto", pretrained=True, pretrained_cfg_overlay=overlay)
    assert equal_states(model, source)
    grey = xnext.create_model(
        "inceptionnext_atto", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1
    )
    torch.testing.assert_close(grey.stem.conv1.weight, source.stem.conv1.weight.sum(1, keepdim=True))
    features = xnext.create_model(
        "inceptionnext_atto", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True
    )
    assert len(features.feature_info.channels()) == 4


def test_pretrained_without_network_names_the_file(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(xnext.UserError) as error:
        xnext.create_model("inceptionnext_atto", pretrained=True, cache_dir="/nonexistent")
    line = str(error.value)
    assert "https://huggingface.co/timm/inception_next_atto.sail_in1k/resolve/main/model.safetensors" in line
    assert "--checkpoint PATH" in line and "\n" not in line


def test_pretrained_nexception_says_where_its_weights_are():
    with pytest.raises(xnext.UserError, match=r"no hub has weights for nexception_t.*hadarshavit/NEXcepTion"):
        xnext.create_model("nexception_t", pretrained=True)


def test_metadata_is_json(tmp_path):
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, debug(), model_name="m", model_args={}, classes=("a",), preprocessing={})
    with safetensors.safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["xnext"])["version"] == xnext.__version__


def test_pickles_of_a_newer_protocol_are_refused_in_one_line(tmp_path, recwarn):
    path = tmp_path / "weights.pth"
    torch.save(debug().state_dict(), path, pickle_protocol=5)
    with pytest.raises(CheckpointError, match=r"weights\.pth .*save its state dict"):
        xnext.load_checkpoint(debug(), path)
    assert not recwarn
