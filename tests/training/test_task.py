import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xnext.data import ArraySource, ImageData
from xnext.errors import UserError
from xnext.training.task import Classification, MultiLabel, build_task


def data_of(labels, classes=4):
    """A set of blank pictures with these labels, [N] or [N, classes]."""
    labels = np.asarray(labels)
    source = ArraySource(np.zeros((len(labels), 4, 4), np.uint8), np.zeros(len(labels)), "set")
    source.labels = labels
    return ImageData("set", tuple("abcdefgh"[:classes]), source, source)


def build(config, labels=(0, 1, 2, 3)):
    data = data_of(labels)
    return build_task(config.resolve(8, data.multilabel), data)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 8, 8, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 0, 2])
    return images, labels, torch.randn(6, 4, generator=generator)


def test_label_smoothing_spreads_its_share_over_all_classes(config, batch):
    images, labels, logits = batch
    task = build(config(label_smoothing=0.2))
    same, targets = task.blend(images, labels)
    assert same is images
    expected = 0.8 * F.one_hot(labels, 4) + 0.2 / 4
    torch.testing.assert_close(task.loss(logits, targets), F.cross_entropy(logits, expected))
    plain = build(config(label_smoothing=0.0)).loss(logits, labels)
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_blends_pictures_and_targets_by_the_same_share(config, batch, smoothing):
    images, labels, logits = batch
    np.random.seed(0)
    task = build(config(mixup=1.0, label_smoothing=smoothing))
    blended, targets = task.blend(images.clone(), labels)
    share = ((blended - images.flip(0)) / (images - images.flip(0))).median()
    assert 0.02 < share < 0.98
    torch.testing.assert_close(blended, share * images + (1 - share) * images.flip(0))
    hot = (1 - smoothing) * F.one_hot(labels, 4) + smoothing / 4
    expected = share * hot + (1 - share) * hot.flip(0)
    torch.testing.assert_close(task.loss(logits, targets), F.cross_entropy(logits, expected))


def test_cutmix_pastes_a_box_and_weighs_targets_by_its_area(config, batch):
    images, labels, logits = batch
    np.random.seed(3)
    task = build(config(cutmix=1.0, label_smoothing=0.0))
    blended, targets = task.blend(images.clone(), labels)
    kept = (blended == images).float().mean().item()
    assert 0.02 < kept < 0.98
    assert torch.equal((blended == images) | (blended == images.flip(0)), torch.ones_like(images).bool())
    expected = kept * F.one_hot(labels, 4) + (1 - kept) * F.one_hot(labels.flip(0), 4)
    torch.testing.assert_close(task.loss(logits, targets), F.cross_entropy(logits, expected))


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_bce_takes_each_class_for_itself_and_counts_what_is_above_the_threshold(config, batch, threshold):
    _, _, logits = batch
    task = build(config(loss="bce", bce_threshold=threshold, mixup=0.1))
    targets = torch.tensor([[0.75, 0.25, 0.0, 0.0], [0.9, 0.0, 0.1, 0.0]])
    expected = targets if threshold is None else torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    loss = F.binary_cross_entropy_with_logits(logits[:2], expected)
    torch.testing.assert_close(task.loss(logits[:2], targets), loss)


def test_bce_of_labels(config, batch):
    _, labels, logits = batch
    task = build(config(loss="bce", label_smoothing=0.0))
    expected = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 4).float())
    torch.testing.assert_close(task.loss(logits, labels), expected)


def test_smoothing_and_loss_follow_the_kind_of_labels(config, batch):
    _, labels, logits = batch
    one, several = build(config()), build(config(), labels=np.eye(4, dtype=bool))
    assert isinstance(one, Classification) and isinstance(several, MultiLabel)
    smooth = 0.9 * F.one_hot(labels, 4) + 0.1 / 4
    torch.testing.assert_close(one.loss(logits, labels), F.cross_entropy(logits, smooth))
    hot = F.one_hot(labels, 4).float()
    torch.testing.assert_close(several.loss(logits, hot), F.binary_cross_entropy_with_logits(logits, hot))
    with pytest.raises(UserError, match=r"loss ce is for one class an image.*--loss bce"):
        build(config(loss="ce"), labels=np.eye(4, dtype=bool))


def test_several_labels_are_smoothed_towards_one_half(config, batch):
    _, labels, logits = batch
    hot = F.one_hot(labels, 4).float()
    task = build(config(label_smoothing=0.2), labels=np.eye(4, dtype=bool))
    expected = F.binary_cross_entropy_with_logits(logits, 0.8 * hot + 0.1)
    torch.testing.assert_close(task.loss(logits, hot), expected)


def test_several_labels_are_blended_like_their_pictures(config, batch):
    images, _, _ = batch
    labels = torch.tensor(
        [[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0], [1, 0, 0, 0]]
    )
    np.random.seed(0)
    blended, targets = build(config(mixup=1.0), labels=np.eye(4, dtype=bool)).blend(images.clone(), labels)
    share = ((blended - images.flip(0)) / (images - images.flip(0))).median()
    torch.testing.assert_close(targets, share * labels + (1 - share) * labels.flip(0))


def test_rare_classes_weigh_more(config, batch):
    _, labels, logits = batch
    counted = [0] * 4 + [1] * 2 + [2] + [3]
    task = build(config(class_weights="auto", label_smoothing=0.0), counted)
    weights = torch.tensor([0.5, 1.0, 2.0, 2.0])  # 8 / (4 n)
    expected = (F.cross_entropy(logits, labels, reduction="none") * weights[labels]).mean()
    torch.testing.assert_close(task.loss(logits, labels), expected)
    parts = [task.loss(logits[:2], labels[:2]) * 2 / 6, task.loss(logits[2:], labels[2:]) * 4 / 6]
    torch.testing.assert_close(sum(parts), expected)


def test_rare_positives_weigh_as_much_as_all_negatives(config, batch):
    _, labels, logits = batch
    counted = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=bool)
    hot = F.one_hot(labels, 4).float()
    task = build(config(class_weights="auto"), counted)
    weights = torch.tensor([1 / 3, 3.0, 3.0, 3.0])
    expected = F.binary_cross_entropy_with_logits(logits, hot, pos_weight=weights)
    torch.testing.assert_close(task.loss(logits, hot), expected)


def test_weights_of_classes_from_a_file(config, batch, tmp_path):
    _, labels, logits = batch
    file = tmp_path / "weights.yaml"
    file.write_text("b: 3\nd: 0.5\n")
    task = build(config(class_weights=str(file), label_smoothing=0.0))
    weights = torch.tensor([1.0, 3.0, 1.0, 0.5])
    expected = (F.cross_entropy(logits, labels, reduction="none") * weights[labels]).mean()
    torch.testing.assert_close(task.loss(logits, labels), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no file; give none, auto"),
        ("x: 1\n", "no class 'x'"),
        ("a: -1\n", "weight of 'a' must be a number above 0, not -1"),
        ("a: yes please\n", "must be a number above 0, not 'yes please'"),
        ("a: .nan\n", "must be a number above 0"),
        ("- 1\n", "must hold lines of"),
    ],
)
def test_weights_that_do_not_fit_are_refused(config, tmp_path, content, message):
    file = tmp_path / "weights.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        build(config(class_weights=str(file)))
