"""Every check and measurement that waits for a GPU, in parts of under ten minutes.

    python -m benchmarks.gpu [PART…] [--cifar100 FOLDER] [--device cuda] [--output benchmarks/results]

Each part writes ``gpu_PART.json`` with its result, device, versions and date; a part that fails says why
and the others go on.
"""

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import xnext
from xnext.training import TrainConfig, train

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"


def golden(arguments: argparse.Namespace) -> dict[str, float]:
    """Compare float64 logits on the device with the references; the largest relative error a file."""
    sys.path.insert(0, str(GOLDEN))
    import fill

    errors = {}
    for path in sorted(GOLDEN.glob("*.json")):
        info = json.loads(path.read_text())
        model = xnext.create_model(path.stem.partition("__")[0]).eval()
        shapes = info["state_dict"].items()
        xnext.load_checkpoint(model, {k: torch.from_numpy(fill.fill(k, tuple(s))) for k, s in shapes})
        image = torch.from_numpy(fill.image(info["input_size"])).double().to(arguments.device)
        with torch.inference_mode():
            logits = model.double().to(arguments.device)(image).cpu().numpy()
        expected = np.load(path.with_suffix(".npz"))["logits"]
        errors[path.stem] = float(np.abs(logits - expected).max() / np.abs(expected).max())
        if errors[path.stem] > 1e-9:
            raise AssertionError(f"{path.stem} is off by {errors[path.stem]:.1e}")
    return errors


def digits(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on digits in every precision of the device."""
    precisions = ("off", "bf16", "fp16") if arguments.device == "cuda" else ("off",)
    return {amp: _train(arguments, data="digits", epochs=15, amp=amp) for amp in precisions}


def cifar100(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the README's CIFAR-100 network on all of it."""
    if arguments.cifar100 is None:
        raise ValueError("give --cifar100 FOLDER, a folder of Hugging Face's parquet files")
    network = {"stem_dims": [32], "entry_dims": [64, 96], "exit_dim": 192, "tail_dims": [256, 384]}
    data = f"hf:{arguments.cifar100}"
    return _train(arguments, data=data, epochs=30, batch_size=256, workers=8, amp="bf16", model_args=network)


def _train(arguments: argparse.Namespace, **options: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        config = TrainConfig(model="nexception_debug", output=output, device=arguments.device, **options)
        summary = train(config)
    kept = ("best_val_top1", "last_val_top1", "seconds", "params", "macs", "epochs", "amp", "model_args")
    return {key: summary[key] for key in kept}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "golden": golden,
    "digits": digits,
    "cifar100": cifar100,
}


def main() -> int:
    """Run the parts; return 0 if all succeeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--cifar100", type=Path, help="folder of CIFAR-100 as parquet")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown parts {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here")
    failed = False
    for part in arguments.parts or PARTS:
        started = time.perf_counter()
        try:
            result = PARTS[part](arguments)
        except Exception as error:  # one part must not take the others' results with it
            print(f"{part}: FAILED: {type(error).__name__}: {error}", flush=True)
            failed = True
            continue
        record = {
            "part": part,
            "result": result,
            "seconds": round(time.perf_counter() - started, 1),
            "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
            "versions": {name: version(name) for name in ("xnext", "torch", "timm")},
            "date": datetime.date.today().isoformat(),
        }
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / f"gpu_{part}.json").write_text(json.dumps(record, indent=2) + "\n")
        print(json.dumps(record), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
