import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import xnext
from xnext import cli
from xnext.cli._common import require_known
from xnext.errors import UserError
from xnext.evaluation.complexity import count_parameters
from xnext.training import TrainConfig

COLOURS = {"blue": (30, 30, 200), "green": (30, 180, 30), "red": (200, 30, 30)}
COMMAND = [sys.executable, "-m", "xnext"]


def write_image(path, colour, seed):
    noise = np.random.default_rng(seed).normal(0, 12, (40, 40, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Photos of three colours, which a small network tells apart after a few epochs."""
    folder = tmp_path_factory.mktemp("data") / "colours"
    for split, first, last in (("train", 0, 16), ("val", 16, 20)):
        for name, colour in COLOURS.items():
            for index in range(first, last):
                write_image(folder / split / name / f"{name}{index}.png", colour, index)
    return folder


@pytest.fixture(scope="module")
def run(colours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "colours"
    words = ["--image-size", "32", "--batch-size", "8", "--lr", "0.001", "--epochs", "8", "--augment", "none"]
    assert (
        cli.main(
            [
                "train",
                "--model",
                "inceptionnext_debug",
                "--data",
                f"{colours}",
                "--output",
                f"{folder}",
                *words,
            ]
        )
        == 0
    )
    return folder


def main(capsys, *words):
    """Run a command that must succeed silently on stderr; return what it printed."""
    code = cli.main([str(word) for word in words])
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    return output.out


def test_training_leaves_a_run_and_says_what_to_do_next(capsys, colours, tmp_path):
    folder = tmp_path / "new" / "run"
    out = main(
        capsys, "train", "--model", "convnext_debug", "--data", colours, "--output", folder,
        "--image-size", 32, "--epochs", 1, "--batch-size", 16, "--optimizer", "sgd", "--lr", "0.05",
        "--seed", 3, "--model-args", '{"kernel_size": 5}', "--warmup", "0",
    )  # fmt: skip
    assert f"next: xnext evaluate {folder}" in out
    config = yaml.safe_load((folder / "config.yaml").read_text())
    asked = {
        "model": "convnext_debug", "data": str(colours), "output": str(folder), "image_size": 32, "epochs": 1,
        "batch_size": 16, "optimizer": "sgd", "lr": 0.05, "seed": 3, "model_args": {"kernel_size": 5},
    }  # fmt: skip
    assert {key: config[key] for key in asked} == asked
    assert {path.name for path in folder.iterdir()} >= {"metrics.jsonl", "summary.json", "curves.png"}


@pytest.fixture
def trained(monkeypatch):
    """Keep the config that `xnext train` would train with."""
    configs = []

    def train(config, **_):
        configs.append(config)
        return {"best_val_top1": 0.0, "best_epoch": 1}

    monkeypatch.setattr("xnext.cli.train.train", train)
    return configs


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("joined", [True, False])
def test_flags_win_over_a_config_file_wherever_it_stands(capsys, trained, tmp_path, before, joined):
    file = tmp_path / "recipe.yaml"
    file.write_text("model: xception_debug\ndata: digits\nepochs: 7\nimage_size: 48\naugment: strong\n")
    config = [f"--config={file}"] if joined else ["--config", file]
    flags = ["--epochs", "2", "--output", "run"]
    main(capsys, "train", *(config + flags if before else flags + config))
    expected = TrainConfig(
        model="xception_debug", data="digits", epochs=2, image_size=48, augment="strong", output=Path("run")
    )
    assert trained == [expected]


def test_the_config_of_a_run_gives_the_same_config(capsys, trained, run, tmp_path):
    main(capsys, "train", "--config", run / "config.yaml", "--output", tmp_path / "again")
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert trained[0].to_dict() == written | {"output": str(tmp_path / "again")}


def test_every_field_of_the_config_is_an_option(capsys, trained, tmp_path):
    values = {
        "model": "a", "data": "b", "output": "c", "epochs": 5, "image_size": 33, "batch_size": 6,
        "optimizer": "sgd", "lr": 0.5, "weight_decay": 0.25, "warmup": "15 steps", "clip_grad": 2.0,
        "device_batch_size": 3, "val_batch_size": 7, "bn_momentum": 0.2, "momentum": 0.8,
        "opt_eps": 1e-3, "opt_betas": [0.8, 0.9], "layer_decay": 0.7,
        "schedule": "step", "min_lr": 1e-5, "power": 0.9, "decay_rate": 0.3,
        "decay_every": 2.0, "warmup_lr": 1e-4,
        "loss": "bce", "bce_threshold": 0.25, "auto_augment": "rand-m3", "random_erasing": 0.2,
        "color_jitter": 0.1, "repeats": 2, "crop_pct": 0.9, "save_every": "7 steps", "keep": 3,
        "label_smoothing": 0.2, "mixup": 0.1, "cutmix": 0.3, "augment": "strong", "drop_rate": 0.4,
        "drop_path_rate": 0.6,
        "model_ema": 0.99, "seed": 9, "checkpoint": "d.pth", "model_args": {"ratio": [1, 2]}, "workers": 3,
        "device": "cpu", "amp": "bf16", "max_bad_images": 0.7, "class_weights": "balanced",
        "ema_buffers": "copy", "freeze": "2 epochs", "patience": 4, "on_nonfinite": "rollback",
        "pretrained": False, "loader": "images", "channels_last": False, "compile": True, "kernels": "torch",
        "grad_checkpointing": True, "sync_bn": True, "local_sgd": 8, "tensorboard": True,
    }  # fmt: skip
    words = []
    for key, value in values.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    main(capsys, "train", *words)
    assert trained[0].to_dict() == values
    main(capsys, "segment", "train", "--encoder=a", "--data=b", "--output=c", "--decoder=fpn")
    assert trained[1].decoder == "fpn"  # with which many of the others do not go


def test_evaluation_measures_what_training_reported(capsys, run):
    summary = json.loads((run / "summary.json").read_text())
    result = json.loads(main(capsys, "evaluate", run, "--json"))
    assert result["top1"] == pytest.approx(summary["best_val_top1"])
    assert result["loss"] == pytest.approx(summary["best_val_loss"], rel=1e-4)
    assert (result["images"], result["bad_images"], result["top5"]) == (12, [], 100)
    table = main(capsys, "evaluate", run)
    assert "top-1 %" in table
    assert f"{result['top1']:.2f}" in table


def test_a_checkpoint_file_knows_what_was_held_out(capsys, tmp_path, colours):
    """Another split would measure training images."""
    flat = tmp_path / "flat"
    shutil.copytree(colours / "train", flat)
    main(
        capsys, "train", "--model", "convnext_debug", "--data", flat, "--output", tmp_path / "run",
        "--seed", 7, "--image-size", 32, "--epochs", 1, "--batch-size", 16,
    )  # fmt: skip
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    for words in ([], ["--data", flat]):
        result = json.loads(main(capsys, "evaluate", "--checkpoint", last, "--json", *words))
        assert result["loss"] == pytest.approx(row["val_loss"], rel=1e-4)


def test_a_run_finds_its_images_from_any_folder(capsys, tmp_path, colours, monkeypatch):
    shutil.copytree(colours, tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    main(
        capsys, "train", "--model", "convnext_debug", "--data", "images", "--output", "run", "--epochs", 1,
        "--image-size", 32, "--batch-size", 16,
    )  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(capsys, "evaluate", "../run")
    shutil.rmtree(tmp_path / "images")
    assert cli.main(["evaluate", "../run"]) == 2
    assert "add --data SPEC" in capsys.readouterr().err


def test_evaluation_of_other_data_counts_what_cannot_be_read(capsys, run, tmp_path):
    for name, colour in COLOURS.items():
        for split in ("train", "test"):
            write_image(tmp_path / "more" / split / name / "a.png", colour, 1)
    (tmp_path / "more" / "test" / "red" / "broken.png").write_bytes(b"nothing")
    checkpoint = run / "checkpoints" / "last.safetensors"
    words = ["evaluate", "--checkpoint", checkpoint, "--data", tmp_path / "more", "--batch-size", "2"]
    result = json.loads(main(capsys, *words, "--json"))
    assert result["images"] == 3
    assert [Path(name).name for name in result["bad_images"]] == ["broken.png"]
    assert "broken.png" in main(capsys, *words)


def test_predictions_of_a_folder_in_order(capsys, run, tmp_path):
    truth = [name for _ in range(12) for name in COLOURS]  # more than one batch
    for index, name in enumerate(truth):
        write_image(tmp_path / "p" / f"{index:03}.png", COLOURS[name], 100 + index)
    lines = main(capsys, "predict", tmp_path / "p", "--checkpoint", run, "--json").splitlines()
    found = [json.loads(line) for line in lines]
    assert [Path(line["image"]).name for line in found] == [f"{index:03}.png" for index in range(36)]
    assert [line["classes"][0]["class"] for line in found] == truth
    assert all(len(line["classes"]) == 1 and line["error"] is None for line in found)


def test_the_table_of_predictions(capsys, run, tmp_path):
    long = tmp_path / ("a very long name " * 10 + "[red].png")
    write_image(long, COLOURS["red"], 5)
    out = main(capsys, "predict", long, "--checkpoint", run, "--topk", "3")
    header, *rows = out.splitlines()
    assert header.split() == ["image", "class", "probability"]
    assert rows[0].startswith(str(long))
    assert "red" in rows[0][len(str(long)) :]
    assert sum(float(re.search(r"([\d.]+)%", row)[1]) for row in rows) == pytest.approx(100, abs=0.2)
    assert len(rows) == 3


@pytest.mark.parametrize("target", [[], ["--target", "green"], ["--target", "1"]])
def test_the_map_is_a_picture(capsys, run, tmp_path, target):
    for index, (name, colour) in enumerate(COLOURS.items()):
        write_image(tmp_path / f"{name}.png", colour, index)
    output = tmp_path / "map.png"
    out = main(capsys, "cam", *tmp_path.glob("*.png"), "--checkpoint", run, "--output", output, *target)
    *silent, last = out.splitlines()
    assert last == f"wrote {output}" and all("stands out for" in line for line in silent)
    with Image.open(output) as picture:
        assert picture.format == "PNG"
        assert picture.width > 3 * picture.height / 2
        assert np.asarray(picture).std() > 20
    assert not list(tmp_path.glob(".*"))


def test_models_lists_every_network_with_its_size(capsys):
    rows = json.loads(main(capsys, "models", "--json"))
    assert [row["model"] for row in rows] == xnext.list_models()
    tiny = next(row for row in rows if row["model"] == "inceptionnext_tiny")
    assert tiny["params"] == count_parameters(xnext.create_model("inceptionnext_tiny", device="meta"))
    assert (tiny["input"], round(tiny["macs"] / 1e9, 3)) == (224, 4.189)
    assert tiny["weights"] == "timm/inception_next_tiny.sail_in1k"
    assert next(row for row in rows if row["model"] == "inceptionnext_debug")["weights"] is None


def test_models_filters(capsys):
    out = main(capsys, "models", "--filter", "*_debug")
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert names == xnext.list_models("*_debug")
    assert re.search(r"inceptionnext_debug\s+32\s+0\.\d\d\s+0\.0\d\d", out)


def test_help_explains_every_option(capsys):
    for verb in (*cli._VERBS, *(f"segment {word}" for word in cli.segment._WORDS)):
        with pytest.raises(SystemExit) as exit:
            cli.main([*verb.split(), "--help"])
        assert exit.value.code == 0
        text = capsys.readouterr().out
        assert "examples:\n  xnext " + verb in text
        options = text.partition("options:")[2].partition("examples:")[0]
        entries = re.findall(r"^  (-\S.*?)(?:\s{2,}|\n\s+)(\S.*)$", options, re.MULTILINE)
        assert len(entries) == len(re.findall(r"^  -", options, re.MULTILINE))
        assert "None" not in text


def test_the_examples_of_the_help_are_valid():
    parser = cli._parser()
    for verb in (*cli._VERBS.values(), *cli.segment._WORDS.values()):
        for example in verb.examples:
            words = shlex.split(example)[1:]
            if "--config" in words:  # a file that is not there
                words = [*words[:1], *words[3:], "--model", "x", "--data", "y"]
            parser.parse_args(words)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("lip", "--method 'lip' is unknown. Did you mean 'lpi'?"),
        ("x", "--method 'x' is unknown. Choose from lpi, fanova."),
    ],
)
def test_what_is_not_known_is_told_with_the_nearest_or_all(value, line):
    require_known("--method", "lpi", ("lpi", "fanova"))
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        require_known("--method", value, ("lpi", "fanova"))


def test_no_command_prints_the_help(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in cli._VERBS)


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(config, **_):
        raise ZeroDivisionError

    monkeypatch.setattr("xnext.cli.train.train", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "--model", "x", "--data", "digits", "--output", "y"])


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr() == (f"xnext {xnext.__version__}\n", "")


def test_a_closed_pipe_is_no_error():
    shell = f"{shlex.join(COMMAND)} models --filter '*_debug' --json | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert result.stderr == ""
    assert result.returncode == 141


def test_ctrl_c_ends_without_a_traceback(tmp_path):
    words = ["train", "--model", "inceptionnext_debug", "--data", "digits", "--output", tmp_path / "run"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert "inceptionnext_debug" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in errors
