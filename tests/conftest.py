"""What all tests share."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, which asks it then


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, which have a limit of their own, so that none is left at the end."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    """Give every test one thread and the same random numbers: comparisons must not depend on the machine."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Six training images of 16 pixels with masks of their bright places, and two held out; leave them."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(3)
    for number in range(8):
        part = "train" if number < 6 else "val"
        pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        pictures = {"images": np.repeat(pixels[..., None], 3, 2), "masks": np.uint8(pixels > 128)}
        for kind, values in pictures.items():
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / kind / part / f"{number}.png")
    (folder / "classes.txt").write_text("dark\nbright\n")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return a browser's path; where there is none the test is left out."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium")
    return found


@pytest.fixture
def browser_page(chromium):
    """Return what opens a page in a browser, together with what it asked for and complained of."""
    sync_api = pytest.importorskip("playwright.sync_api")

    @contextmanager
    def open_page(address, **options):
        with sync_api.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(**options)
            page.set_default_timeout(60_000)
            page.asked, page.complaints = [], []
            page.on("request", lambda request: page.asked.append(request.url))
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.on("console", lambda one: one.type == "error" and page.complaints.append(one.text))
            page.goto(address)
            yield page
            browser.close()

    return open_page


@pytest.fixture
def cluster(tmp_path):
    """Return the address of a scheduler with two workers in processes of their own."""
    address = tmp_path / "scheduler.json"
    place = {"env": os.environ | {"DASK_DISTRIBUTED__WORKER__DAEMON": "False"}, "cwd": tmp_path}
    options = ["--scheduler-file", str(address)]
    commands = [
        ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *options],
        ["worker", "--nworkers", "2", "--nthreads", "1", "--no-dashboard", *options],
    ]
    processes = [
        subprocess.Popen([sys.executable, "-m", "dask", *command], stderr=subprocess.DEVNULL, **place)
        for command in commands
    ]
    from distributed import Client

    with Client(scheduler_file=str(address), timeout="60s", set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        yield client
    for process in processes:
        process.kill()  # told to end, they would take seconds; their workers end with them
    for process in processes:
        process.wait()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, request):
    """Return what lets one of pytest's processes fill a folder that all of them use."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if hasattr(request.config, "workerinput") else base

    def make(name, fill):
        folder = base / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                unfinished = base / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                fill(unfinished)
                unfinished.rename(folder)
        return folder

    return make
