import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import list_optimizers

from xnext.errors import UserError
from xnext.training.schedule import LEARNING_RATES, build_scheduler, count_steps, learning_rate


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (5, 500),
        (0.5, 50),
        ("5", 500),
        ("5 epochs", 500),
        ("1 epoch", 100),
        ("2.5epochs", 250),
        ("300 steps", 300),
        ("3e6 samples", 93750),
        ("3_200 samples", 100),
        ("0 steps", 0),
    ],
)
def test_durations_in_epochs_steps_and_samples(duration, steps):
    assert count_steps(duration, steps_per_epoch=100, batch_size=32) == steps


@pytest.mark.parametrize("duration", ["", "epochs", "5 weeks", "-1", -1.0, "1 2 steps", "nan", float("inf")])
def test_what_is_no_duration(duration):
    with pytest.raises(UserError, match="is no duration"):
        count_steps(duration, steps_per_epoch=100, batch_size=32)


def test_sgd_rate_grows_linearly_and_adaptive_rates_with_the_square_root():
    assert learning_rate("sgd", 256) == 0.1
    assert learning_rate("sgd", 1024) == pytest.approx(0.4)
    for name in ("adam", "adamw", "nadamw", "lamb", "lion"):
        assert learning_rate(name, 1024) == pytest.approx(2 * learning_rate(name, 256))


@given(batch=st.integers(2, 8192), reference=st.integers(2, 8192))
def test_a_rate_for_a_batch_size_follows_the_rule(batch, reference):
    assert learning_rate("sgd", batch, f"0.5/{reference}") == pytest.approx(0.5 * batch / reference)
    assert learning_rate("adafactor", batch, f"0.5/{reference}") == pytest.approx(
        0.5 * math.sqrt(batch / reference)
    )
    assert learning_rate("adamw", batch, 0.5) == learning_rate("adamw", batch, "0.5") == 0.5


def test_every_rate_belongs_to_an_optimizer_of_timm():
    assert set(LEARNING_RATES) <= {str(name) for name in list_optimizers()}


def rates(config, steps_per_epoch, **group):
    """Return the learning rate of each step of a training."""
    resolved = config.resolve(16)
    groups = [{"params": [torch.zeros(1, requires_grad=True)], **group}]
    optimizer = torch.optim.SGD(groups, lr=resolved.lr)
    scheduler = build_scheduler(resolved, optimizer, steps_per_epoch)
    taken = []
    for step in range(resolved.epochs * steps_per_epoch):
        taken.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(step + 1)
    return taken


def test_learning_rate_rises_to_its_peak_and_falls_by_a_cosine(config):
    low = 0.005
    rise = [low + (0.5 - low) * step / 8 for step in range(8)]
    fall = [low + (0.5 - low) * (1 + math.cos(math.pi * step / 32)) / 2 for step in range(32)]
    assert rates(config(epochs=5, lr=0.5, warmup="1 epoch"), 8) == pytest.approx(rise + fall)


def test_the_cosine_and_the_rise_end_where_told(config):
    taken = rates(config(epochs=5, lr=0.5, warmup="10 steps", min_lr=0.1, warmup_lr=0.2), 8)
    assert taken[0] == pytest.approx(0.2) and max(taken) == taken[10] == pytest.approx(0.5)
    assert taken[-1] == pytest.approx(0.1, abs=0.01)


def test_steps_multiply_the_rate_after_the_warm_up(config):
    options = {"epochs": 6, "lr": 0.8, "schedule": "step", "decay_rate": 0.5}
    assert rates(config(warmup=0, decay_every="2 epochs", **options), 2) == pytest.approx(
        [0.8] * 4 + [0.4] * 4 + [0.2] * 4
    )
    in_samples = config(
        warmup="2 steps", warmup_lr=0.0, decay_every="80 samples", **options
    )  # of 16: 5 steps
    assert rates(in_samples, 2) == pytest.approx([0, 0.4] + [0.8] * 5 + [0.4] * 5)


def test_a_constant_rate_stays(config):
    assert rates(config(epochs=3, lr=0.8, schedule="constant", warmup=0), 4) == [0.8] * 12


def test_a_group_of_parameters_keeps_its_share(config):
    options = {"epochs": 3, "lr": 0.8, "schedule": "constant", "warmup": 0}
    assert rates(config(**options), 4, lr_scale=0.25) == [0.2] * 12


def test_a_warm_up_without_end_is_refused(config):
    with pytest.raises(UserError, match="warmup 3 epochs must be less than the 3 epochs"):
        rates(config(epochs=3, warmup="3 epochs"), 4)
