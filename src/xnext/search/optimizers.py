"""Who decides what to try next: random search, regularised evolution, and SMAC in a module of its own.

An optimiser is a function of what it was asked and told, so that a search goes on by telling it again.
"""

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xnext.search.space import Point, Space

_POPULATION = 20
_TOURNAMENT = 5
_MOST_DRAWS = 1000  # of points until one is new


@dataclass(frozen=True)
class Query:
    """What is to be tried.

    Attributes:
        point: Of the space.
        epochs: Of training.
    """

    point: Point
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """What an optimiser is told of a search.

    Attributes:
        space: Where it looks.
        min_epochs: Of the shortest trials, for those that have shorter ones.
        max_epochs: Of the longest.
        objectives: What is to be low: names of the costs.
        seed: Of all that it draws.
    """

    space: Space
    min_epochs: int
    max_epochs: int
    objectives: tuple[str, ...]
    seed: int


class Optimizer(ABC):
    """Asked for what to try, and told what it cost."""

    @abstractmethod
    def ask(self) -> Query | None:
        """Return what to try next; None where nothing new is left."""

    @abstractmethod
    def tell(self, query: Query, costs: Sequence[float]) -> None:
        """Take in how much a query cost, a number for each objective."""


class RandomSearch(Optimizer):
    """Any point that was not tried before, for all epochs."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._random = random.Random(task.seed)
        self._seen: set[tuple[tuple[str, str], ...]] = set()

    def ask(self) -> Query | None:
        """Return another point; None where a thousand draws gave none."""
        for _ in range(_MOST_DRAWS):
            point = self._draw()
            key = tuple(point.items())
            if key not in self._seen:
                self._seen.add(key)
                return Query(point, self._task.max_epochs)
        return None

    def tell(self, query: Query, costs: Sequence[float]) -> None:
        """Learn nothing."""

    def _draw(self) -> dict[str, str]:
        return self._task.space.draw(self._random)


class Evolution(RandomSearch):
    """Regularised evolution (Real et al., 2019): the best of a few has a child, the oldest goes.

    Of several objectives, the best is what the fewest of the others are better than in all.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._living: deque[tuple[Point, tuple[float, ...]]] = deque(maxlen=_POPULATION)

    def tell(self, query: Query, costs: Sequence[float]) -> None:
        """Let the point live, and the oldest die."""
        self._living.append((query.point, tuple(costs)))

    def _draw(self) -> dict[str, str]:
        if len(self._living) < _POPULATION:
            return super()._draw()
        rivals = self._random.sample(list(self._living), _TOURNAMENT)
        point, _ = min(rivals, key=lambda rival: (sum(dominates(b, rival[1]) for _, b in rivals), rival[1]))
        return self._task.space.mutate(point, self._random)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether costs are nowhere higher than others, and somewhere lower."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def _smac(task: Task) -> Optimizer:
    from xnext.search.smac import Smac

    return Smac(task)


OPTIMIZERS: dict[str, Callable[[Task], Optimizer]] = {
    "smac": _smac,
    "random": RandomSearch,
    "evolution": Evolution,
}
