"""Every check and measurement that waits for a GPU, in parts of under ten minutes.

    python -m benchmarks.gpu [PART…] [--cifar100 FOLDER] [--device cuda] [--output benchmarks/results]

Each part writes ``gpu_PART.json`` with its result, device, versions and date; a part that fails says why
and the others go on.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import xnext
from xnext._yaml import read_yaml
from xnext.evaluation.throughput import Plan, benchmark, describe
from xnext.search import Search, SearchConfig
from xnext.search.trial import TRAINING
from xnext.training import Run, TrainConfig, train
from xnext.training.recipes import find_recipe

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


# Networks for all of CIFAR-100; the bar is 78 % top-1 in under ten minutes for the best of them.
CIFAR100_NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "cifar100_nexception": (
        "nexception_debug",
        {
            "stem_dims": [64], "stem_stride": 1, "entry_dims": [128, 256], "middle_depth": 4,
            "exit_dim": 512, "tail_dims": [768, 1024],
        },
    ),
    "cifar100_inceptionnext": (
        "inceptionnext_debug",
        {"depths": [2, 2, 6, 2], "dims": [64, 128, 256, 384], "strides": [1, 2, 2, 2]},
    ),
}  # fmt: skip


def cifar100(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a network on all of CIFAR-100 with the recipe `small_images` and stronger augmentation."""
    if arguments.cifar100 is None:
        raise ValueError("give --cifar100 FOLDER, a folder of Hugging Face's parquet files")
    model, model_args = CIFAR100_NETWORKS[part]
    recipe = read_yaml(find_recipe("small_images").path)
    changes = {
        "model": model, "model_args": model_args, "data": f"hf:{arguments.cifar100}", "batch_size": 512,
        "epochs": arguments.epochs, "warmup": "3 epochs", "augment": "strong", "mixup": 0.2, "cutmix": 1.0,
        "drop_path_rate": 0.1, "amp": "bf16", "clip_grad": 1.0,
    }  # fmt: skip
    return _train(arguments, **recipe | changes)


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a little with each option of speed and memory: images a second, memory in MiB, loss."""
    choices: dict[str, dict[str, Any]] = {
        "plain": {},
        "no-channels-last": {"channels_last": False},
        "bf16": {"amp": "bf16"},
        "grad-checkpointing": {"grad_checkpointing": True},
        "sync-bn": {"sync_bn": arguments.device == "cuda"},
        "compile": {"compile": True, "amp": "bf16"},
    }
    network = dict(zip(("model", "model_args"), CIFAR100_NETWORKS["cifar100_nexception"], strict=True))
    results = {}
    for name, choice in choices.items():
        if arguments.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        values = {"data": "digits", "epochs": 6, "batch_size": 256, "loader": "memory", **network, **choice}
        results[name] = _train(arguments, keep_rows=True, **values)
    return results


def kernels(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the kernels' tests on the device itself, with the last line of what they said."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "slow or not slow",
        str(ROOT / "tests" / "kernels"),
    ]
    command += ["-p", "no:cacheprovider", "--deselect", str(ROOT / "tests/kernels/test_ahead_of_time.py")]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if process.returncode:
        raise AssertionError(process.stdout[-3000:])
    return {"tests": process.stdout.strip().splitlines()[-1]}


def depthwise(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the operators against PyTorch's."""
    from benchmarks.depthwise import run, show

    result = run(batch=128, dtype="bf16")
    show(result)
    return result


def tune(arguments: argparse.Namespace, only: str) -> dict[str, Any]:
    """Measure the tiles or the winners again; later parts use them, and they are among the results."""
    from xnext.kernels import tune

    installed = Path(tune.__file__).with_name("tiles.json")
    if tune.main(["--only", only, "--output", str(installed)]):
        raise AssertionError("it could not be measured")
    return json.loads(installed.read_text())


def networks(
    arguments: argparse.Namespace, models: Sequence[str], against: Sequence[str], training: bool
) -> dict[str, Any]:
    """Measure networks beside their peers, compiled, in bf16."""
    batch = 128 if arguments.device == "cuda" else 2
    plan = Plan(
        torch.device(arguments.device), training=training, batch_size=batch, dtype="bf16", repetitions=20
    )
    rows = [asdict(row) for model in models for row in benchmark(model, plan, against)]
    for row in rows:
        print(row, flush=True)
    return describe(plan) | {"rows": rows}


NEXCEPTION_T = {
    "stem": "patchify", "entry_kernel_size": "5", "middle_kernel_size": "5", "pool": "blur",
    "middle_block": "bottleneck", "squeeze_excite": "true", "act": "gelu", "entry_acts": "1",
    "middle_acts": "1", "norm": "batch", "entry_norms": "0+1", "middle_norms": "0+1",
}  # fmt: skip
"""NEXcepTion-T's choices, a point of the space ``nexception``."""

SEARCH = ROOT / "build" / "gpu_search"


def search(arguments: argparse.Namespace) -> dict[str, Any]:
    """Go on with the paper's search on CIFAR-100 for some minutes, or begin it."""
    if arguments.cifar100 is None:
        raise ValueError("give --cifar100 FOLDER, a folder of Hugging Face's parquet files")
    hours = arguments.search_minutes / 60
    if (SEARCH / "journal.jsonl").exists():
        found = Search.open(SEARCH)
        found.resume({"hours": found.history.elapsed / 3600 + hours})
    else:
        config = SearchConfig(
            data=f"hf:{arguments.cifar100}", hours=hours, width=0.5, batch_size=256, workers=4,
            optimizer="smac" if find_spec("smac") else "evolution", device=arguments.device,
            amp="bf16" if arguments.device == "cuda" else "off",
        )  # fmt: skip
        found = Search.create(SEARCH, config)
    found.run(lambda _, record: print(record.number, record.status, dict(record.values), flush=True))
    best = found.history.best
    return {
        "optimizer": found.config.optimizer, "minutes": found.history.elapsed / 60,
        "trials": found.history.finished, "best": best and {"point": best.query.point, **best.values},
    }  # fmt: skip


def search_winner(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the winner of the search and NEXcepTion-T's choices alike, with three seeds."""
    found = Search.open(SEARCH)
    if (best := found.history.best) is None:
        raise ValueError("the search has no winner yet; run its parts before")
    result = {}
    for name, point in {"winner": best.query.point, "nexception_t": NEXCEPTION_T}.items():
        architecture = found.space.architecture(point, found.config.width)
        values = dict(TRAINING) | {
            "model": architecture.model, "model_args": dict(architecture.model_args),
            "data": f"packed:{SEARCH / 'data'}", "epochs": arguments.winner_epochs, "batch_size": 256,
            "image_size": found.config.image_size,
            "amp": "bf16" if arguments.device == "cuda" else "off",
        }  # fmt: skip
        result[name] = [_train(arguments, seed=seed, **values)["last_val_top1"] for seed in range(3)]
    winner, paper = (statistics.mean(values) for values in result.values())
    return result | {"holds": winner >= paper - statistics.stdev(result["nexception_t"])}


def _train(arguments: argparse.Namespace, keep_rows: bool = False, **values: Any) -> dict[str, Any]:
    """Train with these values; return the summary's figures and, if wanted, the last epoch's line."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        defaults = {"model": "nexception_debug", "output": str(run), "device": arguments.device}
        summary = train(TrainConfig.from_dict(defaults | values))
        row = {"last_epoch": Run(run).read_metrics()[-1]} if keep_rows else {}
    kept = ("best_val_top1", "last_val_top1", "seconds", "params", "macs", "epochs", "amp", "model_args")
    return {key: summary[key] for key in kept} | row


OTHERS = ["efficientnet_b0", "mobilenetv3_large_100", "repvit_m1_1", "convformer_s18"]
"""Other depthwise networks of timm."""

NETWORKS: dict[str, tuple[list[str], list[str], bool]] = {
    "inceptionnext_training": (["inceptionnext_tiny"], ["convnext_tiny"], True),
    "inceptionnext_inference": (["inceptionnext_tiny"], ["convnext_tiny"], False),
    "nexception_training": (["nexception_t", "nexception_tp"], [], True),
    "nexception_inference": (["nexception_t", "nexception_tp"], ["convnext_tiny"], False),
    "xception_training": (["xception"], ["inception_v3"], True),
    "timm_convnext_training": (["convnext_tiny"], [], True),
    "timm_training": (OTHERS, [], True),
    "timm_inference": (OTHERS, [], False),
}
"""Networks that are measured, what beside them, and whether in training."""

PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "golden": golden,
    "digits": digits,
    "kernels": kernels,
    **{
        f"tune_{only}": partial(tune, only=only)
        for only in ("forward", "input", "weight", "mix", "pool", "pool_input", "winners")
    },
    "depthwise": depthwise,
    **{
        name: partial(networks, models=models, against=against, training=training)
        for name, (models, against, training) in NETWORKS.items()
    },
    "options": options,
    **{part: partial(cifar100, part) for part in CIFAR100_NETWORKS},
    "search_1": search,
    "search_2": search,
    "search_3": search,
    "search_winner": search_winner,
}


def main() -> int:
    """Run the parts; return 0 if all succeeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--cifar100", type=Path, help="folder of CIFAR-100 as parquet")
    parser.add_argument("--epochs", type=int, default=60, help="of the trainings on CIFAR-100")
    parser.add_argument("--search-minutes", type=float, default=8, help="of each part of the search")
    parser.add_argument("--winner-epochs", type=int, default=30, help="of its winner's trainings")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown parts {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: error: PyTorch finds no GPU here", file=sys.stderr)
        return 2
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
