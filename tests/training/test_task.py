import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xnext.training.task import Classification


class Recorder(nn.Module):
    """Keeps its input and answers with fixed logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        self.images = images.clone()
        return self.logits


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 8, 8, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 0, 2])
    return images, labels, Recorder(torch.randn(6, 4, generator=generator))


def test_label_smoothing_spreads_its_share_over_all_classes(config, batch):
    images, labels, model = batch
    loss = Classification(config(label_smoothing=0.2), 4).loss(model, images, labels)
    targets = 0.8 * F.one_hot(labels, 4) + 0.2 / 4
    torch.testing.assert_close(loss, F.cross_entropy(model.logits, targets))
    plain = Classification(config(label_smoothing=0.0), 4).loss(model, images, labels)
    torch.testing.assert_close(plain, F.cross_entropy(model.logits, labels))


def test_mixup_blends_pictures_and_targets_by_the_same_share(config, batch):
    images, labels, model = batch
    np.random.seed(0)
    loss = Classification(config(mixup=1.0, label_smoothing=0.0), 4).loss(model, images.clone(), labels)
    share = ((model.images - images.flip(0)) / (images - images.flip(0))).median()
    assert 0.02 < share < 0.98
    torch.testing.assert_close(model.images, share * images + (1 - share) * images.flip(0))
    targets = share * F.one_hot(labels, 4) + (1 - share) * F.one_hot(labels.flip(0), 4)
    torch.testing.assert_close(loss, F.cross_entropy(model.logits, targets))


def test_cutmix_pastes_a_box_and_weighs_targets_by_its_area(config, batch):
    images, labels, model = batch
    np.random.seed(3)
    loss = Classification(config(cutmix=1.0, label_smoothing=0.0), 4).loss(model, images.clone(), labels)
    kept = (model.images == images).float().mean().item()
    assert 0.02 < kept < 0.98
    assert torch.equal(
        (model.images == images) | (model.images == images.flip(0)), torch.ones_like(images).bool()
    )
    targets = kept * F.one_hot(labels, 4) + (1 - kept) * F.one_hot(labels.flip(0), 4)
    torch.testing.assert_close(loss, F.cross_entropy(model.logits, targets))
