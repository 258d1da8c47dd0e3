import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import xnext
from xnext.data import Preprocessing, build_eval_transform, decode_image
from xnext.errors import UserError
from xnext.evaluation.predict import Classifier, load_classifier, predict
from xnext.models import save_checkpoint
from xnext.training import Run

CLASSES = ("apple", "banana", "cherry", "date", "elderberry", "fig", "grape")
PREPROCESSING = Preprocessing(
    image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0
)


def save(path, name="inceptionnext_debug", model_args=None, preprocessing=PREPROCESSING):
    sizes = {"num_classes": len(CLASSES), "in_chans": preprocessing.in_chans}
    model = xnext.create_model(name, **(model_args or {}), **sizes)
    save_checkpoint(
        path, model, model_name=name, model_args=model_args or {}, classes=CLASSES,
        preprocessing=preprocessing.to_dict(),
    )  # fmt: skip
    return model.eval()


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(7)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("batch_size", [1, 3, 7, 32])
def test_predictions_keep_the_order_and_are_those_of_the_network(tmp_path, pictures, batch_size):
    model = save(tmp_path / "a.safetensors")
    pictures.insert(2, tmp_path / "broken.png")
    pictures[2].write_bytes(pictures[0].read_bytes()[:100])
    classifier = load_classifier(tmp_path / "a.safetensors")
    found = list(predict(classifier, pictures, topk=3, batch_size=batch_size))

    assert [prediction.image for prediction in found] == pictures
    assert found[2].classes == ()
    assert "broken.png" in found[2].error
    transform = build_eval_transform(PREPROCESSING)
    for prediction in found[:2] + found[3:]:
        assert prediction.error is None
        logits = model(transform(decode_image(prediction.image))[None])[0]
        values, indices = logits.softmax(0).topk(3)
        assert [name for name, _ in prediction.classes] == [CLASSES[index] for index in indices]
        np.testing.assert_allclose([p for _, p in prediction.classes], values.tolist(), rtol=1e-4)


def test_more_classes_than_there_are_gives_all(tmp_path, pictures):
    save(tmp_path / "a.safetensors")
    (prediction,) = predict(load_classifier(tmp_path / "a.safetensors"), pictures[:1], topk=100)
    assert sorted(name for name, _ in prediction.classes) == sorted(CLASSES)
    assert sum(probability for _, probability in prediction.classes) == pytest.approx(1)


def test_only_unreadable_images(tmp_path):
    save(tmp_path / "a.safetensors")
    (tmp_path / "b.png").write_bytes(b"no image")
    found = list(predict(load_classifier(tmp_path / "a.safetensors"), [tmp_path / "b.png"] * 3))
    assert [prediction.error is None for prediction in found] == [False] * 3


@pytest.mark.parametrize("in_chans", [1, 3])
def test_a_checkpoint_carries_network_classes_and_preprocessing(tmp_path, in_chans):
    preprocessing = Preprocessing(
        image_size=48, mean=(0.4,) * in_chans, std=(0.3,) * in_chans, interpolation="bilinear", crop_pct=0.9,
        in_chans=in_chans,
    )  # fmt: skip
    arguments = {"band_kernel_size": 7}
    model = save(tmp_path / "a.safetensors", model_args=arguments, preprocessing=preprocessing)
    classifier = load_classifier(tmp_path / "a.safetensors")
    assert (classifier.name, classifier.classes, classifier.named) == ("inceptionnext_debug", CLASSES, True)
    assert classifier.preprocessing == preprocessing
    assert not classifier.model.training
    x = torch.randn(2, in_chans, 48, 48)
    with torch.no_grad():
        assert torch.equal(classifier.model(x), model(x))


def test_a_run_folder_gives_its_best_weights(tmp_path):
    run = Run.create(tmp_path / "run", "model: x\n")
    with pytest.raises(UserError, match="no epoch was finished"):
        load_classifier(tmp_path / "run")
    save(run.last)
    best = save(run.best)
    state = load_classifier(tmp_path / "run").model.state_dict()
    assert torch.equal(state["head.fc.weight"], best.state_dict()["head.fc.weight"])


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        load_classifier(tmp_path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.safetensors"):
        load_classifier(tmp_path / "none.safetensors")


def test_a_checkpoint_of_another_network(tmp_path):
    save(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="holds the network inceptionnext_debug, not xception_debug"):
        load_classifier(tmp_path / "a.safetensors", "xception_debug")


@pytest.mark.parametrize("classes", [10, 1000])
def test_published_weights_take_the_name_of_their_network(tmp_path, classes):
    model = xnext.create_model("xception_debug", num_classes=classes).eval()
    path = tmp_path / "published.pth"
    torch.save(model.state_dict(), path)
    with pytest.raises(UserError, match="add --model NAME"):
        load_classifier(path)
    classifier = load_classifier(path, "xception_debug")
    assert not classifier.named
    assert len(classifier.classes) == classes
    assert classifier.classes[2] == ("2" if classes == 10 else "great white shark")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(classifier.model(x), model(x))
    with pytest.raises(UserError, match="it is of another one"):
        load_classifier(path, "resnet50")
    with pytest.raises(UserError, match=r"Did you mean .*'xception_debug'"):
        load_classifier(path, "xception_debu")


def classifier_of(*classes):
    return Classifier(
        model=nn.Identity(), name="net", classes=classes, named=True, preprocessing=PREPROCESSING,
        device=torch.device("cpu"),
    )  # fmt: skip


def test_a_class_is_found_by_name_before_index():
    classifier = classifier_of("2", "zero", "one", "0")
    assert [classifier.class_index(target) for target in ("2", "zero", "0", "1", "3")] == [0, 1, 3, 1, 3]


@pytest.mark.parametrize("target", ["4", "-1", "1.0", "", "²"])
def test_no_such_class(target):
    with pytest.raises(UserError, match="It knows 'ant', 'bee', 'cat', 'dog'"):
        classifier_of("ant", "bee", "cat", "dog").class_index(target)


def test_a_misspelt_class_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'banana'"):
        classifier_of(*CLASSES).class_index("bannana")
