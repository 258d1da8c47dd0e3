from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from skimage import data as pictures
from timm.data import create_transform
from torch import nn

from xnext.data import Preprocessing, build_eval_transform, build_train_transform
from xnext.errors import UserError

ASTRONAUT = Image.fromarray(pictures.astronaut())


def preprocessing(size=32, crop_pct=1.0, in_chans=3):
    half = (0.5,) * in_chans
    return Preprocessing(
        image_size=size, mean=half, std=half, interpolation="bicubic", crop_pct=crop_pct, in_chans=in_chans
    )


class Stem(nn.Module):
    def __init__(self, size=224, crop_pct=0.875, in_chans=3):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 4, 3)
        self.pretrained_cfg = {
            "input_size": (3, size, size),
            "crop_pct": crop_pct,
            "mean": (0.4, 0.5, 0.6),
            "std": (0.2, 0.2, 0.2),
            "interpolation": "bilinear",
        }


def test_the_networks_own_crop_is_kept_only_where_it_was_tuned():
    assert Preprocessing.for_model(Stem()).crop_pct == 0.875
    assert Preprocessing.for_model(Stem(), 224).crop_pct == 0.875
    assert Preprocessing.for_model(Stem(), 64).crop_pct == 1.0
    assert Preprocessing.for_model(Stem(size=32)).crop_pct == 1.0


def test_published_weights_are_shown_what_they_were_tested_with():
    stem = Stem(size=96, crop_pct=0.9)
    assert Preprocessing.for_model(stem, tested=True).crop_pct == 0.9
    stem.pretrained_cfg |= {"test_input_size": (3, 160, 160), "test_crop_pct": 0.95, "crop_mode": "squash"}
    pre = Preprocessing.for_model(stem, tested=True)
    assert (pre.image_size, pre.crop_pct, pre.crop_mode) == (160, 0.95, "squash")
    assert Preprocessing.for_model(stem).image_size == 96


def test_preprocessing_follows_a_timm_model_and_goes_through_a_dict():
    model = timm.create_model("test_convnext", pretrained=False)
    pre = Preprocessing.for_model(model, 64)
    assert (pre.image_size, pre.mean) == (64, tuple(model.pretrained_cfg["mean"]))
    assert Preprocessing.from_dict(pre.to_dict()) == pre
    with pytest.raises(UserError, match="Did you mean 'image_size'"):
        Preprocessing.from_dict(pre.to_dict() | {"image_sise": 3})
    with pytest.raises(UserError, match="'std' is missing"):
        Preprocessing.from_dict({k: v for k, v in pre.to_dict().items() if k != "std"})


def test_size_and_channels_that_make_no_sense():
    with pytest.raises(UserError, match="image size 0"):
        Preprocessing.for_model(Stem(), 0)
    stem = Stem()
    stem.pretrained_cfg["input_size"] = (3, 256, 192)
    with pytest.raises(UserError, match="256x192"):
        Preprocessing.for_model(stem)
    with pytest.raises(UserError, match="there is no crop_mode 'centre'"):
        replace(preprocessing(), crop_mode="centre")
    with pytest.raises(UserError, match="4 input channels"):
        Preprocessing.for_model(Stem(in_chans=4))


def test_grey_networks_get_one_channel():
    pre = Preprocessing.for_model(Stem(in_chans=1), 40)
    assert pre.mean == pytest.approx((0.5,))
    grey = build_eval_transform(pre)(ASTRONAUT)
    assert grey.shape == (1, 40, 40)
    for augment in ("light", "strong"):
        assert build_train_transform(pre, augment, mirror=True)(ASTRONAUT).shape == (1, 40, 40)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(500, 300), (20, 300)])
def test_eval_transform_is_timms(crop_mode, size):
    pre = replace(preprocessing(size=128, crop_pct=0.8), crop_mode=crop_mode)
    theirs = create_transform(
        (3, 128, 128), crop_pct=0.8, crop_mode=crop_mode, interpolation="bicubic", mean=pre.mean, std=pre.std
    )
    image = ASTRONAUT.crop((0, 0, *size))
    assert torch.equal(build_eval_transform(pre)(image), theirs(image))


def test_nothing_of_a_small_picture_is_cropped_away():
    border = np.zeros((8, 8, 3), np.uint8)
    border[0], border[-1], border[:, 0], border[:, -1] = 255, 255, 255, 255
    shown = build_eval_transform(preprocessing())(Image.fromarray(border))
    assert shown.shape == (3, 32, 32)
    for edge in (shown[:, 0], shown[:, -1], shown[:, :, 0], shown[:, :, -1]):
        assert edge.min() > 0.9
    same = Image.fromarray(np.asarray(ASTRONAUT.resize((32, 32))))
    expected = torch.from_numpy(np.asarray(same).copy()).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(build_eval_transform(preprocessing())(same), expected, atol=1e-6)


@pytest.mark.parametrize("augment", ["none", "light", "strong"])
@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (1, 1), (3, 500)])
def test_extreme_shapes_stay_within_memory(size, augment, monkeypatch):
    made = []
    resize = Image.Image.resize

    def watch(image, size, *args, **kwargs):
        made.append(size[0] * size[1])
        return resize(image, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watch)
    transform = build_train_transform(preprocessing(), augment, mirror=True)
    assert transform(Image.new("RGB", size, "red")).shape == (3, 32, 32)
    assert max(made) <= 16 * 32 * 32


def test_a_long_picture_is_cut_about_its_centre():
    image = Image.new("RGB", (1000, 10), "blue")
    image.paste("red", (480, 0, 520, 10))
    assert build_eval_transform(preprocessing())(image)[0].min() > 0.9


def test_none_is_the_eval_transform():
    pre = preprocessing()
    shown = build_train_transform(pre, "none", mirror=True)(ASTRONAUT)
    assert torch.equal(shown, build_eval_transform(pre)(ASTRONAUT))


def left_half_is_red(shown) -> bool:
    return bool(shown[0, :, :8].mean() > shown[0, :, -8:].mean())


@pytest.mark.parametrize("augment", ["flip", "light", "strong"])
def test_mirroring_follows_the_data(augment):
    torch.manual_seed(0)
    image = Image.new("RGB", (32, 32), "black")
    image.paste("red", (0, 0, 16, 32))
    steps = {
        mirror: [type(s).__name__ for s in build_train_transform(preprocessing(), augment, mirror).transforms]
        for mirror in (True, False)
    }
    assert "RandomHorizontalFlip" in steps[True]
    assert "RandomHorizontalFlip" not in steps[False]
    if augment == "light":
        for mirror, expected in ((True, {True, False}), (False, {True})):
            transform = build_train_transform(preprocessing(), augment, mirror)
            assert {left_half_is_red(transform(image)) for _ in range(40)} == expected


@pytest.mark.parametrize(
    ("augment", "scale"), [("light", (0.6, 1.0)), ("strong", (0.08, 1.0)), ("flip", (0.08, 1.0))]
)
def test_photographs_are_cropped_at_random(augment, scale):
    crop = build_train_transform(preprocessing(224), augment, True).transforms[0]
    assert crop.scale == scale
    boxes = {crop.get_params(Image.new("RGB", (224, 224)), crop.scale, crop.ratio) for _ in range(100)}
    assert len(boxes) > 90
    assert all(height * width >= 0.9 * scale[0] * 224**2 for _, _, height, width in boxes)


@pytest.mark.parametrize("size", [8, 32, 100])
def test_small_pictures_are_shifted_by_up_to_an_eighth(size):
    torch.manual_seed(0)
    image = Image.new("RGB", (32, 32), "white")
    transform = build_train_transform(preprocessing(32), "light", mirror=False)
    if size != 32:
        image = image.resize((size, size))  # small pictures are brought to size before the shift
    shown = [transform(image)[0] > 0 for _ in range(300)]
    rows = [int(view.any(dim=1).sum()) for view in shown]
    tops = {int(view.any(dim=1).nonzero()[0]) for view in shown}
    assert min(rows) == 28 and max(rows) == 32
    assert tops == {0, 1, 2, 3, 4}


def test_strong_changes_more_than_light():
    names = {
        a: {type(s).__name__ for s in build_train_transform(preprocessing(), a, True).transforms}
        for a in ("light", "strong")
    }
    assert names["strong"] - names["light"] == {"RandAugment", "RandomErasing"}


def test_a_degree_can_be_changed_in_part():
    def steps(augment, **changes):
        chosen = build_train_transform(preprocessing(size=224), augment, True, **changes).transforms
        return {type(step).__name__: step for step in chosen}

    assert {"RandAugment", "RandomErasing"} <= steps("strong").keys()
    assert not {"RandAugment", "RandomErasing", "ColorJitter"} & steps("flip").keys()
    assert steps("strong", re_prob=0.5)["RandomErasing"].probability == 0.5
    assert "RandomErasing" not in steps("strong", re_prob=0.0)
    changed = steps("flip", auto_augment="rand-m7-n3", color_jitter=None)
    assert changed["RandAugment"].num_layers == 3
    assert "ColorJitter" in steps("flip", color_jitter=0.4)


def test_a_policy_that_does_not_exist():
    with pytest.raises(UserError, match="auto_augment 'random' is no policy"):
        build_train_transform(preprocessing(), "flip", mirror=True, auto_augment="random")


def test_nothing_changes_no_augmentation():
    with pytest.raises(UserError, match="augment none cannot have re_prob"):
        build_train_transform(preprocessing(), "none", mirror=True, re_prob=0.1)


def test_a_crop_may_be_asked_for():
    model = timm.create_model("inceptionnext_atto", num_classes=2)
    assert Preprocessing.for_model(model, 32).crop_pct == 1.0
    assert Preprocessing.for_model(model, 32, crop_pct=0.5).crop_pct == 0.5


def test_unknown_augmentation():
    with pytest.raises(UserError, match="Did you mean 'light'"):
        build_train_transform(preprocessing(), "ligth", True)
