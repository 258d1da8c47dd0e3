"""SMAC3 as an optimiser: a forest says what to try, Hyperband for how long, ParEGO weighs objectives."""

import contextlib
import logging
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xnext.errors import UserError
from xnext.search.optimizers import Optimizer, Query, Task, dominates
from xnext.search.space import Space

try:
    from ConfigSpace import (
        CategoricalHyperparameter,
        ConfigurationSpace,
        EqualsCondition,
        ForbiddenAndConjunction,
        ForbiddenInClause,
        InCondition,
    )
    from ConfigSpace.conditions import AndConjunction
    from ConfigSpace.util import get_one_exchange_neighbourhood
    from smac import HyperparameterOptimizationFacade, MultiFidelityFacade, Scenario
    from smac.acquisition.maximizer import LocalAndSortedRandomSearch, LocalSearch
    from smac.main.config_selector import ConfigSelector
    from smac.main.exceptions import ConfigurationSpaceExhaustedException
    from smac.runhistory import StatusType, TrialInfo, TrialValue
except ImportError as error:
    raise UserError("the optimizer smac needs SMAC3: pip install 'xnext[search]'; or use random") from error

_ENDLESS = 10**6  # trials, of which the search knows when there were enough: it may be told to go on
_ETA = 3
_CHALLENGERS = 1000  # points of which the most promising is asked
_MOST_KNOWN = 3000  # of the most promising that may be known already, before a point is drawn
_NEAR = 0.4  # share of points that are next to one of the best known, whatever the forest says
_BEST = 5  # of the points that were trained to the end


class Smac(Optimizer):
    """Bayesian optimisation with a random forest; with budgets, Hyperband over them."""

    def __init__(self, task: Task) -> None:
        self._asked: dict[tuple[Any, int], list[TrialInfo]] = {}
        self._several = len(task.objectives) > 1
        self._task = task
        # SMAC makes the folder of its results at once, and would write them only if it were told to.
        with _quiet(), tempfile.TemporaryDirectory(prefix="xnext-smac-") as folder:
            self._facade = _facade(task, Path(folder))

    def ask(self) -> Query | None:
        """Return SMAC's next trial; once it finds nothing new, what has not been trained to the end."""
        try:
            with _quiet():
                info = self._facade.ask()
        except (ConfigurationSpaceExhaustedException, StopIteration):
            return self._ask_rest()
        point = {name: str(info.config[name]) for name in self._task.space.choices if name in info.config}
        epochs = self._task.max_epochs if info.budget is None else max(1, round(info.budget))
        self._asked.setdefault(_key(point, epochs), []).append(info)
        return Query(point, epochs)

    def _ask_rest(self) -> Query | None:
        """Return the next point of a small space that was never asked with all epochs."""
        for point in self._task.space.points():
            if (key := _key(point, self._task.max_epochs)) not in self._asked:
                self._asked[key] = []
                return Query(point, self._task.max_epochs)
        return None

    def tell(self, query: Query, costs: Sequence[float]) -> None:
        """Tell SMAC."""
        if not (asked := self._asked[_key(query.point, query.epochs)]):
            return  # it has given up
        info = asked.pop(0)
        cost = list(costs) if self._several else costs[0]
        with _quiet():
            self._facade.tell(info, TrialValue(cost=cost, status=StatusType.SUCCESS), save=False)


def _key(point: Any, epochs: int) -> tuple[Any, int]:
    return tuple(sorted(point.items())), epochs


def _facade(task: Task, folder: Path) -> Any:
    """Return SMAC, told what to do."""
    space = to_configspace(task.space, task.seed)
    several = len(task.objectives) > 1
    options: dict[str, Any] = {
        "objectives": list(task.objectives) if several else task.objectives[0],
        "output_directory": folder,
        "deterministic": True,
        "n_trials": _ENDLESS,
        "seed": task.seed,
    }
    kind: Any = HyperparameterOptimizationFacade
    if task.min_epochs < task.max_epochs:
        kind = MultiFidelityFacade
        options |= {"min_budget": task.min_epochs, "max_budget": task.max_epochs}
    scenario = Scenario(space, **options)
    maximizer = _Maximizer(space, challengers=_CHALLENGERS, seed=task.seed)
    # Trees that may have 2^20 leaves take 130 MB and 70 ms each, and threads cost more than ten trees do.
    model = kind.get_model(scenario)
    model._rf_opts |= {"max_leaf_nodes": None, "n_jobs": 1}
    parts = {
        "model": model,
        # Trials take seconds and a forest a tenth of one: it learns from each, of the longest of which there
        # are enough, and not from the first that was trained to the end. Once a search is where the good
        # networks are, it knows most of those that look best; the next new one is wanted then, not chance.
        "config_selector": _Selector(
            scenario, retrain_after=1, min_trials=len(task.space.choices), max_new_config_tries=_MOST_KNOWN
        ),
        "initial_design": kind.get_initial_design(scenario, n_configs=len(task.space.choices)),
        "acquisition_maximizer": maximizer,
    }
    if several:
        parts["multi_objective_algorithm"] = kind.get_multi_objective_algorithm(scenario)
    if kind is MultiFidelityFacade:
        # Of several objectives, SMAC cannot compare a front whose trials are of other lengths.
        parts["intensifier"] = kind.get_intensifier(scenario, eta=_ETA, incumbent_selection="highest_budget")
    return kind(scenario, _never, overwrite=True, logging_level=False, **parts)


class _Selector(ConfigSelector):
    """SMAC's selection of what to try, which may come back to a network that a short trial spoke against.

    Hyperband drops two of three networks after their shortest trial, for good; but that trial is noisy, and
    the forest, which learns from the longest ones, may know better by now. What is known of such a network
    is not asked again, and its training goes on from there.
    """

    _entries = 0

    def _collect_data(self) -> Any:
        runs = self._runhistory
        assert runs is not None, "SMAC sets it first"
        if (entries := len(runs)) != self._entries:  # within a bracket none is taken twice
            self._entries = entries
            budgets: dict[int, set[Any]] = {}
            for key in runs:
                budgets.setdefault(key.config_id, set()).add(key.budget)

            def is_open(config: Any) -> bool:
                known = budgets.get(runs.config_ids.get(config, -1), set())
                return (
                    bool(known)
                    and self._scenario.max_budget not in known
                    and not runs.get_running_trials(config)
                )

            self._processed_configs = [config for config in self._processed_configs if not is_open(config)]
            assert isinstance(self._acquisition_maximizer, _Maximizer), "it is told so"
            self._acquisition_maximizer.best = self._best(runs)
        return super()._collect_data()

    def _best(self, runs: Any) -> list[Any]:
        """Return the best of what was trained to the end; of several objectives, the least dominated."""
        ended = {
            key.config_id: run.cost
            for key, run in runs.items()
            if key.budget == self._scenario.max_budget and run.status != StatusType.RUNNING
        }
        if self._scenario.count_objectives() > 1:
            ended = {one: (sum(dominates(b, a) for b in ended.values()), *a) for one, a in ended.items()}
        return [runs.get_config(one) for one in sorted(ended, key=lambda one: (ended[one], one))[:_BEST]]


class _Maximizer(LocalAndSortedRandomSearch):
    """SMAC's search for what the forest thinks promising, and in between the neighbours of the best.

    SMAC has a share of any points there, in case the forest is wrong; late in a search hardly one of these
    is good, but one of the best differs in a single choice from the best known.
    """

    def __init__(self, space: ConfigurationSpace, challengers: int, seed: int) -> None:
        super().__init__(space, challengers=challengers, local_search_iterations=10, seed=seed)
        self._local_search = _OrderedLocalSearch(space, seed=seed)
        self._random = random.Random(seed)
        self.best: list[Any] = []

    def maximize(self, previous_configs: Any, n_points: int | None = None, random_design: Any = None) -> Any:
        """Yield points to try, without end but for that of the promising ones."""
        promising = super().maximize(previous_configs, n_points)
        while True:
            try:
                yield self._draw() if self._random.random() < _NEAR else next(promising)
            except StopIteration:
                return

    def _draw(self) -> Any:
        if len(self.best) == _BEST:
            seed = self._random.randrange(2**32)
            near = list(get_one_exchange_neighbourhood(self._random.choice(self.best), seed))
            if near:
                return self._random.choice(near)
        return self._configspace.sample_configuration()


class _OrderedLocalSearch(LocalSearch):
    """SMAC's local search, which starts from a set: its order is another in every process of Python."""

    def _get_initial_points(self, *inputs: Any, **options: Any) -> list[Any]:
        return sorted(super()._get_initial_points(*inputs, **options), key=lambda c: sorted(c.items()))


def _never(config: Any, seed: int = 0, budget: float = 0) -> float:
    """Stand in for the function that SMAC never calls, since it is only asked and told."""
    raise AssertionError("SMAC is only asked and told")


def to_configspace(space: Space, seed: int = 0) -> ConfigurationSpace:
    """Return a space as SMAC knows it."""
    result = ConfigurationSpace(name=space.name, seed=seed)
    parameters = {
        name: CategoricalHyperparameter(name, list(values)) for name, values in space.choices.items()
    }
    result.add(*parameters.values())
    for child, parents in space.conditions.items():
        parts = [
            InCondition(parameters[child], parameters[parent], list(values))
            if len(values) > 1
            else EqualsCondition(parameters[child], parameters[parent], values[0])
            for parent, values in parents.items()
        ]
        result.add(parts[0] if len(parts) == 1 else AndConjunction(*parts))
    for clause in space.forbidden:
        terms = [ForbiddenInClause(parameters[name], list(values)) for name, values in clause.items()]
        result.add(terms[0] if len(terms) == 1 else ForbiddenAndConjunction(*terms))
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what SMAC says to itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
