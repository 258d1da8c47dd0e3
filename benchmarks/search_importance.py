"""What mattered in the table of ``search_table``: a picture like the paper's figure 4, of all its networks.

    python -m benchmarks.search_importance [--method lpi] [--picture FILE.png]

Unlike in a search, each network was trained for all epochs, and they are many, so that the trees agree.
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.search_table import BUDGETS, SPACE, read_table
from xnext._figures import write_figure
from xnext.search.history import in_epochs
from xnext.search.importance import METHODS, Importance, draw_importance
from xnext.search.space import Space


def measure(method: str) -> dict[int, list[Importance]]:
    """Return the importance of each choice, by epochs."""
    space, rows = Space.load(str(SPACE)), read_table()
    points = [{choice: row[choice] for choice in space.choices} for row in rows]
    return {
        budget: METHODS[method](space, points, np.array([1 - row[f"top1_{budget}"] / 100 for row in rows]), 0)
        for budget in BUDGETS
    }


def main() -> None:
    """Print the shares and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="lpi")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.method)
    table = Table("choice", *map(in_epochs, found))
    by_name = {budget: {one.name: one for one in importances} for budget, importances in found.items()}
    for name in (one.name for one in found[BUDGETS[-1]] if len(one.choices) == 1):
        ones = (by_name[budget][name] for budget in found)
        table.add_row(name, *(f"{one.share:.3f} ± {one.high - one.share:.3f}" for one in ones))
    Console().print(table)
    if arguments.picture:
        title = f"{arguments.method}: {len(read_table()):,} networks on digits"
        write_figure(arguments.picture, draw_importance(found, title))


if __name__ == "__main__":
    main()
