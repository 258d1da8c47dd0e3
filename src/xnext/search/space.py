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
    conditions:
      expansion: {middle_block: bottleneck}        # where alone a choice exists
    forbidden:
      - {act: relu, pool: [conv, blur]}            # what may not come together
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from xnext._yaml import read_yaml
from xnext.errors import UserError, suggest
from xnext.models import get_config

Point = Mapping[str, str]
"""The names of the values chosen, by choice; of the choices that exist there, in the space's order."""

SPACES = ("nexception",)
"""Those that come with this project."""

_KEYS = ("network", "fixed", "full", "choices", "conditions", "forbidden")
_WIDTHS = ("stem_dims", "entry_dims", "exit_dim", "tail_dims", "dims")
"""Fields of the configs that are numbers of channels."""

_DIVISOR = 8
_MOST_DRAWS = 1000  # of points until one is allowed


@dataclass(frozen=True, eq=False)
class Architecture:
    """A network as a value.

    Attributes:
        model: Name of a registered network.
        model_args: Fields of its config that differ.
    """

    model: str
    model_args: Mapping[str, Any]

    @cached_property
    def config(self) -> Any:
        """The lineage's config, which tells whether two are the same network.

        Raises:
            UserError: There is no such network, field or value.
        """
        base = get_config(self.model)
        known = [field.name for field in dataclasses.fields(base)]
        for name in self.model_args:
            if name not in known:
                raise UserError(f"{self.model} has no field {name!r}.{suggest(str(name), known)}")
        return dataclasses.replace(base, **self.model_args)


class Space:
    """The choices of a search.

    Attributes:
        name: Of the space, or the file that it came from.
        content: What its file holds.
        choices: The fields of each value, by its name, by choice.
        conditions: Under which values of other choices alone a choice exists.
        forbidden: Values that may not come together.
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
        self._check_values()

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
                f"unknown space {name!r}.{suggest(name, SPACES) or ' Choose nexception or FILE.yaml.'}"
            )
        return cls(name, read_yaml(Path(name)))

    def active(self, point: Point) -> list[str]:
        """Return the choices that exist at a point, given the values of all that may."""
        there: dict[str, str] = {}
        for choice in self._order:
            wanted = self.conditions.get(choice, {})
            if all(there.get(parent) in values for parent, values in wanted.items()):
                if choice in point:
                    there[choice] = point[choice]
                else:
                    there[choice] = ""  # missing, which only a check minds
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
        return self._fields(point, {}, width)

    def full_size(self, point: Point) -> Architecture:
        """Return the network of a point at full depth and width.

        Raises:
            UserError: It is no point of the space.
        """
        self.check(point)
        return self._fields(point, self._full, 1.0)

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
        return math.prod(len(set(self._distinct(group))) for group in self._components())

    def points(self) -> Iterator[dict[str, str]]:
        """Yield every point, one after the other; there may be very many."""
        yield from self._combine(self.choices)

    def _fields(self, point: Point, full: Mapping[str, Any], width: float) -> Architecture:
        """Return the network of a point, or of a part of its choices."""
        fields = {"network": self._network, **self._fixed, **full}
        for choice in self.choices:
            if choice in point:
                fields |= self.choices[choice][point[choice]]
        model, width = fields.pop("network"), width * fields.pop("width", 1.0)
        if width != 1:
            channels = {name: value for name, value in vars(get_config(model)).items() if name in _WIDTHS}
            channels |= {name: value for name, value in fields.items() if name in _WIDTHS}
            fields |= {name: _scale(value, width) for name, value in channels.items()}
        return Architecture(model, fields)

    def _complete(self, part: Point, generator: random.Random) -> dict[str, str]:
        """Return a point with the values of another where they exist, and drawn ones elsewhere."""
        point: dict[str, str] = {}
        for choice in self._order:
            conditions = self.conditions.get(choice, {})
            if all(point.get(parent) in values for parent, values in conditions.items()):
                point[choice] = (
                    part[choice] if choice in part else generator.choice(list(self.choices[choice]))
                )
        return {choice: point[choice] for choice in self.choices if choice in point}

    def _combine(
        self, choices: Iterable[str], only: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, str]]:
        """Yield the points of some choices that are complete among themselves.

        Args:
            choices: Which.
            only: The one value that is wanted of some of them, without which no point is.
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
            conditions = self.conditions.get(name, {})
            if all(point.get(parent) in values for parent, values in conditions.items()):
                for value in [only[name]] if name in only else self.choices[name]:
                    yield from extend(place + 1, {**point, name: value})
            elif name not in only:
                yield from extend(place + 1, point)

        yield from extend(0, {})

    def _distinct(self, group: Iterable[str]) -> Iterator[Any]:
        """Yield what each combination of a group of choices makes of the config."""
        group = set(group)
        touched = {field for name in group for fields in self.choices[name].values() for field in fields}
        if not touched.isdisjoint({*_WIDTHS, "width"}):
            touched |= set(_WIDTHS)
        for point in self._combine(group):
            architecture = self._fields(point, {}, 1.0)
            default = get_config(architecture.model)
            fields = vars(default) | {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in architecture.model_args.items()
            }
            yield architecture.model, tuple((name, fields.get(name)) for name in sorted(touched))

    def _components(self) -> list[set[str]]:
        """Return the choices in groups that have nothing to do with each other."""
        links = [{choice, *parents} for choice, parents in self.conditions.items()]
        links += [set(clause) for clause in self.forbidden]
        by_field: dict[str, set[str]] = {}
        for choice, values in self.choices.items():
            for field in itertools.chain.from_iterable(values.values()):
                by_field.setdefault("dims" if field in (*_WIDTHS, "width") else field, set()).add(choice)
        groups = [{choice} for choice in self.choices]
        for link in (*links, *by_field.values()):
            joined = [group for group in groups if group & link]
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
        return named

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

    def _check_values(self) -> None:
        """Build a network with each value, so that a search does not find out late."""
        for choice, values in self.choices.items():
            for value in values:
                point = self._any_point(choice, value)
                if point is None:
                    raise self._error(
                        f"{choice}: {value!r} is in no point that conditions and prohibitions allow"
                    )
                for architecture in (self._fields(point, {}, 1.0), self._fields(point, self._full, 1.0)):
                    try:
                        _ = architecture.config
                    except UserError as error:
                        raise self._error(f"{choice} {value}: {error}") from error

    def _any_point(self, choice: str, value: str) -> dict[str, str] | None:
        """Return a point that has a value, or None."""
        point: dict[str, str] = {}
        for group in self._components():
            part = next(self._combine(group, {choice: value} if choice in group else {}), None)
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


def _scale(channels: Any, width: float) -> Any:
    """Return numbers of channels times a factor, as multiples of 8."""
    if isinstance(channels, list | tuple):
        return [_scale(one, width) for one in channels]
    return max(_DIVISOR, round(channels * width / _DIVISOR) * _DIVISOR)
