"""Whether the values of a config have the types of its fields, and how a type is called in an error."""

from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from xnext.errors import UserError, suggest

_NAMES: Mapping[Any, str] = {
    bool: "true or false",
    dict: "a {key: value} mapping",
    float: "a number",
    int: "a whole number",
    str: "text",
    Path: "a path",
}
_PLURALS = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts"}


def check_types(config: Any, error: type[UserError] = UserError) -> None:
    """Check the values of a dataclass, as YAML and JSON give them; its lists become tuples.

    Args:
        config: The dataclass, which may be frozen.
        error: What to raise.

    Raises:
        UserError: A value is of another type than its field; the line says which is wanted.
    """
    hints = get_type_hints(type(config))
    for name, value in vars(config).items():
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(config, name, value)
        if not _has_type(value, hints[name]):
            hint = suggest(value, _choices(hints[name])) if isinstance(value, str) else ""
            raise error(f"{name} must be {describe_type(hints[name])}, not {value!r}{hint and '.' + hint}")


def describe_type(hint: Any) -> str:
    """Return a type in the user's words; of ``X | None``, those of ``X``."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(describe_type(part) for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        item = describe_type(get_args(hint)[0])
        return f"a list of {_PLURALS.get(item, item)}"
    return _NAMES.get(get_origin(hint) or hint, "of another type")


def _choices(hint: Any) -> list[str]:
    """Return the words that a type allows, wherever they stand in it."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [word for part in get_args(hint) for word in _choices(part)]


def _has_type(value: Any, hint: Any) -> bool:
    """Tell whether a value has a field's type; a whole number is a number, but neither is true or false."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_has_type(value, part) for part in get_args(hint))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_has_type(item, get_args(hint)[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)
