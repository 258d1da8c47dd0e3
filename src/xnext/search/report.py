"""The report of a search: one HTML file that asks the network for nothing, for people to read."""

import shlex
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from xnext._page import escape, note, section, write_page
from xnext._version import __version__
from xnext.errors import UserError
from xnext.models._registry import create_variant
from xnext.search.history import Record, in_epochs
from xnext.search.importance import Importance, measure_importance
from xnext.search.search import Search
from xnext.search.trial import FAILURES, SIZES, STATUSES
from xnext.training import Run
from xnext.training.compare import read_rows

try:
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs
except ImportError as error:
    raise UserError("the report needs Plotly: pip install 'xnext[search]'") from error

_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#9aa0a6"
_CURVES = 12  # of learning
_SHOWN = 10  # choices in the picture of importance
_LOG = 25  # lines of a failure's log
_FAILED = 20  # failures with their logs

_STYLE = """
.net { display: flex; flex-wrap: wrap; gap: .4rem; align-items: stretch; margin-bottom: 1rem }
.block { border: 1px solid #dadce0; border-radius: .5rem; padding: .4rem .6rem }
.block { background: #f6f7f8; font-size: .8rem }
.block b { display: block; font-size: .9rem } .stage { background: #e8f0fe }
"""


def write_report(search: Search, path: Path) -> None:
    """Write the report.

    Args:
        search: With at least one trial that has ended; where none succeeded, it tells what went wrong.
        path: The file.

    Raises:
        UserError: No trial has ended, or the file cannot be written.
    """
    best = search.history.best
    if not search.history.finished:
        raise UserError(f"{search.path}: no trial has ended yet; let the search go on")
    parts = [
        _head(search, best),
        *([] if best is None else _successes(search, best)),
        section("What went wrong", _failures(search)),
        section("Trials", _table(search)),
        section("Do it again", _reproduce(search, best)),
    ]
    write_page(path, search.path.name, "".join(parts), _STYLE, get_plotlyjs())


def _successes(search: Search, best: Record) -> list[str]:
    """Return the parts about the trials that succeeded."""
    return [
        section("The best network", _network(search, best)),
        section("Accuracy over time", _plot(_over_time(search))),
        *([section("What it costs", _plot(_front(search)))] if _sizes(search) else []),
        section("What mattered", *_importance(search)),
        section(
            "All trials at once",
            _plot(_parallel(search), top=110),
            note("Drag along an axis to choose trials."),
        ),
        section("Learning curves", *_curves(search)),
    ]


def _plot(figure: go.Figure, height: int = 380, top: int = 20) -> str:
    figure.update_layout(
        template="plotly_white", height=height, margin={"l": 60, "r": 20, "t": top, "b": 50},
        font={"family": "system-ui, sans-serif"},
    )  # fmt: skip
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})


def _sizes(search: Search) -> list[str]:
    """Return the sizes that were searched for or limited, else multiply-accumulates."""
    wanted = [name for name in SIZES if name in search.config.objective or name in search.config.limits]
    return wanted or ["macs"]


def _head(search: Search, best: Record | None) -> str:
    history, config = search.history, search.config
    counts = {status: sum(record.status == status for record in history.records) for status in STATUSES}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    result = "<p>No trial succeeded.</p>"
    if best is not None:
        sizes = ", ".join(f"{name} {best.values[name]:,.4g}" for name in SIZES if name in best.values)
        result = (
            f"<p>Best: <b>{best.values['top1']:.2f} %</b> top-1 after {in_epochs(best.query.epochs)}"
            f" (trial {best.number}; {sizes} at the size of the search).</p>"
        )
    return (
        f"<h1>Search of {escape(config.data)}</h1>"
        f'<p class="lead">space {escape(search.space.name)}, {escape(config.optimizer)}, {said};'
        f" {history.elapsed / 60:.1f} minutes</p>{result}"
    )


def _network(search: Search, best: Record) -> str:
    """Draw the winner's parts in a row, at the size of the search."""
    architecture = search.space.architecture(best.query.point, search.config.width)
    network = create_variant(architecture.model, architecture.model_args, num_classes=len(search.classes))
    boxes = [_box(network.get_submodule("stem"), "stem", "")]
    for place, stage in enumerate(network.get_submodule("stages").children()):
        boxes += [_box(block, f"stage {place + 1}, {name}", "stage") for name, block in _blocks(stage)]
    boxes.append(f'<div class="block"><b>head</b>{len(search.classes)} classes</div>')
    choices = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in best.query.point.items()
    )
    return f'<div class="net">{"".join(boxes)}</div><table>{choices}</table>'


def _blocks(stage: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a stage that have weights: its blocks, and what is between."""
    found = []
    for name, child in stage.named_children():
        inner = list(child.named_children()) if isinstance(child, nn.Sequential) else []
        found += [(f"{name} {number}", block) for number, block in inner] or [(name, child)]
    return [(name, block) for name, block in found if any(True for _ in block.parameters())]


def _box(block: nn.Module, name: str, kind: str) -> str:
    """Return a box with the widths and kernels of a block's convolutions."""
    convolutions = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]
    lines = []
    for layer in convolutions:
        side = "×".join(map(str, layer.kernel_size))
        depthwise = "depthwise " if layer.groups > 1 else ""
        if layer.kernel_size != (1, 1):
            lines.append(f"{depthwise}{side}, {layer.out_channels}")
    size = sum(parameter.numel() for parameter in block.parameters())
    inside = "<br>".join(lines) or "1×1"
    return f'<div class="block {kind}"><b>{escape(name)}</b>{inside}<br>{size:,} parameters</div>'


def _over_time(search: Search) -> go.Figure:
    """Draw each trial's accuracy when it ended, and the best so far of the longest trials."""
    figure, records = go.Figure(), search.history.successes
    longest = max(record.query.epochs for record in records)
    for epochs in sorted({record.query.epochs for record in records}):
        chosen = [record for record in records if record.query.epochs == epochs]
        shade = 0.35 + 0.65 * epochs / longest
        figure.add_scatter(
            x=[record.elapsed / 60 for record in chosen], y=[record.values["top1"] for record in chosen],
            mode="markers", name=in_epochs(epochs), opacity=shade,
            marker={"color": _BLUE, "size": 5 + 4 * epochs / longest},
            text=[f"trial {record.number}" for record in chosen],
        )  # fmt: skip
    x: list[float] = []
    y: list[float] = []
    for record in sorted((r for r in records if r.query.epochs == longest), key=lambda r: r.elapsed):
        if not y or record.values["top1"] > y[-1]:
            x.append(record.elapsed / 60)
            y.append(record.values["top1"])
    x.append(search.history.elapsed / 60)
    y.append(y[-1])
    figure.add_scatter(x=x, y=y, mode="lines", line={"shape": "hv", "color": _ORANGE}, name="best")
    figure.update_layout(xaxis_title="minutes", yaxis_title="top-1 (%)")
    return figure


def _front(search: Search) -> go.Figure:
    """Draw accuracy against a size, with the networks than which none is better in both."""
    name = _sizes(search)[0]
    full = search.history.longest
    front: list[Record] = []
    for record in sorted(full, key=lambda record: (record.values[name], -record.values["top1"])):
        if not front or record.values["top1"] > front[-1].values["top1"]:
            front.append(record)
    figure = go.Figure()
    for chosen, label, mode, colour in (
        (full, "trials", "markers", _BLUE),
        (front, "front", "lines+markers", _ORANGE),
    ):
        figure.add_scatter(
            x=[record.values[name] for record in chosen], y=[record.values["top1"] for record in chosen],
            text=[f"trial {record.number}" for record in chosen],
            mode=mode, name=label, marker={"color": colour},
        )  # fmt: skip
    figure.update_layout(xaxis_title=name, yaxis_title="top-1 (%)")
    return figure


def _importance(search: Search) -> list[str]:
    """Draw local importance by the length of trials, where there are enough of them."""
    figure, problems = go.Figure(), []
    found: dict[int, list[Importance]] = {}
    for epochs in sorted({record.query.epochs for record in search.history.successes}):
        try:
            found[epochs] = measure_importance(search.history, "lpi", epochs)
        except UserError as error:
            problems.append(note(escape(error)))
    if not found:
        return problems
    names = [one.name for one in found[max(found)]][:_SHOWN][::-1]
    for place, (epochs, importances) in enumerate(found.items()):
        by_name = {one.name: one for one in importances}
        shares = [by_name[name].share for name in names]
        figure.add_bar(
            y=names, x=shares, orientation="h", name=in_epochs(epochs),
            marker_color=_BLUE, opacity=0.35 + 0.65 * (place + 1) / len(found),
            error_x={
                "array": [by_name[name].high - by_name[name].share for name in names],
                "arrayminus": [by_name[name].share - by_name[name].low for name in names],
                "thickness": 1, "width": 2,
            },
        )  # fmt: skip
    figure.update_layout(
        xaxis_title="share of the variation around the best", barmode="group", showlegend=True
    )
    which = f" The {_SHOWN} choices that decide most." if len(search.space.choices) > _SHOWN else ""
    legend = note(f"Local parameter importance; lines are the standard deviation over the trees.{which}")
    return [_plot(figure, height=140 + 40 * len(names)), legend, *problems]


def _parallel(search: Search) -> go.Figure:
    """Draw every trial as a line through its choices to its accuracy."""
    records = search.history.successes
    axes = []
    for choice, values in search.space.choices.items():
        names = list(values)
        places = [names.index(r.query.point[choice]) if choice in r.query.point else -1 for r in records]
        ticks = (
            (["–", *names], list(range(-1, len(names)))) if -1 in places else (names, list(range(len(names))))
        )
        margin = 0.05 * len(ticks[1])
        ends = [ticks[1][0] - margin, ticks[1][-1] + margin]  # those of what was tried may be nearer
        axes.append(
            {"label": choice, "values": places, "ticktext": ticks[0], "tickvals": ticks[1], "range": ends}
        )
    epochs = [record.query.epochs for record in records]
    axes.append({"label": "epochs", "values": epochs, "tickvals": sorted(set(epochs))})
    top1 = [record.values["top1"] for record in records]
    axes.append({"label": "top-1", "values": top1})
    figure = go.Figure(
        go.Parcoords(dimensions=axes, line={"color": top1, "colorscale": "Viridis", "showscale": True})
    )
    figure.update_traces(labelangle=-25, labelside="top")
    return figure


def _curves(search: Search) -> list[str]:
    """Draw the held-out accuracy of the best networks over their epochs."""
    figure = go.Figure()
    latest = {
        record.network: record for record in sorted(search.history.successes, key=lambda r: r.query.epochs)
    }
    problems = []
    for record in sorted(latest.values(), key=lambda r: r.costs)[:_CURVES]:
        try:
            rows = read_rows(Run(search.trial(record, 0).run))
        except UserError as error:
            problems.append(note(escape(f"trial {record.number}: {error}")))
            continue
        rows = [row for row in rows if "val_top1" in row]
        figure.add_scatter(
            x=[row["epoch"] for row in rows], y=[row["val_top1"] for row in rows],
            mode="lines+markers", name=f"trial {record.number}",
        )  # fmt: skip
    figure.update_layout(xaxis_title="epoch", yaxis_title="top-1 (%)")
    return [_plot(figure), note(f"The {_CURVES} best, by their last epoch."), *problems]


def _failures(search: Search) -> str:
    failed = [record for record in search.history.records if record.status in FAILURES]
    if not failed:
        return "<p>No trial failed.</p>"
    parts = []
    for record in failed[:_FAILED]:
        log = search.trial(record, 0).log
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        parts.append(
            f"<details><summary>trial {record.number}: {escape(record.status)}, {escape(record.reason)}"
            "</summary>"
            f"<pre>{escape(chr(10).join(lines[-_LOG:]))}</pre></details>"
        )
    rest = len(failed) - len(parts)
    return "".join(parts) + (f"<p>and {rest} more</p>" if rest else "")


def _table(search: Search) -> str:
    names = [name for name in ("top1", *SIZES) if any(name in r.values for r in search.history.records)]
    rows = []
    for record in search.history.records:
        values = "".join(
            f"<td>{record.values[n]:,.4g}</td>" if n in record.values else "<td></td>" for n in names
        )
        choices = "".join(
            f"<td>{escape(record.query.point.get(choice, ''))}</td>" for choice in search.space.choices
        )
        rows.append(
            f"<tr><td>{record.number}</td><td>{record.network}</td><td>{record.query.epochs}</td>"
            f"<td>{escape(record.status or 'running')}</td><td>{record.seconds:.1f}</td>"
            f"{values}{choices}</tr>"
        )
    heads = ("trial", "network", "epochs", "status", "seconds", *names, *search.space.choices)
    header = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="scroll"><table><tr>{header}</tr>{"".join(rows)}</table></div>'


def _reproduce(search: Search, best: Record | None) -> str:
    """Return the commands that search alike, with all that differs from the defaults."""
    config = search.config
    words = ["xnext", "search", config.data, "--output", "AGAIN"]
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name != "data" and value != field.default:
            for one in value if isinstance(value, tuple) else (value,):
                words += [f"--{field.name.replace('_', '-')}", str(one)]
    commands = [words]
    if best is not None:
        model = str(search.path / "best.yaml")
        commands.append(["xnext", "search", "best", str(search.path)])
        commands.append(["xnext", "train", "--model", model, "--data", config.data, "--output", "RUN"])
    versions = f"xnext {__version__}, torch {torch.__version__.partition('+')[0]}"
    code = escape("\n".join(map(shlex.join, commands)))
    which = "" if best is None else f"; network {best.network:05d} of this search"
    return f"<pre>{code}</pre>" + note(f"{versions}{which}.")
