import warnings

import pytest
from matplotlib.figure import Figure
from PIL import Image

from xnext._figures import write_figure
from xnext.errors import UserError


def test_a_figure_becomes_a_png_of_its_size(tmp_path):
    write_figure(tmp_path / "figure.png", Figure(figsize=(2, 1)))
    with Image.open(tmp_path / "figure.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (240, 120))


def test_letters_that_no_font_has_are_no_matter(tmp_path):
    figure = Figure(figsize=(2, 1))
    figure.suptitle("猫 🐈 \U000f0000")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_figure(tmp_path / "figure.png", figure)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/figure\.png: the folder does not exist"):
        write_figure(tmp_path / "nowhere" / "figure.png", Figure())
