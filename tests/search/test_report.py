"""The report, as a browser shows it."""

import html
import re
import shlex
import shutil
import subprocess

import pytest

from xnext.cli import main
from xnext.search import Search

SECTIONS = (
    "The best network", "Accuracy over time", "What it costs", "What mattered", "All trials at once",
    "Learning curves", "What went wrong", "Trials", "Do it again",
)  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory, module_config):
    path = tmp_path_factory.mktemp("report") / "<b>search</b>"
    Search.create(path, module_config(trials=8, max_epochs=1, limit=("params<=9000",))).run()
    assert main(["report", str(path)]) == 0
    return path


def test_it_is_one_file_with_everything(searched):
    page = (searched / "report.html").read_text()
    assert all(f"<h2>{title}</h2>" in page for title in SECTIONS)
    own = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)  # without Plotly itself
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", own), "it asks the network for nothing"
    assert "&lt;b&gt;search&lt;/b&gt;" in own and "<b>search</b>" not in own
    for record in Search.open(searched).history.records:
        assert f"<td>{record.number}</td><td>{record.network}</td>" in own


def test_a_browser_draws_every_figure(searched, tmp_path, chromium):
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom",
            str(searched / "report.html"),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "WebGL" not in line]
    assert not said, "nothing is amiss in the console"
    wanted = (searched / "report.html").read_text().count("Plotly.newPlot(")
    assert done.stdout.count('class="plot-container plotly"') == wanted == 5


@pytest.mark.parametrize("damage", [b'{"epoch": 1', b"\xff\xfe", b'{"epoch": 1}\n', b"3\n"])
def test_without_the_curve_of_a_network_whose_measures_are_damaged(searched, tmp_path, damage):
    shutil.copytree(searched, tmp_path / "search")
    search = Search.open(tmp_path / "search")
    for record in search.history.successes:
        (search.trial(record, 0).run / "metrics.jsonl").write_bytes(damage)
    assert main(["report", str(tmp_path / "search")]) == 0
    page = (tmp_path / "search" / "report.html").read_text()
    assert page.count("metrics.jsonl is damaged") == (0 if b"}" in damage else len(search.history.successes))


def test_its_commands_can_be_given(tmp_path, config, capsys):
    """With every option that was not the default, and names as a shell takes them."""
    search = Search.create(tmp_path / "a b", config(trials=1, limit=("params<=9e9", "macs<=9e9"), seed=3))
    search.run()
    assert main(["report", str(search.path)]) == 0
    page = (search.path / "report.html").read_text()
    lines = html.unescape(page.partition("Do it again</h2><pre>")[2].partition("</pre>")[0]).splitlines()
    again, best, train = (shlex.split(line)[1:] for line in lines)
    again[again.index("AGAIN")] = str(tmp_path / "again")
    assert main(again) == main(best) == 0
    assert Search.open(tmp_path / "again").config == search.config
    assert train[:3] == ["train", "--model", str(search.path / "best.yaml")]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert shlex.split(printed[-1])[1:] == ["xnext", *train]


def test_without_a_trial_there_is_none(tmp_path, config, capsys):
    Search.create(tmp_path / "search", config())
    assert main(["report", str(tmp_path / "search")]) == 2
    error = capsys.readouterr().err
    assert "no trial has ended yet" in error and error.count("\n") == 1
    assert not (tmp_path / "search" / "report.html").exists()
