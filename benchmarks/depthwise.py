"""The operators of xnext.kernels against PyTorch's on a GPU: time, and the fraction of the device's roof.

    python -m benchmarks.depthwise [--batch-size N] [--dtype bf16] [--only NAME…] [--output FOLDER]

Of each operator, forward, input gradient and weight gradient are measured in turn: the Triton kernel, PyTorch
(cuDNN) on channels-last images and on contiguous ones, and what inductor makes of it. Inputs rotate through
more memory than the cache holds. The device's copy bandwidth and float32 multiply-adds are measured in the
same run; the roof of a row is the larger of its fewest bytes over the one and its products over the other.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from rich.console import Console
from rich.table import Table
from torch import Tensor

from xnext._files import make_folder, write_atomic
from xnext._timing import deciles, rotate, time_calls
from xnext.kernels import use_backend
from xnext.kernels._operators import OPERATORS, Operator

ROOT = Path(__file__).parents[1]
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CALLS = 40
GRADIENTS = ("input gradient", "weight gradient")

CASES = [
    ("3x3 stride 1", 128, 56), ("3x3 stride 1", 728, 19), ("3x3 stride 2", 128, 112),
    ("1x11 stride 1", 96, 56), ("11x1 stride 1", 96, 56), ("inception 3 11", 96, 56),
    ("inception 3 11", 384, 14), ("partial 3", 96, 56), ("max-blur", 128, 112), ("max-blur", 256, 56),
    ("5x5 stride 1", 256, 28), ("7x7 stride 1", 96, 56), ("7x7 stride 1", 384, 14), ("9x9 stride 1", 96, 56),
]  # fmt: skip
"""Operators, with channels and side of the image."""


@dataclass(frozen=True)
class Way:
    """Who computes an operator, and on images of which layout."""

    name: str
    backend: Any
    layout: torch.memory_format = torch.channels_last
    compiled: bool = False


WAYS = (
    Way("xnext", "triton"),
    Way("cuDNN", "torch"),
    Way("PyTorch", "torch", torch.contiguous_format),
    Way("inductor", "torch", compiled=True),
)


@dataclass(frozen=True)
class Row:
    """A way of one operation: milliseconds, and the fraction of the roof; error relative to float32."""

    case: str
    operation: str
    way: str
    layout: str
    median: float
    p10: float
    p90: float
    roof: float
    fraction: float
    error: float
    memory_mib: int


@triton.jit
def _multiply_add(out_ptr, times, BLOCK: tl.constexpr):  # noqa: N803
    """Multiply and add in registers, four chains a thread's element."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = place.to(tl.float32) * 1e-9
    b, c, d = a + 1.0, a + 2.0, a + 3.0
    for _ in range(times):
        a = a * 0.999 + b
        b = b * 0.998 + c
        c = c * 0.997 + d
        d = d * 0.996 + a
    tl.store(out_ptr + place, a + b + c + d)


def ceilings(device: torch.device) -> dict[str, float]:
    """Measure the bytes a second of a large copy, read and written, and the multiply-adds a second."""
    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    copy = statistics.median(time_calls(lambda: target.copy_(source), device, CALLS))
    programs, block, times = 2**15, 1024, 2048
    out = torch.empty(programs * block, device=device)
    products = statistics.median(
        time_calls(lambda: _multiply_add[(programs,)](out, times, BLOCK=block), device, CALLS)
    )
    return {
        "bytes_per_second": 2 * source.nbytes / copy,
        "multiply_adds_per_second": 4.0 * times * programs * block / products,
    }


def roof(x: Tensor, y: Tensor, weights: list[Tensor], operation: str, limits: dict[str, float]) -> float:
    """Return the seconds that an operation takes at least: it reads and writes two images once."""
    bytes_: float = x.nbytes + y.nbytes
    if operation == GRADIENTS[1]:  # to which channels that only pass bring nothing
        bytes_ *= sum(map(len, weights)) / x.shape[1]
    if not weights and operation in GRADIENTS:
        bytes_ += x.numel()  # which of nine values a maximum is, in a byte
    products = y.shape[0] * y.shape[2] * y.shape[3] * sum(weight.numel() for weight in weights)
    return max(bytes_ / limits["bytes_per_second"], products / limits["multiply_adds_per_second"])


class Task:
    """One operation of an operator on images of one shape, in one way.

    Args:
        operator: What is computed.
        operation: Of it: forward, or one of the gradients.
        way: How.
        shape: [N, C, H, W].
        how: Device and type.
    """

    def __init__(
        self, operator: Operator, operation: str, way: Way, shape: tuple[int, ...], how: dict[str, Any]
    ):
        self.way, self.operation, self.shape = way, operation, shape
        generator = torch.Generator(how["device"]).manual_seed(0)
        self.draw = lambda shape: torch.randn(shape, generator=generator, **how)
        self.weights = [self.draw(size) for size in operator.shapes(shape[1])]
        self.call = torch.compile(operator.call) if way.compiled else operator.call

    def image(self, shape: tuple[int, ...]) -> Tensor:
        """Return a random image."""
        return self.draw(shape).to(memory_format=self.way.layout)

    def inputs(self) -> list[Tensor]:
        """Return an image; for a gradient also output, its gradient, and what to differentiate by."""
        x = self.image(self.shape)
        if self.operation == "forward":
            return [x]
        weights = [weight.detach() for weight in self.weights]
        targets = [x] if self.operation == GRADIENTS[0] else weights
        for target in targets:
            target.requires_grad_()
        y = self.call(x, *weights)
        return [x, y, self.image(tuple(y.shape)), *targets]

    def compute(self, x: Tensor, *graph: Tensor) -> list[Tensor]:
        """Return what the operation results in."""
        if self.operation == "forward":
            return [self.call(x, *self.weights)]
        y, grad, *targets = graph
        return list(torch.autograd.grad(y, targets, grad, retain_graph=True))

    def compute_exactly(self, x: Tensor, *graph: Tensor) -> list[Tensor]:
        """Return that for the same values in float32."""
        x, weights = x.detach().float(), [weight.float() for weight in self.weights]
        targets = [x] if self.operation == GRADIENTS[0] else weights
        for target in targets:
            target.requires_grad_(self.operation != "forward")
        with use_backend("torch"):
            y = self.call(x, *weights)
        return list(torch.autograd.grad(y, targets, graph[1].float())) if graph else [y]


def measure(operator: Operator, shape: tuple[int, ...], how: dict[str, Any], limits: dict) -> Iterator[Row]:
    """Yield a row for each way of each operation."""
    operations = ("forward", *GRADIENTS) if operator.shapes(shape[1]) else ("forward", GRADIENTS[0])
    for operation in operations:
        for way in WAYS:
            torch.compiler.reset()
            with use_backend(way.backend):
                yield _measure(operator, Task(operator, operation, way, shape, how), limits)


def _measure(operator: Operator, task: Task, limits: dict[str, float]) -> Row:
    """Return the row of one task."""
    case = f"{operator.name}, {task.shape[1]} x {task.shape[2]}²"
    inputs = task.inputs()
    device = inputs[0].device
    pairs = zip(task.compute(*inputs), task.compute_exactly(*inputs), strict=True)
    error = max(float((ours - exact).norm() / exact.norm()) for ours, exact in pairs)
    if not error < 2e-2:
        raise AssertionError(f"{case}, {task.operation}, {task.way.name}: {error:.2g} off")
    turn = rotate(task.inputs, device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = time_calls(lambda: task.compute(*turn()), device, CALLS)
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
    p10, median, p90 = (1e3 * time for time in deciles(times))
    with torch.no_grad(), use_backend("torch"):
        y = operator.call(inputs[0], *task.weights)
    least = 1e3 * roof(inputs[0], y, task.weights, task.operation, limits)
    layout = "NHWC" if task.way.layout == torch.channels_last else "NCHW"
    fraction = least / median
    return Row(
        case, task.operation, task.way.name, layout, median, p10, p90, least, fraction, error, peak >> 20
    )


def run(batch: int, dtype: str, device: str = "cuda", only: list[str] | None = None) -> dict[str, Any]:
    """Measure all cases, or those of some operators; return the figures with the device and the versions."""
    # A graph is gone through many times, which inductor must know when it reuses memory.
    torch._functorch.config.donated_buffer = False
    limits = ceilings(torch.device(device))
    how = {"device": device, "dtype": TYPES[dtype]}
    rows = [
        row
        for name, channels, side in CASES
        if only is None or name in only
        for row in measure(OPERATORS[name], (batch, channels, side, side), how, limits)
    ]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "dtype": dtype,
        "batch_size": batch,
        **limits,
        "rows": [asdict(row) for row in rows],
        "versions": {name: version(name) for name in ("xnext", "torch", "triton")},
        "date": date.today().isoformat(),
    }


def show(result: dict[str, Any]) -> None:
    """Print the rows, and the ceilings that they are held against."""
    table = Table("case", "operation", "way", "layout", "ms", "10 % to 90 %", "of roof", "MiB")
    for row in result["rows"]:
        table.add_row(
            row["case"], row["operation"], row["way"], row["layout"], f"{row['median']:.3f}",
            f"{row['p10']:.3f} to {row['p90']:.3f}", f"{row['fraction']:.0%}", str(row["memory_mib"]),
        )  # fmt: skip
    console = Console(width=120)
    console.print(table)
    console.print(
        f"{result['device']}, {result['dtype']}, batch {result['batch_size']}: "
        f"copy {result['bytes_per_second'] / 1e12:.2f} TB/s, "
        f"{result['multiply_adds_per_second'] / 1e12:.1f} T multiply-adds/s",
        highlight=False,
    )


def main() -> int:
    """Measure, print and write ``depthwise_DTYPE.json``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.depthwise", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dtype", default="bf16", choices=list(TYPES))
    parser.add_argument("--only", nargs="+", choices=sorted({name for name, _, _ in CASES}))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.depthwise: error: PyTorch finds no GPU here", file=sys.stderr)
        return 2
    if arguments.batch_size < 1:
        parser.error(f"--batch-size is {arguments.batch_size} and must be at least 1")
    result = run(arguments.batch_size, arguments.dtype, only=arguments.only)
    show(result)
    make_folder(arguments.output)
    path = arguments.output / f"depthwise_{arguments.dtype}.json"
    write_atomic(path, (json.dumps(result, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
