"""Predictions into a folder: what a user may get wrong is a line, and leaves nothing."""

import pytest
from samples import picture


@pytest.mark.parametrize(("words", "names"), [
    (["--resume"], ["--resume", "--output"]),
    (["--workers", "2"], ["--workers", "--output"]),
    (["--workers", "0"], ["--workers", "--output"]),
    (["--scheduler", "tcp://a:1"], ["--scheduler", "--output"]),
    (["--chunk-size", "5"], ["--chunk-size", "--output"]),
    (["--batch-size", "5"], ["--batch-size", "--output"]),
    (["--output", "OUT", "--json"], ["--json"]),
    (["--output", "OUT", "--workers", "0"], ["--workers is 0"]),
    (["--output", "OUT", "--chunk-size", "0"], ["--chunk-size is 0"]),
    (["--output", "OUT", "--batch-size", "0"], ["--batch-size is 0"]),
    (["--output", "OUT", "--topk", "0"], ["--topk is 0"]),
    (["--output", "OUT", "--workers", "1", "--scheduler", "tcp://a:1"], ["--workers", "--scheduler"]),
    (["--output", "OUT", "--resume"], ["OUT", "holds no predictions"]),
    (["--output", "data"], ["data", "exists already", "--resume"]),
    (["--output", "a.png"], ["a.png", "exists already"]),
    (["--output", "a.png/under"], ["cannot write", "not a folder"]),
])  # fmt: skip
def test_options_that_do_not_go_together(fails, trained, data, tmp_path, monkeypatch, words, names):
    monkeypatch.chdir(tmp_path)
    picture().save("a.png")
    fails("predict", "a.png", "--checkpoint", trained, *words, names=names)


def test_images_and_weights_that_are_not_there(fails, trained, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rest = ["--checkpoint", trained, "--output", "out"]
    fails("predict", "none.png", *rest, names=["none.png", "no such file"])
    fails("predict", "wds:none.tar", *rest, names=["none.tar", "no shard"])
    fails("predict", "hf:data", "--checkpoint", trained, names=["hf:data", "--output"])
    fails(
        "predict", data, "--checkpoint", "none", "--output", "out", names=["no run and no weight file none"]
    )
    monkeypatch.setattr("xnext._cluster._PATIENCE", "1s")
    fails(
        "predict", data, *rest, "--scheduler", "tcp://127.0.0.1:9", names=["no Dask scheduler answers there"]
    )
