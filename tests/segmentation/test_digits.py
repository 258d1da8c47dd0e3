"""The whole way: digits on photographs, trained, measured and told, from nothing."""

import json
import shlex

import numpy as np
import pytest
import torch
from make_digits import make_digits
from PIL import Image

from xnext.cli import main

TRAINING = """
segment train --encoder inceptionnext_debug --model-args '{strides: [4, 2, 2, 2]}' --decoder fpn
--image-size 96 --augment none --epochs 6 --batch-size 16 --lr 2e-3 --warmup '20 steps' --bn-momentum 0.3
"""  # as docs/segmentation.md has it


@pytest.mark.slow
def test_digits_are_told_from_photographs(tmp_path, capsys):
    torch.set_num_threads(2)
    data, run, told = (str(tmp_path / name) for name in ("digits", "run", "told"))
    make_digits(tmp_path / "digits")
    assert main([*shlex.split(TRAINING), "--data", data, "--output", run]) == 0
    capsys.readouterr()
    assert main(["segment", "evaluate", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["miou"] >= 90
    assert main(["segment", "predict", f"{data}/images/val", "--checkpoint", run, "--output", told]) == 0
    right = []
    for mask in sorted((tmp_path / "told/masks").iterdir()):
        truth = tmp_path / "digits/masks/val" / mask.name
        right.append(np.asarray(Image.open(mask)) == np.asarray(Image.open(truth)))
    assert len(right) == 60 and np.mean(right) > 0.95
