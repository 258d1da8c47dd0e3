import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xnext.training.task import Classification


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 8, 8, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 0, 2])
    return images, labels, torch.randn(6, 4, generator=generator)


def test_label_smoothing_spreads_its_share_over_all_classes(config, batch):
    images, labels, logits = batch
    task = Classification(config(label_smoothing=0.2), 4)
    same, targets = task.blend(images, labels)
    assert same is images
    expected = 0.8 * F.one_hot(labels, 4) + 0.2 / 4
    torch.testing.assert_close(task.loss(logits, targets), F.cross_entropy(logits, expected))
    plain = Classification(config(label_smoothing=0.0), 4).loss(logits, labels)
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_blends_pictures_and_targets_by_the_same_share(config, batch, smoothing):
    images, labels, logits = batch
    np.random.seed(0)
    task = Classification(config(mixup=1.0, label_smoothing=smoothing), 4)
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
    task = Classification(config(cutmix=1.0, label_smoothing=0.0), 4)
    blended, targets = task.blend(images.clone(), labels)
    kept = (blended == images).float().mean().item()
    assert 0.02 < kept < 0.98
    assert torch.equal((blended == images) | (blended == images.flip(0)), torch.ones_like(images).bool())
    expected = kept * F.one_hot(labels, 4) + (1 - kept) * F.one_hot(labels.flip(0), 4)
    torch.testing.assert_close(task.loss(logits, targets), F.cross_entropy(logits, expected))


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_bce_takes_each_class_for_itself_and_counts_what_is_above_the_threshold(config, batch, threshold):
    _, _, logits = batch
    task = Classification(config(loss="bce", bce_threshold=threshold, mixup=0.1), 4)
    targets = torch.tensor([[0.75, 0.25, 0.0, 0.0], [0.9, 0.0, 0.1, 0.0]])
    expected = targets if threshold is None else torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    loss = F.binary_cross_entropy_with_logits(logits[:2], expected)
    torch.testing.assert_close(task.loss(logits[:2], targets), loss)


def test_bce_of_labels(config, batch):
    _, labels, logits = batch
    task = Classification(config(loss="bce", label_smoothing=0.0), 4)
    expected = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 4).float())
    torch.testing.assert_close(task.loss(logits, labels), expected)
