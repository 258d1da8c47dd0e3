"""The papers' figures: the front is right, every network has its name, trainings are done once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xnext import cli
from xnext.evaluation import figures
from xnext.evaluation.figures import TRADEOFFS, Tradeoff, draw_kernels, draw_tradeoff
from xnext.evaluation.tables import Entry, PaperTable, Speeds, load_published

PUBLISHED = load_published()
POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12)


@settings(max_examples=8, deadline=None)
@given(POINTS, st.booleans())
def test_the_front_is_what_nothing_beats(points, less):
    entries = tuple(
        Entry(str(number), 32, None, {}, {"macs": x, "top1": y, "params": 1})
        for number, (x, y) in enumerate(points)
    )
    tables = {"table": PaperTable("title", "source", "0", entries)}
    figure = draw_tradeoff(Tradeoff("a figure", ("table",), "macs", less=less), tables, None)
    drawn = {(float(x), float(y)) for x, y in figure.axes[0].lines[0].get_xydata()}

    def better(one, other):
        x = one[0] <= other[0] if less else one[0] >= other[0]
        return x and one[1] >= other[1] and one != other

    assert drawn == {a for a in points if not any(better(b, a) for b in points)}


@pytest.mark.parametrize("name", TRADEOFFS)
def test_every_network_has_a_name_that_can_be_read(name):
    figure = draw_tradeoff(TRADEOFFS[name], PUBLISHED, None)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = TRADEOFFS[name].sizes
    wanted = [
        entry.name
        for table in TRADEOFFS[name].tables
        for entry in PUBLISHED[table].entries
        if TRADEOFFS[name].quantity in entry.published and low <= entry.published["params"] <= high
    ]
    assert sorted(text.get_text() for text in axes.texts) == sorted(wanted)
    bold = {text.get_text() for text in axes.texts if text.get_fontweight() == "bold"}
    assert {"Xception", "NEXcepTion-T"} <= bold or {"InceptionNeXt-T"} == bold
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(figures._overlap(one, other) for one, other in itertools.combinations(boxes, 2))


def test_a_name_that_stands_away_has_a_line_to_its_bubble():
    entries = tuple(
        Entry(f"network {n}", 32, None, {}, {"macs": 5, "top1": 7, "params": 20}) for n in "abcdef"
    )
    tables = {"table": PaperTable("title", "source", "0", entries)}
    axes = draw_tradeoff(Tradeoff("a figure", ("table",), "macs"), tables, None).axes[0]
    assert len(axes.texts) == 6
    lines = [line.get_xydata() for line in axes.lines[1:]]
    assert 0 < len(lines) < 6 and all(line[0].tolist() == [5, 7] for line in lines)
    far = [text for text in axes.texts if any(np.allclose(place_of(text, axes), line[1]) for line in lines)]
    assert len(far) == len(lines)


def place_of(text, axes):
    """Return where a name is anchored, in the units of the axes."""
    offset = np.array(text.xyann) * axes.figure.dpi / 72
    return axes.transData.inverted().transform(axes.transData.transform(text.xy) + offset)


def test_speeds_of_here_stand_in_place_of_the_papers():
    about = {"device": "an abacus", "batch_size": 2, "dtype": "fp32"}
    speeds = Speeds(about, {"inference xception {} 299": {"mean": 12.5}})
    figure = draw_tradeoff(TRADEOFFS["nexception-3"], PUBLISHED, speeds)
    assert [text.get_text() for text in figure.axes[0].texts] == ["Xception"]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[12.5, 79.0]]
    assert "an abacus" in figure.axes[0].get_title() and "here" in figure.axes[0].get_xlabel()


def test_what_kernels_cost():
    lines = draw_kernels(8, 10).axes[0].lines
    assert lines[0].get_xydata().tolist() == [
        [k, round(2 * k * k * 8 * 100 / 1e6, 2)] for k in (3, 5, 7, 9, 11)
    ]


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    for part, name in itertools.product(("train", "val"), ("dark", "light")):
        folder = tmp_path / "pictures" / part / name
        folder.mkdir(parents=True)
        for number in range(8):
            pixels = generator.integers(0, 128, (32, 32, 3)) + 127 * (name == "light")
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_profiles_of_real_trainings(tmp_path, pictures, capsys):
    words = [
        "figures",
        "xception-9",
        "inceptionnext-3",
        "--data",
        str(pictures),
        "--output",
        str(tmp_path / "out"),
    ]
    assert cli.main([*words, "--epochs", "1"]) == 0
    for name in ("xception-9", "inceptionnext-3"):
        assert Image.open(tmp_path / "out" / f"{name}.png").width > 500
    runs = tmp_path / "out" / "runs" / "xception-9"
    metrics = {path: path.read_text() for path in runs.glob("*/metrics.jsonl")}
    assert [path.parent.name for path in sorted(metrics)] == ["with-residual", "without-residual"]
    assert len(set(metrics.values())) == 2
    assert cli.main([*words, "--epochs", "1"]) == 0
    assert {path: path.read_text() for path in metrics} == metrics, "not trained again"
    capsys.readouterr()
    assert cli.main([*words, "--epochs", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "epochs" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nexception-4"], "figure 'nexception-4' is unknown. Did you mean 'nexception-"),
        (["xception-9", "--epochs", "0"], "--epochs is 0"),
        (["nexception-3", "--tables", "nowhere"], "there is no nowhere/speeds.json"),
        (["xception-9", "--model", "inceptionnext_debug"], "residual"),
    ],
)
def test_mistakes(tmp_path, capsys, words, told):
    assert cli.main(["figures", *words, "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xnext: error: ") and told in line
