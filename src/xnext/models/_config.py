"""Checks that the lineages' configs share."""

from collections.abc import Iterable
from typing import Any

from xnext.errors import UserError

MOST_BLOCKS = 1000
"""Of a stage; a network of more would take hours to build."""

_MOST = 2**20  # channels, units or pixels
_WIDEST = 999  # kernel


class ConfigError(UserError, ValueError):
    """A value that no network of the lineage can have."""


class UnknownOptionError(UserError, TypeError):
    """A keyword that neither the network nor its config has."""


def check_choice(field: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise a ``ConfigError`` unless ``value`` is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise ConfigError(f"{field}={value!r} is not one of {', '.join(map(str, choices))}")


def check_odd(field: str, value: int) -> None:
    """Raise a ``ConfigError`` unless ``value`` is an odd kernel size, which alone keeps the image size."""
    if value < 1 or value % 2 == 0:
        raise ConfigError(f"{field}={value!r} is not an odd kernel size")
    check_most(field, value, _WIDEST)


def check_stages(config: Any, *names: str) -> None:
    """Raise a ``ConfigError`` unless each named field has a positive value a stage, as ``depths`` has."""
    for name in names:
        values = getattr(config, name)
        check_positive(name, values, MOST_BLOCKS if name == "depths" else _MOST)
        if len(values) != len(config.depths):
            raise ConfigError(f"{name}={values!r} must have a value a stage, {len(config.depths)}")


def check_positive(field: str, value: int | tuple[int, ...], most: int = _MOST) -> None:
    """Raise a ``ConfigError`` unless ``value`` is one or more positive integers, up to ``most``."""
    values = value if isinstance(value, tuple) else (value,)
    if not values or not all(isinstance(v, int) and v > 0 for v in values):
        raise ConfigError(f"{field}={value!r} must be positive")
    check_most(field, value, most)


def check_most(field: str, value: int | tuple[int, ...], most: int) -> None:
    """Raise a ``ConfigError`` if a number is larger than one that a network can be built with."""
    if max(value if isinstance(value, tuple) else (value,)) > most:
        raise ConfigError(f"{field}={value!r} is too large, it may be up to {most:,}")
