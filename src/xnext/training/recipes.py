"""Recipes: files of options that come with the package, each with where it is from and what it reaches."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from xnext.errors import UserError, suggest

_FOLDER = Path(__file__).parents[1] / "recipes"
_FACT = re.compile(r"# (source|command|hardware|time|accuracy): (.*)")


@dataclass(frozen=True)
class Recipe:
    """A file of options, and what its header says.

    Attributes:
        name: What `--recipe` takes.
        path: The YAML file.
        title: What is trained on what.
        source: Paper and table.
        command: The exact command.
        hardware: What it ran on.
        time: How long it took.
        accuracy: What it reached.
    """

    name: str
    path: Path
    title: str
    source: str
    command: str
    hardware: str
    time: str
    accuracy: str


@cache
def list_recipes() -> tuple[Recipe, ...]:
    """Return all recipes, by name."""
    return tuple(_read(path) for path in sorted(_FOLDER.glob("*.yaml")))


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        UserError: There is none; the line gives the nearest names.
    """
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    if name not in recipes:
        raise UserError(f"no recipe {name!r}.{suggest(name, recipes) or ' `xnext recipes` lists them.'}")
    return recipes[name]


def _read(path: Path) -> Recipe:
    title, *lines = path.read_text(encoding="utf-8").splitlines()
    facts = {match[1]: match[2] for line in lines if (match := _FACT.fullmatch(line))}
    return Recipe(path.stem, path, title.removeprefix("# "), **facts)
