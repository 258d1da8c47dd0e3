"""Places that cannot be written to, and readers that leave."""

import errno
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from samples import TRAIN, listing, picture

from xnext import cli

# --- places to write ----------------------------------------------------------------------------------------


def test_a_run_folder_that_exists(fails, data, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    fails(*TRAIN, "--data", data, "--output", tmp_path / "run", names=[tmp_path / "run"])
    (tmp_path / "file").write_text("mine")
    fails(*TRAIN, "--data", data, "--output", tmp_path / "file", names=[tmp_path / "file"])


@pytest.fixture
def locked(tmp_path):
    """A folder that this process may not write to, the super-user neither."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield folder
        os.seteuid(0)
    else:
        yield folder
        folder.chmod(0o700)


def test_no_permission_to_write_a_run(capsys, locked):
    assert cli.main([*TRAIN, "--data", "digits", "--output", str(locked / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(locked) in line
    assert "permission" in line


@pytest.fixture
def small_disk():
    """Let no file grow beyond 4 KiB: a write that stops in the middle, without filling a real disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_picture_that_does_not_fit_on_the_disk(fails, trained, tmp_path, small_disk):
    picture(size=(8, 8)).save(tmp_path / "a.png")
    (tmp_path / "map.png").write_bytes(b"an earlier one")
    words = ["cam", tmp_path / "a.png", "--checkpoint", trained, "--output", tmp_path / "map.png"]
    fails(*words, names=[tmp_path / "map.png", "limit"])


@pytest.mark.parametrize(("format", "ending"), [("onnx", "onnx"), ("openvino", "xml"), ("torch", "pt2")])
def test_a_network_that_does_not_fit_on_the_disk(fails, trained, tmp_path, small_disk, format, ending):
    output = tmp_path / f"a.{ending}"
    fails("export", trained, "--format", format, "--output", output, names=[output, "limit"])


def test_a_disk_that_is_full(fails, trained, tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    write = Path.write_bytes

    def full(self, content):
        write(self, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    words = ["cam", tmp_path / "a.png", "--checkpoint", trained, "--output", tmp_path / "map.png"]
    monkeypatch.setattr(Path, "write_bytes", full)
    fails(*words, names=[tmp_path / "map.png", "disk is full"])


def test_a_disk_that_fills_up_during_training(capsys, data, tmp_path, small_disk):
    run = tmp_path / "run"
    assert cli.main([*TRAIN, "--data", str(data), "--output", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "safetensors" in line
    assert not run.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk():
    command = shlex.join([sys.executable, "-m", "xnext", "models", "--filter", "*_debug"])
    result = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "xnext: error: standard output: No space left on device\n"


def test_a_mistake_in_a_real_process(tmp_path):
    words = [sys.executable, "-m", "xnext", "train", "--model", "inceptionnext_debug", "--data", "none"]
    result = subprocess.run([*words, "--output", "run"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("xnext: error: ")
    assert not list(tmp_path.iterdir())


# --- streams and folders ------------------------------------------------------------------------------------


def test_a_closed_pipe_ends_a_training_without_a_word_or_a_rest(data, tmp_path):
    words = [sys.executable, "-m", "xnext", *TRAIN, "--data", str(data), "--output", str(tmp_path / "run")]
    words += ["--epochs", "20"]  # long enough for the reader to be gone
    line = f"{shlex.join(words)} | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize("kind", ["new/deep/run", "link"])
def test_a_failed_training_leaves_no_folder_of_its_own(data, tmp_path, kind):
    if kind == "link":
        (tmp_path / "empty").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "empty")
    before = listing(tmp_path)
    words = [*TRAIN, "--data", str(data), "--output", str(tmp_path / kind), "--lr", "1e38"]
    assert cli.main([*words, "--optimizer", "sgd", "--warmup", "0"]) == 2
    assert listing(tmp_path) == before
