"""The papers' tables beside what is counted and measured here."""

import csv
import io
import json
from dataclasses import replace

import pytest
import timm
import torch

import xnext
from xnext import cli
from xnext.errors import UserError
from xnext.evaluation import tables
from xnext.evaluation.tables import Entry, MeasuredSpeeds, PaperTable, compare, count_size, load_published
from xnext.evaluation.throughput import Plan, Row

PLAN = Plan(torch.device("cpu"), batch_size=2, repetitions=1, compiled=False)
PUBLISHED = load_published()
SMALL = PaperTable(
    "Small networks",
    "none",
    "first",
    (
        Entry("first", 32, "xception_debug", {}, {"params": 0.28, "steps": 10, "inference": 100}),
        Entry("second", 32, "xception_debug", {"residual": False}, {"params": 0.5, "steps": 20}),
        Entry("of nobody", 32, None, {}, {"params": 1, "inference": 50}),
    ),
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_that_is_published_can_be_read(name):
    table = PUBLISHED[name]
    assert table.baseline in [entry.name for entry in table.entries]
    assert len({entry.name for entry in table.entries}) == len(table.entries)
    for entry in table.entries:
        assert entry.network is None or timm.is_model(entry.network) or entry.network in xnext.list_models()
        assert entry.published and set(entry.published) <= set(tables.QUANTITIES)
    assert all(tables.QUANTITIES[quantity].heading for quantity in table.setting)


def test_counts_are_those_of_the_paper_within_its_digits():
    table = replace(PUBLISHED["inceptionnext-8"], entries=PUBLISHED["inceptionnext-8"].entries[:3])
    for line in compare(table, MeasuredSpeeds(None, PLAN), lambda entry: count_size(entry, PLAN)):
        for heading in ("params (M), difference", "MACs (G), difference"):
            assert abs(float(line[heading].removesuffix(" %"))) < 0.5


def test_formulas_are_what_is_counted():
    lines = tables.count_convolutions(channels=32, size=7)
    assert len(lines) == 15
    for line in lines:
        assert line["params"] == line["params, here"] and line["MFLOPs"] == line["MFLOPs, here"]


def measured(mean: float, fastest: float):
    """Return what stands for a measurement of one network, in two ways."""

    def benchmark(name, plan, watch, model_args, twin):
        calls.append((name, dict(model_args), plan.training, plan.image_size))
        factor = 1 if not model_args else 4
        return [
            Row(name, 32, "eager", "NCHW", "fp32", 2, 1.0, factor * mean, 0.1, 1.0, 1.0, 0.0, None),
            Row(name, 32, "eager", "NHWC", "fp32", 2, 1.0, factor * mean / 2, 0.1, 1.0, 1.0, 0.0, None),
            Row(name, 32, "fused", "NHWC", "fp32", 2, 1.0, fastest, 0.1, 1.0, 1.0, 0.0, None),
            Row(name, 32, "fused", "NHWC", "bf16", 2, 1.0, 1e9, 0.1, 1.0, 1.0, 0.0, None),
        ]

    calls = []
    return benchmark, calls


def test_speeds_are_measured_once_and_compared_with_the_baseline(tmp_path, monkeypatch):
    benchmark, calls = measured(8, 12)
    monkeypatch.setattr(tables, "benchmark", benchmark)
    speeds = MeasuredSpeeds(tmp_path / "speeds.json", PLAN)
    for entry in SMALL.entries:
        speeds.measure(entry, "train", iter)
    assert calls == [("xception_debug", {}, True, 32), ("xception_debug", {"residual": False}, True, 32)]
    again = MeasuredSpeeds(tmp_path / "speeds.json", PLAN)
    for entry in SMALL.entries:
        again.measure(entry, "train", iter)
    assert len(calls) == 2, "the file has them"
    first, second, third = compare(SMALL, again, lambda entry: count_size(entry, PLAN))
    assert first["steps a second, here"] == "4.00" and first["steps a second, fastest here"] == "6.00"
    assert first["steps a second, difference"] == "+0.0 %"
    assert second["steps a second, difference"] == "+100.0 %", "four times as fast instead of twice"
    assert float(second["params (M), difference"].removesuffix(" %")) < -40
    assert third == dict.fromkeys(first, "") | {
        "model": "of nobody", "params (M)": "1", "inference (images/s)": "50",
    }  # fmt: skip
    with pytest.raises(UserError, match="was measured with another batch_size; choose another --output"):
        MeasuredSpeeds(tmp_path / "speeds.json", replace(PLAN, batch_size=3))


def test_a_damaged_file_of_speeds(tmp_path):
    (tmp_path / "speeds.json").write_text('{"about": {')
    with pytest.raises(UserError, match=r"speeds\.json is damaged; delete it"):
        MeasuredSpeeds(tmp_path / "speeds.json", PLAN)


def test_the_command_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("xnext.cli.tables.load_published", lambda: {"small": SMALL})
    benchmark, calls = measured(8, 12)

    def stopped(*words, **options):
        if calls:
            raise KeyboardInterrupt
        return benchmark(*words, **options)

    command = ["tables", "small", "--measure", "train", "inference", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(tables, "benchmark", stopped)
    assert cli.main(command) == 130 and len(calls) == 1
    monkeypatch.setattr(tables, "benchmark", benchmark)
    assert cli.main(command) == 0 and len(calls) == 4
    assert "small: none: Small networks" in capsys.readouterr().out
    text = (tmp_path / "out" / "small.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["model"] for row in rows] == ["first", "second", "of nobody"]
    assert rows[0]["inference (images/s), here"] == "8.0"
    lines = (tmp_path / "out" / "small.md").read_text().splitlines()
    assert lines[0] == "# small" and len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert len(json.loads((tmp_path / "out" / "speeds.json").read_text())["speeds"]) == 4


def test_networks_are_really_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("xnext.cli.tables.load_published", lambda: {"small": SMALL})
    words = ["--measure", "inference", "train", "--batch-size", "2", "--repetitions", "2"]
    assert cli.main(["tables", *words, "--output", str(tmp_path)]) == 0
    speeds = json.loads((tmp_path / "speeds.json").read_text())["speeds"]
    assert len(speeds) == 4 and all(speed["mean"] > 0 for speed in speeds.values())
    assert speeds["inference xception_debug {} 32"]["best"]["mean"] > 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["inceptionnext-9"], "table 'inceptionnext-9' is unknown. Did you mean 'inceptionnext-"),
        (["--measure", "training"], "--measure 'training' is unknown. Did you mean 'train'"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["xception-3", "--output", "/dev/null/x"], "/dev/null"),
    ],
)
def test_mistakes(capsys, words, told):
    assert cli.main(["tables", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xnext: error: ") and told in line
