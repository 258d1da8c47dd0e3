"""Networks measured side by side."""

import json

import pytest
import torch
from torch import nn

from xnext import cli
from xnext.errors import UserError
from xnext.evaluation import throughput
from xnext.evaluation.throughput import EAGER, FUSED, Way, benchmark

SMALL = {"batch_size": 2, "image_size": 32, "repeats": 2, "compiled": False, "device": torch.device("cpu")}


def test_ways_take_turns_and_compute_the_same():
    rows = benchmark("nexception_debug", **SMALL)
    assert [row.way for row in rows] == [way.name for way in (*EAGER, *FUSED)]
    assert rows[0].error == 0 and all(row.error < 1e-5 for row in rows if "bf16" not in row.way)
    assert all(0 < row.p10 <= row.median <= row.p90 for row in rows)


def test_the_peer_has_the_same_weights(monkeypatch):
    monkeypatch.setattr(throughput, "PEERS", {"inceptionnext_atto": "inception_next_atto"})
    rows = benchmark("inceptionnext_atto", **SMALL)
    assert [row.network for row in rows[:3]] == ["timm inception_next_atto"] * 2 + ["inceptionnext_atto"]
    assert rows[2].error < 1e-5


def test_a_way_that_computes_something_else_is_refused(monkeypatch):
    class Wrong(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x) * 1.01

    monkeypatch.setattr(throughput, "fuse", lambda model: Wrong(model))
    with pytest.raises(UserError, match=r"xception_debug, fused, computes something else: it is 0\.01 off"):
        benchmark("xception_debug", **SMALL)


def test_ways_are_what_they_are_called():
    image = torch.randn(2, 3, 8, 8)
    assert Way("a", channels_last=False).convert(image).is_contiguous()
    assert Way("b").convert(image).is_contiguous(memory_format=torch.channels_last)
    half = Way("c", dtype=torch.bfloat16)
    assert half.convert(image).dtype == half.prepare(nn.Conv2d(3, 4, 1)).weight.dtype == torch.bfloat16


def test_the_command_prints_a_table_and_writes_json(capsys, tmp_path):
    file = tmp_path / "speed.json"
    words = [
        "inceptionnext_debug",
        "xception_debug",
        "--batch-size",
        "2",
        "--repeats",
        "1",
        "--output",
        str(file),
    ]
    assert cli.main(["benchmark", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.count("fused, bf16") >= 2 and printed.count("fastest for ") == 2 and "torch" in printed
    record = json.loads(file.read_text())
    assert record["batch_size"] == 2 and len(record["rows"]) == 8 and record["versions"]["timm"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no_such"], "no_such"),
        (["xception_debug", "--batch-size", "0"], "--batch-size is 0"),
        (["xception_debug", "--repeats", "0"], "--repeats is 0"),
        (["xception_debug", "--threads", "0"], "--threads is 0"),
        (["xception_debug", "--image-size", "1"], "1"),
        (["xception_debug", "--output", "nowhere/at/all.json"], "there is no folder nowhere/at"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(capsys, words, told):
    assert cli.main(["benchmark", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xnext: error: ") and told in line
