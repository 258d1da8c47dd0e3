"""ImageNet's sets: their layouts, labels and protocols, and timm's own way of measuring beside ours."""

import csv
import json
import os
import pkgutil
import re
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo, RealLabelsImagenet, create_dataset, create_loader, resolve_data_config

from xnext import cli
from xnext.data import Preprocessing, build_eval_transform
from xnext.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from xnext.errors import UserError
from xnext.evaluation.predict import load_classifier, predict
from xnext.evaluation.sets import load_set

WNIDS = ImageNetInfo().label_names()
MODEL = "mobilenetv3_small_050"


def photographs(count: int, seed: int = 0):
    """Yield parts of two photographs, of odd sizes and sides."""
    rng, photos = np.random.default_rng(seed), load_sample_images().images
    for number in range(count):
        photo = photos[number % 2]
        height, width = rng.integers(150, 400), rng.integers(150, 600)
        top, left = rng.integers(0, 427 - height + 1), rng.integers(0, 640 - width + 1)
        yield Image.fromarray(photo[top : top + height, left : left + width])


def make_set(root, classes, images: int = 2):
    """Write a set in ImageNet's layout, its files called as those of the validation set."""
    pictures = photographs(len(classes) * images)
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(images):
            file = f"ILSVRC2012_val_{place * images + number + 1:08d}.JPEG"
            next(pictures).save(root / name / file, "JPEG", quality=90)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a file of a timm network's weights, which say something about every class."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(timm.create_model(MODEL).state_dict(), path)
    return path


def evaluate(weights, *words, capsys, model=MODEL) -> dict:
    assert cli.main(["evaluate", "--model", model, "--checkpoint", str(weights), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def as_timm_does(root, model) -> tuple[float, float, float]:
    """Return top-1, top-5 and loss in the way of timm's validate.py, which takes the sizes of tests."""
    config = resolve_data_config({}, model=model, use_test_size=True)
    (root.parent / "classes.txt").write_text("\n".join(WNIDS))
    dataset = create_dataset("", str(root), class_map=str(root.parent / "classes.txt"))
    loader = create_loader(
        dataset, input_size=config["input_size"], batch_size=7, use_prefetcher=False,
        interpolation=config["interpolation"], mean=config["mean"], std=config["std"],
        num_workers=0, crop_pct=config["crop_pct"], crop_mode=config["crop_mode"],
    )  # fmt: skip
    with torch.inference_mode():
        outputs, targets = zip(*((model(images), labels) for images, labels in loader), strict=True)
    logits, labels = torch.cat(outputs), torch.cat(targets)
    top1, top5 = timm.utils.accuracy(logits, labels, topk=(1, 5))
    return top1.item(), top5.item(), torch.nn.functional.cross_entropy(logits, labels).item()


@pytest.mark.parametrize(
    "name",
    [
        MODEL,
        "mobilenetv4_conv_small_050.e3000_r224_in1k",  # tested with 256 pixels and another crop
        "tinynet_e",  # of few pixels
        pytest.param("tf_efficientnetv2_b3.in21k_ft_in1k", marks=pytest.mark.slow),  # squashes pictures
    ],
)
def test_as_timm_measures_it(tmp_path, capsys, name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    with torch.no_grad():
        model.get_classifier().weight.normal_(std=0.05)  # or the loss would be of no picture
    weights = tmp_path / "weights.pth"
    torch.save(model.state_dict(), weights)
    root = make_set(tmp_path / "val", WNIDS[100:112])
    # Call a class as the network does, so that some answers are right.
    how = {"capsys": capsys, "model": name}
    probe = evaluate(weights, "--data", str(tmp_path), "--set", "imagenet", **how)
    true, said, _ = probe["most_confused"][0]
    names = [name.split(",")[0] for name in ImageNetInfo().label_descriptions()]
    (root / WNIDS[names.index(true)]).rename(root / WNIDS[names.index(said)])
    found = evaluate(weights, "--data", str(tmp_path), "--set", "imagenet", **how)
    top1, top5, loss = as_timm_does(root, model)
    assert (found["top1"], found["top5"]) == (pytest.approx(top1, abs=1e-5), pytest.approx(top5, abs=1e-5))
    assert found["loss"] == pytest.approx(loss, rel=1e-6) and found["images"] == 24
    assert found["top1"] > 0


VALIDATE = os.environ.get("XNEXT_TIMM_VALIDATE")
VALIDATED = {
    "mobilenetv3_small_050": "lamb_in1k",
    "mobilenetv4_conv_small": "e3600_r256_in1k",  # trained with 256 pixels, tested with 320 and all of them
    "resnet18": "a3_in1k",  # 160 and 224
    "tinynet_e": "in1k",  # 106
    "mobileone_s0": "apple_in1k",  # bilinear
    "mobilevit_xxs": "cvnets_in1k",  # not normalised
    "edgenext_xx_small": "in1k",
    "deit_tiny_patch16_224": "fb_in1k",
    "tf_efficientnetv2_b3": "in21k_ft_in1k",  # 240 and 300, squashes pictures
}


def telling_apart(name: str, files) -> torch.nn.Module:
    """Return a network of random weights, with norms and classifier such that it tells pictures apart."""
    torch.manual_seed(0)
    model = timm.create_model(name)
    transform = build_eval_transform(Preprocessing.for_model(model, tested=True))
    images = torch.stack([transform(Image.open(file)) for file in files])
    head = model.get_classifier()
    with torch.no_grad():
        for norm in [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]:
            norm.momentum = 1.0
        model.train()(images)
        head.weight.normal_(std=0.1)
        logits = model.eval()(images)
        scale = 3 / logits.std(dim=0)
        head.weight *= scale[:, None]
        head.bias.copy_((head.bias - logits.mean(dim=0)) * scale)
    return model


@pytest.mark.timm
@pytest.mark.skipif(not VALIDATE, reason="XNEXT_TIMM_VALIDATE does not name timm's validate.py")
@pytest.mark.parametrize("name", [f"{name}.{tag}" for name, tag in VALIDATED.items()])
def test_as_timms_own_script_measures_it(tmp_path, capsys, name):
    """Each digit that timm's validate.py prints, for pictures called as the network does, or nearly so."""
    files = [tmp_path / f"{number}.JPEG" for number in range(48)]
    for file, picture in zip(files, photographs(len(files)), strict=True):
        picture.save(file, "JPEG", quality=90)
    weights = tmp_path / "weights.pth"
    torch.save(telling_apart(name, files[:16]).state_dict(), weights)
    names = [name.split(",")[0] for name in ImageNetInfo().label_descriptions()]
    said = predict(load_classifier(weights, name), files, topk=9)
    for number, (file, prediction) in enumerate(zip(files, said, strict=True)):
        called = prediction.classes[(0, 0, 3, 8)[number % 4]][0]
        folder = tmp_path / "validation" / WNIDS[names.index(called)]
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / file.name)
    assert len(list((tmp_path / "validation").iterdir())) > 20, "the network tells pictures from each other"
    found = evaluate(weights, "--data", str(tmp_path), "--set", "imagenet", capsys=capsys, model=name)
    (tmp_path / "classes.txt").write_text("\n".join(WNIDS))
    words = ["--model", name, "--checkpoint", weights, "--class-map", tmp_path / "classes.txt"]
    words += ["--device", "cpu", "--workers", "1", "--batch-size", "16", "--log-freq", "1"]
    command = [sys.executable, VALIDATE, "--data-dir", tmp_path, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    theirs = json.loads(done.stdout.partition("--result")[2])
    losses = re.findall(r"Loss:.*?\( *([\d.]+)\)", done.stderr)
    ours = {"top1": round(found["top1"], 4), "top5": round(found["top5"], 4), "loss": f"{found['loss']:.4f}"}
    assert ours == {"top1": theirs["top1"], "top5": theirs["top5"], "loss": losses[-1]}
    assert 30 < found["top1"] < 60 < found["top5"] < 90


def test_real_labels_are_timms(tmp_path, weights, capsys):
    make_set(tmp_path / "val", WNIDS[:6], images=3)
    test = load_set("real", str(tmp_path))
    labels = RealLabelsImagenet([None] * 50000).real_labels
    names = [test.source.name(index).rpartition("/")[2] for index in range(len(test.source))]
    assert [sorted(labels[name]) for name in names] == [np.flatnonzero(row).tolist() for row in test.right]
    kept = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(18)]
    assert names == [name for name in kept if labels[name]] and len(names) < 18
    assert evaluate(weights, "--data", str(tmp_path), "--set", "real", capsys=capsys)["images"] == len(names)


@pytest.mark.parametrize(("name", "subset"), [("a", "imagenet-a"), ("r", "imagenet-r")])
def test_of_two_hundred_classes_both_protocols_are_told(tmp_path, weights, capsys, name, subset):
    file = f"_info/{subset.replace('-', '_')}_synsets.txt"
    classes = pkgutil.get_data("timm.data", file).decode().split()
    assert len(classes) == 200
    make_set(tmp_path / "set", classes[::40])
    test = load_set(name, str(tmp_path / "set"))
    assert [WNIDS[place] for place in test.columns] == sorted(classes, key=WNIDS.index)
    found = evaluate(weights, "--data", str(tmp_path / "set"), "--set", name, capsys=capsys)
    assert found["among"] == 200 and found["loss"] < found["among_all"]["loss"]["value"]
    strange = next(wnid for wnid in WNIDS if wnid not in classes)
    make_set(tmp_path / "other", [strange])
    with pytest.raises(UserError, match=f"'{strange}': no class of {subset}"):
        load_set(name, str(tmp_path / "other"))
    words = ["evaluate", "--model", MODEL, "--checkpoint", str(weights), "--set", name]
    assert cli.main([*words, "--data", str(tmp_path / "set")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(" 200 " in line for line in lines) and any(" 1000 " in line for line in lines)


@pytest.mark.parametrize(
    ("folders", "name", "told"),
    [(["0", "6"], "a", "'0', '6': no class of imagenet-a"), (["0", "00"], "v2", "same number")],
)
def test_numbers_that_stand_for_no_class(tmp_path, folders, name, told):
    make_set(tmp_path / "val", folders)
    with pytest.raises(UserError, match=told):
        load_set(name, str(tmp_path / "val"))


def test_numbered_folders_of_imagenet_v2(tmp_path):
    make_set(tmp_path, ["0", "2", "10", "999"])
    test = load_set("v2", str(tmp_path))
    found = {test.source.name(i).split("/")[-2]: int(test.right[i].argmax()) for i in range(8)}
    assert found == {"0": 0, "2": 2, "10": 10, "999": 999}, "by number, not by the order of the names"
    make_set(tmp_path / "more", ["1000"])
    with pytest.raises(UserError, match="class 1000 is none of ImageNet's"):
        load_set("v2", str(tmp_path / "more"))


def test_what_is_written(tmp_path, weights, capsys):
    make_set(tmp_path / "val", WNIDS[::100])
    out = tmp_path / "report"
    words = ["--data", str(tmp_path), "--set", "sketch", "--tta", "--output", str(out)]
    found = evaluate(weights, *words, capsys=capsys)
    assert json.loads((out / "report.json").read_text()) == found
    rows = list(csv.DictReader((out / "classes.csv").open()))
    assert [row["class"] for row in rows] == [
        ImageNetInfo().index_to_description(i).split(",")[0] for i in range(0, 1000, 100)
    ]
    assert sum(int(row["images"]) for row in rows) == 20
    wrong = sum(int(row["images"]) for row in csv.DictReader((out / "confusions.csv").open()))
    assert wrong == round(20 * (1 - found["top1"] / 100))
    assert Image.open(out / "reliability.png").width > 400
    low, high = found["intervals"]["top1"]
    assert low <= found["top1"] <= high


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_corruptions_are_worse_by_severity_and_always_alike(name, mode):
    picture = next(photographs(1)).resize((96, 64)).convert(mode)
    pixels = np.asarray(picture, dtype=float)
    worse = [corrupt(picture, name, severity) for severity in SEVERITIES]
    distances = [np.abs(np.asarray(other, dtype=float) - pixels).mean() for other in worse]
    assert all(other.size == picture.size and other.mode == mode for other in worse)
    assert distances[0] > 0
    if name not in ("fog", "motion_blur"):  # of which each severity draws another picture
        assert distances == sorted(distances)
    assert np.array_equal(corrupt(picture, name, 3), worse[2])
    corrupt(Image.new(mode, (1, 1)), name, 5)


def test_corrupted_images_of_a_run(tmp_path, capsys):
    make_set(tmp_path / "photos", ["one", "other"], images=10)
    words = ["--model", "inceptionnext_debug", "--data", str(tmp_path / "photos"), "--epochs", "1"]
    assert cli.main(["train", *words, "--warmup", "0", "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "run"), "--json", "--set", "corrupted"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = [value for row in found["corrupted"].values() for value in row]
    assert len(values) == len(CORRUPTIONS) * 5 and found["corrupted_top1"] == pytest.approx(np.mean(values))
    assert set(found["corrupted"]) == set(CORRUPTIONS) and found["images"] == 4
    assert cli.main(["evaluate", str(tmp_path / "run"), "--set", "corrupted"]) == 0
    assert "mean over corruptions and severities" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "b", "--data", "x"], "--set 'b' is unknown"),
        (["--set", "a"], "--set a needs --data FOLDER"),
        (["--set", "imagenet", "--data", "nowhere"], "nowhere"),
    ],
)
def test_mistakes(weights, capsys, words, told):
    assert cli.main(["evaluate", "--model", MODEL, "--checkpoint", str(weights), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xnext: error: ") and told in line


def test_files_that_do_not_say_their_number(tmp_path):
    (tmp_path / WNIDS[0]).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / WNIDS[0] / "cat.png")
    with pytest.raises(UserError, match=r"cat\.png is not called as an image of ImageNet's validation set"):
        load_set("real", str(tmp_path))
