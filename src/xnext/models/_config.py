"""Checks that the lineages' configs share."""

from collections.abc import Iterable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from xnext.errors import UserError, suggest


class ConfigError(UserError, ValueError):
    """A value that no network of the lineage can have."""


class UnknownOptionError(UserError, TypeError):
    """A keyword that neither the network nor its config has."""


def check_choice(field: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise a ``ConfigError`` unless ``value`` is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        names = ", ".join(map(str, choices))
        hint = suggest(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
        raise ConfigError(f"{field}={value!r} is not one of {names}.{hint}")


def check_odd(field: str, value: int) -> None:
    """Raise a ``ConfigError`` unless ``value`` is an odd kernel size, which alone keeps the image size."""
    if not isinstance(value, int) or value < 1 or value % 2 == 0:
        raise ConfigError(f"{field}={value!r} is not an odd kernel size")


def check_positive(field: str, values: Iterable[int]) -> None:
    """Raise a ``ConfigError`` unless all ``values`` are positive integers and there is at least one."""
    values = tuple(values)
    if not values or not all(isinstance(v, int) and v > 0 for v in values):
        raise ConfigError(f"{field}={values!r} must be positive integers")


def freeze_sequences(config: Any) -> None:
    """Turn the lists of a frozen config, as YAML and JSON give them, into tuples; check the values' types.

    Raises:
        ConfigError: A value is of another type than its field.
    """
    hints = get_type_hints(type(config))
    for name, value in vars(config).items():
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(config, name, value)
        if not _has_type(value, hints[name]):
            raise ConfigError(f"{name}={value!r} is of another type than {hints[name]}")


def _has_type(value: Any, hint: Any) -> bool:
    """Tell whether a value has a field's type; the choices themselves are checked elsewhere."""
    if get_origin(hint) in (Union, UnionType):
        return any(_has_type(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_has_type(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)
