"""Reference outputs: fill the published names with known weights, convert, compare float64 logits."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import xnext

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import fill  # noqa: E402

FILES = sorted(path.stem for path in GOLDEN.glob("*.json"))


def reference(stem: str) -> tuple[dict, dict[str, torch.Tensor], np.ndarray]:
    info = json.loads((GOLDEN / f"{stem}.json").read_text())
    state = {key: torch.from_numpy(fill.fill(key, tuple(shape))) for key, shape in info["state_dict"].items()}
    return info, state, np.load(GOLDEN / f"{stem}.npz")["logits"]


def test_there_are_golden_files():
    assert len(FILES) >= 7


@pytest.mark.parametrize("stem", FILES)
def test_logits_match_the_reference(stem):
    info, state, expected = reference(stem)
    model = xnext.create_model(stem.partition("__")[0]).eval()
    report = xnext.load_checkpoint(model, state)
    assert report.layout != "xnext" and report.new_classes is None
    assert sum(parameter.numel() for parameter in model.parameters()) == info["num_parameters"]
    image = torch.from_numpy(fill.image(info["input_size"])).double()
    with torch.inference_mode():
        logits = model.double()(image).numpy()
    assert np.abs(logits - expected).max() <= 1e-9 * np.abs(expected).max()
