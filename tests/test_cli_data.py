"""`xnext data`: what it prints of sets as people have them, in folders."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data as photos

from xnext import cli

COMMAND = [sys.executable, "-m", "xnext", "data"]


def crop(number, width=48, height=40):
    """Cut a piece out of a photograph, another one for every number up to some thousands."""
    photo = Image.fromarray(photos.astronaut())
    left, top = 37 * number % 460, 53 * number % 470
    return photo.crop((left, top, left + width, top + height))


@pytest.fixture
def folder(tmp_path):
    """A healthy set: three classes of different size."""
    for part, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("cat", "dog", "owl")):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for index in range(count + label):
                crop(100 * len(part) + 10 * label + index).save(
                    tmp_path / "set" / part / name / f"{index}.png"
                )
    return tmp_path / "set"


def main(capsys, *words):
    """Run a command that must succeed silently on stderr; return what it printed."""
    code = cli.main(["data", *map(str, words)])
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    return output.out


def fails(capsys, *words):
    """Run a command that must fail; return its one line."""
    code = cli.main(["data", *map(str, words)])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    return line


def test_a_healthy_set(capsys, folder):
    lines = main(capsys, folder).splitlines()
    assert lines[0] == f"{folder}: 15 training and 9 held-out images, 3 classes"
    assert [line.split() for line in lines[3:6]] == [["cat", "4", "2"], ["dog", "5", "3"], ["owl", "6", "4"]]
    assert "training images a class: 4 to 6, median 5" in lines
    assert "imbalance, largest to smallest class: 1.5" in lines
    assert "width in pixels: 48" in lines
    assert "nothing odd found" in lines
    assert re.fullmatch(r"took [\d.]+ seconds", lines[-2])
    assert lines[-1] == "add --output sheet.png to see images of each class"


def test_each_finding_says_what_to_do_and_names_the_images(capsys, folder):
    (folder / "train" / "cat" / "damaged.png").write_bytes(b"nothing")
    shutil.copy(folder / "train" / "cat" / "0.png", folder / "val" / "dog" / "copy.png")
    for index in range(9):
        shutil.copy(folder / "train" / "owl" / f"{index % 4}.png", folder / "train" / "owl" / f"c{index}.png")
    out = main(capsys, folder)
    findings = out[out.index("findings") :].splitlines()
    assert [line for line in findings if line.startswith("- ")] == [
        "- unreadable: 1; replace or remove what is damaged",
        "- in both parts: 1; held-out results look too good; remove one side",
        "- same image, different labels: 1; keep the right label",
        "- several times in one part: 4; keep one of each",
    ]
    image = f"    '{folder}/train/cat/damaged.png': is no image, or is damaged at its start"
    assert image in findings
    copies = f"'{folder}/train/cat/0.png' (training, 'cat') = '{folder}/val/dog/copy.png' (held-out, 'dog')"
    assert findings.count(f"    {copies}") == 2


def test_many_cases_are_all_in_the_json_alone(capsys, folder):
    for index in range(12):
        (folder / "train" / "cat" / f"damaged{index:02}.png").write_bytes(b"")
    out = main(capsys, folder)
    assert (out.count("damaged0"), "    and 7 more, which --json lists" in out) == (5, True)
    values = json.loads(main(capsys, folder, "--json"))
    assert len(values["unreadable"]["train"]) == 12
    assert values["unreadable"]["train"][11]["reason"] == "the file is empty"
    assert values["seconds"] > 0


def test_of_many_classes_the_rarest_are_listed(capsys, tmp_path):
    for label in range(30):
        (tmp_path / "set" / f"c{label:02}").mkdir(parents=True)
        for index in range(3 if label in (7, 20) else 5 if label else 11):
            crop(20 * label + index, 4, 4).save(tmp_path / "set" / f"c{label:02}" / f"{index}.png")
    lines = main(capsys, tmp_path / "set").splitlines()
    table = lines[2 : lines.index("", 2)]
    assert table[0].startswith("rarest classes")
    assert [line.split()[0] for line in table[1:]] == ["c07", "c20", "c01", "c02", "c03"]
    assert "training images a class: 2 to 9, median 4" in lines
    assert "images below 32 pixels on a side: 152" in lines


def test_the_seed_decides_the_split_alone(capsys, folder):
    def leaked(seed):
        values = json.loads(main(capsys, folder / "train", "--seed", seed, "--json"))
        return [picture["name"] for group in values["leaks"] for picture in group]

    for name in ("cat", "dog", "owl"):
        for index in range(4):
            file = folder / "train" / name / f"{index}.png"
            shutil.copy(file, file.with_name(f"copy{index}.png"))
    assert leaked(1) == leaked(1) != leaked(2)


def test_the_sheet_is_a_picture(capsys, folder, tmp_path):
    out = main(capsys, folder, "--output", tmp_path / "sheet.png")
    assert out.splitlines()[-1] == f"wrote {tmp_path}/sheet.png"
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture).std() > 40
    assert not list(tmp_path.glob(".*"))
    assert json.loads(main(capsys, folder, "--output", tmp_path / "again.png", "--json"))["images"]
    assert (tmp_path / "again.png").exists()


@pytest.mark.slow
def test_names_of_any_letters_in_a_real_process(folder, tmp_path):
    names = ["猫 cat", os.fsdecode(b"not-utf8-\xff"), "two\nlines", "[red]", ":cat:"]
    for number, name in enumerate(names):
        for part, count in (("train", 4), ("val", 2)):
            (folder / part / name).mkdir()
            for index in range(count):
                crop(1000 * len(part) + 10 * number + index).save(folder / part / name / f"{index}.png")
        crop(number, 9, 9).save(folder / "train" / name / f"{name}.png")
        crop(number, 9, 9).save(folder / "train" / name / f"{name}2.png")
    words = [*COMMAND, folder, "--output", tmp_path / "sheet.png"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(words, capture_output=True, encoding="utf-8", env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    for name in names:
        shown = name if name.isprintable() else repr(name)
        row = next(line for line in result.stdout.splitlines() if line.startswith(shown))
        assert row.removeprefix(shown).split() == ["6", "2"]
        assert f"{name}.png"[1:] in result.stdout or repr(f"{name}.png")[2:-1] in result.stdout
    assert "several times in one part: 5" in result.stdout
    assert (tmp_path / "sheet.png").exists()


def test_odd_pictures_are_no_mistake(capsys, folder):
    cat = folder / "train" / "cat"
    crop(500).convert("L").save(cat / "grey.png")
    crop(501).convert("CMYK").save(cat / "cmyk.jpg")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(cat / "16-bit.png")
    Image.new("RGB", (1, 1)).save(cat / "one-pixel.png")
    Image.new("RGB", (20000, 1)).save(cat / "long.png")
    out = main(capsys, folder, "--output", folder.parent / "sheet.png")
    assert "nothing odd found" in out
    assert "width in pixels: 1 to 20,000, median 48" in out


def test_mistakes_in_one_line(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "none: no such folder" in fails(capsys, "none")
    assert "must end in .png" in fails(capsys, folder, "--output", "sheet.jpg")
    assert "--seed is -1" in fails(capsys, folder, "--seed", "-1")
    assert "no/sheet.png: the folder does not exist" in fails(capsys, folder, "--output", "no/sheet.png")
    for file in (folder / "train").rglob("*.png"):
        file.write_bytes(b"")
    assert "nor can any other training image be read" in fails(capsys, folder)
    assert "nothing to show" in fails(capsys, folder, "--output", "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
