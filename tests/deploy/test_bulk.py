"""Predictions of many images into a folder: complete, each once, and the same bits through any kill."""

import io
import multiprocessing
import os
import random
import signal
import tarfile
import time
from concurrent.futures import CancelledError, Future

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

import xnext
from forked import begin
from xnext import cli
from xnext._interrupts import Stopped
from xnext._workers import Processes, WorkerLost
from xnext.data import FileSource, load_pictures, unlabelled
from xnext.deploy._pool import Pool, open_pool
from xnext.deploy.bulk import Network, Predictions
from xnext.errors import UserError
from xnext.evaluation.predict import load_classifier, predict
from xnext.models import save_checkpoint

COUNT, CHUNK = 400, 10
BROKEN = (7, 8, 399)
CLASSES = tuple(f"class {index}" for index in range(10))
COLUMNS = ["name", "class", "probability", "classes", "probabilities", "error"]


def png(generator):
    stream = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with a network, and images of which three are broken."""
    root, generator = tmp_path_factory.mktemp("bulk"), np.random.default_rng(0)
    save_checkpoint(
        root / "net.safetensors", xnext.create_model("nexception_debug", num_classes=10),
        model_name="nexception_debug", model_args={}, classes=CLASSES,
        preprocessing={
            "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
            "crop_pct": 1.0, "in_chans": 3,
        },
    )  # fmt: skip
    (root / "images").mkdir()
    for index in range(COUNT):
        (root / "images" / f"{index:03}.png").write_bytes(png(generator))
    for index in BROKEN:
        (root / "images" / f"{index:03}.png").write_bytes(b"no image")
    return root


def run_here(function, *arguments):
    future = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


HERE = Pool(name="here", submit=run_here, ahead=2, threads=1, lost=(WorkerLost,))


def open_predictions(root, path, how=Predictions.create, images=None, network="net.safetensors", **options):
    images = [str(root / "images")] if images is None else images
    options = {"topk": 3, "chunk_size": CHUNK} | options
    return how(path, images, load_pictures(images), Network.of(root / network, None), **options)


@pytest.fixture(scope="module")
def whole(root):
    """Return the folder of predictions that nothing interrupted."""
    predictions = open_predictions(root, root / "whole")
    assert list(predictions.run(HERE)) == [CHUNK] * (COUNT // CHUNK)
    predictions.close()
    return root / "whole"


def parts(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_pandas_reads_what_predict_says(root, whole):
    rows = pd.read_parquet(whole)
    assert list(rows.columns) == COLUMNS
    expected = list(predict(load_classifier(root / "net.safetensors"), load_paths(root), topk=3))
    assert rows["name"].tolist() == [str(one.image) for one in expected]
    assert [index for index, error in enumerate(rows["error"]) if error is not None and error == error] == [
        *BROKEN
    ]
    for row, one in zip(rows.itertuples(index=False), expected, strict=True):
        found = dict(zip(COLUMNS, row, strict=True))
        if one.error:
            assert one.error.startswith(f"{one.image}: {found['error']}")
            assert found["classes"] is None and found["class"] != found["class"]
        else:
            assert found["class"] == found["classes"][0] == one.classes[0][0]
            assert found["probability"] == found["probabilities"][0]
            assert list(found["classes"]) == [name for name, _ in one.classes]
            np.testing.assert_allclose(found["probabilities"], [p for _, p in one.classes], rtol=1e-5)
    assert (whole / "_summary.json").read_text() == '{\n  "images": 400,\n  "unreadable": 3\n}\n'


def load_paths(root):
    return sorted((root / "images").iterdir())


def wait_for_parts(folder, count):
    while len(list(folder.glob("part-*.parquet"))) < count:
        time.sleep(0.002)


@pytest.mark.timeout(300)
def test_the_command_is_killed_and_goes_on(root, whole, tmp_path, capsys):
    words = ["predict", root / "images", "--checkpoint", root / "net.safetensors", "--output"]
    words = [*map(str, words), str(tmp_path / "out"), "--chunk-size", str(CHUNK), "--topk", "3"]
    command = begin([*words, "--workers", "2"])
    wait_for_parts(tmp_path / "out", 3)
    below = psutil.Process(command.pid).children(recursive=True)
    os.kill(command.pid, signal.SIGKILL)
    command.join()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive, "its processes end with it"
    before = {path: path.stat() for path in (tmp_path / "out").glob("part-*.parquet")}
    assert 3 <= len(before) < COUNT // CHUNK
    left = tmp_path / "out" / ".part-000039.parquet.abc.tmp"
    left.write_bytes(b"half of a pa")
    capsys.readouterr()
    assert cli.main([*words, "--workers", "2", "--resume"]) == 0
    assert not left.exists()
    for path, stat in before.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns), "once"
    assert parts(tmp_path / "out") == parts(whole)
    out = capsys.readouterr().out
    assert f"400 images in 40 parts; now {COUNT - CHUNK * len(before)} in" in out
    assert "007.png" in out and "3 in all" in out


@pytest.mark.timeout(300)
def test_a_worker_is_killed(root, whole, tmp_path):
    predictions = open_predictions(root, tmp_path / "out")
    with open_pool(2, None) as pool:
        done = predictions.run(pool)
        next(done)
        victim = multiprocessing.active_children()[0]
        victim.kill()
        assert sum(done) == COUNT - CHUNK
        assert not victim.is_alive()
    assert parts(tmp_path / "out") == parts(whole)
    assert not multiprocessing.active_children()


def test_a_process_that_ends_is_replaced():
    with Processes(1, ["xnext.deploy.bulk"]) as processes:
        first = processes.submit(os.getpid).result()
        assert processes.submit(os.getpid).result() == first
        with pytest.raises(WorkerLost, match="ended with code 3"):
            processes.submit(os._exit, 3).result()
        assert processes.submit(os.getpid).result() != first
        with pytest.raises(WorkerLost, match="died of SIGKILL"):
            processes.submit(signal.raise_signal, signal.SIGKILL).result()
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            processes.submit(divmod, 1, 0).result()
        with pytest.raises(UserError, match="no such file or folder"):
            processes.submit(load_pictures, ["/none"]).result()


@pytest.mark.parametrize(("raised", "line"), [
    (WorkerLost("died of SIGKILL"), r"at .*010\.png to .*019\.png was lost 3 times \(died of SIGKILL\)"),
    (CancelledError(), "here is gone"),
])  # fmt: skip
def test_a_chunk_that_nobody_can_do(root, tmp_path, raised, line):
    calls = []

    def submit(function, network, part, *rest):
        if part.name(0).endswith("010.png"):
            calls.append(part)
            return run_here(raise_it)
        return run_here(function, network, part, *rest)

    def raise_it():
        raise raised

    predictions = open_predictions(root, tmp_path / "out")
    pool = Pool(name="here", submit=submit, ahead=1, threads=1, lost=(WorkerLost,))
    with pytest.raises(UserError, match=line):
        list(predictions.run(pool))
    assert len(calls) == (3 if isinstance(raised, WorkerLost) else 1)
    assert len(parts(tmp_path / "out")) == 1


def test_a_signal_stops_between_chunks(root, whole, tmp_path):
    predictions = open_predictions(root, tmp_path / "out")
    done = predictions.run(HERE)
    next(done)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped with 2 of 40 parts") as stopped:
        list(done)
    assert stopped.value.signal == signal.SIGTERM
    predictions.close()
    again = open_predictions(root, tmp_path / "out", Predictions.resume)
    assert sum(again.run(HERE)) == COUNT - 2 * CHUNK
    assert parts(tmp_path / "out") == parts(whole)


@pytest.mark.timeout(300)
def test_a_cluster_of_two_workers_of_which_one_dies(root, whole, tmp_path, cluster):
    address = cluster.scheduler.address
    cluster.run(exec, "import sys; sys.modules['xnext'] = None")
    with pytest.raises(UserError, match=r"lacks a package .*install xnext there"), open_pool(None, address):
        pass
    cluster.run(exec, "import sys; sys.modules.pop('xnext')")
    with open_pool(None, address) as pool:
        predictions = open_predictions(root, tmp_path / "out")
        (victim, _) = cluster.run(os.getpid).values()
        done = predictions.run(pool)
        next(done)
        os.kill(victim, signal.SIGKILL)
        assert sum(done) == COUNT - CHUNK
    assert victim not in cluster.run(os.getpid).values()
    assert parts(tmp_path / "out") == parts(whole)


def test_a_resumed_folder_must_be_of_the_same(root, tmp_path):
    out, images = tmp_path / "out", [str(path) for path in load_paths(root)]
    with pytest.raises(UserError, match="holds no predictions to go on with"):
        open_predictions(root, out, Predictions.resume)
    assert not out.exists()
    first = open_predictions(root, out, images=images[:20])
    with pytest.raises(UserError, match="exists already"):
        open_predictions(root, out, images=images[:20])
    with pytest.raises(UserError, match="a prediction is running there"):
        open_predictions(root, out, Predictions.resume, images=images[:20])
    first.close()
    other = root / "other.safetensors"
    save_checkpoint(
        other, xnext.create_model("nexception_debug", num_classes=10), model_name="nexception_debug",
        model_args={}, classes=CLASSES,
        preprocessing=load_classifier(root / "net.safetensors").preprocessing.to_dict(),
    )  # fmt: skip
    for change, line in (
        ({"images": images[:19]}, "the number of images was 20 and is 19"),
        ({"images": images[1:21]}, "what the images are was"),
        ({"images": images[:20][::-1]}, "what the images are was"),
        ({"network": "other.safetensors"}, "the weights of the network was"),
        ({"topk": 2}, "--topk was 3 and is 2"),
        ({"batch_size": 3}, "--batch-size was 32 and is 3"),
        ({"chunk_size": 9}, "--chunk-size was 10 and is 9"),
    ):
        with pytest.raises(UserError, match=line):
            open_predictions(root, out, Predictions.resume, **{"images": images[:20]} | change)
    again = open_predictions(root, out, Predictions.resume, images=images[:20])
    assert list(again.run(HERE)) == [10, 10]


def test_weights_that_change_meanwhile(root, tmp_path):
    content = (root / "net.safetensors").read_bytes()
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    network = Network.of(path, None)
    path.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="holds other weights than when the predictions were begun"):
        network.load()


def test_no_image_of_a_chunk_is_readable(root, tmp_path):
    paths = [root / "images" / f"{index:03}.png" for index in BROKEN]
    source, network = FileSource(paths, unlabelled(3)), Network.of(root / "net.safetensors", None)
    predictions = Predictions.create(tmp_path / "out", [*map(str, paths)], source, network, chunk_size=2)
    assert sorted(predictions.run(HERE)) == [1, 2]
    assert predictions.unreadable() == [str(path) for path in paths]
    assert len(pd.read_parquet(tmp_path / "out")) == 3


def write_shards(folder, count, size):
    """Write shards of ``size`` tiny images each without any label."""
    generator = np.random.default_rng(0)
    contents = [png(generator) for _ in range(97)]
    for shard in range(count):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as tar:
            for index in range(size):
                content = contents[(shard * size + index) % len(contents)]
                info = tarfile.TarInfo(f"{shard:03}-{index:04}.png")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return f"wds:{folder}/{{000..{count - 1:03}}}.tar"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_images_with_two_kills(root, tmp_path, capsys):
    spec = write_shards(tmp_path, 100, 1000)
    words = ["predict", spec, "--checkpoint", str(root / "net.safetensors"), "--workers", "2", "--output"]
    out = tmp_path / "out"
    command = begin([*words, str(out)])
    wait_for_parts(out, 20)
    workers = [p for p in psutil.Process(command.pid).children(True) if "forkserver" in " ".join(p.cmdline())]
    os.kill(random.Random(0).choice(workers[1:]).pid, signal.SIGKILL)  # the first is what they come from
    wait_for_parts(out, 50)
    os.kill(command.pid, signal.SIGKILL)
    command.join()
    done = len(parts(out))
    capsys.readouterr()
    assert cli.main([*words, str(out), "--resume"]) == 0
    print(capsys.readouterr().out, f"{done} parts were there")
    rows = pd.read_parquet(out)
    expected = [f"{tmp_path}/{s:03}.tar:{s:03}-{i:04}.png" for s in range(100) for i in range(1000)]
    assert rows["name"].tolist() == expected
    assert rows["error"].isna().all() and rows["class"].notna().all()
    # The same image has the same answer wherever it is.
    assert rows.groupby(np.arange(100_000) % 97)["probability"].nunique().max() <= 2
