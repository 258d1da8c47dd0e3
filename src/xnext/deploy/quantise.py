"""Whole numbers of 8 bits: calibrated, measured, and given up layer by layer where they cost accuracy."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xnext.data import (
    BadImageError,
    ImageData,
    ImageDataset,
    build_eval_transform,
    build_loader,
)
from xnext.data._preprocessing import normalise, to_pixels
from xnext.deploy._artefact import Format, How, Session, files_of
from xnext.deploy._runtime import call_in_batches
from xnext.deploy.gate import Case, GateError
from xnext.errors import UserError
from xnext.evaluation.accuracy import METRICS, evaluate

_PICTURES = 300  # that calibrate, as NNCF's default
_RANKED_BY = 16  # pictures, which are enough to order layers


@dataclass(frozen=True)
class Quantiser:
    """How a format's networks are quantised.

    Attributes:
        list_layers: Returns the names of what is quantised in a file, in order.
        quantise: Writes a quantised file: (file, inputs, layers to leave alone, new file).
        packages: What it takes, as Python and pip name it.
    """

    list_layers: Callable[[Path], list[str]]
    quantise: Callable[[Path, Sequence[np.ndarray], Sequence[str], Path], None]
    packages: tuple[str, ...]


def _openvino_layers(path: Path) -> list[str]:
    import openvino

    def is_rounded(one: Any) -> bool:
        return any(value.get_node().get_type_name() == "FakeQuantize" for value in one.input_values())

    # What one of these takes may be rounded before what reshapes it.
    layers = {"Convolution", "GroupConvolution", "MatMul", "MVN", "Pad"}
    operations = openvino.Core().read_model(path).get_ordered_ops()
    return [one.get_friendly_name() for one in operations if one.get_type_name() in layers or is_rounded(one)]


def _openvino_quantise(path: Path, inputs: Sequence[np.ndarray], kept: Sequence[str], output: Path) -> None:
    import nncf
    import openvino

    from xnext.deploy._openvino import own_signal_stack, save

    nncf.set_log_level(logging.ERROR)
    with own_signal_stack():
        model = nncf.quantize(
            openvino.Core().read_model(path),
            nncf.Dataset(inputs),
            preset=nncf.QuantizationPreset.MIXED,  # what comes out of a GELU is not symmetric
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=list(kept)),
        )
    save(model, output, "int8")


_ONNX_KINDS = ["Conv", "Gemm", "MatMul"]


def _onnx_layers(path: Path) -> list[str]:
    import onnx

    return [node.name for node in onnx.load(path).graph.node if node.op_type in _ONNX_KINDS]


def _onnx_quantise(path: Path, inputs: Sequence[np.ndarray], kept: Sequence[str], output: Path) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    name = onnx.load(path, load_external_data=False).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({name: images} for images in self.left), None)

    quantize_static(
        path, output, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=_ONNX_KINDS,
        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        reduce_range=True,  # else sums overflow on CPUs before VNNI, and there alone
        nodes_to_exclude=list(kept),
    )  # fmt: skip


QUANTISERS = {
    "openvino": Quantiser(_openvino_layers, _openvino_quantise, ("nncf",)),
    "onnx": Quantiser(_onnx_layers, _onnx_quantise, ("onnx",)),
}


def quantise(
    format: Format, quantiser: Quantiser, path: Path, case: Case, data: ImageData, max_drop: float
) -> dict[str, Any]:
    """Quantise a file in its place, so that its accuracy drops by no more than is allowed.

    Where it drops by more, the layers that change the outputs most, each quantised by itself, stay as they
    were: one of them, then two, four and so on until it holds.

    Args:
        format: Of the file.
        quantiser: The format's.
        path: The file, which has passed the gate.
        case: What was compared there.
        data: Its training pictures calibrate, on its held out ones both accuracies are measured.
        max_drop: In points.

    Returns:
        ``metric``, its percentages ``fp32`` and ``int8``, their difference ``drop``, ``images``, ``layers``
        and the names of those that were ``kept``. Shortcuts, poolings and means count as layers where the
        quantiser rounds what they take.

    Raises:
        GateError: Accuracy drops by more, even with a single layer quantised.
        UserError: Not one picture can be read.
    """
    layers: list[str] = []
    inputs = _calibration(data, case)
    output = path.with_name(f"int8-{path.name}")
    metric, before, images = _accuracy(format.load(path, How()), case, data)
    kept: list[str] = []
    ranked: list[str] = []
    while True:
        with _quiet():
            quantiser.quantise(path, inputs, kept, output)
        layers = layers or quantiser.list_layers(output)
        after = _accuracy(format.load(output, How(dtype="int8")), case, data)[1]
        if before - after <= max_drop:
            break
        if len(kept) + 1 >= len(layers):
            raise GateError(
                f"{METRICS[metric]} drops from {before:.2f} to {after:.2f} % even with {len(kept)} of"
                f" {len(layers)} layers left as they were, and may by {max_drop:g} points; allow a larger"
                " --max-drop, or export without --int8"
            )
        ranked = ranked or _rank(format, quantiser, path, layers, inputs)
        kept = ranked[: min(max(1, 2 * len(kept)), len(layers) - 1)]
    for new, old in zip(files_of(output), files_of(path), strict=True):
        new.replace(old)
    return {
        "metric": METRICS[metric], "fp32": before, "int8": after, "drop": before - after, "images": images,
        "layers": len(layers), "kept": kept,
    }  # fmt: skip


def _rank(
    format: Format, quantiser: Quantiser, path: Path, layers: Sequence[str], inputs: Sequence[np.ndarray]
) -> list[str]:
    """Return layers by how far the outputs are off if only one is quantised, the most sensitive first."""
    inputs = inputs[: max(1, _RANKED_BY // len(inputs[0]))]
    session = format.load(path, How())
    expected = [session(images)[0] for images in inputs]
    errors = {}
    output = path.with_name(f"one-{path.name}")
    for layer in layers:
        with _quiet():
            quantiser.quantise(path, inputs, [other for other in layers if other != layer], output)
        session = format.load(output, How())
        found = [session(images)[0] for images in inputs]
        errors[layer] = float(np.square(np.concatenate(found) - np.concatenate(expected)).mean())
    return sorted(layers, key=lambda layer: -errors[layer])


def _calibration(data: ImageData, case: Case) -> list[np.ndarray]:
    """Return inputs of training pictures that are spread over the set, in batches that the graph takes."""
    size = case.batch or 1
    pixels = []
    for index in np.linspace(0, len(data.train) - 1, min(_PICTURES, len(data.train))).astype(int):
        with contextlib.suppress(BadImageError):
            pixels.append(to_pixels(data.train.read(int(index)), case.pre))
    if not pixels:
        raise UserError(f"{data.name}: none of the training pictures can be read, on which to calibrate")
    count = -(-len(pixels) // size) * size
    images = np.stack([pixels[place % len(pixels)] for place in range(count)])
    images = images if case.exported.normalises else normalise(images, case.pre)
    return [images[start : start + size] for start in range(0, count, size)]


class _Asked(nn.Module):
    """A session in the place of a network, for what measures networks."""

    def __init__(self, session: Session, case: Case):
        super().__init__()
        self.session, self.case = session, case

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W], scaled from 0 to 1 if the graph normalises them itself, to logits."""
        values = images.numpy()
        if self.case.exported.normalises:
            values = np.rint(values * 255).astype(np.uint8)
        return torch.from_numpy(call_in_batches(self.session, values, self.case.batch))


def _accuracy(session: Session, case: Case, data: ImageData) -> tuple[str, float, int]:
    """Return the metric that networks are compared by, its value in percent, and the images it is of."""
    pre = case.pre.without_normalisation() if case.exported.normalises else case.pre
    dataset = ImageDataset(data.val, build_eval_transform(pre), training=False)
    measured = evaluate(
        _Asked(session, case), build_loader(dataset, batch_size=64, workers=0),
        num_classes=len(data.classes), device="cpu", multilabel=data.multilabel,
    )  # fmt: skip
    metric = list(measured.metrics)[1]
    return metric, measured.metrics[metric], measured.images


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantisers' bars and remarks off the screen, where a table or JSON is expected."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
