"""Measures of pictures with several classes, against hand-computed cases and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, log_loss
from torch import nn

from xnext.evaluation.accuracy import evaluate
from xnext.evaluation.multilabel import map_at_100


def measure(logits, labels, sizes=4):
    bad = torch.full((len(logits),), -1)
    batches = list(zip(logits.split(sizes), labels.float().split(sizes), bad.split(sizes), strict=True))
    return evaluate(nn.Identity(), batches, num_classes=labels.shape[1], device="cpu", multilabel=True)


def test_map_at_100_of_a_case_computed_by_hand():
    # Class a is in images 0, 1 and 3, ranked 1st, 3rd and 4th: AP = (1/1 + 2/3 + 3/4) / 3 = 29/36.
    # Class b is in image 2, ranked 2nd: AP = 1/2. Class c is in no image and has no weight.
    # Weighted by 3 and 1 images: (3 * 29/36 + 1/2) / 4 = 35/48.
    scores = torch.tensor([[0.9, 0.1, 0.3], [0.5, 0.9, 0.2], [0.7, 0.8, 0.1], [0.4, 0.2, 0.0]])
    targets = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]]).bool()
    assert map_at_100(scores, targets).item() == pytest.approx(35 / 48)
    result = measure(scores, targets, sizes=3)
    assert result.metrics["map_at_100"] == pytest.approx(100 * 35 / 48)
    assert result.metrics["map"] == pytest.approx(100 * (29 / 36 + 1 / 2) / 2)
    assert result.detail == pytest.approx([29 / 36, 1 / 2, np.nan], nan_ok=True)


def test_only_the_first_hundred_images_count():
    # 150 images have the class, of 300; ranks 1 to 50 are hits, the others come after rank 100.
    targets = torch.zeros(300, 1, dtype=torch.bool)
    targets[:50] = targets[200:] = True
    scores = torch.linspace(1, 0, 300)[:, None]
    assert map_at_100(scores, targets).item() == pytest.approx(50 / 100)
    assert measure(scores, targets).metrics["map"] > 50


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(2, 60), st.integers(1, 9), st.integers(0, 2**31 - 1))
def test_agrees_with_scikit_learn(classes, count, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.rand(count, classes, generator=generator) < 0.3
    labels[0, 0] = True
    result = measure(logits, labels, sizes)
    seen = labels.any(dim=0)
    expected = [average_precision_score(labels[:, c], logits[:, c]) for c in range(classes) if seen[c]]
    assert result.detail[seen.numpy()] == pytest.approx(expected, rel=1e-5)
    assert np.isnan(result.detail[~seen.numpy()]).all()
    assert result.metrics["map"] == pytest.approx(100 * np.mean(expected), rel=1e-5)
    weights = labels.sum(dim=0)[seen].numpy()
    assert result.metrics["map_at_100"] == pytest.approx(
        100 * np.average(expected, weights=weights), rel=1e-5
    )
    loss = np.mean([log_loss(labels[:, c], logits[:, c].sigmoid(), labels=[0, 1]) for c in range(classes)])
    assert result.metrics["loss"] == pytest.approx(loss, rel=1e-4)


def test_images_that_could_not_be_read_count_in_nothing():
    logits, labels = torch.tensor([[2.0, -1.0], [9.0, 9.0]]), torch.tensor([[1.0, 0.0], [-1.0, -1.0]])
    batch = [(logits, labels, torch.tensor([-1, 1]))]
    result = evaluate(nn.Identity(), batch, num_classes=2, device="cpu", multilabel=True)
    assert (result.images, result.bad_images) == (1, [1])
    assert result.metrics["map"] == 100
