"""Writing a network in a runtime's format, after a proof that the file computes what the network does."""

from __future__ import annotations

import copy
import errno
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from xnext._files import require_writable, save_atomic, write_error
from xnext._interrupts import clean_exit
from xnext.data import ImageData
from xnext.deploy._artefact import Artefact, Format, How, files_of, seal
from xnext.deploy._formats import FORMATS
from xnext.deploy._runtime import Runtime
from xnext.deploy.gate import Case, GateError, choose_pictures, compare, explain
from xnext.deploy.network import Exported, Served, make_program, round_all
from xnext.deploy.quantise import QUANTISERS, quantise
from xnext.errors import UserError, is_out_of_memory, suggest
from xnext.evaluation.complexity import check_image_size
from xnext.evaluation.predict import Classifier
from xnext.kernels import fuse
from xnext.models._network import Network

_LARGER = 1.25  # the second size that is tried where any may come; then a multiple of
_ROOM = 2  # times the weights: a file is written, then sealed
_LEAST_ROOM = 2**20  # bytes beside them
_MULTIPLE = 32  # pixels, to which the networks' strides go


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a network is exported.

    Attributes:
        format: One of ``FORMATS``.
        output: The file; its ending is the format's.
        dtype: What it computes in: fp32, bf16, fp16 or int8.
        batch: Images a call; None: any number.
        size: Pixels a side; 0: any; None: the size that the network was trained for.
        include_preprocessing: Whether the graph takes uint8 pixels and normalises them itself.
        fused: Whether ``xnext.fuse`` comes first.
        max_drop: Of int8: how much lower its accuracy may be, in points of top-1 or mAP.
    """

    format: str
    output: Path
    dtype: str = "fp32"
    batch: int | None = None
    size: int | None = None
    include_preprocessing: bool = False
    fused: bool = True
    max_drop: float = 0.5


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export made.

    Attributes:
        artefact: What the file says about itself.
        files: What was written.
        size: Of the files, in bytes.
        load_seconds: Until the runtime could be asked.
    """

    artefact: Artefact
    files: list[Path]
    size: int
    load_seconds: float


def check_options(options: ExportOptions) -> Format:
    """Return the format, after checking all that can be checked without a network.

    Raises:
        UserError: Something of it cannot be; the line says what to do.
    """
    if options.format not in FORMATS:
        hint = suggest(options.format, FORMATS) or f" Choose from {', '.join(FORMATS)}."
        raise UserError(f"--format {options.format!r} is unknown.{hint}")
    format, output = FORMATS[options.format], options.output
    if output.suffix != format.ending:
        raise UserError(f"--output {output} must end in {format.ending}, since that is what it will be")
    if options.dtype not in format.dtypes:
        raise UserError(
            f"--format {options.format} has no {options.dtype}; choose {' or '.join(format.dtypes)}"
        )
    for name, value, least in (("batch", options.batch, 1), ("size", options.size, 0)):
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; it must be dynamic or at least 1")
    for file in files_of(output):
        if file.exists():
            raise UserError(f"{file} exists; remove it or choose another --output")
        require_writable(file)
    if not options.max_drop >= 0:
        raise UserError(f"--max-drop is {options.max_drop}; it must be at least 0")
    format.require_writer(QUANTISERS[options.format].packages if options.dtype == "int8" else ())
    return format


def export(
    classifier: Classifier, options: ExportOptions, *, source: str, data: ImageData | None = None
) -> ExportReport:
    """Write a network in a runtime's format, and prove on real pictures that the file computes the same.

    Args:
        classifier: What ``load_classifier`` returned.
        options: How.
        source: Where the weights came from, which the file says.
        data: For int8: its training images calibrate, on its held out ones both accuracies are measured.

    Raises:
        GateError: The file computes something else; nothing is written.
        UserError: Something of it cannot be; nothing is written.
    """
    format = check_options(options)
    if isinstance(classifier.model, Served):
        raise UserError(f"{source} is exported already; give the RUN or the weights that it came from")
    if options.dtype == "int8" and data is None:
        raise UserError("int8 needs --data SPEC, on which it is calibrated and measured")
    case = _make_case(classifier, options, format)
    pictures, where = choose_pictures(data or classifier.data, classifier.seed, case.dtype)
    with _workplace(options.output) as folder:
        _require_room(case.exported, options.output)
        path = folder / options.output.name
        _write(case, format, options, classifier.name, path)
        session = format.load(path, How(dtype=case.dtype))
        result = compare(session, case, pictures)
        if not result["passed"]:
            raise GateError(f"{options.output} was not written: {explain(result, case, format, pictures[0])}")
        result["data"] = where
        if options.dtype == "int8":
            assert data is not None, "checked above"
            try:
                result["int8"] = quantise(
                    format, QUANTISERS[options.format], path, case, data, options.max_drop
                )
            except GateError as error:
                raise GateError(f"{options.output} was not written: {error}") from error
        artefact = Artefact(
            format=options.format,
            model_name=classifier.name,
            model_args=_arguments(classifier.model),
            classes=classifier.classes,
            preprocessing=case.pre.to_dict(),
            multilabel=classifier.multilabel,
            include_preprocessing=options.include_preprocessing,
            dtype=options.dtype,
            batch=options.batch,
            size=None if options.size == 0 else case.pre.image_size,
            source=source,
            gate=result,
        )
        seal(path, format.annotate(path, artefact.to_json()))
        runtime, seconds = _load_sealed(path)
        for file in reversed(
            files_of(options.output)
        ):  # the one that is opened comes last, when all is there
            save_atomic(file, (folder / file.name).replace)
    return ExportReport(
        artefact=artefact, files=files_of(options.output), size=runtime.size, load_seconds=seconds
    )


def _make_case(classifier: Classifier, options: ExportOptions, format: Format) -> Case:
    """Return what is exported and what it is compared with."""
    dtype = "fp32" if options.dtype == "int8" else options.dtype
    pre = classifier.preprocessing
    if options.size:
        pre = replace(pre, image_size=options.size)
    sizes = [pre.image_size]
    if options.size == 0:
        sizes.append(-int(-_LARGER * pre.image_size // _MULTIPLE) * _MULTIPLE)
    original = copy.deepcopy(classifier.model).cpu().float().eval()
    for size in sizes:
        check_image_size(original, size, classifier.name, option="--size")
    fused = options.fused and isinstance(original, Network)

    def copy_network() -> nn.Module:
        return fuse(original) if fused else copy.deepcopy(original)

    normalised = pre if options.include_preprocessing else None
    inner = "fp32" if format.hinted else dtype
    exported = Exported(copy_network(), normalised, inner, format.channels_last).eval()
    emulated = None
    if inner != dtype:
        emulated = Exported(round_all(copy_network(), dtype), normalised, inner, format.channels_last).eval()
    return Case(
        original=original, exported=exported, emulated=emulated, pre=pre,
        dtype=dtype, sizes=sizes, batch=options.batch, dynamic_size=options.size == 0,
    )  # fmt: skip


def _write(case: Case, format: Format, options: ExportOptions, name: str, path: Path) -> None:
    """Export, and turn what the exporter may complain of into a line.

    Raises:
        UserError: The exporter cannot do it.
    """
    size, channels = case.sizes[0], case.pre.in_chans
    kind = torch.uint8 if options.include_preprocessing else torch.float32
    try:
        # An axis of one would not be taken for a dynamic one.
        example = torch.zeros(options.batch or 2, channels, size, size, dtype=kind)
        program = make_program(case.exported, example, case.batch is None, case.dynamic_size)
        format.write(program, path, case.dtype)
    except OSError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            what = f"{options.batch or 2} images of {size}x{size} pixels"
            raise UserError(
                f"{what} do not fit into the memory; choose a smaller --batch or --size"
            ) from error
        # An operator that is not supported has another exception in each exporter.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} cannot be exported to {options.format} ({reason}); choose another --format"
        ) from error


def _require_room(network: nn.Module, output: Path) -> None:
    """Refuse where a file does not fit on the disk, which some exporters cannot tell without aborting.

    Raises:
        OSError: The disk is too full, or a limit for the size of files too low.
    """
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    if shutil.disk_usage(output.parent).free < _ROOM * weights + _LEAST_ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and limit < weights + _LEAST_ROOM:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def _arguments(model: nn.Module) -> dict[str, object]:
    return asdict(model.config) if isinstance(model, Network) else {}


def _load_sealed(path: Path) -> tuple[Runtime, float]:
    """Open the finished file as its users will, and ask it; return it with the seconds that opening took."""
    started = time.perf_counter()
    runtime = Runtime(path)
    seconds = time.perf_counter() - started
    grey = np.full((60, 80, 3), 128, np.uint8)
    logits = runtime(runtime.prepare(Image.fromarray(grey))[None])
    assert logits.shape == (1, len(runtime.classes)) and np.isfinite(logits).all(), "it was compared before"
    return runtime, seconds


@contextmanager
def _workplace(output: Path) -> Iterator[Path]:
    """Yield a folder beside a file, from which what was made there can be moved at once."""
    try:
        with (
            clean_exit(),
            tempfile.TemporaryDirectory(
                dir=output.parent, prefix=f".{output.name}.", suffix=".tmp"
            ) as folder,
        ):
            yield Path(folder)
    except OSError as error:
        raise write_error(output, error) from error
