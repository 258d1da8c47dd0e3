import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xnext._figures import write_figure
from xnext.errors import UserError
from xnext.training import Run
from xnext.training.compare import MOST_CURVES, _distinct_names, draw_comparison, read_runs


def epochs(*results, metric="val_top1"):
    """Return the lines of a training with these results; the loss of an epoch is 1 / epoch."""
    return [
        {"epoch": number, "train_loss": 2 / number, "val_loss": 1 / number, metric: result, "lr": 1e-3,
         "seconds": 2.5, "images_per_second": 100.0 * number}
        for number, result in enumerate(results, start=1)
    ]  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """Write a run directory as a training leaves it."""

    def write(name, rows, *, finished=True, model="xception_debug", data="digits"):
        run = Run.create(tmp_path / name, f"model: {model}\ndata: {data}\nepochs: 9\n")
        run.write_metrics(rows)
        if finished:
            run.write_summary({"params": 1_500_000, "macs": 2_000_000_000, "versions": {"torch": "2"}})
        return run.path

    return write


def test_the_result_of_a_run(make):
    (run,) = read_runs([make("run", epochs(50.0, 70.0, 60.0))])
    assert run.to_dict() == {
        "run": str(run.path), "model": "xception_debug", "data": "digits", "metric": "top1", "best": 70.0,
        "best_epoch": 2, "last": 60.0, "val_loss": 0.5, "epochs": 9, "epochs_done": 3, "finished": True,
        "params": 1_500_000, "macs": 2_000_000_000, "seconds": 7.5, "images_per_second": 200.0,
    }  # fmt: skip


def test_of_equal_results_that_with_the_lowest_loss_is_the_best(make):
    (run,) = read_runs([make("run", epochs(70.0, 70.0, 60.0))])
    assert run.best["epoch"] == 2


def test_the_best_run_comes_first_and_a_run_comes_once(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [make(name, epochs(result)) for name, result in (("a", 10.0), ("b", 30.0), ("c", 20.0))]
    (tmp_path / "link").symlink_to("b")
    runs = read_runs([*paths, tmp_path / "link", tmp_path / "c" / ".." / "c"])
    assert [run.path for run in runs] == [paths[1], paths[2], paths[0]]


def test_a_training_that_goes_on_or_was_killed_is_unfinished(make):
    (run,) = read_runs([make("run", epochs(50.0, 70.0), finished=False)])
    result = run.to_dict()
    assert (result["finished"], result["epochs_done"], result["epochs"]) == (False, 2, 9)
    assert (result["best"], result["params"], result["macs"]) == (70.0, None, None)


def test_runs_of_several_kinds(make):
    several = epochs(40.0, 90.0, metric="val_map")
    for row in several:
        row |= {"val_map_at_100": 12.0, "raw_val_loss": 3.0, "raw_val_map": 95.0}
    runs = read_runs([make("several", several), make("one", epochs(50.0, 60.0))])
    assert [(run.path.name, run.metric, run.to_dict()["best"]) for run in runs] == [
        ("one", "top1", 60.0),
        ("several", "map", 90.0),
    ]
    figure = draw_comparison(runs)
    assert [axes.get_title() for axes in figure.axes] == [
        "training loss", "held-out loss", "held-out top-1", "held-out mAP",
    ]  # fmt: skip
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_ydata(), [50.0, 60.0])
    np.testing.assert_array_equal(figure.axes[3].lines[1].get_ydata(), [40.0, 90.0])


def test_what_a_run_has_not_measured_is_left_out(make):
    rows = epochs(50.0, 60.0)
    for row in rows:
        del row["train_loss"], row["val_loss"], row["images_per_second"]
    (run,) = read_runs([make("run", rows)])
    assert (run.to_dict()["val_loss"], run.to_dict()["images_per_second"]) == (None, None)
    assert len(draw_comparison([run]).axes[0].lines[0].get_xdata()) == 0


def test_the_picture_shows_every_epoch_and_marks_the_best(make, tmp_path):
    first, second = epochs(50.0, 70.0, 60.0), epochs(65.0)
    runs = read_runs([make("x/run", first), make("y/run", second, finished=False)])
    figure = draw_comparison(runs)
    train, val, top1 = figure.axes
    assert figure.get_suptitle() == "2 runs on digits"
    for axes, key in ((train, "train_loss"), (val, "val_loss"), (top1, "val_top1")):
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), [row[key] for row in first])
        marks = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
        best = [] if axes is train else [(2, first[1][key]), (1, second[0][key])]
        assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in marks] == best
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "x/run: best 70.00 % at epoch 2",
        "y/run: best 65.00 % at epoch 1, unfinished",
    ]
    write_figure(tmp_path / "picture.png", figure)


def test_curves_of_many_runs_are_told_apart(make):
    runs = read_runs([make(f"run{index:02}", epochs(1.0 * index)) for index in range(MOST_CURVES)])
    handles = draw_comparison(runs).legends[0].legend_handles
    assert len({(line.get_color(), line.get_linestyle()) for line in handles}) == MOST_CURVES


@given(st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join), min_size=1))
def test_names_are_as_short_as_tells_them_apart(tmp_path_factory, places):
    root = tmp_path_factory.getbasetemp() / "root"
    paths = [root / place for place in sorted(places)]
    names = _distinct_names(paths)
    assert len(set(names)) == len(names)
    for name, path in zip(names, paths, strict=True):
        assert str(path).endswith(name)
    shorter = ["/".join(name.split("/")[1:]) for name in names]
    assert len(set(shorter)) < len(names) or "" in shorter


def test_a_long_name_keeps_both_its_ends(tmp_path):
    (name,) = _distinct_names([tmp_path / ("first" + "x" * 100 + "last")])
    assert len(name) <= 60
    assert name.startswith("firstx") and name.endswith("xlast")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "run has no finished epoch"),
        ("", "run has no finished epoch"),
        ("{", "run/metrics.jsonl is damaged"),
        (b"\xff\xfe", "run/metrics.jsonl is damaged"),
        ("[1]", "run/metrics.jsonl is damaged .line 1"),
        ('{"val_top1": 3}', "run/metrics.jsonl is damaged .line 1"),
        ('{"epoch": 1, "val_top1": 3}\n{"epoch": 2, "val_top1": "high"}', "damaged .line 2"),
        ('{"epoch": null, "val_top1": 3}', "damaged .line 1"),
        ('{"epoch": 1, "val_top1": 3, "seconds": [1]}', "damaged .line 1"),
        ('{"epoch": 1, "val_loss": 3}', "run/metrics.jsonl is damaged .an epoch has no result"),
        ('{"epoch": 1, "val_top1": 3}\n{"epoch": 2}', "run/metrics.jsonl is damaged .an epoch has no"),
    ],
)
def test_metrics_that_are_damaged_are_named(make, content, message):
    path = make("run", [])
    (path / "metrics.jsonl").unlink()
    if content is not None:
        (path / "metrics.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_runs([path])


@pytest.mark.parametrize("content", ["", "[]", '{"params": "many"}', '{"macs": [1]}', "nan"])
def test_a_summary_that_is_damaged_is_named(make, content):
    path = make("run", epochs(1.0))
    (path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"run/summary\.json is damaged"):
        read_runs([path])


@pytest.mark.parametrize("content", ["", "a: [", "data: digits", "model: 3\ndata: digits", json.dumps([1])])
def test_a_config_that_is_damaged_is_named(make, content):
    path = make("run", epochs(1.0))
    (path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"run/config\.yaml"):
        read_runs([path])


def test_what_is_no_run_is_named(make, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for name in ("none", "loop", "file", "."):
        with pytest.raises(UserError, match="is not a run"):
            read_runs([make(f"run {name}", epochs(1.0)), tmp_path / name])
