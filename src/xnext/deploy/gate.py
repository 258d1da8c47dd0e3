"""The gate: what an exported network computes is compared with the original before it may be used."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from xnext.data import BadImageError, ImageData, ImageSource, Preprocessing, load_data
from xnext.data._preprocessing import normalise, to_pixels
from xnext.deploy._artefact import Format, How, Session
from xnext.deploy.network import Exported, make_program
from xnext.errors import UserError

_logger = logging.getLogger("xnext")

TOLERANCE = 1e-4
"""Largest difference of two logits, as a share of the largest one of their batch, in fp32."""
AGREEMENT = 0.99
"""Share of pictures with the same most probable class that types of 16 bits must reach."""
BATCHES = (1, 3, 16)
"""Batch sizes that are tried where any may come."""
_PICTURES = {"fp32": sum(BATCHES), "bf16": 100, "fp16": 100}
_LAYER_TOLERANCE = {"fp32": TOLERANCE, "bf16": 5e-2, "fp16": 1e-2}


class GateError(UserError):
    """An exported network that computes something else than the original."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is compared.

    Attributes:
        original: The network as it was trained, in float32 on the CPU.
        exported: What was exported of it.
        emulated: The same, rounded to the type that it computes in, where its runtime is only told which.
        pre: How a picture becomes an input of the original.
        dtype: What the export computes in.
        sizes: In pixels a side.
        batch: Images a call; None: any number.
        dynamic_size: Whether images may have any size.
    """

    original: nn.Module
    exported: Exported
    emulated: Exported | None
    pre: Preprocessing
    dtype: str
    sizes: Sequence[int]
    batch: int | None
    dynamic_size: bool


def choose_pictures(data: ImageData | str | None, seed: int, dtype: str) -> tuple[list[Image.Image], str]:
    """Return real pictures to compare outputs on, and where they come from.

    Args:
        data: Data, or the spec of those of the training, of which held out ones are taken. Without any, or
            where they are no longer there, it is parts of the two photographs that come with scikit-learn.
        seed: The seed of the training, which may have decided what was held out.
        dtype: What the export computes in; types of 16 bits are judged on more pictures.
    """
    count = _PICTURES[dtype]
    try:
        data = load_data(data, seed=seed) if isinstance(data, str) else data
    except UserError as error:
        _logger.warning("%s; comparing outputs on photographs of scikit-learn instead", error)
        data = None
    if data is not None and (found := list(_readable(data.val, count))):
        return found, f"{len(found)} held out pictures of {data.name}"
    return list(_photographs(count)), f"{count} parts of scikit-learn's photographs"


def _readable(source: ImageSource, count: int) -> Iterator[Image.Image]:
    for index in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
        try:
            yield source.read(int(index))
        except BadImageError:
            continue


def _photographs(count: int) -> Iterator[Image.Image]:
    from sklearn.datasets import load_sample_images  # which a second of every command would go into

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    random = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        share = random.uniform(0.3, 0.9)
        width, height = (int(share * side) for side in photograph.size)
        left = int(random.integers(photograph.width - width))
        top = int(random.integers(photograph.height - height))
        yield photograph.crop((left, top, left + width, top + height))


def compare(session: Session, case: Case, pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """Compare what a session computes with the original, in batches and sizes that it may get.

    Returns:
        ``error``: the largest difference of two logits as a share of the largest logit of their batch;
        ``agreement``: the share of pictures with the same most probable class; ``sizes`` and ``batches``
        that were tried; ``pictures`` at each size; ``passed``; ``computes``: the type it ran in.

    Raises:
        UserError: The original's outputs are not finite.
    """
    worst, same, total = 0.0, 0, 0
    batches: set[int] = set()
    for size in case.sizes:
        pre = replace(case.pre, image_size=size)
        pixels = np.stack([to_pixels(picture, pre) for picture in pictures])
        if len(pixels) < sum(BATCHES) and case.batch is None:  # each batch is tried, with some shown again
            pixels = pixels[np.resize(np.arange(len(pixels)), sum(BATCHES))]
        for part in _split(len(pixels), case.batch):
            batches.add(len(part))
            expected = _original(case.original, normalise(pixels[part], pre))
            inputs = pixels[part] if case.exported.normalises else normalise(pixels[part], pre)
            answers = [session(inputs)[0]]
            if case.emulated is not None and session.computes != case.dtype:  # which this CPU lacks
                answers.append(_eagerly(case.emulated, inputs)[0])
            worst = max(worst, *(_error(answer, expected) for answer in answers))
            same += int(np.all([_agrees(answer, expected) for answer in answers], axis=0).sum())
            total += len(part)
    agreement = same / total
    passed = worst <= TOLERANCE and same == total if case.dtype == "fp32" else agreement >= AGREEMENT
    return {
        "passed": passed, "error": worst, "agreement": agreement, "pictures": len(pictures),
        "sizes": list(case.sizes), "batches": sorted(batches), "computes": session.computes,
    }  # fmt: skip


def explain(result: Mapping[str, Any], case: Case, format: Format, picture: Image.Image) -> str:
    """Return in one line how an export that failed differs, and where it begins to."""
    bound = f" (at most {TOLERANCE:g})" if case.dtype == "fp32" else ""
    return (
        f"it does not compute what the network does: logits differ by {result['error']:.2g} of the "
        f"largest{bound}, and the most probable class is the same on {result['agreement']:.1%} of the "
        "pictures "
        f"({'all' if case.dtype == 'fp32' else f'{AGREEMENT:.0%}'} must be). "
        f"{_first_difference(case, format, picture)}"
    )


class _Tapped(nn.Module):
    """A network that gives out its logits and, before them in the network, what each of its modules does.

    Args:
        exported: The network.
    """

    def __init__(self, exported: Exported):
        super().__init__()
        self.exported = exported
        self.names: list[str] = []

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images to logits and the outputs of all modules but the last, in the order of their ends."""
        found: list[Tensor] = []
        self.names.clear()

        def keep(name: str, output: Any) -> None:
            # A module that passes on what the last one in it gave is named by that one.
            if isinstance(output, Tensor) and not any(output is other for other in found):
                found.append(output)
                self.names.append(name)

        hooks = [
            module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            for name, module in self.exported.network.named_modules()
            if name
        ]
        try:
            return (self.exported(images), *(output.float() for output in found[:-1]))
        finally:
            for hook in hooks:
                hook.remove()


def _first_difference(case: Case, format: Format, picture: Image.Image) -> str:
    """Return which module is the first whose output differs: export once more, with all outputs."""
    pre = replace(case.pre, image_size=case.sizes[0])
    pixels = to_pixels(picture, pre)[None].repeat(case.batch or 2, axis=0)
    inputs = pixels if case.exported.normalises else normalise(pixels, pre)
    tapped = _Tapped(case.exported)
    expected = _eagerly(tapped, inputs)
    names = [tapped.names[-1], *tapped.names[:-1]]  # the logits come first
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"tapped{format.ending}"
        try:
            program = make_program(tapped, torch.from_numpy(inputs), case.batch is None, case.dynamic_size)
            format.write(program, path, case.dtype)
            outputs = format.load(path, How(dtype=case.dtype))(inputs)
        except Exception as error:  # what an exporter that is wrong already may raise is without bounds
            return f"Its layers could not be looked at ({type(error).__name__})."
    compared = list(zip(names, outputs, expected, strict=True))
    for name, output, wanted in compared[1:] + compared[:1]:
        if (difference := _error(output, wanted)) > _LAYER_TOLERANCE[case.dtype]:
            return f"The first layer that differs is {name}, by {difference:.2g}."
    return "No layer differs where all are looked at, so it is what the runtime makes of several at once."


def _original(network: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        logits = network(torch.from_numpy(inputs)).numpy()
    if not np.isfinite(logits).all():
        raise UserError("the network's outputs are not finite; train again, or take other weights")
    return logits


def _eagerly(module: nn.Module, inputs: np.ndarray) -> list[np.ndarray]:
    """Return the outputs of a module as its exporter sees it, which is without what is for inference only."""
    with torch.enable_grad():
        outputs = module(torch.from_numpy(inputs))
    return [output.detach().numpy() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]


def _split(count: int, batch: int | None) -> Iterator[np.ndarray]:
    """Yield the indices of pictures in batches: of a fixed size, or of each in ``BATCHES``."""
    if batch is not None:
        yield from np.resize(np.arange(count), (-(-count // batch), batch))
        return
    start, sizes = 0, list(BATCHES)
    while start < count:
        size = sizes.pop(0) if sizes else BATCHES[-1]
        yield np.arange(start, min(start + size, count))
        start += size


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference as a share of the largest value; infinite if not all are numbers."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


def _agrees(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return for each picture whether the most probable class is one of the original's, bool [N]."""
    if found.shape != expected.shape:
        return np.zeros(len(expected), bool)
    chosen = np.take_along_axis(expected, found.argmax(axis=1, keepdims=True), axis=1)[:, 0]
    return chosen == expected.max(axis=1)
