"""Images a second of a network and its peers in several ways, measured in turn in one run."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xnext._timing import deciles, rotate, time_call
from xnext.errors import UserError, suggest
from xnext.evaluation.complexity import check_image_size
from xnext.kernels import accelerate, fuse
from xnext.models import create_model, list_models, load_checkpoint
from xnext.models._network import Network

PEERS = {
    "xception": "legacy_xception",
    **{f"inceptionnext_{size}": f"inception_next_{size}" for size in ("atto", "tiny", "small", "base")},
}
"""timm's network of the same weights, for each of ours that has one."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}  # of the first row's results, as a share of their norm
_WARM_UP = 2
_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Plan:
    """What is measured of each network.

    Attributes:
        device: Where.
        training: Steps of training, instead of inference.
        batch_size: Images a call.
        image_size: In pixels a side; None: each network's own.
        repeats: Calls of each way, which take turns.
        dtype: ``fp32`` or ``bf16``; inference in fp32 measures the fused network in bf16 too. Training in
            bf16 is by autocast.
        compiled: Whether to measure compiled networks too.
    """

    device: torch.device
    training: bool = False
    batch_size: int = 16
    image_size: int | None = None
    repeats: int = 10
    dtype: str = "fp32"
    compiled: bool = True

    def ways(self, *, peer: bool, fusable: bool = False) -> list["Way"]:
        """Return the ways in which a network is measured: as it is, and as a peer only so."""
        on_gpu = self.device.type == "cuda"
        ways = [Way(dtype=self.dtype, channels_last=last) for last in (False, True)]
        if self.compiled and (on_gpu or self.training):
            layouts = (False, True) if on_gpu else (True,)
            ways += [Way(dtype=self.dtype, channels_last=last, compiled=True) for last in layouts]
        if peer:
            return ways
        own = [Way(accelerated=True, dtype=self.dtype)] if on_gpu else []
        if fusable and not self.training:
            own += [Way(fused=True, dtype=dtype) for dtype in dict.fromkeys((self.dtype, "bf16"))]
        if self.compiled:
            own += [replace(way, compiled=True) for way in own]
        return ways + own


@dataclass(frozen=True)
class Way:
    """How a network is called.

    Attributes:
        fused: Whether ``fuse`` has made it.
        accelerated: Whether ``accelerate`` has changed it.
        channels_last: The memory layout of images and weights.
        dtype: ``fp32`` or ``bf16``.
        compiled: Whether torch.compile has made it.
    """

    fused: bool = False
    accelerated: bool = False
    channels_last: bool = True
    dtype: str = "fp32"
    compiled: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        words = {"fused": self.fused, "accelerated": self.accelerated, "compiled": self.compiled}
        return ", ".join(word for word, is_so in words.items() if is_so) or "eager"

    @property
    def layout(self) -> str:
        """The memory layout, as the field writes it."""
        return "NHWC" if self.channels_last else "NCHW"

    def prepare(self, model: nn.Module, training: bool) -> nn.Module:
        """Return the network as it is called; the model may be changed."""
        if self.fused:
            model = fuse(model)
        if self.accelerated:
            accelerate(model)
        model = model.train(training).to(memory_format=self._format)
        if not training:
            model = model.to(DTYPES[self.dtype])
        if self.compiled:
            model.compile()
        return model

    def convert(self, images: Tensor, training: bool) -> Tensor:
        """Return the images as the network wants them."""
        images = images if training else images.to(DTYPES[self.dtype])
        return images.contiguous(memory_format=self._format)

    @property
    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


@dataclass(frozen=True)
class Row:
    """One way of one network.

    Attributes:
        network: Its name.
        image_size: Pixels a side.
        way: What was measured.
        layout: ``NHWC`` or ``NCHW``.
        dtype: ``fp32`` or ``bf16``.
        median: Images a second; half of the calls were faster.
        p10: Images a second that one call in ten did not reach.
        p90: Images a second that one call in ten exceeded.
        error: How far the results are from those of the first row, as a share of their norm: outputs, and in
            training the norm of all gradients. None for another network.
        memory_mib: Most memory of the GPU that a call took beyond the weights, in MiB; None without a GPU.
    """

    network: str
    image_size: int
    way: str
    layout: str
    dtype: str
    median: float
    p10: float
    p90: float
    error: float | None
    memory_mib: int | None


@dataclass(frozen=True)
class _Subject:
    """A network in one way, ready to be called; and whether it has the weights of the others."""

    network: str
    image_size: int
    way: Way
    call: Callable[[], list[Tensor]]
    same: bool = True


def benchmark(
    name: str,
    plan: Plan,
    against: Sequence[str] = (),
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Row]:
    """Measure a network, timm's with the same weights and others of timm, in every way.

    Args:
        name: A network of this project, or of timm.
        plan: What to measure.
        against: Networks of timm that are measured beside it.
        watch: Passes turns on, to show progress.

    Returns:
        A row a way: of timm's network of the same weights, this project's, the others.

    Raises:
        UserError: There is no such network, or a way computes something else than the others.
    """
    network = _create(name)
    subjects = []
    if name in PEERS:
        twin = _create(PEERS[name])
        load_checkpoint(network, twin.state_dict())
        subjects += _prepare(f"timm {PEERS[name]}", twin, plan, plan.ways(peer=True))
    ways = plan.ways(peer=False, fusable=isinstance(network, Network))
    subjects += _prepare(name, network, plan, ways)
    for other in against:
        subjects += _prepare(f"timm {other}", _create(other), plan, plan.ways(peer=True), same=False)
    rows = list(_measure(subjects, plan, watch))
    for row in rows:
        if row.error is not None and not row.error < _TOLERANCE[row.dtype]:
            raise UserError(f"{row.network}, {row.way}, computes something else: it is {row.error:.2g} off")
    return rows


def check_network(name: str) -> None:
    """Refuse a name that neither this project nor timm has a network of.

    Raises:
        UserError: With the nearest names.
    """
    if name not in list_models() and not timm.is_model(name):
        nearest = suggest(name, [*list_models(), *timm.list_models()])
        raise UserError(f"neither xnext nor timm has a network {name!r}.{nearest}")


def _create(name: str) -> Any:
    """Return a network of either with random weights."""
    return _stir(create_model(name) if name in list_models() else timm.create_model(name))


def describe(plan: Plan) -> dict[str, Any]:
    """Return what figures need to be read: device, threads, versions and what was done."""
    on_gpu = plan.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(plan.device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in ("xnext", "torch", "timm")},
        "task": "training" if plan.training else "inference",
        "batch_size": plan.batch_size,
        "repeats": plan.repeats,
    }


def _stir(model: nn.Module) -> nn.Module:
    """Make each part of a network count, so that it shows what is done with it.

    Batch norms get statistics, and LayerScale, which begins with next to nothing, a scale near 1.
    """
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 10)  # type: ignore[union-attr]
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.data.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return model


def _prepare(network: str, model: Any, plan: Plan, ways: Sequence[Way], same: bool = True) -> list[_Subject]:
    """Return a network in all its ways."""
    size = plan.image_size or model.pretrained_cfg["input_size"][-1]
    check_image_size(model, size, network)
    return [_Subject(network, size, way, _call(way, model, plan, size), same) for way in ways]


def _call(way: Way, model: nn.Module, plan: Plan, size: int) -> Callable[[], list[Tensor]]:
    """Return the call that is measured: of the network, or a step of its training."""
    network = way.prepare(copy.deepcopy(model).eval().to(plan.device), plan.training)
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[Tensor]:
        images = torch.randn(plan.batch_size, 3, size, size, generator=generator).to(plan.device)
        return [way.convert(images, plan.training)]

    turn = rotate(draw, plan.device)
    if not plan.training:
        return lambda: [network(*turn())]
    labels = torch.arange(plan.batch_size, device=plan.device) % 1000
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=_LEARNING_RATE, momentum=0.9)

    def step() -> list[Tensor]:
        optimizer.zero_grad()
        with torch.autocast(plan.device.type, torch.bfloat16, enabled=way.dtype == "bf16"):
            outputs = network(*turn())
            loss = F.cross_entropy(outputs, labels)
        loss.backward()
        optimizer.step()
        return [outputs.detach(), *(value.grad for value in parameters if value.grad is not None)]

    return step


def _measure(
    subjects: Sequence[_Subject], plan: Plan, watch: Callable[[Iterable[int]], Iterable[int]]
) -> Iterator[Row]:
    """Yield a row for each subject."""
    seconds: list[list[float]] = [[] for _ in subjects]
    results: list[list[Tensor]] = []
    memory: list[int | None] = [None] * len(subjects)
    with torch.inference_mode(not plan.training):
        for subject in subjects:
            results.append(_first(subject))
        for turn in watch(range(1 - _WARM_UP, plan.repeats)):
            for number, subject in enumerate(subjects):
                before = _reset_memory(plan.device)
                time = time_call(subject.call, plan.device)
                if turn >= 0:
                    seconds[number].append(time)
                memory[number] = _peak_memory(plan.device, before)
    for subject, times, result, peak in zip(subjects, seconds, results, memory, strict=True):
        fast, median, slow = (plan.batch_size / time for time in deciles(times))
        error = max(map(_error, result, results[0])) if subject.same else None
        way = subject.way
        yield Row(
            subject.network, subject.image_size, way.name, way.layout, way.dtype,
            round(median, 1), round(slow, 1), round(fast, 1), error, peak,
        )  # fmt: skip


def _first(subject: _Subject) -> list[Tensor]:
    """Call it for the first time; return the outputs and the norm of all gradients."""
    try:
        outputs, *gradients = subject.call()
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{subject.network}, {subject.way.name}, cannot be compiled here: {reason}; use --no-compile"
        ) from error
    norms = [gradient.double().norm() for gradient in gradients]
    return [outputs.double(), *([torch.stack(norms).norm()] if norms else [])]


def _error(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).norm() / exact.norm())


def _reset_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_memory(device: torch.device, before: int) -> int | None:
    if device.type != "cuda":
        return None
    return (torch.cuda.max_memory_allocated(device) - before) // 2**20
