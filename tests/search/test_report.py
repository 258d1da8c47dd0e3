"""The report, as a browser shows it."""

import re
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


def test_without_a_trial_there_is_none(tmp_path, config, capsys):
    Search.create(tmp_path / "search", config())
    assert main(["report", str(tmp_path / "search")]) == 2
    error = capsys.readouterr().err
    assert "no trial has ended yet" in error and error.count("\n") == 1
    assert not (tmp_path / "search" / "report.html").exists()
