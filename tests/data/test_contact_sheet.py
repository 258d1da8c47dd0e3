import numpy as np
import pytest
from PIL import Image

from xnext._figures import write_figure
from xnext.data import ArraySource, FileSource, ImageData
from xnext.data.pictures import _CELL, _GROUND, _STEP, draw_contact_sheet
from xnext.errors import UserError

COLOURS = ("red", "lime", "blue")


def colour_set(tmp_path, sizes, per_class=12):
    """A set of three classes, each of one colour; the sizes of its pictures take turns."""
    files = []
    for colour in COLOURS:
        for index in range(per_class):
            files.append(tmp_path / f"{colour}{index:02}.png")
            Image.new("RGB", sizes[index % len(sizes)], colour).save(files[-1])
    source = FileSource(files, np.repeat(np.arange(3), per_class))
    return ImageData("colours", COLOURS, source, source)


def sheet(figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def cell(figure, row, column) -> np.ndarray:
    return sheet(figure)[row * _STEP :, column * _STEP :][:_CELL, :_CELL]


def labels(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_each_class_has_a_row_with_its_name_and_number(tmp_path):
    figure = draw_contact_sheet(colour_set(tmp_path, [(20, 20), (400, 400)]))
    assert labels(figure) == ["red\n12", "lime\n12", "blue\n12"]
    assert figure.get_suptitle() == "colours: 3 classes, with their numbers of training images"
    for row, colour in enumerate(([255, 0, 0], [0, 255, 0], [0, 0, 255])):
        for column in range(8):
            assert (cell(figure, row, column) == colour).all()
    assert sheet(figure).shape[:2] == (2 * _STEP + _CELL, 7 * _STEP + _CELL)


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000), (96, 97)])
def test_any_shape_fits_its_cell(tmp_path, size):
    figure = draw_contact_sheet(colour_set(tmp_path, [size], per_class=1))
    shown = (cell(figure, 0, 0) == [255, 0, 0]).all(axis=-1)
    assert shown.any(axis=0 if size[0] >= size[1] else 1).all()  # its long side fills the cell
    assert (cell(figure, 0, 0)[~shown] == _GROUND).all()


def test_what_cannot_be_read_leaves_no_gap(tmp_path):
    data = colour_set(tmp_path, [(20, 20)])
    for index in range(6):
        (tmp_path / f"red{2 * index:02}.png").write_bytes(b"nothing")
    (tmp_path / "lime03.png").unlink()
    figure = draw_contact_sheet(data)
    shown = [(cell(figure, 0, column) == [255, 0, 0]).all() for column in range(8)]
    assert shown == [True] * 6 + [False] * 2
    assert (cell(figure, 1, 7) == [0, 255, 0]).all()


def test_nothing_to_show(tmp_path):
    data = colour_set(tmp_path, [(2, 2)], per_class=2)
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match="colours: nothing to show"):
        draw_contact_sheet(data)


@pytest.mark.parametrize("multilabel", [False, True])
def test_of_many_classes_some_are_shown_evenly_spread(multilabel):
    images = np.repeat(np.arange(100, dtype=np.uint8), 3)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    of = np.repeat(np.arange(100), 3)
    source = ArraySource(images, of, "set")
    if multilabel:
        source.labels = of[:, None] == np.arange(100)
    figure = draw_contact_sheet(ImageData("set", tuple(map(str, range(100))), source, source))
    shown = [int(label.partition("\n")[0]) for label in labels(figure)]
    assert (len(shown), shown[0], shown[-1]) == (20, 0, 99)
    assert set(np.diff(shown)) <= {5, 6}
    assert "20 of 100 classes" in figure.get_suptitle()
    assert [int(cell(figure, row, 2).max()) for row in range(20)] == shown


@pytest.mark.parametrize(
    "name", ["a_very_long_name_" * 9, "猫の写真" * 30, "two\nlines", " ", "$b^$", "\udcff"]
)
def test_names_of_any_kind_are_broken_into_short_lines(tmp_path, name):
    data = colour_set(tmp_path, [(9, 9)], per_class=1)
    figure = draw_contact_sheet(ImageData("/a/long/path" * 12, (name, "b", "c"), data.train, data.val))
    *lines, count = labels(figure)[0].split("\n")
    assert len(lines) <= 3
    assert max(map(len, lines)) <= 24
    assert count == "1"
    write_figure(tmp_path / "sheet.png", figure)
    with Image.open(tmp_path / "sheet.png") as picture:
        left = np.asarray(picture.convert("L"))[:, :2]
    assert left.min() == 255  # no name is cut off at the edge
