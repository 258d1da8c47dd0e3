"""Pictures of several classes: from a table to a run that later commands take."""

import io
import json

import pytest
import torch
from PIL import Image
from rich.console import Console

from xnext.cli import main
from xnext.data import find_images
from xnext.evaluation.predict import load_classifier, predict
from xnext.training import Run, train


@pytest.fixture(scope="module")
def run(tagged, tmp_path_factory):
    """A training that has learnt the colours."""
    from xnext.training import TrainConfig

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(
        model="nexception_debug", data=str(tagged), output=folder, epochs=12, batch_size=8, image_size=32,
        lr=4e-3, mixup=0.2, model_ema=0.8, device="cpu",
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=300)
    summary = train(config, console)
    return folder, summary, console.file.getvalue()


def test_it_learns_and_says_how_well(run):
    folder, summary, output = run
    rows = Run(folder).read_metrics()
    assert {"val_loss", "val_map", "val_map_at_100", "raw_val_map"} <= rows[0].keys()
    assert not any("top1" in key for key in rows[0])
    assert summary["best_val_map"] == max(row["val_map"] for row in rows) > 85
    assert "mAP %" in output and "MAP@100 %" in output
    for picture in ("curves.png", "precision.png"):
        Image.open(folder / picture).verify()
    assert not (folder / "confusion.png").exists()
    assert Run(folder).read_config().loss == "bce"


def test_evaluate_measures_the_same(run, capsys):
    folder, summary, _ = run
    assert main(["evaluate", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["map"] == pytest.approx(summary["best_val_map"], rel=1e-4)
    assert report["map_at_100"] == pytest.approx(summary["best_val_map_at_100"], rel=1e-4)
    assert main(["evaluate", str(folder)]) == 0
    table = capsys.readouterr().out
    assert "mAP %" in table and "top-1" not in table


def test_predict_names_every_class_that_an_image_rather_has(run, tagged, capsys):
    folder, _, _ = run
    images = find_images([tagged.parent])
    classifier = load_classifier(folder)
    assert classifier.multilabel
    for prediction in predict(classifier, images, topk=None):
        probabilities = [value for _, value in prediction.classes]
        assert len(probabilities) == 1 or min(probabilities) >= 0.5
    assert max(len(p.classes) for p in predict(classifier, images, topk=None)) == 2
    assert {len(p.classes) for p in predict(classifier, images, topk=3)} == {3}
    assert main(["predict", str(images[0]), "--checkpoint", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"]


def test_cam_explains_a_class_by_its_own_probability(run, tagged, tmp_path):
    folder, _, _ = run
    picture = tmp_path / "cam.png"
    image = next(iter(find_images([tagged.parent])))
    assert (
        main(["cam", str(image), "--checkpoint", str(folder), "--target", "red", "--output", str(picture)])
        == 0
    )
    Image.open(picture).verify()
