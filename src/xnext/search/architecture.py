"""A network as a value: a registered one, the fields of its config that differ, and their scaling."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xnext.errors import UserError, suggest
from xnext.models import get_config

_WIDTHS = ("stem_dims", "entry_dims", "exit_dim", "tail_dims", "dims")
"""Fields of the configs that are numbers of channels; the pseudo-field ``width`` is a factor of all."""

_DEPTHS = ("middle_depth", "depths")
"""Fields that are numbers of blocks; the pseudo-field ``depth`` is a factor of all."""

SCALED: Mapping[str, tuple[str, ...]] = {"width": _WIDTHS, "depth": _DEPTHS}
"""The fields that each factor scales."""

ALIKE = {field: name for name, fields in SCALED.items() for field in fields}
"""The factor of each of these fields."""

_DIVISOR = 8


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

    @classmethod
    def scaled(cls, model: str, fields: Mapping[str, Any], width: float) -> "Architecture":
        """Return a network whose fields may name the factors ``width`` and ``depth`` beside the config's.

        Args:
            model: Name of a registered network.
            fields: Those that differ, and the factors.
            width: Another factor of all numbers of channels, which stay multiples of 8.
        """
        values = dict(fields)
        factors = {"width": width * values.pop("width", 1.0), "depth": values.pop("depth", 1.0)}
        base = vars(get_config(model))
        for name, scaled in SCALED.items():
            if factors[name] != 1:
                least = _DIVISOR if name == "width" else 1
                values |= {
                    field: _scale(values.get(field, base[field]), factors[name], least)
                    for field in scaled
                    if field in base
                }
        return cls(model, values)


def is_factor(value: Any) -> bool:
    """Return whether a number can multiply widths or depths."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _scale(number: Any, factor: float, divisor: int) -> Any:
    """Return numbers times a factor, as multiples of a divisor, at least once."""
    if isinstance(number, list | tuple):
        return [_scale(one, factor, divisor) for one in number]
    if not is_factor(number):
        return number  # which the config will refuse
    return max(divisor, round(number * factor / divisor) * divisor)
