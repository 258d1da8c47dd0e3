"""A loss or gradient that is not finite stops the run with what a user needs, or takes it back."""

import io
import re

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from xnext.errors import UserError
from xnext.training import Run, train
from xnext.training.task import Classification


def quiet(config, **how):
    console = Console(file=io.StringIO(), width=500)
    return train(config, console, **how), console.file.getvalue()


@pytest.fixture
def burst(monkeypatch):
    """Let the loss be something else in the calls of the given numbers, from 0."""

    def arrange(calls, value=float("nan")):
        whole, made = Classification.loss, []

        def loss(self, logits, targets):
            made.append(None)
            result = whole(self, logits, targets)
            return result * value if len(made) - 1 in calls else result

        monkeypatch.setattr(Classification, "loss", loss)

    return arrange


OPTIONS = {"epochs": 3, "batch_size": 6, "save_every": "1 step", "keep": 5}  # 6 steps an epoch


def test_a_loss_that_is_not_finite_names_step_rate_and_the_last_good_state(config, burst):
    burst({8})
    config = config(**OPTIONS)
    with pytest.raises(UserError) as caught:
        quiet(config)
    message = str(caught.value)
    assert re.search(r"loss is nan in epoch 2, step 3 \(lr [\d.e-]+\)", message)
    assert "last good state is that after 8 steps" in message
    assert f"xnext train --resume {config.output} --force --lr LOWER" in message
    quiet(config.__class__.from_dict(config.to_dict() | {"lr": 1e-4}), resume=True, force=True)
    rows = Run(config.output).read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3] and rows[1]["lr"] < 1e-4  # the new rate counts


def test_a_gradient_that_is_not_finite_is_seen_although_the_loss_is(config, monkeypatch):
    config = config(**OPTIONS)
    whole = torch.nn.utils.get_total_norm
    calls = []

    def norm(gradients, *args, **kwargs):
        calls.append(None)
        if len(calls) == 4:
            next(iter(gradients)).fill_(float("inf"))
        return whole(gradients, *args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", norm)
    with pytest.raises(UserError, match=r"gradient norm is inf in epoch 1, step 4 .*after 3 steps"):
        quiet(config)


def test_rolled_back_it_goes_on_with_half_the_rate(config, burst):
    plain = config(**OPTIONS)
    quiet(plain)
    rates = [row["lr"] for row in Run(plain.output).read_metrics()]
    burst({8})
    config = config(**OPTIONS, on_nonfinite="rollback", output=plain.output.with_name("rolled"))
    _, output = quiet(config)
    rows = Run(config.output).read_metrics()
    assert rows[0]["lr"] == rates[0]
    assert [row["lr"] for row in rows[1:2]] == pytest.approx([rates[1] / 2], rel=0.05)
    assert "loss is nan in epoch 2, step 3" in output and "back to the state after 8 steps" in output
    assert all(tensor.isfinite().all() for tensor in load_file(Run(config.output).last).values())


def test_it_goes_back_three_times_and_no_more(config, burst):
    burst(range(8, 100))
    with pytest.raises(UserError, match="went back 3 times already") as caught:
        quiet(config(**OPTIONS, on_nonfinite="rollback"))
    assert "--resume" in str(caught.value)


def test_in_the_first_step_it_goes_back_to_the_beginning(config, burst):
    burst({0})
    config = config(**OPTIONS, on_nonfinite="rollback")
    _, output = quiet(config)
    assert "back to the state after 0 steps, with 0.5 times the rate" in output
    assert len(Run(config.output).read_metrics()) == 3
