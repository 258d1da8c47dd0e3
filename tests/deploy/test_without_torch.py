"""Served files run where there is no PyTorch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xnext
from xnext.deploy import Runtime

SOURCE = Path(xnext.__file__).parents[1]
PROGRAM = """
import json, sys

MISSING = {missing}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from xnext.deploy import Runtime
import xnext

runtime = Runtime(sys.argv[1], mode="throughput", threads=1)
logits = [row.tolist() for row in runtime.predict_many(sys.argv[2:])]
try:
    xnext.create_model
except AttributeError as error:
    reason = str(error)
print(json.dumps([logits, runtime.classes, reason, sorted(MISSING & set(sys.modules))]))
"""
# All that this project depends on, but for NumPy, Pillow and the runtime.
MISSING = {
    "torch", "torchvision", "timm", "accelerate", "datasets", "pandas", "scipy", "sklearn", "matplotlib",
    "safetensors", "jsonargparse", "rich", "yaml", "ruamel", "onnx", "onnxscript", "nncf", "psutil",
    "huggingface_hub", "torchmetrics",
}  # fmt: skip


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_served_file_runs_without_pytorch(exported, classifier, tmp_path, format):
    pictures = [tmp_path / f"{index}.png" for index in range(3)]
    for index, picture in enumerate(pictures):
        pixels = np.random.default_rng(index).integers(0, 256, (50, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(picture)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(missing=MISSING), exported[format], *pictures],
        env=os.environ | {"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logits, classes, reason, imported = json.loads(done.stdout)
    assert tuple(classes) == classifier.classes
    assert "needs PyTorch" in reason
    assert not imported
    np.testing.assert_allclose(logits, list(Runtime(exported[format]).predict_many(pictures)), atol=1e-4)
