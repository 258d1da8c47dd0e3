"""Measure the kernels' tiles and winners again, on the GPU that is there, and write ``tiles.json``.

    python -m xnext.kernels.tune [--only winners] [--output FILE]

Tiles: of each row of the table one property after the other is varied, and the fastest tile stays. Winners:
for each operator, type and mode, the fewest elements from which on the kernels were faster than PyTorch on
channels-last images at every size that was measured.
"""

import argparse
import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from datetime import date
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from triton.runtime.errors import OutOfResources

from xnext._files import write_atomic
from xnext._timing import rotate, time_calls
from xnext.kernels import _launch
from xnext.kernels._backend import Backend, use_backend, winner
from xnext.kernels._geometry import Geometry
from xnext.kernels._operators import OPERATORS, Operator
from xnext.kernels._tiles import Tile, read_table, read_tiles

Call = Callable[[], Any]
Measure = Callable[[Call], float]
Size = tuple[int, ...]  # taps along a strip, taps across, stride

CHOICES: dict[str, tuple[Any, ...]] = {
    "places": (256, 512, 1024, 2048), "channels": (32, 64, 128), "warps": (2, 4, 8), "rows": (16, 64),
    "keep": (False, True), "part": (1, 2, 3),
}  # fmt: skip
"""What is tried of each property of a tile."""

SHAPES = ((96, 56), (384, 14))
"""Channels and side of the images with which winners are found."""

BATCHES = (1, 8, 32, 128)


def used(operation: str) -> list[str]:
    """Return the properties of a tile that count for an operation."""
    shared = ["places", "channels", "warps", "rows"]
    return shared + {"forward": ["keep"], "input": ["keep"], "mix": ["keep"], "weight": ["part"]}.get(
        operation, []
    )


def work(operation: str, size: Size, shape: Sequence[int], device: torch.device) -> Call:
    """Return a call of one operation of bfloat16 images [N, C, H, W], which rotate through memory."""
    taps_s, taps_a, stride = size
    how: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    kernel = Geometry((taps_s, taps_a), (stride, stride), (taps_s // 2, taps_a // 2))
    channels, outputs = shape[1], (*shape[:2], *kernel.output_size(shape[2:]))

    def image(shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, **how).to(memory_format=torch.channels_last)

    weight = torch.randn(channels, 1, *kernel.kernel, **how)
    group = max(channels // 8, 1)
    sides = ((taps_a, taps_a), (1, taps_s), (taps_s, 1))
    mixed = [torch.randn(group, 1, *pair, **how) for pair in sides]
    codes = torch.randint(9, (shape[0], *shape[2:], channels), device=device, dtype=torch.uint8)
    calls: dict[str, tuple[list[Sequence[int]], Callable[..., Any]]] = {
        "forward": ([shape], lambda x: _launch.forward(x, weight, None, kernel)),
        "input": ([outputs], lambda g: _launch.backward_input(g, weight, shape[2:], kernel)),
        "weight": ([outputs, shape], lambda g, x: _launch.backward_weight(g, x, kernel)),
        "mix": ([shape], lambda x: _launch.mix(x, mixed, [], back=False)),
        "pool": ([shape], lambda x: _launch.max_blur(x, True)),
        "pool_input": ([outputs], lambda g: _launch.max_blur_backward_input(g, codes)),
    }
    images, call = calls[operation]
    turn = rotate(lambda: [image(one) for one in images], device)
    return lambda: call(*turn())


def improve(tile: Tile, properties: Sequence[str], seconds: Callable[[Tile], float]) -> Tile:
    """Return the fastest tile that is found by varying one property after the other."""
    best = seconds(tile)
    for name in properties:
        for value in CHOICES[name]:
            tried = replace(tile, **{name: value})
            if tried != tile and (time := seconds(tried)) < best:
                tile, best = tried, time
    return tile


def tune_tile(operation: str, size: Size, call: Call, measure: Measure) -> Tile:
    """Return the best tile of a row of the table, which takes its place there."""
    rows = read_tiles()[operation]

    def seconds(tile: Tile) -> float:
        rows[size] = tile
        try:
            return measure(call)
        except OutOfResources:  # of registers or shared memory: the tile is too large for this GPU
            return float("inf")

    rows[size] = improve(rows[size], used(operation), seconds)
    return rows[size]


def step(
    operator: Operator, shape: Sequence[int], backend: Backend, training: bool, how: dict[str, Any]
) -> Call:
    """Return a call of an operator, in training with all its gradients, by one of the two."""
    weights = [weight.requires_grad_(training) for weight in operator.draw_weights(shape[1], **how)]

    def image() -> list[Tensor]:
        x = torch.randn(*shape, **how).to(memory_format=torch.channels_last).requires_grad_(training)
        with torch.no_grad(), use_backend("torch"):
            grad = torch.randn_like(operator.call(x, *weights)) if training else x
        return [x, grad]

    turn = rotate(image, torch.device(how["device"]))

    def run() -> Any:
        x, grad = turn()
        with torch.set_grad_enabled(training), use_backend(backend):
            y = operator.call(x, *weights)
            return torch.autograd.grad(y, [x, *weights], grad) if training else y

    return run


def least_winning(times: Sequence[tuple[int, float, float]]) -> int | None:
    """Return the elements from which on ours is always faster, of (elements, ours, theirs); None if never."""
    lost = max((elements for elements, ours, theirs in times if ours >= theirs), default=0)
    return min((elements for elements, _, _ in times if elements > lost), default=None)


def find_winners(
    operators: Sequence[Operator], device: torch.device, measure: Measure
) -> Iterator[tuple[str, int]]:
    """Yield the rows of the table of winners."""
    for operator in operators:
        for dtype in (torch.bfloat16, torch.float32):
            for training in (False, True):
                times = []
                for batch in BATCHES:
                    for channels, side in SHAPES:
                        shape, how = (batch, channels, side, side), {"device": device, "dtype": dtype}
                        ours, theirs = (
                            measure(step(operator, shape, backend, training, how))
                            for backend in ("triton", "torch")
                        )
                        times.append((batch * channels * side**2, ours, theirs))
                least = least_winning(times)
                if least is not None:
                    yield winner(operator.name, dtype, training), least


def dump(table: dict[str, Any]) -> str:
    """Return the table as JSON with a line a tile."""
    short = re.compile(r"\{\s+([^{}]{,100}?)\s+\}")
    return short.sub(lambda found: "{" + " ".join(found[1].split()) + "}", json.dumps(table, indent=2)) + "\n"


def write_table(path: Path, table: dict[str, Any]) -> None:
    """Write the table; who asks for it from now on, in this process too, reads the files again."""
    write_atomic(path, dump(table).encode())
    read_table.cache_clear()
    read_tiles.cache_clear()


def changed(tile: Tile) -> dict[str, Any]:
    """Return the properties of a tile that are not as usual."""
    usual = {field.name: field.default for field in fields(tile)}
    return {name: value for name, value in asdict(tile).items() if value != usual[name]}


def tune(only: str | None, device: torch.device, measure: Measure, shape: Sequence[int]) -> dict[str, Any]:
    """Return the whole table, measured again or in part.

    Args:
        only: An operation of the table of tiles, ``winners``, or None for everything.
        device: The GPU.
        measure: Returns the seconds of a call.
        shape: [N, C, H, W] of the images with which tiles are found.
    """
    table = dict(read_table())
    rows = [(name, size) for name, sizes in read_tiles().items() for size in sizes if only in (None, name)]
    for operation, size in track(rows, "tiles"):
        tune_tile(operation, size, work(operation, size, shape, device), measure)
    table["tiles"] = {
        operation: {"x".join(map(str, size)): changed(tile) for size, tile in sizes.items()}
        for operation, sizes in read_tiles().items()
    }
    if only in (None, "winners"):
        name = "{}.{}".format(*torch.cuda.get_device_capability(device))
        found = dict(find_winners(list(track(OPERATORS.values(), "winners")), device, measure))
        table["winners"] = table["winners"] | {name: found}
    table["measured"] = {
        "device": torch.cuda.get_device_name(device),
        "versions": {package: version(package) for package in ("torch", "triton")},
        "date": date.today().isoformat(),
    }
    return table


def _fail(reason: str) -> int:
    print(f"xnext.kernels.tune: error: {reason}", file=sys.stderr)
    return 2


def main(words: Sequence[str] | None = None) -> int:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m xnext.kernels.tune", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", choices=[*read_tiles(), "winners"], help="a part of the table")
    parser.add_argument("--output", type=Path, help="instead of the table that is installed")
    arguments = parser.parse_args(words)
    if not torch.cuda.is_available():
        return _fail("PyTorch finds no GPU here")
    device = torch.device("cuda", torch.cuda.current_device())
    path = arguments.output or Path(str(resources.files("xnext.kernels") / "tiles.json"))
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        return _fail(f"cannot write {path}: give another place as --output")

    def measure(call: Call) -> float:
        return statistics.median(time_calls(call, device, calls=15))

    write_table(path, tune(arguments.only, device, measure, (128, 96, 56, 56)))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
