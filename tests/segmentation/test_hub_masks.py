"""Images and masks of Hugging Face datasets, here of local parquet files."""

import json
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from xnext.errors import UserError
from xnext.segmentation.check import check_masks
from xnext.segmentation.data import IGNORE, absolute_mask_spec, load_masks


def rows(numbers, mask="annotation"):
    """Return rows whose masks hold 1 and 2, and number of each image is its brightness."""
    images = [Image.new("RGB", (6, 4), (number,) * 3) for number in numbers]
    masks = [Image.fromarray(np.full((4, 6), 1 + number % 2, np.uint8)) for number in numbers]
    features = datasets.Features(
        {"image": datasets.Image(), mask: datasets.Image(), "scene": datasets.ClassLabel(names=["a", "b"])}
    )
    return datasets.Dataset.from_dict(
        {"image": images, mask: masks, "scene": [0] * len(images)}, features=features
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Return a folder as on the hub: two splits, and a list of classes."""
    folder = tmp_path_factory.mktemp("hub") / "scenes"
    (folder / "data").mkdir(parents=True)
    rows(range(5)).to_parquet(folder / "data/train-00000-of-00001.parquet")
    rows(range(5, 8)).to_parquet(folder / "data/validation-00000-of-00001.parquet")
    (folder / "classes.txt").write_text("other\nroad\nsky\n")
    return folder


def test_columns_are_found(scenes):
    data = load_masks(f"hf:{scenes}")
    assert data.classes == ("other", "road", "sky") and (len(data.train), len(data.val)) == (5, 3)
    for source, first in ((data.train, 0), (data.val, 5)):
        for index in range(len(source)):
            image, mask = source.pair(index)
            assert np.asarray(image)[0, 0, 0] == first + index and (mask == 1 + (first + index) % 2).all()
    report = check_masks(data)
    assert report.images["train"].tolist() == [0, 3, 2]
    assert report.lines() == [
        "places of the training masks: road 60.0 %, sky 40.0 %; ignored 0.0 %",
        "in no training mask: 'other'",
        "in no held-out mask: 'other'",
    ]


def test_options(scenes, tmp_path):
    (tmp_path / "id2label.json").write_text(json.dumps({"0": "road", "1": "sky"}))
    spec = f"hf:{scenes}?classes={tmp_path}/id2label.json&first=1&val=train&image=image&mask=annotation"
    data = load_masks(spec)
    assert data.classes == ("road", "sky") and len(data.val) == 5
    assert [int(data.val.mask(index)[0, 0]) for index in range(3)] == [0, 1, 0]
    ignored = load_masks(f"hf:{scenes}?first=2&classes={tmp_path}/id2label.json")
    assert ignored.train.mask(0)[0, 0] == IGNORE and ignored.train.mask(1)[0, 0] == 0


def test_a_fifth_is_held_out_where_nothing_is(scenes, tmp_path):
    shutil.copy(scenes / "data/train-00000-of-00001.parquet", tmp_path / "train.parquet")
    spec = f"hf:{tmp_path}?classes={scenes}/classes.txt"
    data, again, other = (load_masks(spec, seed) for seed in (0, 0, 3))
    assert (len(data.train), len(data.val)) == (4, 1)
    assert data.val.pair(0)[0].getpixel((0, 0)) == again.val.pair(0)[0].getpixel((0, 0))
    assert np.array_equal(data.train.labels, again.train.labels)
    assert data.val.pair(0)[0].getpixel((0, 0)) != other.val.pair(0)[0].getpixel((0, 0))


def test_a_spec_is_made_absolute(scenes, monkeypatch):
    monkeypatch.chdir(scenes.parent)
    absolute = absolute_mask_spec("hf:scenes?classes=scenes/classes.txt&first=1")
    assert absolute == f"hf:{scenes}?classes={scenes}/classes.txt&first=1"
    assert absolute_mask_spec("scenes?first=1") == f"{scenes}?first=1"
    assert absolute_mask_spec("hf:owner/name") == "hf:owner/name"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("hf:{}?mask=mask", "no column 'mask'; there are 'image', 'annotation', 'scene'"),
        ("hf:{}?image=annotation&mask=image", None),
        ("hf:{}?label=scene", "unknown option 'label'; it takes 'train'"),
        ("hf:{}?first=one", "first is 'one'; it must be a whole number"),
        ("hf:{}?classes=none.txt", "none.txt: cannot be read"),
        ("hf:{}?classes={}/list.json", "is no JSON object"),
        ("hf:{}?mask=scene", "column 'scene' holds no images"),
        ("hf:{}/none", "no such folder"),
        (" ", "the data spec is empty"),
    ],
)
def test_what_is_wrong_is_told(scenes, spec, told):
    (scenes / "list.json").write_text("[1, 2]")
    if told is None:  # the other way round the masks are the pictures: that is the user's to say
        assert load_masks(spec.format(scenes)).train.mask_name(0)
        return
    with pytest.raises(UserError, match=told) as error:
        load_masks(spec.replace("{}", str(scenes)))
    assert "\n" not in str(error.value)


def test_masks_that_are_missing_or_several(tmp_path):
    whole = rows(range(3)).to_dict()
    whole["annotation"][1] = None
    features = rows(range(3)).features
    datasets.Dataset.from_dict(whole, features=features).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    data = load_masks(f"hf:{tmp_path}?train=train.parquet&val=train.parquet")
    report = check_masks(data)
    assert report.findings["unreadable"] == [f"{part}[1]: the file is empty" for part in ("train", "val")]
    two = datasets.concatenate_datasets(
        [rows(range(3)), rows(range(3), "instance_mask").select_columns(["instance_mask"])], axis=1
    )
    (tmp_path / "two").mkdir()
    two.to_parquet(tmp_path / "two/train.parquet")
    with pytest.raises(UserError, match=r"2 columns could be the mask.*choose one with \?mask=COLUMN"):
        load_masks(f"hf:{tmp_path / 'two'}")
