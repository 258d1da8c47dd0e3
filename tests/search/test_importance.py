"""Importance: what is known of a made-up function is what is found."""

from dataclasses import asdict

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from xnext.cli import main
from xnext.errors import UserError
from xnext.search import Search, Space
from xnext.search.history import History
from xnext.search.importance import FEWEST, METHODS, functional_anova, local_importance, measure_importance
from xnext.search.journal import Journal
from xnext.search.optimizers import Query
from xnext.search.trial import Outcome

FIELDS = {
    "act": ["relu", "gelu", "elu", "celu"],
    "pool": ["max", "conv", "blur"],
    "middle_kernel_size": [3, 5, 7],
    "norm": ["batch", "layer"],
    "middle_block": ["plain", "bottleneck"],
    "squeeze_excite": [True],
}
SPACE = Space("made up", {"network": "nexception_debug", "choices": FIELDS})
CONDITIONAL = Space(
    "made up",
    {
        "network": "nexception_debug",
        "choices": FIELDS | {"expansion": [2, 3]},
        "conditions": {"expansion": {"middle_block": "bottleneck"}},
    },
)


def effects(space, seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Return what each value of each choice adds to a cost."""
    generator = np.random.default_rng(seed)
    return {
        choice: generator.normal(0, scale * 2.0**-place, len(values))
        for place, (choice, values) in enumerate(space.choices.items())
    }


def cost(space, point, parts) -> float:
    return sum(parts[name][list(space.choices[name]).index(value)] for name, value in point.items())


def every(space, parts):
    points = list(space.points())
    return points, np.array([cost(space, point, parts) for point in points])


@pytest.mark.parametrize("method", [local_importance, functional_anova])
def test_known_variances_are_found(method):
    parts = effects(SPACE)
    points, costs = every(SPACE, parts)
    variances = {name: values.var() for name, values in parts.items()}
    total = sum(variances.values())
    found = {one.choices: one for one in method(SPACE, points, costs)}
    for name, variance in variances.items():
        assert found[name,].share == pytest.approx(variance / total, abs=0.05)
        assert found[name,].low <= found[name,].share <= found[name,].high
    assert sum(one.share for one in found.values()) == pytest.approx(1, abs=0.05)
    assert found["squeeze_excite",].share == 0, "it has one value"


def test_functional_anova_is_optunas():
    """Which has no pairs, divides by what single choices decide, and draws its forest with other seeds."""
    optuna = pytest.importorskip("optuna")
    points, costs = every(SPACE, effects(SPACE, seed=3))
    costs = costs + np.random.default_rng(0).normal(0, 0.1, len(costs))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {
        name: optuna.distributions.CategoricalDistribution(list(values))
        for name, values in SPACE.choices.items()
    }
    study = optuna.create_study()
    study.add_trials(
        optuna.trial.create_trial(params=dict(point), distributions=distributions, value=value)
        for point, value in zip(points, costs, strict=True)
    )
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=128, max_depth=64, seed=0)
    theirs = optuna.importance.get_param_importances(study, evaluator=evaluator)
    single = {one.name: one.share for one in functional_anova(SPACE, points, costs) if len(one.choices) == 1}
    total = sum(single.values())
    assert max(theirs.values()) > 0.3
    for name, share in single.items():
        assert share / total == pytest.approx(theirs.get(name, 0.0), abs=0.02)


def test_a_pair_is_found():
    """Norm and block decide together alone."""
    points = list(SPACE.points())
    costs = np.array([float((p["norm"] == "batch") == (p["middle_block"] == "plain")) for p in points])
    first, *rest = functional_anova(SPACE, points, costs)
    assert first.choices == ("norm", "middle_block") and first.share > 0.7
    assert all(one.share < 0.05 for one in rest), "but for what greedy trees split on before"


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10**6), st.integers(6, 60), st.sampled_from([SPACE, CONDITIONAL]))
def test_shares_whatever_was_tried(seed, count, space):
    generator = np.random.default_rng(seed)
    listed = list(space.points())
    points = [listed[i] for i in generator.choice(len(listed), count)]
    costs = generator.normal(size=count)
    local = {one.choices: one.share for one in local_importance(space, points, costs)}
    assert sum(local.values()) == pytest.approx(1)
    best = points[int(costs.argmin())]
    assert all(local[name,] == 0 for name in space.choices if name not in best), "it does not exist there"
    anova = {one.choices: one.share for one in functional_anova(space, points, costs)}
    singles = [share for names, share in anova.items() if len(names) == 1]
    assert 0 < sum(anova.values()) <= 1 + 1e-6 and all(0 <= share <= 1 for share in singles)
    assert local["squeeze_excite",] == anova["squeeze_excite",] == 0
    for one in (*local_importance(space, points, costs), *functional_anova(space, points, costs)):
        assert 0 <= one.low <= one.share <= one.high <= 1, "it lies between its bounds"


def test_it_does_not_matter_which_way_is_up():
    """An accuracy tells the same as an error, of which the lowest is the best."""
    parts = effects(SPACE, seed=3)
    points, costs = every(SPACE, parts)
    chosen = np.random.default_rng(0).choice(len(points), 60, replace=False)
    points, costs = [points[i] for i in chosen], costs[chosen]
    error = {one.choices: one.share for one in functional_anova(SPACE, points, costs)}
    accuracy = {one.choices: one.share for one in functional_anova(SPACE, points, -costs)}
    assert accuracy == pytest.approx(error, abs=0.02)
    scaled = {one.choices: one.share for one in local_importance(SPACE, points, 5 * costs + 3)}
    assert scaled == pytest.approx(
        {one.choices: one.share for one in local_importance(SPACE, points, costs)}, abs=0.02
    )


def history_of(count: int, epochs: int = 3) -> History:
    history, parts = History(SPACE, ("top1",)), effects(SPACE, scale=5)
    for point in list(SPACE.points())[:count]:
        record = history.asked(Query(point, epochs))
        values = {"top1": 50 - cost(SPACE, point, parts)}
        history.told(record, Outcome(status="success", values=values), 1.0)
    return history


@pytest.mark.parametrize("method", METHODS)
def test_too_few_trials_are_told(method):
    for count in (0, 1, FEWEST - 1):
        with pytest.raises(UserError, match=f"{count} trials? of 3 epochs succeeded, and importance needs"):
            measure_importance(history_of(count), method, 3)
    assert measure_importance(history_of(20), method, 3)[0].share > 0
    with pytest.raises(UserError, match="had no objective 'macs', but top1"):
        measure_importance(history_of(20), method, 3, "macs")
    same = [next(iter(SPACE.points()))] * 6
    with pytest.raises(UserError, match="cost the same"):
        METHODS[method](SPACE, same, np.ones(6))


def test_from_the_command_line(config, tmp_path, capsys):
    output = tmp_path / "search"
    search = Search.create(output, config(trials=12, max_epochs=1))
    search.run()
    for method in METHODS:
        assert main(["importance", str(output), "--method", method]) == 0
        printed = capsys.readouterr().out
        assert " 1 epoch\n" in printed and "middle_block" in printed
        assert (output / f"importance_{method}.png").stat().st_size > 5000
    for words, line in [
        (["--budget", "7"], "0 trials of 7 epochs succeeded"),
        (["--budget", "many"], "neither a number of epochs nor all"),
        (["--method", "lip"], "Did you mean 'lpi'"),
        (["--objective", "macs"], "had no objective 'macs'"),
    ]:
        assert main(["importance", str(output), *words]) == 2
        error = capsys.readouterr().err
        assert error.count(line) == 1 and error.count("\n") == 1
    assert main(["importance", str(tmp_path)]) == 2
    assert "is not a search" in capsys.readouterr().err


def test_a_reason_of_all_lengths_is_told_once(config, tmp_path, capsys):
    search = Search.create(tmp_path / "search", config(max_epochs=3))
    journal, points = Journal.open(search.path / "journal.jsonl"), list(search.space.points())
    for number in range(2 * FEWEST):
        outcome = Outcome(status="success", values={"top1": float(number), "params": 1.0})
        journal.append(ask=number, point=points[number], epochs=1 if number < FEWEST else 3)
        journal.append(tell=number, costs=[1 - number / 100], elapsed=1.0, **asdict(outcome))
    command = ["importance", str(search.path)]
    assert main(command) == 0
    assert "1 epoch " in (printed := capsys.readouterr().out) and "3 epochs" in printed
    assert main([*command, "--objective", "macs"]) == 2
    error = capsys.readouterr().err
    assert error == f"xnext: error: {search.path}: the search had no objective 'macs', but top1\n"
