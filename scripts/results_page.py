"""Make `docs/results.md` of what `xnext tables` and `xnext figures` wrote.

python scripts/results_page.py TABLES FIGURES
"""

import csv
import shutil
import sys
from pathlib import Path

from xnext.evaluation.tables import to_markdown

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = {
    "nexception-2": "NEXcepTion, figure 2: published accuracy against multiply-accumulates",
    "nexception-3": "NEXcepTion, figure 3: published accuracy against the speed here",
    "inceptionnext-1": "InceptionNeXt, figure 1: published accuracy against the speed here",
    "inceptionnext-3": "InceptionNeXt, figure 3: multiply-accumulates by kernel size",
    "xception-9": "Xception, figure 9: with and without shortcuts",
    "xception-10": "Xception, figure 10: what stands between the two convolutions",
}
_PARTS = {"here": " → {}", "sd here": " ± {}", "difference": " ({})"}
HEAD = """# Results

Made by `python scripts/results_page.py tables figures` from what these commands wrote, on 2 cores of a
server CPU; a GPU has not measured them yet.

```
xnext tables --measure inference --threads 2 --batch-size 4 --repetitions 5 --output tables
xnext tables inceptionnext-1 inceptionnext-8 xception-3 --measure inference train --threads 2 \\
    --batch-size 4 --repetitions 5 --output tables
xnext figures --tables tables --output figures
```

A batch of 4 in float32 on a CPU says little of an A100: what can be compared is the ratio to each table's
baseline, whose difference from the paper's stands beside each speed. A cell is what the paper has, then
after an arrow what was found here, a speed with its standard deviation, and the difference. The files that
`xnext tables` writes have a column for each, and the fastest way of each network too. What the commands
measure, and how, is in [evaluation.md](evaluation.md).
"""


def narrow(line: dict[str, str]) -> dict[str, str]:
    """Return a row whose columns of one quantity are one: paper, here, standard deviation, difference."""
    cells: dict[str, str] = {}
    for column, value in line.items():
        quantity, _, part = column.partition(", ")
        if part in _PARTS and value:
            cells[quantity] += _PARTS[part].format(value)
        elif not part:
            cells[quantity] = value
    return cells


def main(tables: Path, figures: Path) -> None:
    """Write the page, and copy the pictures beside it."""
    parts = [HEAD, "## Figures"]
    for name, title in FIGURES.items():
        shutil.copy(figures / f"{name}.png", DOCS / "images" / f"results-{name}.png")
        parts.append(f"{title}:\n\n![{title}](images/results-{name}.png)")
    parts.append("## Tables")
    for path in sorted(tables.glob("*.csv")):
        with path.open(newline="") as stream:
            lines = [narrow(line) for line in csv.DictReader(stream)]
        heading, notes, *_ = path.with_suffix(".md").read_text().split("\n\n")
        parts += [f"##{heading}", notes, to_markdown(lines).strip()]  # a heading of the third degree
    (DOCS / "results.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
