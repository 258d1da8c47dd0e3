"""Images and masks in the layouts that there are, and what is wrong with them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from xnext.cli import main
from xnext.errors import UserError
from xnext.segmentation.check import check_masks
from xnext.segmentation.data import IGNORE, decode_mask, load_masks


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([value for index in range(256) for value in (index, 255 - index, 99)])
    image.save(path)
    return path


@pytest.fixture
def copy(digits, tmp_path):
    return shutil.copytree(digits, tmp_path / "set")


def test_a_folder_of_pairs(digits):
    data = load_masks(str(digits))
    assert data.classes == ("background", "digit") and (len(data.train), len(data.val)) == (12, 4)
    for source in (data.train, data.val):
        for index in range(len(source)):
            image, mask = source.read(index), source.mask(index)
            assert image.size == (mask.shape[1], mask.shape[0]) and set(np.unique(mask)) == {0, 1}
            assert source.name(index).replace("images", "masks") == source.mask_name(index)
    report = check_masks(data)
    expected = np.mean([data.train.mask(index) for index in range(12)])
    assert report.shares["train"] == pytest.approx([1 - expected, expected, 0])
    assert report.images["train"].tolist() == [12, 12] and not any(report.findings.values())


def test_a_fifth_is_held_out_where_nothing_is(tmp_path):
    for number in range(10):
        save(tmp_path / f"images/street {number}/a.b.png", np.full((4, 5, 3), number, np.uint8))
        save(tmp_path / f"masks/street {number}/a.b.png", np.full((4, 5), number % 2, np.uint8))
    (tmp_path / "classes.txt").write_text("road\nsky\n\n")
    data = load_masks(str(tmp_path), seed=3)
    assert (len(data.train), len(data.val)) == (8, 2)
    for source in (data.train, data.val):
        for index in range(len(source)):
            assert source.mask(index)[0, 0] == np.asarray(source.read(index))[0, 0, 0] % 2
    names = [load_masks(str(tmp_path), seed=seed).val.name(0) for seed in (3, 3, 4, 5, 6)]
    assert names[0] == names[1] and len(set(names)) > 1


def test_the_folder_of_ade20k(tmp_path):
    """Its own names, list of classes, and first class of value 1; 0 is ignored."""
    for part in ("training", "validation"):
        save(tmp_path / f"images/{part}/ADE_{part}_00000001.jpg", np.zeros((3, 2, 3), np.uint8))
        values = np.array([[0, 1], [150, 255], [2, 0]], np.uint8)
        save(tmp_path / f"annotations/{part}/ADE_{part}_00000001.png", values)
    lines = [f"{n}\t0.1\t11664\t1172\t1\tclass {n}, other name" for n in range(1, 151)]
    header = "Idx\tRatio\tTrain\tVal\tStuff\tName"
    (tmp_path / "objectInfo150.txt").write_text("\n".join([header, *lines]))
    data = load_masks(str(tmp_path))
    assert len(data.classes) == 150 and data.classes[149] == "class 150, other name"
    assert data.val.mask(0).tolist() == [[IGNORE, 0], [149, IGNORE], [1, IGNORE]]
    report = check_masks(data)
    assert report.shares["val"][[0, 1, 149, 150]].tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_are_numbers_or_places_of_a_palette(tmp_path, mode):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = save(tmp_path / "mask.png", values, mode)
    assert np.array_equal(decode_mask(path.read_bytes(), "mask"), values)
    wide = save(tmp_path / "wide.png", values.astype(np.uint16) * 300)
    assert decode_mask(wide.read_bytes(), "wide")[2, 3] == 3300


def break_class(folder):
    save(folder / "masks/train/0003.png", np.full((64, 64), 7, np.uint8))


def break_size(folder):
    save(folder / "masks/val/0001.png", np.zeros((64, 63), np.uint8))


def ignore_all(folder):
    for path in (folder / "masks/val").iterdir():
        save(path, np.full((64, 64), IGNORE, np.uint8))


def colour(folder):
    save(folder / "masks/train/0000.png", np.zeros((64, 64, 3), np.uint8))


def rename_masks(folder):
    for path in list((folder / "masks/train").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_mask"))


def remove(*parts):
    def change(folder):
        for part in parts:
            path = folder / part
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (break_class, "masks with values that are none of the 2 classes \\(1\\): .*0003.png \\(7\\)"),
        (
            break_size,
            "masks of another size than their image \\(1\\): .*0001.png \\(63x64, its image 64x64\\)",
        ),
        (
            remove("masks/train/0003.png", "masks/train/0004.png"),
            "images without a mask \\(2\\): .*0003.png', .*0004.png'; add",
        ),
        (ignore_all, "no place of any held-out mask has a class"),
        (rename_masks, "no mask has the name of an image in .*train, as '0000', '0001' and 10 more"),
        (remove("masks"), "has no images/ with annotations/ or masks/"),
        (remove("masks/val"), "no such folder; it must have the masks"),
        (remove("images/val"), "has train/ alone"),
        (remove("classes.txt"), "classes.txt: cannot be read .*write a class name a line"),
        (lambda folder: (folder / "classes.txt").write_text("one\none\n"), "names 'one' twice"),
        (lambda folder: (folder / "classes.txt").write_text("one\n"), "names 1 classes"),
        (lambda folder: (folder / "classes.txt").write_text("one\n\ntwo\n"), "classes.txt: line 2 is empty"),
        (lambda folder: (folder / "annotations").mkdir(), "has both annotations/ and masks/; keep one"),
        (lambda folder: (folder / "classes.txt").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    ],
)
def test_what_is_wrong_is_told_by_name(copy, change, told):
    change(copy)
    with pytest.raises(UserError, match=told) as error:
        check_masks(load_masks(str(copy))).require_sound()
    assert "\n" not in str(error.value)


def test_a_check_names_every_file(copy, capsys):
    """A training ends with the first names of one kind; a check has them all, and goes on."""
    for number in range(7):
        save(copy / f"masks/train/{number:04}.png", np.full((64, 64), 200 + number, np.uint8))
    (copy / "masks/train/0007.png").unlink()
    (copy / "images/train/0008.png").unlink()
    break_size(copy)
    with pytest.raises(UserError, match=r"segment check .* --json lists them"):
        load_masks(str(copy))
    assert main(["segment", "check", str(copy), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    told = [(case[-14:-6], case[-5:]) for case in report["values"]]
    assert told == [(f"{number:04}.png", f"({200 + number})") for number in range(7)]
    assert [name[-8:] for name in report["without_mask"] + report["without_image"]] == [
        "0007.png",
        "0008.png",
    ]
    assert len(report["sizes"]) == 1 and not report["unreadable"]
    assert [row["train"]["masks"] for row in report["classes"]] == [3, 3]
    assert main(["segment", "check", str(copy)]) == 2
    printed, error = capsys.readouterr()
    assert error.startswith(f"xnext: error: {copy}: images without a mask (1): ") and error.count("\n") == 1
    assert "10 training and 4 held-out images with masks, 2 classes" in printed
    assert "masks with values that are none of the 2 classes (7):" in printed
    assert "and 2 more, which --json lists" in printed


def test_masks_without_an_image_do_not_end_a_training(copy, capsys):
    (copy / "images/train/0008.png").unlink()
    assert main(["segment", "check", str(copy)]) == 0
    assert "(ignored)" in capsys.readouterr().out
    report = check_masks(load_masks(str(copy)))
    report.require_sound()
    assert "masks without an image (1): " in report.lines()[-1] and "0008.png" in report.lines()[-1]


def test_values_are_told_as_they_stand_in_the_file(copy):
    save(copy / "masks/train/0003.png", np.full((64, 64), 7, np.uint8))
    report = check_masks(load_masks(f"{copy}?first=1"))
    assert [case[-13:] for case in report.findings["values"]] == ["/0003.png (7)"]


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder; --data takes a folder with images/ and masks/"):
        load_masks(str(tmp_path / "nowhere"))


def test_what_cannot_be_read_is_reported_and_left_out(copy):
    (copy / "masks/train/0002.png").write_bytes(b"no mask")
    (copy / "images/train/0005.png").write_bytes((copy / "images/train/0005.png").read_bytes()[:100])
    colour(copy)
    report = check_masks(load_masks(str(copy)))
    told = dict(case.rsplit("/", 1)[1].split(": ", 1) for case in report.findings["unreadable"])
    assert set(told) == {"0000.png", "0002.png", "0005.png"}
    assert "mode RGB" in told["0000.png"] and "is no image" in told["0002.png"]
    assert report.images["train"].tolist() == [9, 9] and report.pairs == {"train": (12, 3), "val": (4, 0)}
    report.require_sound(0.25)
    with pytest.raises(UserError, match=r"3 of 12 training images or .*masks/train/0002.png: is no"):
        report.require_sound(0.24)


def test_no_value_that_is_no_class_becomes_one_that_is_ignored(tmp_path):
    for part in ("train", "val"):
        save(tmp_path / f"images/{part}/a.png", np.zeros((2, 2, 3), np.uint8))
        (tmp_path / f"masks/{part}").mkdir(parents=True)
        Image.fromarray(np.array([[1, 2], [255, 256]], np.uint16)).save(tmp_path / f"masks/{part}/a.png")
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    data = load_masks(f"{tmp_path}?first=1")
    assert data.train.mask(0).tolist() == [[0, 1], [IGNORE, 256]]
    with pytest.raises(UserError, match=r"masks/train/a.png \(256\)"):
        check_masks(data).require_sound()


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_that_differ_in_their_endings(copy, kind):
    Image.new("L", (64, 64)).save(copy / kind / "train/0003.tif")
    with pytest.raises(UserError, match=r"0003.* and .*0003.* differ in their endings alone"):
        load_masks(str(copy))
