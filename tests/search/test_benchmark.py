"""The table of trained networks, and what is replayed on it."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from xnext.search import Space

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.search import BEST, END, replay, summarise  # noqa: E402
from benchmarks.search_importance import measure  # noqa: E402
from benchmarks.search_table import BUDGETS, SPACE, read_table  # noqa: E402


@pytest.fixture(scope="module")
def rows():
    return read_table()


def test_the_table_holds_a_thousand_points_of_the_space(rows):
    space, nexception = Space.load(str(SPACE)), Space.load("nexception")
    assert len(rows) == space.count() >= 1000
    fixed = {"entry_acts": "1", "middle_acts": "1", "entry_norms": "0+1"}
    for row in rows[::50]:
        point = {choice: row[choice] for choice in space.choices}
        assert nexception.architecture(point | fixed).config == space.architecture(point).config
    for row in rows:
        seconds = [row[f"seconds_{budget}"] for budget in BUDGETS]
        assert 0 < seconds[0] < seconds[1] < seconds[2]
        assert all(0 <= row[f"top1_{budget}"] <= 100 for budget in BUDGETS)


def test_random_search_finds_the_best_as_late_as_chance_says(rows):
    """The first of the 1 % comes after as many draws without replacement as a simulation tells."""
    seconds = statistics.mean(row[f"seconds_{BUDGETS[-1]}"] for row in rows)
    replays = [replay("random", seed, rows, 1e9) for seed in range(30)]
    assert all(one.trials > len(rows) / 2 for one in replays), "until it draws nothing new any more"
    draws = statistics.mean(one.found / seconds for one in replays)
    expected = (len(rows) + 1) / (int(len(rows) * BEST) + 1)  # of the first of them
    assert expected / 2 < draws < expected * 2
    for one in replays:
        regrets = [regret for _, regret in one.course]
        assert regrets == sorted(regrets, reverse=True) and regrets[-1] == one.regret


def test_the_best_and_the_median_network_differ_by_several_deviations():
    """Of seeds that are not in the table, and of the means of two that are."""
    about = json.loads((ROOT / "benchmarks" / "results" / "search_table.json").read_text())
    best, median = about["networks"]["best"], about["networks"]["median"]
    deviation = (statistics.variance(best["seeds"]) + statistics.variance(median["seeds"])) ** 0.5 / 2**0.5
    gap = statistics.mean(best["seeds"]) - statistics.mean(median["seeds"])
    assert gap > 2 * deviation and gap > 3 * deviation / about["seeds_a_point"] ** 0.5


def test_a_replay_ends_when_its_time_is_over(rows):
    ones = [replay("evolution", seed, rows, 100.0) for seed in range(3)]
    assert all(when <= 100 for one in ones for when, _ in one.course)
    summary = summarise(ones, 100.0)
    after, at_best = summary["median_regret_after"], summary["seeds_at_the_best_after"]
    assert at_best["100"] == sum(one.regret == 0 for one in ones) >= at_best["50"] >= at_best["25"]
    assert after["100"] == statistics.median(one.regret for one in ones) <= after["50"] <= after["25"]
    assert ones[0].course == replay("evolution", 0, rows, 100.0).course


def test_what_mattered_in_the_table_is_what_the_documentation_says():
    found = measure("lpi")
    shares = {budget: {one.name: one.share for one in ones} for budget, ones in found.items()}
    assert [ones[0].name for ones in found.values()] == ["norm"] * 3
    assert found[BUDGETS[-1]][1].name == "middle_block"
    text = " ".join((ROOT / "docs" / "search.md").read_text().split())
    for name, start in (
        ("norm", "at each length ("),
        ("middle_block", "The block type gains with the epochs ("),
    ):
        said = text.partition(start)[2].partition(")")[0].replace(" and", ",").split(",")
        assert [float(share) for share in said] == pytest.approx(
            [ones[name] for ones in shares.values()], abs=6e-3
        )


@pytest.mark.slow
def test_smac_finds_the_best_in_half_of_the_time_of_random_search(tmp_path):
    """Takes minutes: 40 seeds of each, as the documentation shows them."""
    command = [sys.executable, "-m", "benchmarks.search", "--output", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    summary = json.loads((tmp_path / "search_benchmark.json").read_text())["summary"]
    random, smac = summary["random"], summary["smac"]
    assert smac["median_seconds_to_best"] <= random["median_seconds_to_best"] / 2
    after = {name: summary[name]["median_regret_after"] for name in summary}
    for mark in ("25", str(END)):
        assert after["smac"][mark] < min(after["random"][mark], after["evolution"][mark])
    # Then most searches have found the best network, and the median cannot be below that.
    assert after["smac"]["100"] <= after["evolution"]["100"] and after["smac"]["100"] < after["random"]["100"]
