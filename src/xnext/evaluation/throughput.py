"""Images a second of a network and its peers in several ways, measured in turn in one run."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import timm
import torch
from torch import Tensor, nn

from xnext.errors import UserError
from xnext.evaluation.complexity import check_image_size
from xnext.kernels import fuse
from xnext.models import create_model, load_checkpoint

PEERS = {
    "xception": "legacy_xception",
    **{f"inceptionnext_{size}": f"inception_next_{size}" for size in ("atto", "tiny", "small", "base")},
}
"""timm's network of the same weights, for each of ours that has one."""

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # of float32, as a share of the outputs' norm
_WARM_UP = 2


@dataclass(frozen=True)
class Way:
    """How a network is called.

    Attributes:
        name: What the table calls it.
        fused: Whether ``fuse`` has made it.
        channels_last: The memory layout of images and weights.
        dtype: Of both.
        compiled: Whether torch.compile has made it.
    """

    name: str
    fused: bool = False
    channels_last: bool = True
    dtype: torch.dtype = torch.float32
    compiled: bool = False

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the network as it is called; the model may be changed."""
        if self.fused:
            model = fuse(model)
        model = model.to(dtype=self.dtype).to(memory_format=self._layout)
        if self.compiled:
            model.compile()
        return model

    def convert(self, images: Tensor) -> Tensor:
        """Return the images as the network wants them."""
        return images.to(self.dtype).contiguous(memory_format=self._layout)

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


EAGER = (Way("eager", channels_last=False), Way("eager, channels-last"))
FUSED = (Way("fused", fused=True), Way("fused, bf16", fused=True, dtype=torch.bfloat16))
COMPILED = (
    Way("fused, compiled", fused=True, compiled=True),
    Way("fused, compiled, bf16", fused=True, compiled=True, dtype=torch.bfloat16),
)


@dataclass(frozen=True)
class Row:
    """One way of one network.

    Attributes:
        network: Its name.
        way: What was measured.
        median: Images a second; half of the calls were faster.
        p10: Images a second that one call in ten did not reach.
        p90: Images a second that one call in ten exceeded.
        error: How far the outputs are from those of the first row, as a share of their norm.
        memory_mib: Most memory of the GPU in MiB; None without one.
    """

    network: str
    way: str
    median: float
    p10: float
    p90: float
    error: float
    memory_mib: float | None


def benchmark(
    name: str, *, batch_size: int, image_size: int | None, repeats: int, compiled: bool, device: torch.device
) -> list[Row]:
    """Measure inference of a network, and of timm's with the same weights, in every way.

    Args:
        name: A network of this project.
        batch_size: Images a call.
        image_size: In pixels a side; None: the network's own.
        repeats: Calls of each way, which take turns.
        compiled: Whether to measure compiled networks too, for which a CPU takes minutes.
        device: Where.

    Returns:
        A row a way.

    Raises:
        UserError: There is no such network, or a way computes something else than the others.
    """
    ours: Any = _stir(create_model(name))
    size = image_size or ours.pretrained_cfg["input_size"][-1]
    check_image_size(ours, size, name)
    images = torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    calls: dict[tuple[str, str], Callable[[], Tensor]] = {}
    if name in PEERS:
        peer = _stir(timm.create_model(PEERS[name]))
        load_checkpoint(ours, peer.state_dict())
        for way in EAGER:
            calls[f"timm {PEERS[name]}", way.name] = _call(way, peer, images)
    for way in (*EAGER, *FUSED, *(COMPILED if compiled else ())):
        calls[name, way.name] = _call(way, ours, images)
    rows = list(_measure(calls, batch_size, repeats, device))
    for row in rows:
        limit = _TOLERANCE[torch.bfloat16 if "bf16" in row.way else torch.float32]
        if not row.error < limit:
            raise UserError(f"{row.network}, {row.way}, computes something else: it is {row.error:.2g} off")
    return rows


def describe(device: torch.device) -> dict[str, Any]:
    """Return what figures need to be read: device, threads and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in ("xnext", "torch", "timm")},
    }


def _stir(model: nn.Module) -> nn.Module:
    """Give the batch norms of a network statistics, so that it shows what is done with them."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 10)  # type: ignore[union-attr]
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)  # type: ignore[union-attr]
    return model


def _call(way: Way, model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    network = way.prepare(copy.deepcopy(model).eval().to(images.device))
    inputs = way.convert(images)
    return lambda: network(inputs)


def _measure(
    calls: dict[tuple[str, str], Callable[[], Tensor]], batch_size: int, repeats: int, device: torch.device
) -> Iterator[Row]:
    """Yield a row a call."""
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    outputs: dict[tuple[str, str], Tensor] = {}
    memory: dict[tuple[str, str], int | None] = {}
    with torch.inference_mode():
        for turn in range(-_WARM_UP, repeats):
            for key, call in calls.items():
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                started = time.perf_counter()
                outputs[key] = call()
                _wait(device)
                if turn >= 0:
                    seconds[key].append(time.perf_counter() - started)
                memory[key] = _peak_memory(device)
    exact = next(iter(outputs.values())).double()
    for key, times in seconds.items():
        slow, median, fast = (batch_size / value for value in _quantiles(times))
        error = float((outputs[key].double() - exact).norm() / exact.norm())
        yield Row(*key, round(median, 1), round(slow, 1), round(fast, 1), error, memory[key])


def _quantiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Return the 90th, 50th and 10th percentile of seconds."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return deciles[8], deciles[4], deciles[0]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) // 2**20 if device.type == "cuda" else None
