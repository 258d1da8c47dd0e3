"""The gradient of depthwise weights on a CPU: in pieces, against PyTorch's.

    python -m benchmarks.depthwise_cpu [--threads 2] [--output FOLDER]

Both ways take turns; each time is the median of the calls of one gradient, in float32, and the forward
convolution of the same images stands beside them.
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from xnext._files import make_folder, write_atomic
from xnext._timing import time_call
from xnext.kernels import depthwise_conv2d, use_backend

CALLS = 15
LAYOUTS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
CASES = [
    (16, 96, 56, 7), (16, 192, 28, 7), (16, 384, 14, 7), (16, 768, 7, 7),  # ConvNeXt-T
    (16, 256, 28, 5), (16, 728, 14, 5),  # NEXcepTion-T
    (64, 46, 16, 9), (64, 46, 8, 9), (64, 46, 8, 5),  # of the search's networks
]  # fmt: skip
"""Images, channels, side of the image and of the kernel."""


@dataclass(frozen=True)
class Row:
    """Milliseconds of one case."""

    shape: str
    kernel: int
    layout: str
    forward: float
    pytorch: float
    pieces: float


def measure(batch: int, channels: int, side: int, kernel: int, layout: str) -> Row:
    """Return the times of one case."""
    device = torch.device("cpu")
    x = torch.randn(batch, channels, side, side).to(memory_format=LAYOUTS[layout])
    weight = torch.randn(channels, 1, kernel, kernel).requires_grad_()
    grad = torch.randn_like(x)
    outputs = {}
    for backend in ("torch", "auto"):
        with use_backend(backend):
            outputs[backend] = depthwise_conv2d(x, weight, padding=kernel // 2)
    if outputs["auto"].grad_fn.name() == outputs["torch"].grad_fn.name():
        raise SystemExit("this CPU takes no pieces: there is nothing to compare")

    def differentiate(backend: str) -> Tensor:
        return torch.autograd.grad(outputs[backend], weight, grad, retain_graph=True)[0]

    def forward(_: str) -> Tensor:
        with torch.no_grad():
            return depthwise_conv2d(x, weight, padding=kernel // 2)

    exact, found = differentiate("torch"), differentiate("auto")
    assert (found - exact).norm() < 1e-4 * exact.norm(), "both are the same gradient"
    ways = (forward, ""), (differentiate, "torch"), (differentiate, "auto")
    times: list[list[float]] = [[], [], []]
    for _ in range(CALLS):
        for kept, (call, backend) in zip(times, ways, strict=True):
            kept.append(1e3 * time_call(lambda call=call, backend=backend: call(backend), device))
    medians = [round(statistics.median(kept), 3) for kept in times]
    return Row(f"{batch}x{channels}x{side}x{side}", kernel, layout, *medians)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="folder for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = [measure(*case, layout) for case in CASES for layout in LAYOUTS]
    table = Table("images", "kernel", "layout", "forward", "PyTorch", "in pieces", "ratio", box=None)
    for row in rows:
        times = (f"{time:.2f}" for time in (row.forward, row.pytorch, row.pieces))
        table.add_row(
            row.shape, f"{row.kernel}x{row.kernel}", row.layout, *times, f"{row.pytorch / row.pieces:.1f}"
        )
    Console().print(table, f"milliseconds, {arguments.threads} threads, torch {torch.__version__}")
    if arguments.output:
        make_folder(arguments.output)
        result = {
            "rows": [asdict(row) for row in rows], "threads": arguments.threads,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "versions": {name: version(name) for name in ("xnext", "torch")},
            "date": date.today().isoformat(),
        }  # fmt: skip
        write_atomic(arguments.output / "depthwise_cpu.json", (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
