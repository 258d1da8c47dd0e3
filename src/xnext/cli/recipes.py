"""`xnext recipes`: the trainings that come with the package."""

import dataclasses
import json

from jsonargparse import Namespace

from xnext._parser import Parser
from xnext.cli._common import Verb, new_table, print_table
from xnext.training.recipes import find_recipe, list_recipes


def _recipes_options(parser: Parser) -> None:
    parser.add_argument("name", type=str | None, nargs="?", metavar="NAME", help="Recipe to print in full.")
    parser.add_argument("--json", action="store_true", help="Print one JSON list and nothing else.")


def _recipes(arguments: Namespace) -> int:
    recipes = list_recipes() if arguments.name is None else (find_recipe(arguments.name),)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(recipe) | {"path": str(recipe.path)} for recipe in recipes]))
    elif arguments.name is not None:
        print(recipes[0].path.read_text(encoding="utf-8"), end="")
    else:
        table = new_table("recipe", "what", "accuracy", "source")
        for recipe in recipes:
            table.add_row(recipe.name, recipe.title, recipe.accuracy, recipe.source)
        print_table(table)
    return 0


VERB = Verb(
    "List the trainings that come with the package, or print one.", _recipes_options, _recipes,
    ("xnext recipes inceptionnext_tiny",),
)  # fmt: skip
