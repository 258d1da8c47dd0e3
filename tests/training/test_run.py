import json

import pytest

from xnext.errors import UserError
from xnext.training import Run
from xnext.training import run as run_module


def test_new_run_holds_its_config_and_nothing_else(tmp_path):
    run = Run.create(tmp_path / "a" / "run", "model: m\n")
    assert run.config.read_text().splitlines()[-1] == "model: m"
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "config.yaml"]
    assert Run.open(run.path).best == run.best


def test_empty_folder_may_be_used(tmp_path):
    assert Run.create(tmp_path, "").config.exists()


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_not_touched(tmp_path, kind):
    path = tmp_path / "run"
    if kind == "folder":
        path.mkdir()
        (path / "note").write_text("mine")
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        UserError, match=r"run exists already; choose another --output, .* go on with --resume"
    ):
        Run.create(path, "")
    assert sorted(tmp_path.rglob("*")) == before


def test_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run: .*file is a file"):
        Run.create(tmp_path / "file" / "run", "")


def test_folder_without_permission_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.os, "access", lambda *_: False)
    with pytest.raises(UserError, match="no permission to write in"):
        Run.create(tmp_path / "run", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("existed", [False, True])
def test_failed_start_leaves_what_was_there(tmp_path, monkeypatch, existed):
    path = tmp_path / "run"
    if existed:
        path.mkdir()

    def full(path, data):
        raise UserError("the disk is full")

    monkeypatch.setattr(run_module, "write_atomic", full)
    with pytest.raises(UserError, match="full"):
        Run.create(path, "")
    assert path.exists() == existed
    assert not list(tmp_path.rglob("*/*"))


def test_folder_that_is_no_run_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        Run.open(tmp_path)


def test_metrics_are_written_whole_and_names_are_added(tmp_path):
    run = Run.create(tmp_path / "run", "")
    rows = [{"epoch": 1, "val_top1": 0.1 + 0.2}, {"epoch": 2, "val_top1": 1e-7}]
    for row in rows:
        run.write_metrics(rows[: row["epoch"]])
        run.append_bad_images([f"bad{row['epoch']}.png", "ü.png"])
    assert run.read_metrics() == rows
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == rows
    assert run.bad_images.read_text(encoding="utf-8") == "bad1.png\nü.png\nbad2.png\nü.png\n"
