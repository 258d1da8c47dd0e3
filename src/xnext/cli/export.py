"""`xnext export`: a trained network as a file for another runtime, checked before it is written."""

import json
from pathlib import Path

from jsonargparse import Namespace

from xnext._parser import Parser, yes_no
from xnext.cli._common import DATA_HELP, MODEL_HELP, Verb, new_table, print_table
from xnext.cli._measured import open_data
from xnext.deploy import FORMATS
from xnext.deploy.export import ExportOptions, ExportReport, check_options, export
from xnext.errors import UserError
from xnext.evaluation.predict import load_classifier

_DYNAMIC = "dynamic"


def _options(parser: Parser) -> None:
    parser.add_argument(
        "run",
        type=Path | None,
        nargs="?",
        metavar="RUN",
        help="Folder that `xnext train` left (its best weights).",
    )
    parser.add_argument("--checkpoint", type=Path | None, metavar="FILE", help="Weights, instead of a RUN.")
    parser.add_argument(
        "--model",
        type=str | None,
        metavar="NAME",
        help=f"{MODEL_HELP} By itself: with its published weights.",
    )
    parser.add_argument(
        "--format", type=str, required=True, metavar="FORMAT", help=f"One of {', '.join(FORMATS)}."
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="What to write; must not exist."
    )
    parser.add_argument(
        "--dtype", type=str, default="fp32", metavar="TYPE", help="What it computes in: fp32, bf16 or fp16."
    )
    parser.add_argument(
        "--int8", action="store_true", help="Quantise it to whole numbers of 8 bits, calibrated on --data."
    )
    parser.add_argument(
        "--data", type=str | None, metavar="SPEC",
        help=f"{DATA_HELP} On these outputs are compared, and int8 is calibrated and measured. "
        "Default without --int8: what RUN held out, else photographs.",
    )  # fmt: skip
    parser.add_argument(
        "--max-drop", type=float | None, metavar="POINTS",
        help="What --int8 may cost, by default 0.5; layers stay in higher precision until it holds.",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=str, default=_DYNAMIC, metavar="N", help="Images a call; `dynamic`: any number."
    )
    parser.add_argument(
        "--size", type=str | None, metavar="N",
        help="Pixels a side; `dynamic`: any. Default: what the network was trained for.",
    )  # fmt: skip
    parser.add_argument(
        "--include-preprocessing", action="store_true",
        help="The file takes pixels, uint8, and normalises them itself.",
    )  # fmt: skip
    parser.add_argument(
        "--fuse", action=yes_no(), default=True, help="Whether norms are folded into convolutions first."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")


def _run(arguments: Namespace) -> int:
    if arguments.int8 and arguments.dtype != "fp32":
        raise UserError("give --int8 or --dtype, not both")
    if arguments.int8 and arguments.data is None:
        raise UserError("--int8 needs --data SPEC, on which it is calibrated and measured")
    if (arguments.run is not None) + (arguments.checkpoint is not None) > 1:
        raise UserError("give either a RUN or --checkpoint FILE; see xnext export --help")
    checkpoint = arguments.run or arguments.checkpoint
    if checkpoint is None and arguments.model is None:
        raise UserError("give a RUN, --checkpoint FILE or --model NAME; see xnext export --help")
    if arguments.max_drop is not None and not arguments.int8:
        raise UserError("--max-drop is of --int8; add it, or leave --max-drop out")
    size = _number("--size", arguments.size)
    drop = ExportOptions.max_drop if arguments.max_drop is None else arguments.max_drop
    options = ExportOptions(
        format=arguments.format, output=arguments.output, dtype="int8" if arguments.int8 else arguments.dtype,
        batch=_number("--batch", arguments.batch) or None, size=size, fused=arguments.fuse,
        include_preprocessing=arguments.include_preprocessing, max_drop=drop,
    )  # fmt: skip
    check_options(options)
    classifier = load_classifier(checkpoint, arguments.model)
    source = str(checkpoint or f"published weights of {arguments.model}")
    data = None if arguments.data is None else open_data(arguments.data, classifier, source)
    report = export(classifier, options, source=source, data=data)
    if arguments.json:
        print(json.dumps(_record(report)))
    else:
        _show(report)
    return 0


def _number(name: str, value: str | None) -> int | None:
    """Return a count; 0 for ``dynamic``.

    Raises:
        UserError: It is neither.
    """
    if value is None or value == _DYNAMIC:
        return None if value is None else 0
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"{name} {value!r} must be `dynamic` or a whole number of at least 1")
    return int(value)


def _record(report: ExportReport) -> dict[str, object]:
    """Return what there is to say of an export, JSON values."""
    about = report.artefact
    return {
        "files": [str(file) for file in report.files], "bytes": report.size,
        "load_seconds": round(report.load_seconds, 3), "format": about.format, "model": about.model_name,
        "dtype": about.dtype, "batch": about.batch, "size": about.size, "gate": about.gate,
    }  # fmt: skip


def _show(report: ExportReport) -> None:
    gate = report.artefact.gate
    table = new_table(
        "file", "type", ">MB", ">loads in s", ">largest difference", ">same class", ">pictures", "of"
    )
    table.add_row(
        str(report.files[0]), report.artefact.dtype, f"{report.size / 1e6:.1f}", f"{report.load_seconds:.2f}",
        f"{gate['error']:.1e}", f"{gate['agreement']:.0%}", str(gate["pictures"]), gate["data"],
    )  # fmt: skip
    print_table(table)
    if gate["computes"] != report.artefact.dtype and report.artefact.dtype != "int8":
        print(
            f"this CPU has no {report.artefact.dtype}: the file was run in {gate['computes']}, and the "
            f"network with all that its layers give out rounded to {report.artefact.dtype} was compared too"
        )
    if int8 := gate.get("int8"):
        print(
            f"int8: {int8['metric']} {int8['fp32']:.2f} -> {int8['int8']:.2f} %, a drop of "
            f"{int8['drop']:.2f} points, on {int8['images']} images; {len(int8['kept'])} of "
            f"{int8['layers']} layers left as they were"
        )


VERB = Verb(
    "Write a trained network for another runtime, after a proof that the file computes the same.",
    _options, _run,
    (
        "xnext export runs/photos --format openvino --output photos.xml",
        "xnext export runs/photos --format onnx --output photos.onnx --int8 --data photos/",
        "xnext export --model inceptionnext_tiny --format torch --output tiny.pt2 --size dynamic",
    ),
)  # fmt: skip
