import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pil

from xnext.data import Preprocessing, build_batch_transform, build_eval_transform
from xnext.data import _batch_transforms as module
from xnext.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEGREES = ["none", "flip", "light", "strong"]


def preprocessing(size=32, in_chans=3):
    return Preprocessing(
        image_size=size,
        mean=MEAN[:in_chans],
        std=STD[:in_chans],
        interpolation="bilinear",
        crop_pct=1.0,
        in_chans=in_chans,
    )


def noise(batch, size=32, in_chans=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, in_chans, size, size), dtype=torch.uint8, generator=generator)


def near(share, expected, trials):
    """Whether a share is what chance makes of an expected one, within five standard deviations."""
    return abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / trials)


# What holds for every degree


@settings(max_examples=40, deadline=None)
@given(
    augment=st.sampled_from(DEGREES),
    size=st.sampled_from([1, 2, 7, 8, 33, 40]),
    in_chans=st.sampled_from([1, 3]),
    batch=st.integers(1, 6),
    channels_last=st.booleans(),
    mirror=st.booleans(),
    data=st.data(),
)
def test_each_image_depends_on_itself_and_the_seed_alone(
    augment, size, in_chans, batch, channels_last, mirror, data
):
    jitter = None if augment == "none" else data.draw(st.sampled_from([None, 0.4]))
    transform = build_batch_transform(preprocessing(size, in_chans), augment, mirror, color_jitter=jitter)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = noise(batch, size, in_chans).contiguous(memory_format=layout)
    before = images.clone()
    shown = transform(images, torch.Generator().manual_seed(5))
    assert (shown.shape, shown.dtype) == (images.shape, torch.float32)
    assert shown.isfinite().all()
    assert torch.equal(images, before)
    other = data.draw(st.integers(0, batch - 1))
    images[other] = 255 - images[other]
    again = transform(images, torch.Generator().manual_seed(5))
    rest = [place for place in range(batch) if place != other]
    assert torch.equal(again[rest], shown[rest])


@pytest.mark.parametrize("augment", DEGREES[1:])
def test_the_seed_decides(augment):
    transform = build_batch_transform(preprocessing(), augment, mirror=True, color_jitter=0.1)
    images = noise(8)
    torch.manual_seed(1)
    first = transform(images)
    torch.manual_seed(1)
    assert torch.equal(transform(images), first)
    assert not torch.equal(transform(images), first)
    assert torch.equal(transform(images, torch.Generator().manual_seed(1)), first)
    state = torch.get_rng_state()
    transform(images, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("augment", DEGREES)
def test_the_device_is_never_waited_for(augment, in_chans):
    """A tensor without values raises wherever the CPU would have to look at one."""
    jitter = 0.4 if augment != "none" else None
    transform = build_batch_transform(preprocessing(in_chans=in_chans), augment, True, color_jitter=jitter)
    assert transform.to("meta")(noise(4, in_chans=in_chans).to("meta")).shape == (4, in_chans, 32, 32)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), in_chans=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_none_is_the_transform_of_evaluation(size, in_chans, seed):
    pre, images = preprocessing(size, in_chans), noise(3, size, in_chans, seed)
    pictures = [pil.to_pil_image(image).convert("RGB") for image in images]
    if in_chans == 3 or size == 1:  # grey to RGB and back is the same picture
        expected = torch.stack([build_eval_transform(pre)(picture) for picture in pictures])
        assert torch.equal(build_batch_transform(pre, "none", mirror=True)(images), expected)


# Shifting and mirroring


@pytest.mark.parametrize("augment", ["flip", "light"])
@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize(("size", "most"), [(7, 0), (8, 1), (33, 4)])
def test_small_images_are_shifted_and_mirrored_evenly(augment, mirror, size, most):
    """Every output is one of the possible views of its input, and all views are equally frequent."""
    trials = 4000
    transform = build_batch_transform(preprocessing(size), augment, mirror)
    image = noise(1, size)[0]
    padded = torch.nn.functional.pad(image, (most,) * 4)
    views = [
        padded[:, top : top + size, left : left + size]
        for top in range(2 * most + 1)
        for left in range(2 * most + 1)
    ]
    views += [view.flip(-1) for view in views] if mirror else []
    views = build_batch_transform(preprocessing(size), "none", mirror)(torch.stack(views))
    counts = dict.fromkeys((view.numpy().tobytes() for view in views), 0)
    assert len(counts) == len(views)
    for shown in transform(image.expand(trials, -1, -1, -1)).numpy():
        counts[shown.tobytes()] += 1
    for count in counts.values():
        assert near(count / trials, 1 / len(views), trials)


def test_images_are_changed_independently():
    shown = build_batch_transform(preprocessing(), "light", mirror=True)(noise(1).expand(500, -1, -1, -1))
    assert len({image.numpy().tobytes() for image in shown}) > 150  # of 162 views


# Changes of colour


def changed(name, images, strength):
    strength = torch.full((len(images), 1, 1, 1), strength)
    return module._COLOUR_CHANGES[name](images.float() / 255, strength) * 255


@pytest.mark.parametrize("strength", [0.15, 0.3, 0.6, 0.99, 1.0])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("autocontrast", lambda image, s: ImageOps.autocontrast(image)),
        ("inversion", lambda image, s: ImageOps.invert(image)),
        ("posterisation", lambda image, s: ImageOps.posterize(image, max(1, 4 - int(4 * s)))),
        ("solarisation", lambda image, s: ImageOps.solarize(image, 256 - min(256, int(256 * s)))),
        ("brightness", lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s)),
        ("contrast", lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s)),
        ("saturation", lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s)),
    ],
)
def test_colours_change_as_pillow_changes_them(name, reference, strength):
    images = noise(4, size=16) // 2 + 40
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    signs = (1, -1) if name in ("brightness", "contrast", "saturation") else (1,)
    for sign in signs:
        expected = np.stack([np.asarray(reference(p, sign * strength)) for p in pictures])
        shown = changed(name, images, sign * strength).permute(0, 2, 3, 1).numpy()
        if name == "solarisation":  # the values next to a threshold between two of them
            edge = np.abs(images.permute(0, 2, 3, 1).numpy() - 255 * (1 - strength)) < 2
            shown, expected = shown[~edge], expected[~edge]
        assert np.abs(shown - expected).max() < 2.5  # Pillow rounds luma and mean to whole numbers
        assert shown.min() >= 0 and shown.max() <= 255.01


def test_no_value_falls_a_step_too_low_when_posterised():
    values = torch.arange(256)
    inverted = 1 - values.float().view(1, 1, 16, 16) / 255  # not to the last bit a whole number of 255ths
    for bits, strength in ((4, 0.1), (3, 0.3), (2, 0.6), (1, 0.8)):
        shown = module._posterise(inverted, torch.tensor(strength)) * 255
        assert torch.equal(shown.round().long().flatten(), (255 - values) & (256 - 2 ** (8 - bits)))


def test_a_plain_image_cannot_be_stretched():
    plain = torch.full((1, 3, 4, 4), 90, dtype=torch.uint8)
    assert torch.allclose(changed("autocontrast", plain, 0.5), plain.float())


def test_jitter_changes_within_its_range():
    images = torch.full((3000, 3, 2, 2), 100, dtype=torch.uint8)
    shown = build_batch_transform(preprocessing(2), "light", mirror=False, color_jitter=0.4)(images)
    factors = (shown * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 2.55
    assert factors.amin((1, 2, 3)).allclose(factors.amax((1, 2, 3)), atol=1e-5)  # grey stays grey
    assert 0.599 < factors.min() < 0.61 and 1.39 < factors.max() < 1.401
    assert abs(factors.mean() - 1) < 0.03


# Changes of place


def moved(image, **strengths):
    changes = module.RandomChanges("rand-m9-inc1", (0.2,) * 3)
    names = [name.replace(" ", "_") for name in module._MOVES]
    assert strengths.keys() <= set(names)
    return changes._move(image[None], torch.tensor([[strengths.get(name, 0.0) for name in names]]))[0]


def test_an_unmoved_image_stays_as_it_is():
    image = noise(1)[0] / 255
    assert torch.allclose(moved(image), image, atol=1e-5)


def test_shifts_are_shares_of_the_sides_and_what_comes_in_has_the_mean_colour():
    image = noise(1, size=20)[0] / 255
    for name, axis in (("horizontal_shift", 2), ("vertical_shift", 1)):
        shown = moved(image, **{name: 1.0})
        kept, new = shown.split([11, 9], axis)  # 45 % of 20 pixels
        assert torch.allclose(kept, image.narrow(axis, 9, 11), atol=1e-4)
        assert torch.allclose(new, torch.tensor(0.2), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "strength", "affine"),
    [
        ("rotation", 1.0, {"angle": -30.0}),
        ("rotation", -0.5, {"angle": 15.0}),
        ("scale", 1.0, {"scale": 1 / 1.3}),
        ("scale", -1.0, {"scale": 1 / 0.7}),
        ("horizontal_shear", 1.0, {"shear": [math.degrees(math.atan(0.3)), 0.0]}),
        ("vertical_shear", -1.0, {"shear": [0.0, -math.degrees(math.atan(0.3))]}),
    ],
)
def test_images_move_as_torchvision_moves_them(name, strength, affine):
    image = pil.gaussian_blur(noise(1, size=24) / 255, [9, 9])[0]
    whole = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    options = {"interpolation": InterpolationMode.BILINEAR, "fill": [0.2] * 3}
    shown = moved(image, **{name: strength})
    difference = shown - pil.affine(image, **whole | affine, **options)
    assert difference[:, 6:18, 6:18].abs().max() < 0.02  # torchvision treats the border otherwise


# How changes are drawn


def draws(policy, in_chans=3, batch=4000):
    changes = module.RandomChanges(policy, MEAN[:in_chans])
    chosen, strength = changes._draw(torch.empty(batch, in_chans, 1, 1), None)
    return chosen.numpy(), strength.numpy()


@pytest.mark.parametrize("in_chans", [1, 3])
def test_changes_are_drawn_evenly(in_chans):
    chosen, strength = draws("rand-m6-mstd0.5-inc1", in_chans)
    kinds = 13 if in_chans == 3 else 12
    assert chosen.shape == (4000, kinds)
    assert set(chosen.sum(axis=1)) == {0, 1, 2}
    assert near((chosen.sum(axis=1) == 2).mean(), 0.25, 4000)
    for kind in range(kinds):
        assert near(chosen[:, kind].mean(), 1 / kinds, 4000)
    assert near((strength > 0).mean(), 0.5, strength.size)
    assert abs(np.abs(strength).mean() - 0.6) < 0.002
    assert abs(np.abs(strength).std() - 0.05) < 0.002


def test_a_policy_says_how_many_how_often_and_how_strong():
    chosen, strength = draws("rand-m9-n4-p1-inc1")
    assert (chosen.sum(axis=1) == 4).all()
    assert np.allclose(np.abs(strength), 0.9)
    _, strength = draws("rand-m5-mstd101-inc1")
    assert np.abs(strength).max() < 0.5 and abs(np.abs(strength).mean() - 0.25) < 0.01
    _, strength = draws("rand-m10-mstd3-inc1")
    assert np.abs(strength).max() == 1


def test_images_that_are_not_drawn_stay_as_they_are():
    images = noise(50)[:, :, :16, :16] / 255
    shown = module.RandomChanges("rand-m9-p0-inc1", MEAN)(images)
    assert torch.allclose(shown, images, atol=1e-5)
    shown = module.RandomChanges("rand-m9-inc1", MEAN)(images)
    same = (shown - images).abs().amax((1, 2, 3)) < 1e-5
    assert 2 < same.sum() < 30  # a quarter is not drawn
    assert shown.min() > -1e-6 and shown.max() < 1 + 1e-6


# Erasing


def test_boxes_are_of_the_sizes_places_and_number_asked_for():
    torch.manual_seed(0)
    size, batch = 32, 4000
    erased = module.Erase(0.25)(torch.full((batch, 3, size, size), 7.0)) != 7.0
    assert torch.equal(erased[:, 0], erased[:, 1])
    erased = erased[:, 0]
    rows, columns = erased.any(2), erased.any(1)
    assert torch.equal(erased, rows[:, :, None] & columns[:, None])  # boxes
    some = erased.flatten(1).any(1)
    assert near(some.float().mean().item(), 0.25, batch)
    rows, columns = rows[some], columns[some]
    height, width = rows.sum(1), columns.sum(1)
    for line, length in ((rows, height), (columns, width)):  # in one piece
        first, beyond = line.int().argmax(1), size - line.flip(1).int().argmax(1)
        assert torch.equal(beyond - first, length)
        for at_edge in (first == 0, beyond == size):
            assert near(at_edge.float().mean().item(), (1 / (size - length + 1)).mean().item(), len(line))
    share = height * width / size**2
    assert 0.015 < share.min() < 0.03 and 0.32 < share.max() < 0.35
    assert abs(share.mean() - (0.02 + 1 / 3) / 2) < 0.01
    ratio = (height / width).log()
    assert abs(ratio.mean()) < 0.1 and 0.9 < ratio.max() < 1.6


def test_boxes_hold_normal_noise_of_their_own():
    shown = module.Erase(1.0)(torch.full((500, 3, 32, 32), 7.0))
    values = shown[shown != 7.0]
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    assert len(values.unique()) > 0.99 * len(values)


# Degrees


def steps(augment, **changes):
    chosen = build_batch_transform(preprocessing(), augment, True, **changes)
    return {type(step).__name__: step for step in chosen}


def test_degrees_and_their_changes():
    assert list(steps("none")) == ["ToUnit", "Normalise"]
    assert list(steps("flip")) == list(steps("light")) == ["ShiftAndMirror", "ToUnit", "Normalise"]
    strong = steps("strong")
    assert strong.keys() - steps("light").keys() == {"RandomChanges", "Erase"}
    assert (strong["Erase"].probability, strong["RandomChanges"].magnitude) == (0.25, 6)
    assert "Erase" not in steps("strong", re_prob=0.0)
    changed = steps("flip", auto_augment="rand-m7-n3-inc1", color_jitter=0.3, re_prob=0.1)
    assert (changed["RandomChanges"].number, changed["Jitter"].most) == (3, 0.3)
    assert changed["Erase"].probability == 0.1


def test_the_step_that_normalises_has_nothing_to_save():
    assert not build_batch_transform(preprocessing(), "strong", True).state_dict()


@pytest.mark.parametrize(
    "policy",
    ["augmix-m9-inc1", "rand", "rand-m9", "rand-inc1", "rand-m9-inc0", "rand-mx-inc1", "rand-m9-w0-inc1"],
)
def test_policies_that_are_not_known_here(policy):
    with pytest.raises(UserError, match=f"auto_augment '{policy}': pictures in memory take rand-"):
        build_batch_transform(preprocessing(), "flip", True, auto_augment=policy)


def test_mistakes():
    with pytest.raises(UserError, match="Did you mean 'light'"):
        build_batch_transform(preprocessing(), "ligth", True)
    with pytest.raises(UserError, match="augment none cannot have color_jitter"):
        build_batch_transform(preprocessing(), "none", True, color_jitter=0.1)
    with pytest.raises(UserError, match=r"image size 128: .* below 128"):
        build_batch_transform(preprocessing(128), "light", True)
    assert build_batch_transform(preprocessing(128), "none", True)(noise(1, 128)).shape == (1, 3, 128, 128)
