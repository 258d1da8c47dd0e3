"""Whether each network of the papers passes the gate in each format, at full size.

    python -m benchmarks.deploy [NETWORK …] [--formats onnx openvino torch] [--json FILE]

Weights are random, but each part of the network counts, and its last layer tells the gate's pictures
apart. What the file holds already is not measured again.

    python -m benchmarks.deploy NETWORK … --write FOLDER

writes the files whose speed docs/deploy.md compares, for `xnext benchmark --artefact`.
"""

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import update_bn

from xnext._files import write_atomic
from xnext.data import ArraySource, ImageData, Preprocessing, build_eval_transform
from xnext.deploy import FORMATS
from xnext.deploy.export import ExportOptions, export
from xnext.deploy.gate import choose_pictures
from xnext.errors import UserError
from xnext.evaluation.predict import Classifier
from xnext.evaluation.throughput import _stir, create_network, list_published

SPEED_FILES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("unfused.xml", "openvino", {"fused": False}),
    ("fp32.xml", "openvino", {}),
    ("unfused-bf16.xml", "openvino", {"fused": False, "dtype": "bf16"}),
    ("bf16.xml", "openvino", {"dtype": "bf16"}),
    ("int8.xml", "openvino", {"dtype": "int8"}),
    ("fp32.onnx", "onnx", {}),
    ("int8.onnx", "onnx", {"dtype": "int8"}),
    ("fp32.pt2", "torch", {}),
)
_FITTED_BY = 32  # pictures, whose statistics batch norms get
_RIDGE = 0.1  # of the last layer, as a share of each picture's own
RESULTS = Path(__file__).parent / "results" / "deploy_gate.json"


def make_classifier(name: str) -> Classifier:
    """Return a network as if it were trained: random weights, all of which matter, and two classes."""
    torch.manual_seed(0)
    model = _stir(create_network(name)).eval()
    preprocessing = Preprocessing.for_model(model)
    _recognise(model, preprocessing)
    return Classifier(
        model=model, name=name, classes=tuple(map(str, range(model.num_classes))), named=False,
        preprocessing=preprocessing, device=torch.device("cpu"),
    )  # fmt: skip


def _recognise(model: Any, preprocessing: Preprocessing) -> None:
    """Fit norms and the last layer to which of the two photographs a picture of the gate is part of.

    Else pictures hardly differ for a deep network, and its most probable classes by less than bf16 holds.
    """
    pictures, _ = choose_pictures(None, 0, "bf16")
    transform = build_eval_transform(preprocessing)
    batches = torch.stack([transform(picture) for picture in pictures]).split(_FITTED_BY)
    update_bn(batches[:1], model)
    with torch.inference_mode():
        features = [model.forward_head(model.forward_features(batch), pre_logits=True) for batch in batches]
        centre = torch.cat(features).mean(dim=0)
        centred = torch.cat(features) - centre
        gram = centred @ centred.T
        gram.diagonal().mul_(1 + _RIDGE)
        target = torch.tensor([1.0, -1.0]).repeat(len(centred) // 2)  # the photographs take turns
        weight = centred.T @ torch.linalg.solve(gram, target)
        layer = model.get_classifier()
        layer.weight.normal_(std=0.1 * float(weight.square().mean().sqrt()))
        layer.weight[:2] += torch.stack([weight, -weight])
        layer.bias.copy_(-layer.weight @ centre)


def check(classifier: Classifier, format: str) -> dict[str, Any]:
    """Export a network with any number of images a call; return what the gate found, or why it failed."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / f"network{FORMATS[format].ending}"
        row: dict[str, Any] = {"network": classifier.name, "format": format}
        try:
            report = export(classifier, ExportOptions(format=format, output=output), source="random weights")
        except UserError as error:
            return row | {"passed": False, "why": str(error)}
        row |= {key: report.artefact.gate[key] for key in ("passed", "error", "agreement", "pictures")}
        row |= {"pixels": report.artefact.size, "megabytes": round(report.size / 1e6, 1)}
        row |= {"load_seconds": round(report.load_seconds, 2)}
        return row | {"export_seconds": round(time.perf_counter() - started, 1)}


def make_data(classifier: Classifier) -> ImageData:
    """Return photographs that the network is calibrated on, with its own answers as their labels."""
    pictures, _ = choose_pictures(None, 0, "fp32")
    transform = build_eval_transform(classifier.preprocessing)
    with torch.inference_mode():
        labels = [int(classifier.model(transform(picture)[None]).argmax()) for picture in pictures]
    side = classifier.preprocessing.image_size
    pixels = np.stack([np.asarray(picture.resize((side, side))) for picture in pictures])
    every = np.arange(len(classifier.classes))  # a set has pictures of each class
    train = ArraySource(pixels[every % len(pixels)], every, "photographs")
    return ImageData(
        "photographs", classifier.classes, train, ArraySource(pixels, np.array(labels), "photographs")
    )


def write(classifier: Classifier, folder: Path) -> None:
    """Write the files whose speed is compared, all for batches of 16."""
    for file, format, options in SPEED_FILES:
        output = folder / f"{classifier.name}-{file}"
        if not output.exists():
            plan = ExportOptions(format=format, output=output, batch=16, max_drop=100, **options)
            data = make_data(classifier) if plan.dtype == "int8" else None
            export(classifier, plan, source="random weights", data=data)
            print(output, flush=True)


def main() -> None:
    """Check what is asked for, and keep what was found after each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list_published())
    parser.add_argument("--formats", nargs="+", default=["onnx", "openvino", "torch"], choices=FORMATS)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.write is not None:
        for name in arguments.networks:
            write(make_classifier(name), arguments.write)
        return
    record = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"rows": []}
    packages = ("torch", "timm", "onnx", "onnxruntime", "onnxscript", "openvino")
    record["versions"] = {package: version(package) for package in packages}
    done = {(row["network"], row["format"]) for row in record["rows"] if row["passed"]}
    for name in arguments.networks:
        wanted = [format for format in arguments.formats if (name, format) not in done]
        classifier = make_classifier(name) if wanted else None
        for format in wanted:
            assert classifier is not None, "it was made"
            row = check(classifier, format)
            print(*row.values(), sep="\t", flush=True)
            others = [one for one in record["rows"] if (one["network"], one["format"]) != (name, format)]
            record["rows"] = [*others, row]
            write_atomic(arguments.json, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
