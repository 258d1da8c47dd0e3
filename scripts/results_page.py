"""Make `docs/results.md` of what `xnext tables` and `xnext figures` wrote.

python scripts/results_page.py TABLES FIGURES
"""

import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = {
    "nexception-2": "NEXcepTion, figure 2: published accuracy against multiply-accumulates",
    "nexception-3": "NEXcepTion, figure 3: published accuracy against the speed here",
    "inceptionnext-1": "InceptionNeXt, figure 1: published accuracy against the speed here",
    "inceptionnext-3": "InceptionNeXt, figure 3: multiply-accumulates by kernel size",
    "xception-9": "Xception, figure 9: with and without shortcuts",
    "xception-10": "Xception, figure 10: what stands between the two convolutions",
}
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
baseline, whose difference from the paper's stands beside each speed. Columns without `here` are the papers'.
What the commands measure, and how, is in [evaluation.md](evaluation.md).
"""


def main(tables: Path, figures: Path) -> None:
    """Write the page, and copy the pictures beside it."""
    parts = [HEAD, "## Figures"]
    for name, title in FIGURES.items():
        shutil.copy(figures / f"{name}.png", DOCS / "images" / f"results-{name}.png")
        parts.append(f"{title}:\n\n![{title}](images/results-{name}.png)")
    parts.append("## Tables")
    for path in sorted(tables.glob("*.md")):
        parts.append(f"##{path.read_text().strip()}")  # a heading of the third degree
    (DOCS / "results.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
