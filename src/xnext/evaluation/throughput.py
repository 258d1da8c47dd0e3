"""Images a second of a network and its peers in several ways, measured in turn in one run."""

import copy
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xnext._peak import peak_memory
from xnext._timing import rotate, time_call
from xnext.deploy import Runtime
from xnext.errors import UserError, is_out_of_memory, suggest
from xnext.evaluation._exported import ExportedWay, prepare
from xnext.evaluation.complexity import check_image_size, count_activations, count_macs, count_parameters
from xnext.kernels import accelerate, fuse
from xnext.models import create_model, list_models, load_checkpoint
from xnext.models._network import Network

TWINS = {
    "xception": "legacy_xception",
    **{f"inceptionnext_{size}": f"inception_next_{size}" for size in ("atto", "tiny", "small", "base")},
}
"""timm's network of the same weights, for each of ours that has one."""

PEERS = (
    "resnet50", "convnext_tiny", "convnext_small", "convnext_base", "swin_tiny_patch4_window7_224",
    "deit_small_patch16_224", "regnety_040", "efficientnet_b0", "mobilenetv2_140", "ghostnet_130",
    "inception_v3", "tf_efficientnetv2_s", "repvit_m1_5", "convformer_s18",
)  # fmt: skip
"""Networks of timm that ours are held against."""

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,  # of which a GPU's products keep 10 bits
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
LAYOUTS = {"best": (False, True), "nchw": (False,), "nhwc": (True,)}
"""Whether channels come last, in each way that is measured."""

# How far results may be from the first row's, as a share of their norm.
_TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}
# And gradients, how many times as far as they move with the last bits of the images, since both that are
# compared round. Statistics of a batch magnify that layer by layer: Inception-v3's move by 3 %,
# ResNet-50's by 4e-7.
_ROUNDINGS = 2
_WARM_UP = 2
_STIRRED_BY = 4  # images
_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Plan:
    """What is measured of each network.

    Attributes:
        device: Where.
        training: Steps of training, instead of inference.
        batch_size: Images a call; halved until they fit.
        image_size: In pixels a side; None: each network's own.
        repetitions: Calls of each way, which take turns.
        dtype: One of ``DTYPES``; inference in fp32 measures the fused network in bf16 too, where the device
            has instructions for it. Training in bf16 and fp16 is by autocast, the latter with a scaled loss.
        layout: One of ``LAYOUTS``.
        compiled: Whether to measure compiled networks too.
    """

    device: torch.device
    training: bool = False
    batch_size: int = 16
    image_size: int | None = None
    repetitions: int = 30
    dtype: str = "fp32"
    layout: str = "best"
    compiled: bool = True

    def ways(self, *, peer: bool, fusable: bool = False) -> list["Way"]:
        """Return the ways in which a network is measured: as it is, and as a peer only so."""
        on_gpu, layouts = self.device.type == "cuda", LAYOUTS[self.layout]
        ways = [Way(dtype=self.dtype, channels_last=last) for last in layouts]
        if self.compiled and (on_gpu or self.training):
            ways += [replace(way, compiled=True) for way in (ways if on_gpu else ways[-1:])]
        if peer:
            return ways
        last = layouts[-1]
        own = [Way(accelerated=True, dtype=self.dtype, channels_last=last)] if on_gpu or self.training else []
        if fusable and not self.training:
            dtypes = (self.dtype, "bf16") if self.dtype == "fp32" and self._has_bf16 else (self.dtype,)
            own += [Way(fused=True, dtype=dtype, channels_last=last) for dtype in dtypes]
        if self.compiled and (on_gpu or not self.training):  # a compiler of CPUs takes PyTorch's convolutions
            own += [replace(way, compiled=True) for way in own]
        return ways + own

    @property
    def _has_bf16(self) -> bool:
        """Whether bf16 is not merely emulated, which takes a CPU minutes a call."""
        return self.device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass(frozen=True)
class Way:
    """How a network is called.

    Attributes:
        fused: Whether ``fuse`` has made it.
        accelerated: Whether ``accelerate`` has changed it.
        channels_last: The memory layout of images and weights.
        dtype: One of ``DTYPES``.
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
        dtype: One of ``DTYPES``.
        batch_size: Images a call.
        median: Images a second; half of the calls were faster.
        mean: Images a second, over all calls.
        sd: Standard deviation of that.
        p10: Images a second of the call that a tenth of them were slower than.
        p90: Images a second of the call that a tenth of them were faster than.
        error: How far the results are from those of the first row, as a share of their norm: outputs, and in
            training the norm of all gradients. None for another network.
        memory_mib: Most memory that PyTorch's allocator had given out during a call, in MiB beyond what was
            there before: weights, images, and in training what the optimiser keeps.
    """

    network: str
    image_size: int
    way: str
    layout: str
    dtype: str
    batch_size: int
    median: float
    mean: float
    sd: float
    p10: float
    p90: float
    error: float | None
    memory_mib: float


@dataclass(frozen=True)
class Size:
    """How large a network is.

    Attributes:
        network: Its name.
        image_size: Pixels a side, to which the following belong.
        params: Parameters.
        macs: Multiply-accumulates of an image.
        activations: Values that convolutions and linear layers put out for an image.
    """

    network: str
    image_size: int
    params: int
    macs: int
    activations: int


@dataclass(frozen=True)
class _Subject:
    """A network in one way, ready to be called; whether it has the weights of the others; images a call."""

    network: str
    image_size: int
    way: Way | ExportedWay
    call: Callable[[], list[Tensor]]
    same: bool = True
    images: int | None = None


def benchmark(
    name: str,
    plan: Plan,
    against: Sequence[str] = (),
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
    *,
    model_args: Mapping[str, Any] | None = None,
    twin: bool = True,
    artefacts: Sequence[Runtime] = (),
) -> list[Row]:
    """Measure a network, timm's with the same weights and others of timm, in every way.

    Args:
        name: A network of this project, or of timm.
        plan: What to measure.
        against: Networks of timm that are measured beside it.
        watch: Passes turns on, to show progress.
        model_args: Options of the network.
        twin: Whether timm's network of the same weights is measured too.
        artefacts: Exported networks that are measured beside it; those in throughput mode with several
            batches at once.

    Returns:
        A row a way: of timm's network of the same weights, this project's, the others, the exported.

    Raises:
        UserError: There is no such network, a way computes something else than the others, or not even one
            image fits into the memory.
    """
    while True:
        try:
            rows = _compare(name, plan, against, watch, model_args or {}, twin, artefacts)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if plan.batch_size == 1:
            raise UserError(f"{name} does not fit into the memory with one image; use a smaller --image-size")
        plan = replace(plan, batch_size=plan.batch_size // 2)
        torch.cuda.empty_cache()
    return rows


def _compare(
    name: str,
    plan: Plan,
    against: Sequence[str],
    watch: Callable[[Iterable[int]], Iterable[int]],
    model_args: Mapping[str, Any],
    twin: bool,
    artefacts: Sequence[Runtime],
) -> list[Row]:
    """Measure all that stands beside each other, with batches of one size."""
    network = _stir(create_network(name, model_args))
    subjects, first = [], network
    with _precision(plan.dtype):
        if twin and name in TWINS and not model_args:
            first = _stir(create_network(TWINS[name]))
            load_checkpoint(network, first.state_dict())
            subjects += _prepare(f"timm {TWINS[name]}", first, plan, plan.ways(peer=True))
        ways = plan.ways(peer=False, fusable=isinstance(network, Network))
        subjects += _prepare(name, network, plan, ways)
        for other in against:
            model = _stir(create_network(other))
            subjects += _prepare(f"timm {other}", model, plan, plan.ways(peer=True), same=False)
        exported = [prepare(runtime, plan.batch_size, plan.image_size) for runtime in artefacts]
        subjects += [
            _Subject(way.network, way.image_size, way, way.call, same=False, images=way.images)
            for way in exported
        ]
        measured = list(_measure(subjects, plan, watch))
        _check(measured, first, plan)
        return [row for row, _ in measured]


def _check(measured: Sequence[tuple[Row, list[float]]], model: nn.Module, plan: Plan) -> None:
    """Refuse ways of a network that compute something else than its first row.

    Args:
        measured: Rows, each with how far its outputs and, in training, the norm of its gradients are off.
        model: The network of the first row.
        plan: What was measured.

    Raises:
        UserError: Outputs are further off than their type explains, or gradients than rounding does, too.
    """
    rounding = cache(partial(_rounding, model, plan))
    for row, errors in measured:
        for place, error in enumerate(errors):
            bound = _TOLERANCE[row.dtype]
            if place and not error < bound:  # of gradients
                bound = max(bound, _ROUNDINGS * rounding(row.image_size))
            if not error < bound:
                raise UserError(
                    f"{row.network}, {row.way} {row.dtype}, computes something else: it is {error:.2g} off"
                )


def _rounding(model: nn.Module, plan: Plan, size: int) -> float:
    """Return how far the last bits of the images alone move the gradients, as a share of their norm.

    The norms of two sets of gradients differ by no more than the gradients do.
    """
    way = Way(dtype=plan.dtype, channels_last=LAYOUTS[plan.layout][0])
    (_, *exact), (_, *moved) = (_call(way, model, plan, size, nudged)() for nudged in (False, True))
    return _error(*(torch.cat([value.double().flatten() for value in values]) for values in (moved, exact)))


@contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """Let products of float32 be of TensorFloat-32, or else not be, on a GPU."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def list_published() -> list[str]:
    """Return the names of the networks that a paper has."""
    return [name for name in list_models() if not name.endswith("_debug")]


def measure_size(name: str, plan: Plan, model_args: Mapping[str, Any] | None = None) -> Size:
    """Return how large a network is, of this project or of timm.

    Raises:
        UserError: It takes no images of that size.
    """
    network = create_network(name, model_args)
    size = _image_size(network, plan, name)
    shape = (3, size, size)
    return Size(
        name, size, count_parameters(network), count_macs(network, shape), count_activations(network, shape)
    )


def check_network(name: str) -> None:
    """Refuse a name that neither this project nor timm has a network of.

    Raises:
        UserError: With the nearest names.
    """
    if name not in list_models() and not timm.is_model(name):
        nearest = suggest(name, [*list_models(), *timm.list_models()])
        raise UserError(f"neither xnext nor timm has a network {name!r}.{nearest}")


def create_network(name: str, model_args: Mapping[str, Any] | None = None) -> Any:
    """Return a network of this project or of timm with random weights."""
    create = create_model if name in list_models() else timm.create_model
    return create(name, **model_args or {})


def describe(plan: Plan) -> dict[str, Any]:
    """Return what figures need to be read: device, threads, versions and what was done."""
    on_gpu = plan.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(plan.device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in ("xnext", "torch", "timm")},
        "task": "training" if plan.training else "inference",
        "batch_size": plan.batch_size,
        "repetitions": plan.repetitions,
    }


@torch.no_grad()
def _stir(model: Any) -> nn.Module:
    """Make each part of a network count, so that it shows what is done with it.

    LayerScale, which begins with next to nothing, gets a scale near 1. Batch norms get statistics near those
    of a batch, but no less variance than 1: then neither the numbers of a deep network grow with others, nor
    does what is rounded in small ones.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    if not norms:
        return model
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    size = model.pretrained_cfg["input_size"][-1]
    model.train()(torch.randn(_STIRRED_BY, 3, size, size, generator=generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None, "it tracks them"
        variance.clamp_(min=1)
        mean += torch.randn(mean.shape, generator=generator) / 20 * variance.sqrt()
        variance *= torch.rand(variance.shape, generator=generator) / 5 + 0.9
    return model.eval()


def _image_size(model: Any, plan: Plan, name: str) -> int:
    """Return the pixels a side with which a network is measured."""
    size = plan.image_size or model.pretrained_cfg["input_size"][-1]
    check_image_size(model, size, name)
    return size


def _prepare(network: str, model: Any, plan: Plan, ways: Sequence[Way], same: bool = True) -> list[_Subject]:
    """Return a network in all its ways."""
    size = _image_size(model, plan, network)
    return [_Subject(network, size, way, _call(way, model, plan, size), same) for way in ways]


def _call(
    way: Way, model: nn.Module, plan: Plan, size: int, nudged: bool = False
) -> Callable[[], list[Tensor]]:
    """Return the call that is measured: of the network, or a step of its training.

    With ``nudged``, images differ from the others in their last bits.
    """
    network = way.prepare(copy.deepcopy(model).eval().to(plan.device), plan.training)
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[Tensor]:
        images = torch.randn(plan.batch_size, 3, size, size, generator=generator)
        if nudged:
            images += (
                images * torch.randn(images.shape, generator=generator) * torch.finfo(DTYPES[way.dtype]).eps
            )
        images = images.to(plan.device)
        return [way.convert(images, plan.training)]

    turn = rotate(draw, plan.device)
    if not plan.training:
        return lambda: [network(*turn())]
    labels = torch.arange(plan.batch_size, device=plan.device) % 1000
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=_LEARNING_RATE, momentum=0.9)

    scaler = torch.amp.GradScaler(plan.device.type, init_scale=1.0, enabled=way.dtype == "fp16")

    def step() -> list[Tensor]:
        optimizer.zero_grad()
        half = DTYPES[way.dtype]
        with torch.autocast(plan.device.type, half, enabled=half != torch.float32):
            outputs = network(*turn())
            loss = F.cross_entropy(outputs, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return [outputs.detach(), *(value.grad for value in parameters if value.grad is not None)]

    return step


def _measure(
    subjects: Sequence[_Subject], plan: Plan, watch: Callable[[Iterable[int]], Iterable[int]]
) -> Iterator[tuple[Row, list[float]]]:
    """Yield a row for each subject, and how far each of its results is off."""
    seconds: list[list[float]] = [[] for _ in subjects]
    results: list[list[Tensor]] = []
    with torch.inference_mode(not plan.training):
        for subject in subjects:
            results.append(_first(subject))
        memory = [peak_memory(subject.call, plan.device) for subject in subjects]
        for turn in watch(range(1 - _WARM_UP, plan.repetitions)):
            for number, subject in enumerate(subjects):
                time = time_call(subject.call, plan.device)
                if turn >= 0:
                    seconds[number].append(time)
    for subject, times, result, peak in zip(subjects, seconds, results, memory, strict=True):
        speeds = [(subject.images or plan.batch_size) / time for time in times]
        errors = list(map(_error, result, results[0])) if subject.same else []
        way = subject.way
        row = Row(
            subject.network, subject.image_size, way.name, way.layout, way.dtype, plan.batch_size,
            round(statistics.median(speeds), 1), round(statistics.mean(speeds), 1),
            round(statistics.stdev(speeds), 1) if len(speeds) > 1 else 0.0,
            round(float(np.quantile(speeds, 0.1)), 1), round(float(np.quantile(speeds, 0.9)), 1),
            float(np.max(errors)) if errors else None, round(peak / 2**20, 1),
        )  # fmt: skip
        yield row, errors


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
