"""What follows from a network's answers: against timm, torchmetrics and plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from xnext.errors import UserError
from xnext.evaluation import answers as module
from xnext.evaluation.answers import (
    Answers,
    calibration_error,
    collect,
    count_classes,
    count_confusions,
    draw_reliability,
    summarise,
)


class Table(nn.Module):
    """Answers image number i, whose pixels are i, with row i of a table."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.as_tensor(logits)

    def forward(self, x):
        return self.logits[x[:, 0, 0, 0].long()]


def ask(logits, labels, bad=(), **options) -> Answers:
    """Return the answers to images of which some cannot be read, in batches of three."""
    count, classes = len(labels), options.pop("classes", logits.shape[1])
    images = torch.arange(count).float()[:, None, None, None].expand(count, 3, 2, 2)
    unreadable = torch.tensor([i if i in bad else -1 for i in range(count)])
    batches = zip(images.split(3), torch.as_tensor(labels).split(3), unreadable.split(3), strict=True)
    right = np.zeros((count, classes), dtype=bool)
    right[np.arange(count), labels] = True
    return collect(Table(logits), batches, right, "cpu", **options)


CASES = st.integers(2, 30).flatmap(
    lambda n: st.tuples(
        arrays(np.float32, (n, 7), elements=st.floats(-8, 8, width=32), unique=True),
        arrays(np.int64, n, elements=st.integers(0, 6)),
    )
)


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_figures_are_those_of_torch_and_torchmetrics(case):
    logits, labels = case
    found = summarise(ask(logits, labels))
    values, targets = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    # The peer takes the largest probability, of which logits such as 1e-45 and 4e-20 have the same.
    most = values.softmax(1).topk(2).values
    assume((most[:, 0] > most[:, 1]).all())
    top = values.topk(5).indices
    assert found["top1"].value == pytest.approx(100 * (top[:, 0] == targets).double().mean().item())
    assert found["top5"].value == pytest.approx(100 * (top == targets[:, None]).any(1).double().mean().item())
    assert found["loss"].value == pytest.approx(nn.functional.cross_entropy(values, targets).item())
    error = multiclass_calibration_error(values.softmax(1), targets, num_classes=7, n_bins=15).item()
    assert found["calibration_error"].value == pytest.approx(100 * error, abs=1e-3)
    for estimate in found.values():
        assert estimate.low <= estimate.high
    for name in ("top1", "top5", "loss"):
        assert found[name].low - 1e-9 <= found[name].value <= found[name].high + 1e-9


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(100):
        correct = rng.random(200) < 0.7
        logits = np.where(correct, 2.0, -2.0)[:, None] * np.array([1.0, -1.0])
        estimate = summarise(ask(logits, np.zeros(200, dtype=int)), seed)["top1"]
        hits += estimate.low <= 70 <= estimate.high
    assert 88 <= hits <= 100


def test_unreadable_images_count_in_nothing_and_shift_nobody():
    logits = np.eye(5, dtype=np.float32)[[0, 1, 2, 3, 4]] * 9
    found = ask(logits, [0, 1, 2, 3, 0], bad=(1, 3))
    assert found.sources.tolist() == [0, 2, 4] and found.bad_images == [1, 3]
    assert found.hits[:, 0].tolist() == [True, True, False]
    assert count_classes(found) == [(0, 2, 1, 1), (2, 1, 1, 1)]
    assert count_confusions(found) == [(0, 4, 1)]
    with pytest.raises(UserError, match="none of the 5 images could be read"):
        ask(logits, [0, 1, 2, 3, 0], bad=range(5))


def test_several_right_classes():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 0.0]])
    right = np.array([[True, False, True], [False, True, False]])
    images = torch.arange(2).float()[:, None, None, None].expand(2, 3, 2, 2)
    found = collect(Table(logits), [(images, torch.zeros(2), torch.tensor([-1, -1]))], right, "cpu")
    assert found.hits.tolist() == [[False, True, True], [False, True, True]]
    logs = logits.log_softmax(1)
    assert found.nearest.tolist() == [2, 1]
    assert found.loss == pytest.approx([-logs[0, 2].item(), -logs[1, 1].item()])


def test_fewer_classes_may_be_answered():
    logits = np.array([[9.0, 1.0, 2.0], [0.0, 2.0, 1.0]], dtype=np.float32)
    found = ask(logits, [1, 0], classes=2, columns=np.array([1, 2]))
    assert found.top[:, 0].tolist() == [1, 0] and found.hits[:, 0].tolist() == [True, True]
    with pytest.raises(UserError, match="the network knows 3 classes, the images 2"):
        ask(logits, [1, 0], classes=2)


def test_mirrored_images_are_averaged_as_probabilities():
    class Sides(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 0, 0], x[:, 0, 0, -1]], dim=1)

    image = torch.tensor([[[[2.0, 0.0]]]])
    batch = [(image, torch.zeros(1), torch.tensor([-1]))]
    found = collect(Sides(), batch, np.array([[True, False]]), "cpu", mirrored=True)
    assert found.confidence == pytest.approx([0.5]), "what one side says the other takes back"


def test_outputs_that_are_not_finite():
    with pytest.raises(UserError, match="are not finite"):
        ask(np.array([[np.nan, 1.0]], dtype=np.float32), [0])


def test_the_reliability_picture_shows_the_bins():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (200, 4)).astype(np.float32)
    found = ask(logits, rng.integers(0, 4, 200))
    upper, lower = draw_reliability(found, "title").axes
    assert len(upper.patches) == len(lower.patches) == module.BINS
    assert sum(bar.get_height() for bar in lower.patches) == pytest.approx(100)
    error = calibration_error(found.confidence, found.hits[:, 0])
    assert any(f"{error:.2f} %" in text.get_text() for text in upper.get_legend().get_texts())
