"""`xnext segment evaluate` and `predict`, and what is told of wrong input, in one line."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from xnext.cli import main
from xnext.cli.segment import _of_tiles
from xnext.segmentation.data import load_masks
from xnext.segmentation.inference import Tiles


@pytest.fixture
def copy(digits, tmp_path):
    return shutil.copytree(digits, tmp_path / "set")


@pytest.fixture
def fails(capsys, tmp_path):
    """Run a command that must fail and leave nothing; return its one line."""

    def run(*words):
        before = sorted(tmp_path.rglob("*"))
        assert main([str(word) for word in words]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("xnext: error: "), lines
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0]

    return run


def said(capsys, *words, code=0):
    """Run a command; return what it printed, and its error lines."""
    assert main([str(word) for word in words]) == code
    out = capsys.readouterr()
    return out.out, out.err


def evaluated(capsys, *words):
    """Evaluate twice; return what it printed for people, and for programs."""
    out, _ = said(capsys, "segment", "evaluate", *words)
    return out, json.loads(said(capsys, "segment", "evaluate", *words, "--json")[0])


def test_a_report(capsys, run):
    out, report = evaluated(capsys, run)
    assert (report["model"], report["decoder"], report["images"]) == ("convnext_debug", "fpn", 4)
    assert (report["slide"], report["scales"], report["mirrored"]) == (False, [1.0], False)
    assert [row["class"] for row in report["classes"]] == ["background", "digit"]
    ious = [row["iou"] for row in report["classes"]]
    assert report["miou"] == pytest.approx(np.mean(ious)) and f"{report['miou']:.2f}" in out
    assert sum(row["places"] for row in report["classes"]) == 4 * 64 * 64
    _, other = evaluated(capsys, run, "--slide", "--multi-scale")
    assert other["slide"] and other["mirrored"] and len(other["scales"]) == 6
    assert other["classes"] != report["classes"]


def test_a_class_that_is_nowhere(capsys, make_run, copy):
    classes = ("background", "digit", "nothing")
    (copy / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    run = make_run(classes=classes, data=copy)
    out, report = evaluated(capsys, run)
    assert report["classes"][2] == {"class": "nothing", "iou": None, "accuracy": None, "places": 0}
    assert report["miou"] == pytest.approx(np.mean([row["iou"] for row in report["classes"][:2]]))
    line = next(line for line in out.splitlines() if line.startswith("nothing"))
    assert line.split() == ["nothing", "nan", "nan", "0.00"]
    assert "the means are over the other 2" in out


def test_pairs_that_cannot_be_read_do_not_count(capsys, run, copy):
    (copy / "masks/val/0001.png").write_bytes(b"no mask")
    Image.new("RGB", (64, 64)).save(copy / "masks/val/0002.png")
    out, report = evaluated(capsys, run, "--data", copy)
    assert report["images"] == 2 and len(report["bad_images"]) == 2
    assert "0001.png: is no image" in out and "0002.png: is a picture of mode RGB" in out


def odd_value(folder):
    Image.new("L", (64, 64), 7).save(folder / "masks/val/0003.png")


def one_class(folder):
    (folder / "classes.txt").write_text("background\nink\n")


def damage_all(folder):
    for path in (folder / "masks/val").iterdir():
        path.write_bytes(b"")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def ignore_all(folder):
    for path in (folder / "masks/val").iterdir():
        Image.new("L", (64, 64), 255).save(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (odd_value, "0003.png has values that are none of the 2 classes (7)"),
        (one_class, "only the data has 'ink'"),
        (damage_all, "the file is empty; nor can any other be read"),
        (ignore_all, "and all others: no place has a class, so there is nothing to measure"),
        (empty, "has no images/ with annotations/ or masks/"),
        (lambda folder: (folder / "masks/val/0000.png").unlink(), "images without a mask (1): "),
        (lambda folder: (folder / "classes.txt").unlink(), "write a class name a line there"),
    ],
)
def test_data_that_do_not_fit(fails, run, copy, change, told):
    change(copy)
    line = fails("segment", "evaluate", run, "--data", copy, "--json")
    assert told in line and str(copy) in line


def wide_mask(folder):
    Image.new("L", (64, 63)).save(folder / "masks/train/0003.png")


def one_image(folder):
    for kind in ("images", "masks"):
        for path in sorted((folder / kind / "train").iterdir())[1:]:
            path.unlink()


def colours(folder):
    for path in (folder / "masks/train").iterdir():
        Image.new("RGB", (64, 64)).save(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (odd_value, "values that are none of the 2 classes"),
        (wide_mask, "another size"),
        (one_image, "1 training image is too few"),
        (colours, "no place of any training mask has a class (first of 12 unreadable ones: "),
        (empty, "has no images/ with annotations/ or masks/"),
        (lambda folder: shutil.rmtree(folder / "masks/val"), "no such folder; it must have the masks of"),
        (lambda folder: (folder / "masks/train/0000.png").unlink(), "images without a mask (1): "),
        (lambda folder: (folder / "classes.txt").write_text("background\n"), "names 1 classes"),
        (
            lambda folder: (folder / "masks/train/0000.png").write_bytes(b"x"),
            "1 of 12 training images or their masks cannot be read: ",
        ),
    ],
)
def test_data_that_cannot_be_trained_on(fails, copy, change, told):
    change(copy)
    words = ["--encoder", "convnext_debug", "--decoder", "fpn", "--image-size", "32", "--epochs", "1"]
    line = fails("segment", "train", *words, "--data", copy, "--output", copy.parent / "run")
    assert told in line


def test_a_damaged_mask_is_listed_and_left_out(capsys, copy, tmp_path):
    (copy / "masks/train/0004.png").write_bytes(b"x")
    out, _ = said(
        capsys, "segment", "train", "--encoder", "convnext_debug", "--decoder", "fpn", "--data", copy,
        "--model-args", "{strides: [4, 2, 2, 2], depths: [1, 1, 1, 1]}", "--image-size", 32, "--epochs", 1,
        "--batch-size", 12, "--max-bad-images", 0.1, "--output", tmp_path / "run",
    )  # fmt: skip
    assert "that cannot be read (1): " in out and "masks/train/0004.png: is no image" in out
    assert f"next: xnext segment evaluate {tmp_path / 'run'}" in out
    assert (tmp_path / "run/bad_images.txt").read_text() == f"{copy}/images/train/0004.png\n"
    header, _, config = (tmp_path / "run/config.yaml").read_text().partition("model:")
    assert "xnext segment train --config" in header and "mixup" not in config
    # The file of a run gives the same training again.
    words = ["--config", tmp_path / "run/config.yaml", "--output", tmp_path / "again"]
    said(capsys, "segment", "train", *words)
    metrics = [json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("run", "again")]
    assert metrics[0]["val_miou"] == metrics[1]["val_miou"]


def test_masks_of_pictures(capsys, run, digits, tmp_path):
    """Of any size, and with the one that is bad told alone; they are a data set again."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    sizes = {"wide.v2.jpg": (90, 20), "dot.png": (1, 1), "sub/dot.bmp": (33, 70)}
    for name, size in sizes.items():
        Image.effect_noise(size, 90).convert("RGB").save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "turned.jpg", exif=exif)
    (folder / "bad.png").write_bytes(b"no picture")
    out, errors = said(
        capsys, "segment", "predict", folder, "--checkpoint", run, "--overlay", "--output", tmp_path / "out",
        code=2,
    )  # fmt: skip
    assert errors.splitlines() == [errors.strip()] and "bad.png: is no image" in errors
    expected = {"wide.v2": (90, 20), "dot": (1, 1), "sub/dot": (33, 70), "turned": (20, 40)}
    for name, size in expected.items():
        with Image.open(tmp_path / f"out/masks/{name}.png") as mask:
            assert mask.mode == "P" and mask.size == size and np.asarray(mask).max() <= 1
        with Image.open(tmp_path / f"out/overlays/{name}.png") as overlay:
            assert overlay.mode == "RGB" and overlay.size == size
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert len(files) == 2 * 4 + 2 and {"classes.txt", "legend.png"} <= files
    assert "wide.v2.jpg" in out and "%" in out and f"wrote {tmp_path / 'out'}" in out
    (folder / "bad.png").unlink()
    shutil.copytree(folder, tmp_path / "out/images")
    again = load_masks(str(tmp_path / "out"))
    assert again.classes == ("background", "digit") and len(again.train) + len(again.val) == 4


@pytest.mark.parametrize("size", [(1000, 3), (3, 1000), (1, 1), (1000, 1)])
def test_strips_of_any_length(capsys, run, copy, tmp_path, size):
    """Their short side would shrink to nothing where the long one is as long as it may be."""
    for part in ("train", "val"):
        name = f"{part}/0001.png"
        Image.effect_noise(size, 90).convert("RGB").save(copy / "images" / name)
        Image.new("L", size, 1).save(copy / "masks" / name)
    told = tmp_path / "told"
    said(capsys, "segment", "predict", copy / "images/val/0001.png", "--checkpoint", run, "--output", told)
    with Image.open(told / "masks/0001.png") as mask:
        assert mask.size == size
    assert evaluated(capsys, run, "--data", copy)[1]["images"] == 4
    words = ["--encoder", "convnext_debug", "--decoder", "fpn", "--image-size", 32, "--epochs", 1]
    words += ["--batch-size", 12, "--data", copy, "--output", tmp_path / "run"]
    _, errors = said(capsys, "segment", "train", *words)
    assert errors == "", "a schedule of one step is no reason to warn"


def test_one_image_and_no_overlay(capsys, run, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said(capsys, "segment", "predict", digits / "images/val/0000.png", "--checkpoint", run)
    names = {path.name for path in (tmp_path / "segmented").rglob("*")}
    assert names == {"masks", "0000.png", "classes.txt", "legend.png"}


def test_what_tiles_mean_is_said(capsys, run, tmp_path):
    Image.effect_noise((200, 20), 90).save(tmp_path / "long.png")
    words = ["segment", "predict", tmp_path / "long.png", "--full-size", "--output", tmp_path / "out"]
    assert "images were seen" not in said(capsys, *words, "--checkpoint", run)[0]
    assert "pixels far" in said(capsys, *words, "--tile", "64", "--checkpoint", run)[0]
    assert "sees whole images" in _of_tiles(Tiles(64, 16), None)  # as UPerNet's, whose weights take seconds
    assert "told as in the whole" in _of_tiles(Tiles(64, 16), 16)


def test_words_that_are_wrong(fails, run, digits, tmp_path):
    image = digits / "images/val/0000.png"
    predict = ["segment", "predict", image, "--checkpoint", run, "--output", tmp_path / "out"]
    for words, told in (
        (["segment"], "a command is missing; choose from check, train, evaluate, predict"),
        (["segment", "trian"], "unknown command 'trian'. Did you mean 'train'?"),
        (["segment", "train", "--encoder", "x"], "missing --data, --output; see xnext segment train --help"),
        (["segment", "train", "--encoder=x", "--data=x", "--output=x"], "missing --decoder, upernet or fpn"),
        (["segment", "evaluate", run, "--jsno"], "--jsno"),
        (["segment", "evaluate", run, "--data", "none"], "none: no such folder; --data takes a folder with"),
        (["segment", "predict", tmp_path / "none.png", "--checkpoint", run], "no such file or folder"),
        (["segment", "predict", image, "--checkpoint", tmp_path / "none"], "no run and no weight file"),
        ([*predict, "--tile", "64"], "are of --full-size"),
        ([*predict, "--full-size", "--overlap", "600"], "must be less than half"),
        ([*predict, "--full-size", "--overlap", "-5"], "--overlap is -5; it must be at least 0"),
        ([*predict, "--full-size", "--tile", "0"], "--tile is 0; it must be at least 1"),
    ):
        assert told in fails(*words)


def test_without_the_library_of_decoders(fails, run, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("xnext.segmentation")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.decoders.fpn.decoder", None)
    assert "pip install 'xnext[segmentation]'" in fails("segment", "evaluate", run)


def test_masks_that_would_be_lost(fails, run, tmp_path):
    for name in ("a.png", "a.bmp", "masks/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    words = ["segment", "predict", "--checkpoint", run, "--output", tmp_path]
    assert "holds other files" in fails(*words, tmp_path / "a.png")
    (tmp_path / "legend.png").write_bytes(b"")
    assert "lies in --output" in fails(*words, tmp_path / "masks/b.png")
    words[-1] = tmp_path / "out"
    assert "would both become" in fails(*words, tmp_path / "a.png", tmp_path / "a.bmp")


def test_runs_of_the_other_kind(fails, run, digits, tmp_path):
    image = digits / "images/val/0000.png"
    for words in (
        ["evaluate", run],
        ["predict", image, "--checkpoint", run],
        ["cam", image, "--checkpoint", run, "--output", tmp_path / "cam.png"],
        ["errors", run, "--output", tmp_path / "errors.html"],
    ):
        line = fails(*words)
        assert "is a segmentation network (convnext_debug with fpn)" in line
        assert "`xnext segment predict`" in line
    assert "is an option of `xnext segment train`" in fails("train", "--resume", run).replace("It is", "is")


def test_a_classifier_is_no_segmentation_network(fails, digits, tmp_path_factory, tmp_path):
    import xnext
    from xnext.models import save_checkpoint
    from xnext.training import Run, TrainConfig

    folder = tmp_path_factory.mktemp("runs") / "classifier"
    config = TrainConfig(model="convnext_debug", data="digits", output=folder)
    run = Run.create(folder, config.to_yaml())
    save_checkpoint(
        run.best, xnext.create_model("convnext_debug", num_classes=2), model_name="convnext_debug",
        model_args={}, classes=("a", "b"), extra={"train_config": config.to_dict()},
        preprocessing={"image_size": 32},
    )  # fmt: skip
    image = digits / "images/val/0000.png"
    for words in (["evaluate", folder], ["predict", image, "--checkpoint", folder]):
        line = fails("segment", *words)
        assert "is a classifier" in line and "`xnext predict`" in line
    line = fails("segment", "train", "--resume", folder)
    assert "is an option of `xnext train`" in line.replace("It is", "is")
