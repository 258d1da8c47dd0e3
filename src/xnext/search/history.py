"""What came of a search so far: its trials, which are the best, and what each cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xnext.search.optimizers import Query, dominates
from xnext.search.space import Space
from xnext.search.trial import STATUSES, SUCCESS, Outcome

_UNKNOWN = 1.0  # cost of a size that no trial has told


@dataclass(kw_only=True)
class Record:
    """A trial.

    Attributes:
        number: From 0, in the order of asking.
        network: Of its point, from 0; trials of other lengths of the same point have the same.
        query: What was asked.
        status: How it ended, or None.
        values: What was measured: ``top1`` in per cent, ``latency_ms``, ``macs``, ``params``.
        costs: What the optimiser was told.
        seconds: That it took.
        elapsed: Seconds of the search when it ended.
        reason: Of a failure.
        lost: Times that its process was killed.
    """

    number: int
    network: int
    query: Query
    status: str | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    costs: tuple[float, ...] = ()
    seconds: float = 0.0
    elapsed: float = 0.0
    reason: str = ""
    lost: int = 0


class History:
    """The trials of a search.

    Attributes:
        records: All, by their numbers.
        objectives: Names of the costs.
    """

    def __init__(
        self, space: Space, objectives: Sequence[str], entries: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self.space = space
        self.objectives = tuple(objectives)
        self.records: list[Record] = []
        self._networks: dict[tuple[tuple[str, str], ...], int] = {}
        for entry in entries:
            if "ask" in entry:
                self._check_asked(entry)
                self.asked(Query(entry["point"], entry["epochs"]))
            elif "lost" in entry:
                self.records[entry["lost"]].lost += 1
            elif "tell" in entry:
                self._check_told(entry)
                outcome = Outcome(**{name: entry[name] for name in Outcome.__dataclass_fields__})
                self.told(self.records[entry["tell"]], outcome, entry["elapsed"])

    def _check_asked(self, entry: Mapping[str, Any]) -> None:
        """Raise a ``ValueError`` for a line that no search has written."""
        known = all(value in self.space.choices.get(choice, ()) for choice, value in entry["point"].items())
        if not known or not isinstance(entry["epochs"], int) or entry["epochs"] < 1:
            raise ValueError("no point of the space")

    def _check_told(self, entry: Mapping[str, Any]) -> None:
        """Raise a ``ValueError`` for a line that no search has written."""
        numbers = [entry["seconds"], entry["elapsed"], *entry["values"].values(), *entry["costs"]]
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("something else than numbers")
        if entry["status"] not in STATUSES or len(entry["costs"]) != len(self.objectives):
            raise ValueError("no such status, or other objectives")

    def asked(self, query: Query) -> Record:
        """Add a trial."""
        network = self._networks.setdefault(tuple(query.point.items()), len(self._networks))
        self.records.append(Record(number=len(self.records), network=network, query=query))
        return self.records[-1]

    def told(self, record: Record, outcome: Outcome, elapsed: float) -> tuple[float, ...]:
        """Note how a trial ended; return its costs, which are finite however it ended."""
        record.costs = tuple(self._cost(name, outcome) for name in self.objectives)
        record.status, record.values, record.reason = outcome.status, outcome.values, outcome.reason
        record.seconds, record.elapsed = outcome.seconds, elapsed
        return record.costs

    @property
    def finished(self) -> int:
        """How many trials have ended."""
        return sum(record.status is not None for record in self.records)

    @property
    def elapsed(self) -> float:
        """Seconds of the search when its last trial ended."""
        return max((record.elapsed for record in self.records), default=0.0)

    @property
    def successes(self) -> list[Record]:
        """The trials that succeeded."""
        return [record for record in self.records if record.status == SUCCESS]

    @property
    def longest(self) -> list[Record]:
        """Of the trials that succeeded, those of the most epochs."""
        most = max((record.query.epochs for record in self.successes), default=0)
        return [record for record in self.successes if record.query.epochs == most]

    @property
    def best(self) -> Record | None:
        """The most accurate of the longest trials that succeeded, or None."""
        return min(self.longest, key=lambda record: record.costs, default=None)

    @property
    def front(self) -> list[Record]:
        """Of the longest trials, those than which none is better in all objectives, best first."""
        full = self.longest
        kept = [record for record in full if not any(dominates(other.costs, record.costs) for other in full)]
        return sorted(kept, key=lambda record: record.costs)

    def _cost(self, name: str, outcome: Outcome) -> float:
        """Return what is to be low: the error as a share, or a size."""
        if name == "top1":
            return 1.0 - outcome.values[name] / 100 if outcome.status == SUCCESS else 1.0
        if name in outcome.values:
            return float(outcome.values[name])
        place = self.objectives.index(name)
        return max((record.costs[place] for record in self.records if record.costs), default=_UNKNOWN)


def in_epochs(count: int) -> str:
    """Return how long a trial is, in words."""
    return f"{count} epoch{'' if count == 1 else 's'}"
