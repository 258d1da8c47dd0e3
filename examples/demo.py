"""The main job in two minutes: train on handwritten digits, measure, predict, see where the network looks.

Run it with `make demo`, or `python examples/demo.py` where xnext is installed. It types the commands that a
user would, and prints them.
"""

import json
import shlex
import sys
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from xnext.cli import main as xnext
from xnext.data import load_data

GOAL = 99.0  # % top-1 of held-out digits
PICTURES = 6  # held-out digits to predict and explain
PIXELS = 256  # their side; they come as 8 x 8


def demo() -> int:
    run = free_folder(Path("runs/demo"))
    training = ["--model", "nexception_debug", "--data", "digits", "--epochs", "20", "--batch-size", "64"]
    command("train", *training, "--output", run)
    command("evaluate", run)

    pictures = run / "pictures"
    write_pictures(pictures)
    command("predict", pictures, "--checkpoint", run, "--topk", "2")
    command("cam", pictures, "--checkpoint", run, "--output", run / "cam.png")

    top1 = json.loads((run / "summary.json").read_text())["best_val_top1"]
    print(f"\n{top1:.2f} % of the held-out digits are right. Now look at:")
    for name, what in {
        "curves.png": "how it learned",
        "confusion.png": "which digits it mixes up",
        "cam.png": "where it looks",
        "pictures/": "digits it has never seen, named after what they are",
        "config.yaml": "all that was decided; change it and train again",
    }.items():
        print(f"  {run / name!s:28}{what}")
    if top1 < GOAL:
        print(f"That is less than the {GOAL} % that this demo promises.", file=sys.stderr)
        return 1
    return 0


def free_folder(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3``, … that does not exist."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return path if not path.exists() else next(folder for folder in numbered if not folder.exists())


def command(*words: str | Path) -> None:
    """Print an xnext command and run it; end the demo if it fails."""
    line = [str(word) for word in words]
    print(f"\n$ xnext {shlex.join(line)}", flush=True)
    if code := xnext(line):
        sys.exit(code)


def write_pictures(folder: Path) -> None:
    """Write the first held-out picture of some classes as files that a viewer shows well."""
    data = load_data("digits")
    folder.mkdir()
    for label in range(PICTURES):
        index = int(np.flatnonzero(data.val.labels == label)[0])
        picture = data.val.read(index).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
        picture.save(folder / f"{data.classes[label]}.png")


if __name__ == "__main__":
    sys.exit(demo())
