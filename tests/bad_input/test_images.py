"""Pictures and data sets that cannot be used, and odd ones that can."""

import os
import shutil
import subprocess
import sys

import pytest
from samples import TRAIN, UNREADABLE, UNUSUAL, picture, save_bytes

from xnext import cli

# --- pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("verb", ["predict", "cam"])
def test_an_unreadable_picture(fails, trained, tmp_path, verb, name):
    (tmp_path / name).write_bytes(UNREADABLE[name])
    output = ["--output", tmp_path / "map.png"] if verb == "cam" else []
    fails(verb, tmp_path / name, "--checkpoint", trained, *output, names=[tmp_path / name])


def test_an_unreadable_picture_among_many_does_not_stop_the_others(capsys, trained, tmp_path):
    names = ["a.png", *UNREADABLE, "z.png"]
    for name in names:
        (tmp_path / name).write_bytes(UNREADABLE.get(name) or save_bytes("PNG") * (name not in UNREADABLE))
    code = cli.main(
        ["predict", *(f"{tmp_path / name}" for name in names), "--checkpoint", f"{trained}", "--json"]
    )
    output = capsys.readouterr()
    assert code == 2
    assert len(output.out.splitlines()) == len(names)
    lines = output.err.splitlines()
    assert [name in line for name, line in zip(UNREADABLE, lines, strict=True)] == [True] * len(UNREADABLE)


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_picture_is_no_mistake(capsys, trained, tmp_path, name):
    (tmp_path / name).write_bytes(UNUSUAL[name])
    assert cli.main(["predict", str(tmp_path / name), "--checkpoint", str(trained)]) == 0
    assert capsys.readouterr().err == ""


def test_no_such_picture(fails, trained, tmp_path):
    fails("predict", tmp_path / "none.png", "--checkpoint", trained, names=["none.png"])


def test_a_folder_without_pictures(fails, trained, tmp_path):
    (tmp_path / "empty").mkdir()
    fails("predict", tmp_path / "empty", "--checkpoint", trained, names=[tmp_path / "empty"])


# --- data sets ----------------------------------------------------------------------------------------------


def test_an_empty_class(fails, data, tmp_path):
    shutil.rmtree(data / "train" / "dog")
    (data / "train" / "dog").mkdir()
    fails(*TRAIN, "--data", data, "--output", tmp_path / "run", names=["dog"])


def test_a_split_with_other_classes(fails, data, tmp_path):
    (data / "val" / "owl").rename(data / "val" / "wolf")
    fails(*TRAIN, "--data", data, "--output", tmp_path / "run", names=["owl", "wolf"])


def test_no_such_data(fails, tmp_path):
    fails(*TRAIN, "--data", tmp_path / "none", "--output", tmp_path / "run", names=[tmp_path / "none"])
    fails(*TRAIN, "--data", "digit", "--output", tmp_path / "run", names=["'digits'"])


def test_too_many_unreadable_training_pictures_stop_the_run(capsys, data, tmp_path):
    (data / "train" / "cat" / "cat0.png").write_bytes(b"nothing")
    words = [*TRAIN, "--data", str(data), "--output", str(tmp_path / "run")]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cat0.png" in line or "bad_images" in line
    assert "max" in line and "bad" in line  # the option that allows more
    words = [*TRAIN, "--data", str(data), "--output", str(tmp_path / "more"), "--max-bad-images", "0.5"]
    assert cli.main(words) == 0
    assert "cat0.png" in (tmp_path / "more" / "bad_images.txt").read_text()


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a$^$b", "猫 cat", os.fsdecode(b"not-utf8-\xff"), "two\nlines", "[red]"])
def test_a_name_of_any_letters(capsys, data, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(data, folder)
    for split in ("train", "val"):
        (folder / split / "cat").rename(folder / split / name)
    bad = folder / "train" / name / f"{name}.png"
    bad.write_bytes(b"nothing")
    run = tmp_path / "run"
    code = cli.main([*TRAIN, "--data", str(folder), "--output", str(run), "--max-bad-images", "0.5"])
    assert (code, capsys.readouterr().err) == (0, "")
    assert os.fsencode(name.replace("\n", "\\n")) in (run / "bad_images.txt").read_bytes()
    picture().save(tmp_path / "p.png")
    shutil.copy(tmp_path / "p.png", tmp_path / f"{name}.png")
    words = ["cam", str(tmp_path / "p.png"), "--checkpoint", str(run), "--output", str(tmp_path / "m.png")]
    assert cli.main(words) == 0
    if name.isprintable():
        assert cli.main([words[0], str(tmp_path / f"{name}.png"), *words[2:]]) == 0
    assert cli.main(["evaluate", str(run)]) == 0
    assert capsys.readouterr().err == ""


def test_a_terminal_that_cannot_show_a_name(trained, tmp_path):
    picture().save(tmp_path / "é漢.png")
    command = [sys.executable, "-m", "xnext", "predict", tmp_path / "é漢.png", "--checkpoint", trained]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "") and "\\u6f22.png" in result.stdout
