import numpy as np
import pytest

from xnext.training.pictures import draw_confusion, draw_curves

ROWS = [
    {
        "epoch": epoch,
        "train_loss": 2 / epoch,
        "val_loss": 1 / epoch,
        "val_top1": 10.0 * epoch,
        "val_top5": 99.0,
    }
    for epoch in range(1, 6)
]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_curves_show_every_value_and_mark_the_best_epoch():
    figure = draw_curves(ROWS, best_epoch=4, title="a network")
    losses, accuracies = figure.axes
    np.testing.assert_array_equal(losses.lines[0].get_ydata(), [row["train_loss"] for row in ROWS])
    np.testing.assert_array_equal(accuracies.lines[0].get_ydata(), [row["val_top1"] for row in ROWS])
    legend = [text.get_text() for text in accuracies.get_legend().get_texts()]
    assert "best: 40.00 % at epoch 4" in legend
    assert figure.get_suptitle() == "a network"


def test_a_single_epoch_is_visible():
    figure = draw_curves(ROWS[:1], best_epoch=1, title="")
    assert all(axes.lines[0].get_marker() == "o" for axes in figure.axes)


def test_few_classes_are_named_and_their_rows_are_shares():
    figure = draw_confusion(np.array([[3, 1], [0, 0]]), ["cat", "dog"], "")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert texts(axes) == ["75", "25"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])


def test_many_classes_get_a_list_of_the_commonest_confusions():
    confusion = np.eye(100, dtype=int) * 50
    confusion[7, 3] = 50
    confusion[8, 4] = 10
    figure = draw_confusion(confusion, [f"class {index}" for index in range(100)], "")
    matrix, confusions = figure.axes[:2]
    assert not matrix.get_xticklabels() and not matrix.texts
    assert [label.get_text() for label in confusions.get_yticklabels()] == [
        "class 7 → class 3",
        "class 8 → class 4",
    ]
    assert [bar.get_width() for bar in confusions.patches] == pytest.approx([50, 100 * 10 / 60])


def test_names_that_shorten_alike_and_hold_dollars_are_drawn(tmp_path):
    confusion = np.ones((30, 30), dtype=int)
    figure = draw_confusion(confusion, [f"$a long name of a class$ {index}" for index in range(30)], "")
    figure.savefig(tmp_path / "confusion.png")
    assert len(figure.axes[1].patches) == 20
