"""The losses of 50 seeded steps on digits: `python tests/training/golden_losses.py` records them anew.

A refactoring that changes a number is seen, for they are compared exactly by test_golden_losses.py. Record
them anew only for a change that is meant to change numbers, and say so in its commit.
"""

import json
import platform
import tempfile
from itertools import islice
from pathlib import Path

import timm
import torch

import xnext
from xnext.training import Run, TrainConfig
from xnext.training.setup import prepare
from xnext.training.trainer import Trainer

FILE = Path(__file__).with_suffix(".json")
STEPS = {"blended": 50, "plain": 10}
"""Of trainings with and without mixup and cutmix, which change from one release of timm to another."""


def networks() -> list[str]:
    """Return the debug sizes, one of each network."""
    return xnext.list_models("*_debug")


def machine() -> dict[str, str]:
    """Return what decides the last bits of a float32 sum, and how batches are blended."""
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "cpu": f"{torch.backends.cpu.get_cpu_capability()}, {processor()}",
    }


def processor() -> str:
    """Return which processor this is: two makers' with the same instructions add in another order."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return " ".join(told.get(key, "?") for key in ("vendor_id", "cpu family", "model"))


def losses(model: str, kind: str) -> list[float]:
    """Return the loss of each step of a training with everything random that there is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(
                model=model, data="digits", output=Path(folder) / "run", device="cpu", batch_size=16,
                epochs=1, augment="light", drop_rate=0.1, drop_path_rate=0.1,
                **({"mixup": 0.2, "cutmix": 0.2} if kind == "blended" else {}),
            )  # fmt: skip
            setup = prepare(config)
            trainer = Trainer(setup, Run.create(config.output, ""))
            setup.freeze(False, 0)
            setup.batches.order.set_epoch(1)
            steps = islice(setup.batches.train, STEPS[kind])
            return [trainer._step(images, labels).loss.item() for images, labels, _ in steps]
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    """Write the file."""
    measured = {kind: {model: losses(model, kind) for model in networks()} for kind in STEPS}
    recorded = {"machine": machine(), "losses": measured}
    FILE.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
