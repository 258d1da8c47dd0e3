"""`xnext compare`: what it prints of trainings that are done, and of those that are not."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from xnext import cli
from xnext.training.compare import MOST_CURVES

WORDS = ["--model", "inceptionnext_debug", "--data", "digits", "--image-size", "16", "--batch-size", "512"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert cli.main(["train", *WORDS, "--epochs", "2", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """A training that is done; one that was killed and was better; one with several labels an image."""
    for name in ("done", "killed", "several"):
        shutil.copytree(trained, tmp_path / name)
    (tmp_path / "killed" / "summary.json").unlink()
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    rows[0]["val_top1"] = 99.5
    (tmp_path / "killed" / "metrics.jsonl").write_text(json.dumps(rows[0]))
    other = [row | {"val_map": 33.25, "val_map_at_100": 1.0} for row in rows]
    for row in other:
        del row["val_top1"], row["val_top5"]
    (tmp_path / "several" / "metrics.jsonl").write_text("\n".join(map(json.dumps, other)))
    return tmp_path


def main(capsys, *words):
    """Run a command that must succeed silently on stderr; return what it printed."""
    code = cli.main(["compare", *map(str, words)])
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    return output.out


def test_the_table(capsys, runs, trained, monkeypatch):
    monkeypatch.chdir(runs)
    _, heading, *rows, hint = main(capsys, "done", "killed", "several").splitlines()
    summary = json.loads((trained / "summary.json").read_text())
    assert heading.split("  ")[0] == "run"
    assert [row.split()[0] for row in rows] == ["killed", "done", "several"]
    assert rows[0].rstrip().endswith("1 of 2, unfinished")
    top1, mean_ap, epoch = rows[1].split()[3:6]
    assert (top1, mean_ap) == (f"{summary['best_val_top1']:.2f}", "-")
    assert epoch == str(summary["best_epoch"])
    assert f"{summary['params'] / 1e6:.2f}" in rows[1].split()
    assert rows[2].split()[3:5] == ["-", "33.25"]
    assert rows[0].split()[8:10] == ["-", "-"]  # what only the summary holds
    assert hint == "add --output compare.png to see their curves"
    assert "mAP" not in main(capsys, "done", "killed")


def test_json(capsys, runs, trained):
    results = json.loads(main(capsys, runs / "done", runs / "killed", "--json"))
    summary = json.loads((trained / "summary.json").read_text())
    assert [result["finished"] for result in results] == [False, True]
    assert results[0]["best"] == 99.5
    assert results[1]["best"] == summary["best_val_top1"]
    assert results[1]["last"] == summary["last_val_top1"]
    assert results[1]["val_loss"] == summary["best_val_loss"]


def test_the_picture(capsys, runs):
    out = main(capsys, *(runs / name for name in ("done", "killed", "several")), "--output", runs / "c.png")
    assert out.splitlines()[-1] == f"wrote {runs}/c.png"
    with Image.open(runs / "c.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 4 * 500
    assert json.loads(main(capsys, runs / "done", "--json", "--output", runs / "d.png"))
    assert (runs / "d.png").exists()


@pytest.mark.slow
def test_runs_with_names_of_any_letters_in_a_real_process(runs):
    names = ["猫 [red]", "two\nlines", ":cat:"]
    for name in names:
        shutil.copytree(runs / "done", runs / name)
    words = [sys.executable, "-m", "xnext", "compare", *names, "--output", "c.png"]
    result = subprocess.run(words, capture_output=True, encoding="utf-8", cwd=runs)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    assert all(
        any(line.startswith(shown) for line in lines) for shown in ("猫 [red]", "'two\\nlines'", ":cat:")
    )
    assert (runs / "c.png").exists()


def test_mistakes_in_one_line(capsys, runs, monkeypatch):
    monkeypatch.chdir(runs)
    (runs / "killed" / "metrics.jsonl").unlink()
    for index in range(MOST_CURVES + 1):
        shutil.copytree("done", f"done{index}")
    before = sorted(runs.rglob("*"))
    for words, expected in (
        (["done", "none"], "none is not a run"),
        (["done", "killed"], "killed has no finished epoch"),
        (["done", "--output", "c.jpg"], "c.jpg must end in .png"),
        (["done", "--output", "no/c.png"], "no/c.png: the folder does not exist"),
        (
            [f"done{index}" for index in range(MOST_CURVES + 1)] + ["--output", "c.png"],
            "up to 28 runs, not 29",
        ),
        ([], "missing RUN"),
    ):
        assert cli.main(["compare", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
    assert sorted(runs.rglob("*")) == before


@pytest.mark.parametrize("width", [40, 120])
def test_no_terminal_is_too_narrow_for_the_numbers(capsys, runs, monkeypatch, width):
    monkeypatch.chdir(runs)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = re.sub("\x1b.*?m", "", main(capsys, "done", "killed", "several"))  # without bold
    (result,) = json.loads(main(capsys, "several", "--json"))
    assert all(text in out for text in ("33.25", "99.50", f"{result['val_loss']:.4f}", "seconds"))
    assert max(map(len, out.splitlines()[:-1])) <= 120
