"""Networks measured side by side."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from xnext import cli
from xnext._peak import peak_memory
from xnext.errors import UserError
from xnext.evaluation import throughput
from xnext.evaluation.throughput import Plan, Way, benchmark

SMALL = Plan(torch.device("cpu"), batch_size=2, image_size=32, repetitions=2, compiled=False)


def ways(plan: Plan, **kind: bool) -> list[str]:
    return [f"{way.name} {way.layout} {way.dtype}" for way in plan.ways(**kind)]


def test_ways_take_turns_and_compute_the_same():
    turns = []
    rows = benchmark("nexception_debug", SMALL, watch=lambda numbers: turns.extend(numbers) or turns)
    assert turns == [-1, 0, 1]
    assert [f"{row.way} {row.layout} {row.dtype}" for row in rows] == ways(SMALL, peer=False, fusable=True)
    assert rows[0].error == 0 and all(row.error < 1e-5 for row in rows if row.dtype == "fp32")
    assert all(row.median > 0 and row.mean > 0 and row.sd >= 0 and row.memory_mib > 0 for row in rows)


def test_the_ways_of_each_kind_of_network(monkeypatch):
    stock = ["eager NCHW fp32", "eager NHWC fp32"]
    monkeypatch.setattr(Plan, "_has_bf16", False)
    assert ways(SMALL, peer=False, fusable=True) == [*stock, "fused NHWC fp32"]
    monkeypatch.setattr(Plan, "_has_bf16", True)
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


def test_layouts_and_types():
    nchw = ways(replace(SMALL, layout="nchw"), peer=False, fusable=True)
    assert nchw[:2] == ["eager NCHW fp32", "fused NCHW fp32"] and "NHWC" not in " ".join(nchw)
    assert ways(replace(SMALL, layout="nhwc"), peer=True) == ["eager NHWC fp32"]
    assert ways(replace(SMALL, dtype="fp16"), peer=False, fusable=True)[-1] == "fused NHWC fp16"
    rows = benchmark("inceptionnext_debug", replace(SMALL, dtype="fp16"))
    assert all(0 <= row.error < 1e-2 for row in rows)
    before = torch.backends.cudnn.allow_tf32
    with throughput._precision("tf32"):
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_batches_become_smaller_until_they_fit(monkeypatch):
    def compare(name, plan, *rest):
        if plan.batch_size > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(name, plan, *rest)

    real = throughput._compare
    monkeypatch.setattr(throughput, "_compare", compare)
    rows = benchmark("convnext_debug", replace(SMALL, batch_size=16))
    assert {row.batch_size for row in rows} == {4}
    monkeypatch.setattr(throughput, "_compare", lambda *rest: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(UserError, match="convnext_debug does not fit into the memory with one image"):
        benchmark("convnext_debug", SMALL)


# As timm's tables have them, in millions for an image of 224 pixels, or 299.
ACTIVATIONS = {
    "resnet50": 11.11, "convnext_tiny": 13.44, "swin_tiny_patch4_window7_224": 17.06, "efficientnet_b0": 6.75,
    "inceptionnext_tiny": 11.98, "xception": 35.83,
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    size = throughput.measure_size(name, replace(SMALL, image_size=None))
    assert round(size.activations / 1e6, 2) == ACTIVATIONS[name]
    assert size.params > size.image_size and size.macs > size.activations


class Known(nn.Module):
    """Holds as much as an image, and then twice as much beside it."""

    def forward(self, x):
        more = (x + 1).repeat(1, 2, 1, 1)
        return more.mean(dim=(2, 3))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_most_memory_of_a_call(capfd, compiled):
    image, network = torch.zeros(1, 4, 256, 256), Known()  # of 1 MiB
    call = (lambda: network(image)) if not compiled else torch.compile(lambda: network(image).clone())
    with torch.inference_mode():
        call()
        capfd.readouterr()
        most = peak_memory(call, torch.device("cpu"))
    # Compiled, nothing but the means is ever in memory.
    assert most == pytest.approx(3 * 2**20, abs=2**10) if not compiled else 0 < most < 2**10
    assert capfd.readouterr() == ("", ""), "the profiler has nothing to say"
    conv = nn.Conv2d(4, 8, 1, bias=False)

    def step():
        conv.weight.grad = None
        conv(image).relu().sum().backward()

    # Two of 2 MiB each: what the convolution puts out, then its gradient, beside what the ReLU keeps.
    assert peak_memory(step, torch.device("cpu")) == pytest.approx(4 * 2**20, rel=0.01)


def test_all_peers_are_there():
    assert all(timm.is_model(name) for name in throughput.PEERS)


def test_the_peer_has_the_same_weights(monkeypatch):
    monkeypatch.setattr(throughput, "TWINS", {"inceptionnext_atto": "inception_next_atto"})
    rows = benchmark("inceptionnext_atto", SMALL, against=["mobilenetv3_small_050"])
    networks = ["timm inception_next_atto"] * 2
    networks += ["inceptionnext_atto"] * len(ways(SMALL, peer=False, fusable=True))
    assert [row.network for row in rows] == [*networks, *["timm mobilenetv3_small_050"] * 2]
    assert rows[2].error < 1e-5 and rows[-1].error is None


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_steps_of_training(monkeypatch, dtype):
    """Outputs and gradients are those of the peer, before anything is learned; then weights move."""
    monkeypatch.setattr(throughput, "TWINS", {"inceptionnext_atto": "inception_next_atto"})
    plan = replace(SMALL, training=True, dtype=dtype, batch_size=4, image_size=64)
    rows = benchmark("inceptionnext_atto", plan)
    assert [row.way for row in rows] == ["eager"] * 4 + ["accelerated"]
    assert all(row.dtype == dtype for row in rows)
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
    with pytest.raises(
        UserError, match=r"xception_debug, fused fp32, computes something else: it is 0\.01 off"
    ):
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
    with pytest.raises(UserError, match=r"eager fp32, computes something else: it is 0\.01 off"):
        benchmark("convnext_debug", replace(SMALL, training=True))


def plain(depth: int) -> nn.Module:
    """Convolutions with batch norms, without any residual connection: each magnifies what changes."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1)]
    for _ in range(depth):
        layers += [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 1000))


@pytest.mark.parametrize(
    ("depth", "errors", "refused"),
    [
        (1, [0, 2e-3], True),
        (60, [0, 2e-3], False),
        (60, [2e-3, 0], True),
        (60, [0, 1e9], True),
        (60, [0, math.nan], True),
    ],
)
def test_gradients_may_differ_by_what_rounding_does(depth, errors, refused):
    plan = replace(SMALL, training=True, image_size=8)
    size, model = 8, plain(depth)
    row = throughput.Row("plain", size, "eager", "NHWC", "fp32", 2, 1, 1, 0, 1, 1, max(errors), 0)
    with (
        pytest.raises(UserError, match="plain, eager fp32, computes something else")
        if refused
        else nullcontext()
    ):
        throughput._check([(row, errors)], model, plan)


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
    words = "--batch-size 2 --image-size 32 --repetitions 1 --no-compile --against mobilenetv3_small_050"
    command = ["benchmark", "inceptionnext_debug", "xception_debug", *words.split(), "--json", str(file)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("fused") >= 2 and printed.count("fastest for ") == 2 and "torch" in printed
    assert printed.count(" times timm mobilenetv3_small_050") == 2
    record = json.loads(file.read_text())
    assert [size["network"] for size in record["networks"]] == ["inceptionnext_debug", "xception_debug"]
    assert record["batch_size"] == 2 and record["versions"]["torch"] and record["versions"]["timm"]
    each = len(ways(SMALL, peer=False, fusable=True)) + len(ways(SMALL, peer=True))
    assert len(record["rows"]) == 2 * each
    assert {"layout", "dtype", "median", "mean", "sd", "batch_size", "memory_mib"} <= set(record["rows"][0])


@pytest.mark.slow
def test_compiled_networks(capsys):
    words = "--batch-size 2 --image-size 32 --repetitions 1 --compile"
    assert cli.main(["benchmark", "inceptionnext_debug", *words.split()]) == 0
    assert capsys.readouterr().out.count("fused, compiled") >= 2
    assert cli.main(["benchmark", "inceptionnext_debug", "--train", *words.split()]) == 0
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
        (["xception_debug", "--repetitions", "0"], "--repetitions is 0"),
        (["xception_debug", "--threads", "0"], "--threads is 0"),
        (["xception_debug", "--image-size", "1"], "1"),
        (["xception_debug", "--dtype", "fp61"], "--dtype 'fp61' is unknown"),
        (["xception_debug", "--dtype", "tf32"], "--dtype tf32 is a GPU's"),
        (["xception_debug", "--layout", "nhcw"], "--layout 'nhcw' is unknown. Did you mean 'nhwc'"),
        (
            ["xception_debug", "--against", "convnext_tni"],
            "neither xnext nor timm has a network 'convnext_tni'",
        ),
        (["xception_debug", "--json", "nowhere/at/all.json"], "there is no folder nowhere/at"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(capsys, words, told):
    assert cli.main(["benchmark", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xnext: error: ") and told in line
