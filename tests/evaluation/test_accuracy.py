import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from torch import nn

from xnext.errors import UserError
from xnext.evaluation.accuracy import evaluate


def batches(logits, labels, sizes):
    """Cut a set into batches for a model that passes its input through; -1 in labels: could not be read."""
    places = torch.arange(len(labels))
    bad = torch.where(labels < 0, places, torch.full_like(places, -1))
    return list(zip(logits.split(sizes), labels.split(sizes), bad.split(sizes), strict=True))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 12), st.integers(1, 40), st.integers(1, 7), st.floats(0, 0.9), st.integers(0, 2**31 - 1)
)
def test_agrees_with_scikit_learn_on_the_readable_images(classes, count, batch_size, bad_share, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    labels[torch.rand(count, generator=generator) < bad_share] = -1
    labels[0] = labels[0].clamp(min=0)  # at least one is readable

    result = evaluate(nn.Identity(), batches(logits, labels, batch_size), num_classes=classes, device="cpu")

    good = labels >= 0
    truth, scores = labels[good].numpy(), logits[good].double()
    names = list(range(classes))
    expected = confusion_matrix(truth, scores.argmax(1).numpy(), labels=names)
    np.testing.assert_array_equal(result.detail, expected)
    assert result.detail.dtype == np.int64
    assert result.images == len(truth)
    assert result.bad_images == torch.nonzero(~good).flatten().tolist()
    assert result.metrics["top1"] == pytest.approx(100 * np.trace(expected) / len(truth))
    top5 = 1.0
    if classes > 5:
        top5 = top_k_accuracy_score(truth, scores.numpy(), k=5, labels=names)
    assert result.metrics["top5"] == pytest.approx(100 * top5, rel=1e-5)
    assert result.metrics["loss"] == pytest.approx(
        log_loss(truth, scores.softmax(1).numpy(), labels=names), rel=1e-4
    )


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_as_it_was(training):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = torch.randn(8, 3)
    first = evaluate(model, batches(logits, torch.arange(8) % 3, 4), num_classes=3, device="cpu")
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = evaluate(model, batches(logits, torch.arange(8) % 3, 8), num_classes=3, device="cpu")
    assert first.metrics["loss"] == pytest.approx(
        again.metrics["loss"]
    )  # neither dropout nor batch statistics took part


def test_restores_the_mode_after_an_error():
    model = nn.Linear(2, 3).train()
    with pytest.raises(RuntimeError):
        evaluate(
            model,
            batches(torch.randn(4, 5), torch.zeros(4, dtype=torch.long), 2),
            num_classes=3,
            device="cpu",
        )
    assert model.training


def test_nothing_readable_is_an_error():
    labels = torch.full((4,), -1)
    with pytest.raises(UserError, match="none of the 4 images"):
        evaluate(nn.Identity(), batches(torch.randn(4, 3), labels, 2), num_classes=3, device="cpu")


def test_half_precision_logits_are_counted_in_float():
    logits = torch.zeros(4, 3, dtype=torch.float16)
    result = evaluate(
        nn.Identity(), batches(logits, torch.tensor([0, 1, 2, 0]), 2), num_classes=3, device="cpu"
    )
    assert result.metrics["loss"] == pytest.approx(math.log(3), rel=1e-6)
