"""Spaces: the choices among which a search looks, each point of which is a value of a lineage's config.

A space is a YAML file. The first is that of `From Xception to NEXcepTion <https://arxiv.org/abs/2212.08448>`_,
section 3; a user's own has the same form::

    network: xception                 # a name of `xnext models`, whose config the fields below change
    fixed: {middle_depth: 4}          # fields that every network of the search has
    full: {middle_depth: 8}           # fields that the winner has at full size
    choices:
      act: [relu, gelu]               # a field and its values
      stem:                           # or names, each for several fields
        conv: {stem: conv, stem_dims: [32, 64]}
        patchify: {stem: patchify, stem_dims: [96]}
      size:                           # `width` and `depth` are factors, `full` what the winner has
        small: {width: 0.5}
        deep: {depth: 2, full: {depth: 3}}
    conditions:
      expansion: {middle_block: bottleneck}        # where alone a choice exists
    forbidden:
      - {act: relu, pool: [conv, blur]}            # what may not come together
"""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from xnext._yaml import read_yaml
from xnext.errors import UserError, shorten, suggest
from xnext.models import get_config
from xnext.search.architecture import ALIKE, SCALED, Architecture, is_factor

Point = Mapping[str, str]
"""The names of the values chosen, by choice; of the choices that exist there, in the space's order."""

SPACES = ("nexception", "union")
"""Those that come with this project."""

_KEYS = ("network", "fixed", "full", "choices", "conditions", "forbidden")
_MOST_COUNTED = 10**6  # combinations of choices that change the same fields
_MOST_DRAWS = 1000  # of points until one is allowed


class Space:
    """The choices of a search.

    Attributes:
        name: Of the space, or the file that it came from.
        content: What its file holds.
        choices: The fields of each value, by its name, by choice.
        conditions: Under which values of other choices alone a choice exists.
        forbidden: Values that may not come together.
        examples: Points that together have each value of each choice.
    """

    def __init__(self, name: str, content: Mapping[str, Any]) -> None:
        """Take a space apart and check all of it.

        Args:
            name: What errors call it.
            content: What its file holds.

        Raises:
            UserError: A part is unknown, missing or of another form, or a value makes no network.
        """
        self.name = name
        self.content = dict(content)
        for key in content:
            if key not in _KEYS:
                raise self._error(f"unknown key {key!r}.{suggest(str(key), _KEYS)}")
        if not isinstance(content.get("network"), str):
            raise self._error("`network` must be a name of `xnext models`")
        self._network = content["network"]
        self._fixed, self._full = (self._mapping(content, key) for key in ("fixed", "full"))
        for key, fields in (("fixed", self._fixed), ("full", self._full)):
            self._check_fields(f"`{key}`", fields)
        self.choices = {
            str(choice): self._values(str(choice), values)
            for choice, values in self._mapping(content, "choices").items()
        }
        if not self.choices:
            raise self._error("`choices` names nothing to choose from")
        conditions = self._mapping(content, "conditions")
        self.conditions = {
            choice: self._clause(f"the condition of {choice!r}", values)
            for choice, values in conditions.items()
        }
        clauses = content.get("forbidden") or []
        if not isinstance(clauses, Sequence) or isinstance(clauses, str):
            raise self._error("`forbidden` must be a list of combinations")
        self.forbidden = tuple(
            self._clause(f"forbidden combination {place}", clause) for place, clause in enumerate(clauses, 1)
        )
        self._order = self._sort()
        self.examples = self._check_values()

    @classmethod
    def load(cls, name: str) -> "Space":
        """Return a space by its name, or one from a YAML file.

        Raises:
            UserError: There is no such space, or the file is damaged.
        """
        if name in SPACES:
            return cls(name, read_yaml(Path(str(resources.files(__package__) / "spaces" / f"{name}.yaml"))))
        if not name.endswith((".yaml", ".yml")):
            raise UserError(
                f"unknown space {name!r}.{suggest(name, SPACES) or ' Choose nexception, union or FILE.yaml.'}"
            )
        return cls(name, read_yaml(Path(name)))

    def active(self, point: Point) -> list[str]:
        """Return the choices that exist at a point, given the values of all that may."""
        there: dict[str, str] = {}
        for choice in self._order:
            if self._exists(choice, there):
                there[choice] = point.get(choice, "")  # missing, which only a check minds
        return [choice for choice in self.choices if choice in there]

    def check(self, point: Point) -> None:
        """Refuse what is no point of the space.

        Raises:
            UserError: A choice or a value is unknown, missing or does not exist there, or is forbidden.
        """
        for choice, value in point.items():
            if choice not in self.choices:
                raise self._error(f"there is no choice {choice!r}.{suggest(choice, self.choices)}")
            if value not in self.choices[choice]:
                values = ", ".join(self.choices[choice])
                raise self._error(f"{choice} cannot be {value!r}; choose from {values}")
        active = self.active(point)
        for choice in active:
            if choice not in point:
                raise self._error(f"{choice} is missing")
        for choice in point:
            if choice not in active:
                raise self._error(f"{choice} exists only where {_say(self.conditions[choice])}")
        if (clause := self._broken(point)) is not None:
            raise self._error(f"{_say(clause)} is forbidden")

    def is_allowed(self, point: Point) -> bool:
        """Return whether nothing that is forbidden comes together."""
        return self._broken(point) is None

    def architecture(self, point: Point, width: float = 1.0) -> Architecture:
        """Return the network of a point, at the size of the search.

        Args:
            point: The choices.
            width: Factor of all numbers of channels, which stay multiples of 8.

        Raises:
            UserError: It is no point of the space.
        """
        self.check(point)
        return self._fields(point, width=width)

    def full_size(self, point: Point) -> Architecture:
        """Return the network of a point at full depth and width.

        Raises:
            UserError: It is no point of the space.
        """
        self.check(point)
        return self._fields(point, full=True)

    def draw(self, generator: random.Random) -> dict[str, str]:
        """Return a point, each choice of which is drawn among its values."""
        for _ in range(_MOST_DRAWS):
            point = self._complete({}, generator)
            if self.is_allowed(point):
                return point
        return next(self.points())

    def mutate(self, point: Point, generator: random.Random) -> dict[str, str]:
        """Return a point of which one choice differs, and what exists only with that or without it."""
        free = [choice for choice in point if len(self.choices[choice]) > 1]
        for _ in range(_MOST_DRAWS if free else 0):
            choice = generator.choice(free)
            value = generator.choice([value for value in self.choices[choice] if value != point[choice]])
            changed = self._complete({**point, choice: value}, generator)
            if self.is_allowed(changed):
                return changed
        return self.draw(generator)

    def count(self) -> int:
        """Return how many distinct networks there are: values of the config, of which equal ones are one.

        Choices that share no field, condition or prohibition are counted apart, and multiplied.
        """
        return self._count(set(self.choices), {})

    def points(self) -> Iterator[dict[str, str]]:
        """Yield every point, one after the other; there may be very many."""
        yield from self._combine(self.choices)

    def _fields(self, point: Point, *, full: bool = False, width: float = 1.0) -> Architecture:
        """Return the network of a point, or of a part of its choices."""
        fields = {"network": self._network, **self._fixed, **(self._full if full else {})}
        for choice in self.choices:
            if choice in point:
                chosen = self.choices[choice][point[choice]]
                fields |= chosen
                fields |= chosen.get("full", {}) if full else {}
        fields.pop("full", None)
        return Architecture.scaled(fields.pop("network"), fields, width)

    def _complete(self, part: Point, generator: random.Random) -> dict[str, str]:
        """Return a point with the values of another where they exist, and drawn ones elsewhere."""
        point: dict[str, str] = {}
        for choice in self._order:
            if self._exists(choice, point):
                point[choice] = (
                    part[choice] if choice in part else generator.choice(list(self.choices[choice]))
                )
        return {choice: point[choice] for choice in self.choices if choice in point}

    def _combine(
        self,
        choices: Iterable[str],
        given: Point | None = None,
        only: Mapping[str, Sequence[str]] | None = None,
    ) -> Iterator[dict[str, str]]:
        """Yield the points of some choices that are complete among themselves.

        Args:
            choices: Which.
            given: Values of others.
            only: The values that are wanted of some of them, without which no point is.
        """
        only = only or {}
        names = [name for name in self._order if name in choices]

        def extend(place: int, point: dict[str, str]) -> Iterator[dict[str, str]]:
            if not self.is_allowed(point):
                return
            if place == len(names):
                yield {name: point[name] for name in self.choices if name in point}
                return
            name = names[place]
            if self._exists(name, point):
                for value in only.get(name, self.choices[name]):
                    yield from extend(place + 1, {**point, name: value})
            elif name not in only:
                yield from extend(place + 1, point)

        yield from extend(0, dict(given or {}))

    def _exists(self, choice: str, point: Point) -> bool:
        conditions = self.conditions.get(choice, {})
        return all(point.get(parent) in values for parent, values in conditions.items())

    def _count(self, choices: set[str], given: Point) -> int:
        """Return how many distinct networks some choices make, where others are given."""
        return math.prod(self._count_linked(group, given) for group in self._components(choices, given))

    def _count_linked(self, group: set[str], given: Point) -> int:
        """Count for choices that depend on each other: in cases that one tells apart, or one by one."""
        parents = {parent for choice in group for parent in self.conditions.get(choice, ())}
        for name in self._order:
            if name in group & parents and self._exists(name, given) and self._separates(name, group, given):
                rest = group - {name}
                return sum(self._count(rest, {**given, name: value}) for value in self.choices[name])
        if math.prod(len(self.choices[choice]) for choice in group) > _MOST_COUNTED:
            named = shorten([choice for choice in self.choices if choice in group])
            raise self._error(
                f"choices that change the same fields have more than {_MOST_COUNTED:,} combinations, too many"
                f" to count: {named}"
            )
        return len(set(self._distinct(group, given)))

    def _separates(self, choice: str, group: set[str], given: Point) -> bool:
        """Return whether the values of a choice differ in fields that no other choice of a group changes."""
        others = {field for name in group - {choice} for field in self._touched([name])}
        own = self._touched([choice]) - others
        values = {self._value_of(own, {**given, choice: value}) for value in self.choices[choice]}
        return len(values) == len(self.choices[choice])

    def _touched(self, choices: Iterable[str]) -> set[str]:
        """Return the fields of the config that choices change."""
        touched = {
            field for name in choices for fields in self.choices[name].values() for field in fields
        } - {"full"}
        for name, scaled in SCALED.items():
            if not touched.isdisjoint({*scaled, name}):
                touched |= set(scaled)
        return touched

    def _value_of(self, fields: Iterable[str], point: Point) -> Any:
        """Return what the config of a point holds in some fields."""
        architecture = self._fields(point)
        held = vars(get_config(architecture.model)) | {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in architecture.model_args.items()
        }
        return architecture.model, tuple((name, held.get(name)) for name in sorted(fields))

    def _distinct(self, group: set[str], given: Point) -> Iterator[Any]:
        """Yield what each combination of a group of choices makes of the config."""
        touched = self._touched(group)
        for point in self._combine(group, given):
            yield self._value_of(touched, point)

    def _components(self, choices: Iterable[str], given: Point) -> list[set[str]]:
        """Return choices in groups that have nothing to do with each other, where others are given."""
        choices = set(choices)
        links = [{choice, *parents} for choice, parents in self.conditions.items() if choice in choices]
        links += [
            set(clause) for clause in self.forbidden
            if all(given.get(name, values[0]) in values for name, values in clause.items())
        ]  # fmt: skip
        by_field: dict[str, set[str]] = {}
        for choice in choices:
            for field in self._touched([choice]):
                by_field.setdefault(ALIKE.get(field, field), set()).add(choice)
        groups = [{choice} for choice in choices]
        for link in (*links, *by_field.values()):
            joined = [group for group in groups if group & link]
            if joined:
                groups = [group for group in groups if not group & link] + [set().union(*joined)]
        return groups

    def _broken(self, point: Point) -> Mapping[str, tuple[str, ...]] | None:
        """Return the first prohibition that a point breaks."""
        for clause in self.forbidden:
            if all(point.get(choice) in values for choice, values in clause.items()):
                return clause
        return None

    def _error(self, message: str) -> UserError:
        return UserError(f"space {self.name}: {message}")

    def _mapping(self, content: Mapping[str, Any], key: str) -> dict[str, Any]:
        part = content.get(key)
        if part is not None and not isinstance(part, Mapping):
            raise self._error(f"`{key}` must hold lines of `name: value`")
        return dict(part or {})

    def _values(self, choice: str, values: Any) -> dict[str, dict[str, Any]]:
        """Return the fields of each value of a choice, by its name."""
        if isinstance(values, Mapping):
            if not all(isinstance(fields, Mapping) for fields in values.values()):
                raise self._error(f"each value of {choice!r} must be a mapping of fields, as {{act: relu}}")
            named = {_name(value): dict(fields) for value, fields in values.items()}
        elif isinstance(values, Sequence) and not isinstance(values, str):
            named = {_name(value): {choice: value} for value in values}
        else:
            raise self._error(f"{choice!r} must have a list of values, or names with fields")
        if len(named) < len(values):
            raise self._error(f"{choice!r} has a value twice")
        if not named:
            raise self._error(f"{choice!r} has no values")
        for value, fields in named.items():
            full = fields.get("full", {})
            if not isinstance(full, Mapping):
                raise self._error(f"{choice} {value}: `full` must hold lines of `name: value`")
            self._check_fields(f"{choice} {value}", {key: fields[key] for key in fields if key != "full"})
            self._check_fields(f"{choice} {value}", full)
        return named

    def _check_fields(self, what: str, fields: Mapping[str, Any]) -> None:
        """Refuse what no config would: factors that are none, and a `full` where nothing takes it."""
        if "full" in fields:
            raise self._error(
                f"{what}: there is no field 'full'. Did you mean the `full` beside `fixed`, or of a value?"
            )
        for name in SCALED:
            if not is_factor(fields.get(name, 1)):
                raise self._error(f"{what}: {name} must be a factor of more than 0")

    def _clause(self, what: str, clause: Any) -> dict[str, tuple[str, ...]]:
        """Return a combination: the names of values, by choice."""
        if not isinstance(clause, Mapping) or not clause:
            raise self._error(f"{what} must be `choice: value`, or `choice: [values]`")
        read = {}
        for choice, values in clause.items():
            if choice not in self.choices:
                raise self._error(f"{what} names no choice: {choice!r}.{suggest(str(choice), self.choices)}")
            listed = (
                values if isinstance(values, list) and _name(values) not in self.choices[choice] else [values]
            )
            if not listed:
                raise self._error(f"{what}: {choice} has a list without values")
            read[choice] = tuple(map(_name, listed))
            for value in read[choice]:
                if value not in self.choices[choice]:
                    known = ", ".join(self.choices[choice])
                    raise self._error(f"{what}: {choice} has no value {value!r}, but {known}")
        return read

    def _sort(self) -> list[str]:
        """Return the choices in an order in which each comes after those that it depends on."""
        for choice in self.conditions:
            if choice not in self.choices:
                raise self._error(f"a condition of no choice: {choice!r}.{suggest(choice, self.choices)}")
        order: list[str] = []
        while len(order) < len(self.choices):
            ready = [
                choice for choice in self.choices
                if choice not in order and set(self.conditions.get(choice, ())) <= set(order)
            ]  # fmt: skip
            if not ready:
                rest = ", ".join(choice for choice in self.choices if choice not in order)
                raise self._error(f"conditions go round in a circle: {rest}")
            order += ready
        return order

    def _check_values(self) -> tuple[Point, ...]:
        """Build a network with each value, so that a search does not find out late; return their points."""
        examples: list[Point] = []
        for choice, values in self.choices.items():
            for value in values:
                if any(point.get(choice) == value for point in examples):
                    continue
                point = self._any_point(choice, value)
                if point is None:
                    raise self._error(
                        f"{choice}: {value!r} is in no point that conditions and prohibitions allow"
                    )
                for full in (False, True):
                    try:
                        _ = self._fields(point, full=full).config
                    except UserError as error:
                        raise self._error(f"{choice} {value}: {error}") from error
                examples.append(point)
        return tuple(examples)

    def _any_point(self, choice: str, value: str) -> dict[str, str] | None:
        """Return a point that has a value, or None."""
        only: dict[str, tuple[str, ...]] = {choice: (value,)}
        for name in reversed(self._order):  # what comes later depends on what comes before
            for parent, values in self.conditions.get(name, {}).items() if name in only else ():
                only[parent] = tuple(v for v in only.get(parent, values) if v in values)
        point: dict[str, str] = {}
        for group in self._components(self.choices, {}):
            wanted = {name: values for name, values in only.items() if name in group}
            part = next(self._combine(group, only=wanted), None)
            if part is None:
                return None
            point |= part
        return point


def _name(value: Any) -> str:
    """Return what a value is called: 0 and 2 of a list as `0+2`."""
    if isinstance(value, list | tuple):
        return "+".join(map(_name, value)) or "none"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _say(clause: Mapping[str, Sequence[str]]) -> str:
    return " and ".join(f"{choice} is {' or '.join(values)}" for choice, values in clause.items())
