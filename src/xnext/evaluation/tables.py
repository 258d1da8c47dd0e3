"""The papers' tables: what they published, beside what is counted and measured here."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import nn

from xnext._files import write_atomic
from xnext._yaml import read_yaml
from xnext.errors import UserError
from xnext.evaluation.complexity import count_macs, count_parameters
from xnext.evaluation.throughput import Plan, Size, benchmark, describe, measure_size
from xnext.models.mixers import InceptionDWConv2d, SegmentedConv2d

PUBLISHED = Path(__file__).with_name("published.yaml")
TASKS = ("inference", "train")


@dataclass(frozen=True)
class Quantity:
    """A column of the papers.

    Attributes:
        heading: What it is, and its unit.
        task: What measures it; None: it is counted, or cannot be measured here.
        digits: After the point, of what is counted or measured here; the paper's stand as it has them.
    """

    heading: str
    task: str | None = None
    digits: int = 2


QUANTITIES = {
    "params": Quantity("params (M)"),
    "macs": Quantity("MACs (G)"),
    "train": Quantity("training (images/s)", "train", digits=1),
    "inference": Quantity("inference (images/s)", "inference", digits=1),
    "train_2080ti": Quantity("training on a 2080 Ti (images/s)"),
    "inference_2080ti": Quantity("inference on a 2080 Ti (images/s)"),
    "inference_sd": Quantity("sd of inference"),
    "steps": Quantity("steps a second", "train"),
    "top1": Quantity("top-1 (%)"),
}
"""By their names in the data file."""

COUNTED = {"params": 1e6, "macs": 1e9}
"""What is counted without measuring, and its unit."""


@dataclass(frozen=True)
class Entry:
    """A row of a paper's table.

    Attributes:
        name: As the paper has it.
        image_size: Pixels a side.
        network: A name of this project or of timm; None where neither has it.
        args: Options of the network.
        published: The paper's figures, by the names of ``QUANTITIES``.
    """

    name: str
    image_size: int
    network: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    published: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        title: What it shows.
        source: The paper and the table's number.
        baseline: Name of the row with which speeds are compared: those of two devices differ, but ratios
            may agree.
        entries: Its rows.
        setting: How the paper measured, by the names of ``QUANTITIES``.
    """

    title: str
    source: str
    baseline: str
    entries: tuple[Entry, ...]
    setting: Mapping[str, str] = field(default_factory=dict)

    @property
    def quantities(self) -> list[str]:
        """Names of its columns."""
        return [name for name in QUANTITIES if any(name in entry.published for entry in self.entries)]


def load_published() -> dict[str, PaperTable]:
    """Return the papers' tables, by name."""
    tables = {}
    for name, content in read_yaml(PUBLISHED).items():
        rows = [dict(row) for row in content.pop("rows")]
        entries = []
        for row in rows:
            known = {key: row.pop(key) for key in ("name", "image_size", "network", "args") if key in row}
            entries.append(Entry(**known, published=row))
        tables[name] = PaperTable(**content, entries=tuple(entries))
    return tables


class Speeds:
    """Speeds of networks, as they were measured.

    Attributes:
        about: How, where and with what.
    """

    def __init__(self, about: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> None:
        self.about = about
        self._known = dict(known)

    @staticmethod
    def open(path: Path) -> "Speeds":
        """Return the speeds of a file.

        Raises:
            UserError: There is none, or it is damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return Speeds(content["about"], content["speeds"])
        except OSError as error:
            raise UserError(
                f"there is no {path}; xnext tables --measure --output FOLDER writes it"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged; delete it, or choose another folder") from error

    def __getitem__(self, key: tuple[Entry, str]) -> Mapping[str, Any] | None:
        """Return what is known of a network and a task: the mean, the fastest way, and so on."""
        return self._known.get(_key(*key))


class MeasuredSpeeds(Speeds):
    """Speeds that are added to, in a file, so that each is measured once, however often that is stopped."""

    def __init__(self, path: Path | None, plan: Plan) -> None:
        """Begin with what the file holds, or with nothing.

        Args:
            path: The file; None: speeds are not kept.
            plan: How to measure.

        Raises:
            UserError: The file is damaged, or its speeds were measured in another way.
        """
        about = {name: value for name, value in describe(plan).items() if name != "task"}
        super().__init__(about | {"dtype": plan.dtype}, {})
        self._path, self._plan = path, plan
        if path is None or not path.exists():
            return
        found = Speeds.open(path)
        if different := [name for name, value in self.about.items() if found.about.get(name) != value]:
            raise UserError(
                f"{path} was measured with another {', '.join(different)}; choose another --output"
            )
        self._known = found._known

    def measure(self, entry: Entry, task: str, watch: Callable[[Iterable[int]], Iterable[int]]) -> None:
        """Measure a network, unless that was done.

        Args:
            entry: Of which network.
            task: One of ``TASKS``.
            watch: Passes turns on, to show progress.
        """
        if entry.network is None or self[entry, task] is not None:
            return
        plan = replace(self._plan, training=task == "train", image_size=entry.image_size)
        rows = benchmark(entry.network, plan, watch=watch, model_args=entry.args, twin=False)
        eager = max((row for row in rows if row.way == "eager"), key=attrgetter("mean"))
        best = max((row for row in rows if row.dtype == plan.dtype), key=attrgetter("mean"))
        self._known[_key(entry, task)] = asdict(eager) | {"best": asdict(best)}
        if self._path is not None:
            content = {"about": self.about, "speeds": self._known}
            write_atomic(self._path, (json.dumps(content, indent=1) + "\n").encode())


def _key(entry: Entry, task: str) -> str:
    options = json.dumps(dict(entry.args), sort_keys=True)
    return f"{task} {entry.network} {options} {entry.image_size}"


def compare(table: PaperTable, speeds: Speeds, sizes: Callable[[Entry], Size | None]) -> list[dict[str, str]]:
    """Return the rows of a table as text: each figure of the paper, of here, and the difference.

    Speeds differ by the device; their difference is that of the ratio to the baseline's speed. What
    nothing is known of gets no column.

    Args:
        table: The paper's.
        speeds: What was measured.
        sizes: Returns the counted size of a network, or None where there is no such network.
    """
    baseline = next(entry for entry in table.entries if entry.name == table.baseline)
    lines = []
    for entry in table.entries:
        size, line = sizes(entry), {"model": entry.name}
        for name in table.quantities:
            heading, published = QUANTITIES[name].heading, entry.published.get(name)
            line[heading] = "" if published is None else str(published)
            if (task := QUANTITIES[name].task) is not None:
                line |= _speed_columns(name, task, entry, baseline, speeds)
            elif size is not None and name in COUNTED:
                here = getattr(size, name) / COUNTED[name]
                line[f"{heading}, here"] = f"{here:.{QUANTITIES[name].digits}f}"
                line[f"{heading}, difference"] = _difference(here, published)
        lines.append(line)
    headings = [QUANTITIES[name].heading for name in table.quantities]
    known = dict.fromkeys(column for line in lines for column in line)
    columns = ["model", *(c for heading in headings for c in known if c.startswith(heading))]
    return [{column: line.get(column, "") for column in columns} for line in lines]


def _speed_columns(name: str, task: str, entry: Entry, baseline: Entry, speeds: Speeds) -> dict[str, str]:
    """Return what was measured of a speed, how it compares, and that of the fastest way."""
    quantity = QUANTITIES[name]
    measured, base = speeds[entry, task], speeds[baseline, task]
    if measured is None:
        return {}
    unit = measured["batch_size"] if name == "steps" else 1
    line = {
        f"{quantity.heading}, here": f"{measured['mean'] / unit:.{quantity.digits}f}",
        f"{quantity.heading}, sd here": f"{measured['sd'] / unit:.{quantity.digits}f}",
        f"{quantity.heading}, fastest here": f"{measured['best']['mean'] / unit:.{quantity.digits}f}",
    }
    if base is not None and name in entry.published:
        ratio = entry.published[name] / baseline.published[name]
        line[f"{quantity.heading}, difference"] = _difference(measured["mean"] / base["mean"], ratio)
    return line


def _difference(here: float, published: float | None) -> str:
    return "" if published is None else f"{100 * here / published - 100:+.1f} %"


def count_size(entry: Entry, plan: Plan) -> Size | None:
    """Return the size of an entry's network at its image size; None where there is no such network."""
    if entry.network is None:
        return None
    return measure_size(entry.network, replace(plan, image_size=entry.image_size), entry.args)


def count_convolutions(channels: int = 96, size: int = 56) -> list[dict[str, str]]:
    """Return table 2 of the InceptionNeXt paper, by its formulas and as counted.

    Args:
        channels: Of the convolutions, in and out; a multiple of 8.
        size: Pixels a side.
    """
    pixels, lines = size * size, []
    for kernel in (3, 5, 7, 9, 11):
        kinds: dict[str, tuple[float, nn.Module]] = {
            "regular": (kernel**2 * channels**2, SegmentedConv2d(channels, kernel, segments=1)),
            "depthwise": (kernel**2 * channels, SegmentedConv2d(channels, kernel)),
            "Inception depthwise": (
                (2 * kernel + 9) * channels / 8,
                InceptionDWConv2d(channels, band_kernel_size=kernel, bias=False),
            ),
        }
        for name, (formula, module) in kinds.items():
            flops = 2 * count_macs(module, (channels, size, size))
            lines.append(
                {
                    "convolution": name, "kernel": str(kernel),
                    "params": f"{formula:.0f}", "params, here": f"{count_parameters(module)}",
                    "MFLOPs": f"{2 * formula * pixels / 1e6:.2f}", "MFLOPs, here": f"{flops / 1e6:.2f}",
                }
            )  # fmt: skip
    return lines


def to_csv(lines: list[dict[str, str]]) -> str:
    """Return rows as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def to_markdown(lines: list[dict[str, str]]) -> str:
    """Return rows as a Markdown table: words to the left, numbers to the right."""
    first, *rest = lines[0]
    rows = [[first, *rest], ["---", *["---:"] * len(rest)], *(list(line.values()) for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
