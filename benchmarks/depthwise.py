"""The operators of xnext.kernels against PyTorch's on a GPU: time, and the fraction of the device's roof.

    python -m benchmarks.depthwise [--batch-size 128] [--dtype bf16] [--output benchmarks/results]

Of each operation, forward, input gradient and weight gradient are measured in turn: the Triton kernel,
cuDNN on channels-last images, PyTorch's own kernel on contiguous ones, and what inductor makes of the
convolution. Inputs rotate through more memory than the cache holds. The device's copy bandwidth and float32
multiply-adds are measured in the same run; the roof of a row is the larger of its fewest bytes over the one
and its products over the other.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from rich.console import Console
from rich.table import Table
from torch import Tensor

from xnext._files import make_folder, write_atomic
from xnext.kernels import _ops, reference
from xnext.kernels._geometry import Geometry

ROOT = Path(__file__).parents[1]
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROTATED = 2**28  # bytes of input that calls go through in turn, more than any cache
CALLS = 40
WARM_UP = 5


@dataclass(frozen=True)
class Case:
    """A depthwise convolution: channels, side of the image, kernel, stride."""

    channels: int
    side: int
    kernel: tuple[int, int]
    stride: int = 1

    @property
    def geometry(self) -> Geometry:
        """How the kernel moves; it keeps the size, but for the stride."""
        padding = (self.kernel[0] // 2, self.kernel[1] // 2)
        return Geometry(self.kernel, (self.stride,) * 2, padding)

    @property
    def name(self) -> str:
        """What the table calls it."""
        kernel = f"{self.kernel[0]}x{self.kernel[1]}"
        return (
            f"{kernel}{f' stride {self.stride}' if self.stride > 1 else ''}, {self.channels} x {self.side}²"
        )


CASES = (
    Case(128, 56, (3, 3)), Case(728, 19, (3, 3)), Case(128, 112, (3, 3), 2),
    Case(96, 56, (1, 11)), Case(96, 56, (11, 1)),
    Case(256, 28, (5, 5)), Case(96, 56, (7, 7)), Case(384, 14, (7, 7)), Case(96, 56, (9, 9)),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A way of one operation: milliseconds and the fraction of the roof."""

    case: str
    operation: str
    way: str
    median: float
    p10: float
    p90: float
    roof: float
    fraction: float
    error: float


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


def time_calls(call: Callable[[], Any], calls: int = CALLS) -> list[float]:
    """Return the milliseconds of each call, by events of the device."""
    for _ in range(WARM_UP):
        call()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    for begin, end in events:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def ceilings() -> dict[str, float]:
    """Measure the bytes a second of a large copy, read and written, and the multiply-adds a second."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    copy = statistics.median(time_calls(lambda: target.copy_(source)))
    programs, block, times = 2**15, 1024, 2048
    out = torch.empty(programs * block, device="cuda")
    products = statistics.median(time_calls(lambda: _multiply_add[(programs,)](out, times, BLOCK=block)))
    return {
        "bytes_per_second": 2 * source.nbytes / copy * 1e3,
        "multiply_adds_per_second": 4.0 * times * programs * block / products * 1e3,
    }


def operations(case: Case) -> dict[str, dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """Return each way of forward, input gradient and weight gradient of (image, weight, gradient)."""
    moves = case.geometry.stride, case.geometry.padding, case.geometry.dilation
    groups = case.channels

    def backward(x: Tensor, w: Tensor, g: Tensor, which: list[bool]) -> Tensor:
        results = torch.ops.aten.convolution_backward(g, x, w, None, *moves, False, [0, 0], groups, which)
        return results[which.index(True)]

    def stock(mask: list[bool] | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        if mask is None:
            return lambda x, w, g: reference.depthwise_conv2d(x, w, None, *moves)
        return lambda x, w, g: backward(x, w, g, mask)

    ours: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "forward": lambda x, w, g: _ops.depthwise_conv2d(x, w, None, *moves),
        "input gradient": lambda x, w, g: _ops.backward_input(g, w, x.shape[2:], *moves),
        "weight gradient": lambda x, w, g: _ops.backward_weight(g, x, w.shape[2:], *moves)[0],
    }
    masks = {"forward": None, "input gradient": [True, False, False], "weight gradient": [False, True, False]}
    return {
        name: {
            "xnext": ours[name],
            "cudnn, channels-last": stock(mask),
            "pytorch, contiguous": stock(mask),
            "inductor, channels-last": torch.compile(stock(mask)),
        }
        for name, mask in masks.items()
    }


def roof(case: Case, operation: str, batch: int, size: int, limits: dict[str, float]) -> float:
    """Return the milliseconds that an operation takes at least."""
    height, width = case.geometry.output_size((case.side, case.side))
    image, output = batch * case.channels * case.side**2, batch * case.channels * height * width
    bytes_ = size * (image + output)
    products = output * case.kernel[0] * case.kernel[1]
    return 1e3 * max(bytes_ / limits["bytes_per_second"], products / limits["multiply_adds_per_second"])


def measure(case: Case, batch: int, dtype: torch.dtype, limits: dict[str, float]) -> Iterator[Row]:
    """Yield a row for each way of each operation of a case."""
    height, width = case.geometry.output_size((case.side, case.side))
    shape = (batch, case.channels, case.side, case.side)
    one = batch * case.channels * case.side**2 * dtype.itemsize
    inputs = [
        [
            torch.randn(size, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
            for size in (shape, (*shape[:2], height, width))
        ]
        for _ in range(max(2, -(-ROTATED // one)))
    ]
    weight = torch.randn(case.channels, 1, *case.kernel, device="cuda", dtype=dtype)
    for operation, ways in operations(case).items():
        x, g = inputs[0]
        exact = ways["pytorch, contiguous"](x.double().contiguous(), weight.double(), g.double().contiguous())
        for way, call in ways.items():
            turn = cycle(
                [[t.contiguous() for t in pair] for pair in inputs] if "contiguous" in way else inputs
            )

            def run(call: Any = call, turn: Any = turn) -> Tensor:
                image, grad = next(turn)
                return call(image, weight, grad)

            result = call(*(t.contiguous() if "contiguous" in way else t for t in (x, weight, g)))
            error = float((result.double() - exact).norm() / exact.norm())
            if not error < 2e-2:
                raise AssertionError(f"{case.name}, {operation}, {way}: {error:.2g} off")
            deciles = statistics.quantiles(time_calls(run), n=10)
            least = roof(case, operation, batch, dtype.itemsize, limits)
            median = deciles[4]
            yield Row(case.name, operation, way, median, deciles[0], deciles[8], least, least / median, error)


def run(batch: int, dtype: str) -> dict[str, Any]:
    """Measure all cases; return the figures with the device and the versions."""
    limits = ceilings()
    rows = [row for case in CASES for row in measure(case, batch, TYPES[dtype], limits)]
    return {
        "device": torch.cuda.get_device_name(),
        "dtype": dtype,
        "batch_size": batch,
        **limits,
        "rows": [asdict(row) for row in rows],
        "versions": {name: version(name) for name in ("xnext", "torch", "triton")},
        "date": date.today().isoformat(),
    }


def show(result: dict[str, Any]) -> None:
    """Print the rows, and the ceilings that they are held against."""
    table = Table("case", "operation", "way", "ms", "10 % to 90 %", "of roof")
    for row in result["rows"]:
        span = f"{row['p10']:.3f} to {row['p90']:.3f}"
        table.add_row(
            row["case"], row["operation"], row["way"], f"{row['median']:.3f}", span, f"{row['fraction']:.0%}"
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"{result['device']}: copy {result['bytes_per_second'] / 1e12:.2f} TB/s, "
        f"{result['multiply_adds_per_second'] / 1e12:.1f} T multiply-adds/s",
        highlight=False,
    )


def main() -> int:
    """Measure, print and write ``depthwise_DTYPE.json``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depthwise", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dtype", default="bf16", choices=list(TYPES))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here")
    result = run(arguments.batch_size, arguments.dtype)
    show(result)
    make_folder(arguments.output)
    path = arguments.output / f"depthwise_{arguments.dtype}.json"
    write_atomic(path, (json.dumps(result, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
