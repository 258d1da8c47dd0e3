"""Every mistake of a user: one line that names the culprit, exit code 2, nothing half-written."""

import errno
import io
import json
import os
import resource
import shlex
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import xnext
from xnext import cli
from xnext.models import save_checkpoint
from xnext.training import TrainConfig

CLASSES = ("cat", "dog", "owl")
TRAIN = [
    "train",
    "--model",
    "inceptionnext_debug",
    "--image-size",
    "32",
    "--epochs",
    "1",
    "--batch-size",
    "4",
]


def picture(seed=0, mode="RGB", size=(24, 20)):
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode if channels != 1 else None)


@pytest.fixture
def data(tmp_path):
    """A tiny healthy data set: two splits of three classes."""
    for split, count in (("train", 4), ("val", 2)):
        for name in CLASSES:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                picture(index).save(folder / f"{name}{index}.png")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory with an untrained network, made as training makes it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(model="inceptionnext_debug", data="digits", output=folder)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    save_checkpoint(
        folder / "checkpoints" / "best.safetensors",
        xnext.create_model("inceptionnext_debug", num_classes=3),
        model_name="inceptionnext_debug", model_args={}, classes=CLASSES,
        extra={"train_config": config.to_dict()},
        preprocessing={
            "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
            "crop_pct": 1.0, "in_chans": 3,
        },
    )  # fmt: skip
    return folder


def listing(folder):
    """Return every file below a folder with its content."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def fails(capsys, tmp_path):
    """Run a command that must fail and leave everything as it was; return its one line."""

    def run(*words, names=()):
        before = listing(tmp_path)
        code = cli.main([str(word) for word in words])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("xnext: error: ")
        for name in names:
            assert str(name) in lines[0]
        assert code == 2
        assert listing(tmp_path) == before
        return lines[0]

    return run


def save_bytes(*args, image=None, **kwargs):
    buffer = io.BytesIO()
    (image or picture()).save(buffer, *args, **kwargs)
    return buffer.getvalue()


def bomb():
    """Return a PNG of 60,000 x 60,000 pixels in a few bytes."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    pixels = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


UNREADABLE = {
    "truncated.jpg": save_bytes("JPEG")[:-300],
    "truncated.png": save_bytes("PNG")[:200],
    "empty.png": b"",
    "text.png": b"this is no image\n",
    "page.jpg": b"<!doctype html><html></html>",
    "zeros.jpg": bytes(5000),
    "bomb.png": bomb(),
}


def animation():
    return save_bytes("GIF", save_all=True, append_images=[picture(1), picture(2)])


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return save_bytes("JPEG", exif=exif)


UNUSUAL = {
    "wrong-extension.jpg": save_bytes("PNG"),
    "no-extension": save_bytes("PNG"),
    "cmyk.jpg": save_bytes("JPEG", image=picture(mode="CMYK")),
    "16-bit.png": save_bytes(
        "PNG", image=Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    ),
    "palette-alpha.png": save_bytes(
        "PNG", image=picture().quantize(8), transparency=bytes(range(0, 256, 32))
    ),
    "alpha.png": save_bytes("PNG", image=picture(mode="RGBA")),
    "animated.gif": animation(),
    "exif-rotated.jpg": rotated(),
}


# --- pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("verb", ["predict", "cam"])
def test_an_unreadable_picture(fails, trained, tmp_path, verb, name):
    (tmp_path / name).write_bytes(UNREADABLE[name])
    output = ["--output", tmp_path / "map.png"] if verb == "cam" else []
    fails(verb, tmp_path / name, "--checkpoint", trained, *output, names=[tmp_path / name])


def test_an_unreadable_picture_among_many_does_not_stop_the_others(capsys, trained, tmp_path):
    names = ["a.png", *UNREADABLE, "z.png"]
    for name in names:
        (tmp_path / name).write_bytes(UNREADABLE.get(name) or save_bytes("PNG") * (name not in UNREADABLE))
    code = cli.main(
        ["predict", *(f"{tmp_path / name}" for name in names), "--checkpoint", f"{trained}", "--json"]
    )
    output = capsys.readouterr()
    assert code == 2
    assert len(output.out.splitlines()) == len(names)
    lines = output.err.splitlines()
    assert [name in line for name, line in zip(UNREADABLE, lines, strict=True)] == [True] * len(UNREADABLE)


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_picture_is_no_mistake(capsys, trained, tmp_path, name):
    (tmp_path / name).write_bytes(UNUSUAL[name])
    assert cli.main(["predict", str(tmp_path / name), "--checkpoint", str(trained)]) == 0
    assert capsys.readouterr().err == ""


def test_no_such_picture(fails, trained, tmp_path):
    fails("predict", tmp_path / "none.png", "--checkpoint", trained, names=["none.png"])


def test_a_folder_without_pictures(fails, trained, tmp_path):
    (tmp_path / "empty").mkdir()
    fails("predict", tmp_path / "empty", "--checkpoint", trained, names=[tmp_path / "empty"])


# --- data sets ---------------------------------------------------------------------------------------------


def test_an_empty_class(fails, data, tmp_path):
    shutil.rmtree(data / "train" / "dog")
    (data / "train" / "dog").mkdir()
    fails(*TRAIN, "--data", data, "--output", tmp_path / "run", names=["dog"])


def test_a_split_with_other_classes(fails, data, tmp_path):
    (data / "val" / "owl").rename(data / "val" / "wolf")
    fails(*TRAIN, "--data", data, "--output", tmp_path / "run", names=["owl", "wolf"])


def test_no_such_data(fails, tmp_path):
    fails(*TRAIN, "--data", tmp_path / "none", "--output", tmp_path / "run", names=[tmp_path / "none"])
    fails(*TRAIN, "--data", "digit", "--output", tmp_path / "run", names=["'digits'"])


def test_too_many_unreadable_training_pictures_stop_the_run(capsys, data, tmp_path):
    (data / "train" / "cat" / "cat0.png").write_bytes(b"nothing")
    words = [*TRAIN, "--data", str(data), "--output", str(tmp_path / "run")]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cat0.png" in line or "bad_images" in line
    assert "max" in line and "bad" in line  # the option that allows more
    words = [*TRAIN, "--data", str(data), "--output", str(tmp_path / "more"), "--max-bad-images", "0.5"]
    assert cli.main(words) == 0
    assert "cat0.png" in (tmp_path / "more" / "bad_images.txt").read_text()


# --- checkpoints -------------------------------------------------------------------------------------------


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


# --- words and config files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("trian", ["trian", "'train'"]),
        ("--versio", ["--versio", "'--version'"]),
        ("train REST --epoch 3", ["--epoch", "'--epochs'"]),
        ("train REST --image_size 3", ["--image_size", "'--image-size'"]),
        ("train REST extra", ["'extra'"]),
        ("train --data digits --output run", ["--model"]),
        ("train", ["--model", "--data", "--output"]),
        ("train REST --epochs", ["--epochs"]),
        ("train REST --epochs many", ["--epochs", "many", "whole number"]),
        ("train REST --epochs 1.5", ["--epochs", "1.5"]),
        ("train REST --image-size big", ["--image-size", "big", "whole number"]),
        ("train REST --lr fast", ["lr", "fast", "a number"]),
        ("train REST --augment weak", ["--augment", "weak", "none, flip, light, strong"]),
        ("train REST --model-args 3", ["--model-args", "3"]),
        ("train REST --epochs 0", ["epochs", "0"]),
        ("train REST --lr -1", ["lr", "-1"]),
        ("train REST --optimizer adamm", ["optimizer", "'adam'"]),
        ("train REST --model inceptionnext_debu", ["'inceptionnext_debug'"]),
        (
            "train REST --model inceptionnext_debug --model-args '{bandkernel: 7}'",
            ["bandkernel", "'band_kernel_size'"],
        ),
        ("train REST --model inceptionnext_debug --image-size 1", ["1", "--image-size"]),
        ("train --config none.yaml", ["none.yaml"]),
        ("train --config", ["--config"]),
        ("predict", ["IMAGE"]),
        ("predict a.png", ["--checkpoint"]),
        ("predict a.png --checkpoint run --topk 0", ["--topk", "0"]),
        ("predict a.png --checkpoint run --top 3", ["--top", "'--topk'"]),
        ("predict a.png --checkpoint run --topk two", ["--topk", "two"]),
        ("evaluate run --batch-size 0", ["--batch-size", "0"]),
        ("evaluate run --workers -1", ["--workers", "-1"]),
        ("cam a.png --checkpoint run", ["--output"]),
        ("cam a.png --checkpoint run --output map.jpg", ["map.jpg", ".png"]),
        ("models --filter nothing*", ["nothing*"]),
        ("train REST --recipe nexception_x", ["'nexception_t'"]),
        ("train REST --recipe", ["--recipe"]),
        ("recipes xception", ["'xception_imagenet'"]),
        ("train REST --model inceptionnext_atto.foo", ["inceptionnext_atto", "'foo'"]),
        ("train REST --model INCEPTIONNEXT_ATTO", ["'inceptionnext_atto'"]),
        ("train REST --model timm/foo", ["timm/foo"]),
        ("train REST --model ../x", ["../x"]),
        ("train REST --model local-dir:d", ["local-dir:d"]),
        ("train REST --model legacy_xception --drop-path-rate 0.1", ["legacy_xception", "drop_path_rate"]),
        ("train REST --model xception_debug --model-args '{head_widths: [-3]}'", ["head_widths"]),
        ("train REST --model xception_debug --image-size 99999999999", ["image_size", "4096"]),
        ("train REST --model xception_debug --optimizer adahessian --lr 1e-3", ["adahessian"]),
        ("train REST --model xception_debug --cutmix 1e400", ["cutmix"]),
        ("models --jso", ["--jso", "'--json'"]),
        ("predict '' --checkpoint run", ["empty"]),
        ("train REST --data=", ["empty"]),
        ("train REST --optimizer zzz", ["zzz", "adamw"]),
        ("train REST --model qqq", ["qqq", "xnext models"]),
        ("train REST --model inceptionnext_debug --model-args '{dims: 16}'", ["dims", "whole numbers"]),
        ("train REST --model inceptionnext_debug --model-args '{in_chans: 1}'", ["'in_chans'"]),
        ("train REST --model inceptionnext_debug --model-args '{pretrained: true}'", ["pretrained"]),
        ("train REST --model inceptionnext_debug --model-args '{global_pool: 3}'", ["global_pool"]),
        ("train REST --model resnet18 --model-args '{dims: [1]}'", ["resnet18", "model_args"]),
    ],
)  # fmt: skip
def test_a_word_that_is_wrong(fails, tmp_path, monkeypatch, words, names):
    monkeypatch.chdir(tmp_path)
    fails(*shlex.split(words.replace("REST", "--model x --data digits --output run")), names=names)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("epocs: 3\n", ["'epocs'", "'epochs'", "recipe.yaml"]),
        ("epochs: many\n", ["epochs", "many"]),
        ("augment: weak\n", ["augment", "weak"]),
        ("optimizer: adamm\n", ["optimizer", "'adam'"]),
        ("image_size: [32]\n", ["image-size", "32"]),
        ("a: [1\n", ["recipe.yaml"]),
        ("- epochs\n", ["recipe.yaml", "key: value"]),
        ("", ["recipe.yaml", "key: value"]),
        ("\x00", ["recipe.yaml"]),
        (b"\xff\xfe\xfa", ["recipe.yaml"]),
        ("3: 4\n", ["recipe.yaml", "3"]),
        ("epochs: 1\nepochs: 2\n", ["recipe.yaml", "duplicate", "epochs"]),
        ("epochs: null\n", ["epochs"]),
        ("{[1]: 2}", ["recipe.yaml"]),
        ("!!python/name:os.system x", ["recipe.yaml"]),
        ("model_args: {no_such: 1}\nmodel: inceptionnext_debug\n", ["no_such"]),
    ],
)
def test_a_config_file_that_is_wrong(fails, tmp_path, content, names):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ["train", "--config", file, "--data", "digits", "--output", tmp_path / "run"]
    if not (isinstance(content, str) and "model:" in content):
        words += ["--model", "inceptionnext_debug"]
    fails(*words, names=names)


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        ("a: [1", ["config.yaml", "line 1"]),
        ("", ["config.yaml", "key: value"]),
        ("model: inceptionnext_debug", ["--data"]),
        ("data: digits\ndata: digits", ["data"]),
        (("epochs: 30", "epochs: '5'"), ["epochs", "5"]),
        (("seed: 0", "seed: -3"), ["seed", "-3"]),
        (("seed: 0", "seed: 1.5"), ["seed", "a whole number"]),
        (("epochs: 30", "epoch: 30"), ["'epoch'", "'epochs'"]),
    ],
    ids=str,
)
def test_a_run_whose_config_was_damaged(fails, trained, tmp_path, damage, names):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    file = run / "config.yaml"
    file.write_text(damage if isinstance(damage, str) else file.read_text().replace(*damage))
    fails("train", "--resume", run, names=names)


def test_an_unknown_class_to_look_for(fails, trained, tmp_path):
    picture().save(tmp_path / "a.png")
    words = ["cam", tmp_path / "a.png", "--checkpoint", trained, "--output", tmp_path / "map.png", "--target"]
    fails(*words, "ow", names=["'owl'"])
    fails(*words, "3", names=["'3'"])


# --- places to write ---------------------------------------------------------------------------------------


def test_a_run_folder_that_exists(fails, data, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    fails(*TRAIN, "--data", data, "--output", tmp_path / "run", names=[tmp_path / "run"])
    (tmp_path / "file").write_text("mine")
    fails(*TRAIN, "--data", data, "--output", tmp_path / "file", names=[tmp_path / "file"])


@pytest.fixture
def locked(tmp_path):
    """A folder that this process may not write to, the super-user neither."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield folder
        os.seteuid(0)
    else:
        yield folder
        folder.chmod(0o700)


def test_no_permission_to_write_a_run(capsys, locked):
    assert cli.main([*TRAIN, "--data", "digits", "--output", str(locked / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(locked) in line
    assert "permission" in line


@pytest.fixture
def small_disk():
    """Let no file grow beyond 4 KiB: a write that stops in the middle, without filling a real disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_picture_that_does_not_fit_on_the_disk(fails, trained, tmp_path, small_disk):
    picture(size=(8, 8)).save(tmp_path / "a.png")
    (tmp_path / "map.png").write_bytes(b"an earlier one")
    words = ["cam", tmp_path / "a.png", "--checkpoint", trained, "--output", tmp_path / "map.png"]
    fails(*words, names=[tmp_path / "map.png", "limit"])


def test_a_disk_that_is_full(fails, trained, tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    write = Path.write_bytes

    def full(self, content):
        write(self, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    words = ["cam", tmp_path / "a.png", "--checkpoint", trained, "--output", tmp_path / "map.png"]
    monkeypatch.setattr(Path, "write_bytes", full)
    fails(*words, names=[tmp_path / "map.png", "disk is full"])


def test_a_disk_that_fills_up_during_training(capsys, data, tmp_path, small_disk):
    run = tmp_path / "run"
    assert cli.main([*TRAIN, "--data", str(data), "--output", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "safetensors" in line
    assert not run.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk():
    command = shlex.join([sys.executable, "-m", "xnext", "models", "--filter", "*_debug"])
    result = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "xnext: error: standard output: No space left on device\n"


def test_a_mistake_in_a_real_process(tmp_path):
    words = [sys.executable, "-m", "xnext", "train", "--model", "inceptionnext_debug", "--data", "none"]
    result = subprocess.run([*words, "--output", "run"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("xnext: error: ")
    assert not list(tmp_path.iterdir())


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a$^$b", "猫 cat", os.fsdecode(b"not-utf8-\xff"), "two\nlines", "[red]"])
def test_a_name_of_any_letters(capsys, data, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(data, folder)
    for split in ("train", "val"):
        (folder / split / "cat").rename(folder / split / name)
    bad = folder / "train" / name / f"{name}.png"
    bad.write_bytes(b"nothing")
    run = tmp_path / "run"
    code = cli.main([*TRAIN, "--data", str(folder), "--output", str(run), "--max-bad-images", "0.5"])
    assert (code, capsys.readouterr().err) == (0, "")
    assert os.fsencode(name.replace("\n", "\\n")) in (run / "bad_images.txt").read_bytes()
    picture().save(tmp_path / "p.png")
    shutil.copy(tmp_path / "p.png", tmp_path / f"{name}.png")
    words = ["cam", str(tmp_path / "p.png"), "--checkpoint", str(run), "--output", str(tmp_path / "m.png")]
    assert cli.main(words) == 0
    if name.isprintable():
        assert cli.main([words[0], str(tmp_path / f"{name}.png"), *words[2:]]) == 0
    assert cli.main(["evaluate", str(run)]) == 0
    assert capsys.readouterr().err == ""


def test_a_terminal_that_cannot_show_a_name(trained, tmp_path):
    picture().save(tmp_path / "é漢.png")
    command = [sys.executable, "-m", "xnext", "predict", tmp_path / "é漢.png", "--checkpoint", trained]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "") and "\\u6f22.png" in result.stdout


# --- numbers that are none ---------------------------------------------------------------------------------


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


# --- streams and folders -----------------------------------------------------------------------------------


def test_a_closed_pipe_ends_a_training_without_a_word_or_a_rest(data, tmp_path):
    words = [sys.executable, "-m", "xnext", *TRAIN, "--data", str(data), "--output", str(tmp_path / "run")]
    words += ["--epochs", "20"]  # long enough for the reader to be gone
    line = f"{shlex.join(words)} | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize("kind", ["new/deep/run", "link"])
def test_a_failed_training_leaves_no_folder_of_its_own(data, tmp_path, kind):
    if kind == "link":
        (tmp_path / "empty").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "empty")
    before = listing(tmp_path)
    words = [*TRAIN, "--data", str(data), "--output", str(tmp_path / kind), "--lr", "1e38"]
    assert cli.main([*words, "--optimizer", "sgd", "--warmup", "0"]) == 2
    assert listing(tmp_path) == before
