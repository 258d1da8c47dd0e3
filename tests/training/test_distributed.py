"""Several processes train as one: the same curve, one writer, no death unnoticed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from xnext.cli import main
from xnext.data import SharedBatches
from xnext.errors import UserError
from xnext.segmentation.data import load_masks
from xnext.segmentation.evaluate import evaluate_masks
from xnext.segmentation.inference import load_trained
from xnext.training import Run
from xnext.training.batches import plan_batches
from xnext.training.distributed import LocalSGD
from xnext.training.setup import prepare

PATIENCE = 300  # seconds for real processes, many times what they take on a machine that does nothing else
MEASURED = ("images_per_second", "memory_mib", "seconds")
DIGITS = {
    "model": "convnext_debug", "data": "digits", "augment": "none", "epochs": 2, "batch_size": 64,
    "device": "cpu" if torch.cuda.is_available() else "auto",
}  # fmt: skip


def start(
    processes: int, *words: str, options: tuple[str, ...] = (), verb: tuple[str, ...] = ("train",)
) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "xnext"]
    if processes > 1:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
        ]
        launcher += [*options, "-m", "xnext"]
    return subprocess.Popen(
        [*launcher, *verb, *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def options_of(folder: Path, **values) -> tuple[str, str, str, str]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(values))
    return "--config", str(file), "--output", str(folder)


def launch(folder: Path, processes: int, **values) -> tuple[list[dict], str]:
    """Train and return the metrics and what several processes printed; one alone is this."""
    words, output = options_of(folder, **values), ""
    if processes == 1:
        assert main(["train", *words]) == 0
    else:
        process = start(processes, *words)
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    rows = Run(folder).read_metrics()
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows], output


def assert_same_curves(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one == pytest.approx(two, rel=1e-5)


def test_two_processes_have_the_curve_of_one(tmp_path):
    """Both have last batches that do not fill up: 1438 = 22 * 64 + 30 and 359 images."""
    one, _ = launch(tmp_path / "one", 1, **DIGITS)
    two, output = launch(tmp_path / "two", 2, **DIGITS)
    assert_same_curves(one, two)
    assert one[0]["train_loss"] - one[1]["train_loss"] > 0.1  # it learns, so there is a curve
    assert "on 2 x cpu" in output and output.count("train loss") == 1 and output.count("best:") == 1
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_parts_averages_and_a_frozen_backbone_change_nothing_of_that(tmp_path):
    options = DIGITS | {"device_batch_size": 12, "model_ema": 0.9, "freeze": "10 steps", "epochs": 1}
    options |= {"loader": "memory"}
    one, _ = launch(tmp_path / "one", 1, **options)
    two, _ = launch(tmp_path / "two", 2, **options)
    assert_same_curves(one, two)
    assert one[0].keys() >= {"raw_val_loss", "raw_val_top1"}


@pytest.mark.slow
def test_two_processes_segment_as_one(tmp_path, pairs):
    """Batch norms see the images of their process, so what they measure of one network is compared."""
    options = {"model": "convnext_debug", "decoder": "fpn", "data": str(pairs), "batch_size": 4, "epochs": 2}
    words = options_of(tmp_path / "run", image_size=16, device=DIGITS["device"], amp="bf16", **options)
    process = start(2, *words, verb=("segment", "train"))
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert output.count("train loss") == 1 and output.count("best:") == 1
    rows, trained = Run(tmp_path / "run").read_metrics(), load_trained(tmp_path / "run")
    measured = evaluate_masks(trained, load_masks(str(pairs)).val)
    assert measured.metrics["miou"] == pytest.approx(max(row["val_miou"] for row in rows), abs=0.5)


@pytest.mark.slow
def test_several_classes_an_image_are_ranked_over_all_processes(tmp_path, tagged):
    """13 held-out images in batches of 6 leave one process the last one alone."""
    options = {
        "model": "convnext_debug",
        "data": str(tagged),
        "augment": "none",
        "epochs": 2,
        "device": "cpu",
    }
    options |= {"batch_size": 6, "image_size": 16}
    one, _ = launch(tmp_path / "one", 1, **options)
    two, _ = launch(tmp_path / "two", 2, **options)
    assert_same_curves(one, two)
    assert one[0].keys() >= {"val_map", "val_map_at_100"}


@pytest.mark.slow
def test_two_machines_are_as_two_processes(tmp_path):
    """Here both are this one: two launchers that meet at one address."""
    two, _ = launch(tmp_path / "two", 2, **DIGITS | {"epochs": 1})
    words = options_of(tmp_path / "run", **DIGITS | {"epochs": 1, "loader": "memory"})
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launcher += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "-m", "xnext", "train", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    machines = [subprocess.Popen(launcher, env=environment, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    assert [machine.communicate(timeout=PATIENCE) and machine.returncode for machine in machines] == [0, 0]
    rows = [
        {k: v for k, v in row.items() if k not in MEASURED} for row in Run(tmp_path / "run").read_metrics()
    ]
    assert_same_curves(rows, two)


def wait_for_state(folder: Path, process: subprocess.Popen, least: int = 1) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(int(path.stem[6:]) >= least for path in folder.rglob("state-*.pt")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def workers(launcher: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], text=True, stdout=subprocess.PIPE)
    return [int(word) for word in listed.stdout.split()]


QUICK = {"epochs": 6, "batch_size": 12, "save_every": "1 step", "image_size": 16, "device": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{}, {"local_sgd": 3, "warmup": "1 step", "save_every": "4 steps", "model_ema": 0.9}]
)
def test_after_a_death_the_others_end_and_a_restart_goes_on(tmp_path, colours, more):
    options = QUICK | {"model": "inceptionnext_debug", "data": str(colours)} | more
    whole, _ = launch(tmp_path / "whole", 2, **options)
    folder = tmp_path / "run"
    process = start(2, *options_of(folder, **options), options=("--max-restarts=1",))
    wait_for_state(folder, process, least=5)
    os.kill(workers(process.pid)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "exitcode: -9" in errors, errors
    assert "another process is gone" in errors and "Traceback" not in errors
    rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in Run(folder).read_metrics()]
    assert rows == whole
    weights = [load_file(Run(path).last) for path in (folder, tmp_path / "whole")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])


@pytest.mark.slow
def test_without_restarts_a_death_ends_the_run_with_its_own_error(tmp_path, colours):
    options = QUICK | {"model": "inceptionnext_debug", "data": str(colours), "epochs": 500}
    folder = tmp_path / "run"
    process = start(2, *options_of(folder, **options))
    wait_for_state(folder, process)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0 and "Signal 9 (SIGKILL)" in errors


@pytest.mark.slow
def test_told_to_stop_it_saves_and_one_process_can_go_on(tmp_path, colours):
    options = QUICK | {"model": "convnext_debug", "data": str(colours), "augment": "none", "epochs": 60}
    folder = tmp_path / "run"
    process = start(2, *options_of(folder, **options))
    wait_for_state(folder, process)
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert len(re.findall(r"^xnext: stopped in epoch", errors, flags=re.MULTILINE)) == 1, errors
    again = start(1, "--resume", str(folder))
    assert again.wait(PATIENCE) == 0, again.communicate()
    one, _ = launch(tmp_path / "one", 1, **options)
    assert [row["epoch"] for row in Run(folder).read_metrics()] == list(range(1, 61))
    assert Run(folder).read_metrics()[4]["train_loss"] == pytest.approx(one[4]["train_loss"], rel=1e-4)


def test_a_mistake_is_told_once(tmp_path):
    process = start(2, *options_of(tmp_path / "run", **DIGITS | {"batch_size": 33}))
    _, errors = process.communicate(timeout=PATIENCE)
    told = [line for line in errors.splitlines() if line.startswith("xnext: error")]
    assert told == ["xnext: error: batch_size 33 cannot be shared alike by 2 processes; take a multiple"]
    assert process.returncode != 0 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_local_steps_take_another_way(tmp_path, colours):
    options = QUICK | {"model": "convnext_debug", "data": str(colours), "augment": "none", "warmup": "1 step"}
    plain, _ = launch(tmp_path / "plain", 2, **options)
    local, _ = launch(tmp_path / "local", 2, **options, local_sgd=3)
    assert local[-1]["train_loss"] < local[0]["train_loss"]
    assert local[-1]["val_loss"] != plain[-1]["val_loss"]


def local_steps(rank, address, folder):
    """Take ten steps of local SGD on images of this process; write the weight after each."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(3, 1))
    local = LocalSGD(model, period=3, start=2, updates=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = []
    for step in range(1, 11):
        optimizer.zero_grad()
        model(torch.full((2, 3), float(rank + 1))).mean().backward()
        optimizer.step()
        local.step(step)
        weights.append(model.module.weight.detach().clone())
    torch.save(torch.stack(weights), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_weights_differ_between_two_averagings_only(tmp_path):
    torch.multiprocessing.spawn(local_steps, (f"file://{tmp_path / 'meeting'}", tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alike = [torch.equal(first[step], second[step]) for step in range(10)]
    # Gradients are averaged in steps 1 and 2; from there on each goes its own way and meets every third step.
    assert alike == [True, True, True, False, False, True, False, False, True, False]
    # The gradient is the input, 1 or 2: averaged or not, the mean weight of both goes down by 0.15 a step.
    fall = (first + second).diff(dim=0)[[4, 7]] / 2
    assert torch.allclose(fall, torch.full_like(fall, -0.15))


def test_local_sgd_and_sync_bn_say_what_they_need(config):
    with pytest.raises(UserError, match="local_sgd averages the weights of several processes"):
        prepare(config(local_sgd=4))
    with pytest.raises(UserError, match="sync_bn needs GPUs"):
        prepare(config(sync_bn=True))


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize(("images", "batch_size"), [(10, 4), (11, 4), (1, 4), (4, 4), (23, 6)])
def test_every_picture_is_in_one_share_of_its_batch(images, batch_size, processes):
    shares = [
        list(SharedBatches(range(images), batch_size, process=rank, processes=processes))
        for rank in range(processes)
    ]
    assert sorted(picture for share in shares for batch in share for picture in batch) == list(range(images))
    for number in range(images // batch_size):
        together = [picture for share in shares for picture in share[number]]
        assert together == list(range(number * batch_size, (number + 1) * batch_size))
        sizes = [len(share[number]) for share in shares]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("images", [9, 16, 17, 30, 31, 33, 37, 40])
def test_no_process_gets_a_batch_that_it_cannot_train_on(images, even, processes):
    batch_size, drop_last = plan_batches(images, 16, even=even, processes=processes)
    batches = [
        list(SharedBatches(range(images), batch_size, drop_last=drop_last, process=r, processes=processes))
        for r in range(processes)
    ]
    assert len({len(of_rank) for of_rank in batches}) == 1 and batches[0]
    sizes = np.array([[len(batch) for batch in of_rank] for of_rank in batches])
    assert sizes.min() >= 2 and not (even and (sizes % 2).any())
    assert images - sizes.sum() < batch_size
