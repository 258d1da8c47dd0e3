"""Networks measured side by side."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from xnext import cli
from xnext.errors import UserError
from xnext.evaluation import throughput
from xnext.evaluation.throughput import Plan, Way, benchmark

SMALL = Plan(torch.device("cpu"), batch_size=2, image_size=32, repeats=2, compiled=False)


def ways(plan: Plan, **kind: bool) -> list[str]:
    return [f"{way.name} {way.layout} {way.dtype}" for way in plan.ways(**kind)]


def test_ways_take_turns_and_compute_the_same():
    turns = []
    rows = benchmark("nexception_debug", SMALL, watch=lambda numbers: turns.extend(numbers) or turns)
    assert turns == [-1, 0, 1]
    assert [f"{row.way} {row.layout} {row.dtype}" for row in rows] == ways(SMALL, peer=False, fusable=True)
    assert rows[0].error == 0 and all(row.error < 1e-5 for row in rows if row.dtype == "fp32")
    assert all(0 < row.p10 <= row.median <= row.p90 for row in rows)


def test_the_ways_of_each_kind_of_network():
    stock = ["eager NCHW fp32", "eager NHWC fp32"]
    fused = ["fused NHWC fp32", "fused NHWC bf16"]
    assert ways(SMALL, peer=True) == stock
    assert ways(SMALL, peer=False, fusable=True) == stock + fused
    compiled = ["fused, compiled NHWC fp32", "fused, compiled NHWC bf16"]
    assert ways(replace(SMALL, compiled=True), peer=False, fusable=True) == stock + fused + compiled
    gpu = Plan(torch.device("cuda"), dtype="bf16")
    both = [f"{way} {layout} bf16" for way in ("eager", "compiled") for layout in ("NCHW", "NHWC")]
    own = [
        "accelerated NHWC bf16",
        "fused NHWC bf16",
        "accelerated, compiled NHWC bf16",
        "fused, compiled NHWC bf16",
    ]
    assert ways(gpu, peer=True) == both and ways(gpu, peer=False, fusable=True) == both + own
    assert ways(gpu, peer=False) == both + own[::2], "of timm, which fuse does not take"
    assert ways(replace(gpu, training=True), peer=False, fusable=True) == both + own[::2]


def test_the_peer_has_the_same_weights(monkeypatch):
    monkeypatch.setattr(throughput, "PEERS", {"inceptionnext_atto": "inception_next_atto"})
    rows = benchmark("inceptionnext_atto", SMALL, against=["mobilenetv3_small_050"])
    networks = ["timm inception_next_atto"] * 2 + ["inceptionnext_atto"] * 4
    assert [row.network for row in rows] == [*networks, *["timm mobilenetv3_small_050"] * 2]
    assert rows[2].error < 1e-5 and rows[-1].error is None


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_steps_of_training(monkeypatch, dtype):
    """Outputs and gradients are those of the peer, before anything is learned; then weights move."""
    monkeypatch.setattr(throughput, "PEERS", {"inceptionnext_atto": "inception_next_atto"})
    plan = replace(SMALL, training=True, dtype=dtype, batch_size=4, image_size=64)
    rows = benchmark("inceptionnext_atto", plan)
    assert len(rows) == 4 and all(row.dtype == dtype for row in rows)
    assert all(row.error < (1e-5 if dtype == "fp32" else 5e-2) for row in rows)
    step = throughput._call(Way(), nn.Sequential(nn.Conv2d(3, 1000, 8), nn.Flatten()), plan, size=8)
    (first, *gradients), (second, *_) = step(), step()
    assert len(gradients) == 2 and not torch.equal(first, second)


class Wrong(nn.Module):
    """A network that computes a little more."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) * 1.01


def test_a_way_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(throughput, "fuse", Wrong)
    with pytest.raises(UserError, match=r"xception_debug, fused, computes something else: it is 0\.01 off"):
        benchmark("xception_debug", SMALL)


def test_gradients_are_compared(monkeypatch):
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * 1.01

    def wrong(way, *inputs):
        model = prepare(way, *inputs)
        return nn.Sequential(model, Last()) if way.channels_last else model

    class Last(nn.Module):
        def forward(self, x):
            return Scaled.apply(x)

    prepare = Way.prepare
    monkeypatch.setattr(Way, "prepare", wrong)
    with pytest.raises(UserError, match=r"eager, computes something else: it is 0\.01 off"):
        benchmark("convnext_debug", replace(SMALL, training=True))


def test_ways_are_what_they_are_called():
    image = torch.randn(2, 3, 8, 8)
    assert Way(channels_last=False).convert(image, training=False).is_contiguous()
    assert Way().convert(image, training=False).is_contiguous(memory_format=torch.channels_last)
    half, conv = Way(dtype="bf16"), nn.Conv2d(3, 4, 1)
    assert half.convert(image, training=False).dtype == torch.bfloat16
    assert half.convert(image, training=True).dtype == half.prepare(conv, training=True).weight.dtype
    assert half.prepare(conv, training=False).weight.dtype == torch.bfloat16


def test_the_command_prints_a_table_and_writes_json(capsys, tmp_path):
    file = tmp_path / "speed.json"
    words = "--batch-size 2 --image-size 32 --repeats 1 --no-compile --against mobilenetv3_small_050"
    command = ["benchmark", "inceptionnext_debug", "xception_debug", *words.split(), "--output", str(file)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("fused") >= 4 and printed.count("fastest for ") == 2 and "torch" in printed
    assert printed.count(" times timm mobilenetv3_small_050") == 2
    record = json.loads(file.read_text())
    assert record["batch_size"] == 2 and len(record["rows"]) == 12 and record["versions"]["timm"]
    assert {"layout", "dtype", "median", "p10", "p90", "memory_mib"} <= set(record["rows"][0])


@pytest.mark.slow
def test_compiled_networks(capsys):
    words = "--batch-size 2 --image-size 32 --repeats 1"
    assert cli.main(["benchmark", "inceptionnext_debug", *words.split()]) == 0
    assert capsys.readouterr().out.count("fused, compiled") >= 2
    assert cli.main(["benchmark", "inceptionnext_debug", "--training", *words.split()]) == 0
    assert "compiled" in capsys.readouterr().out


def test_where_nothing_can_be_compiled_it_says_so(capsys, monkeypatch):
    def fail(*inputs):
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nmore")

    monkeypatch.setattr(nn.Module, "compile", lambda model: setattr(model, "forward", fail))
    assert cli.main(["benchmark", "convnext_debug", "--image-size", "32", "--batch-size", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be compiled here: no compiler; use --no-compile" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no_such"], "no_such"),
        (["xception_debug", "--batch-size", "0"], "--batch-size is 0"),
        (["xception_debug", "--repeats", "0"], "--repeats is 0"),
        (["xception_debug", "--threads", "0"], "--threads is 0"),
        (["xception_debug", "--image-size", "1"], "1"),
        (["xception_debug", "--dtype", "fp61"], "--dtype 'fp61' is unknown"),
        (
            ["xception_debug", "--against", "convnext_tni"],
            "neither xnext nor timm has a network 'convnext_tni'",
        ),
        (["xception_debug", "--output", "nowhere/at/all.json"], "there is no folder nowhere/at"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(capsys, words, told):
    assert cli.main(["benchmark", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xnext: error: ") and told in line
