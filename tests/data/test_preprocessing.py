import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xnext.data import Preprocessing, build_eval_transform
from xnext.data._preprocessing import normalise, to_pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@settings(deadline=None, max_examples=150)
@given(
    width=st.integers(1, 120), height=st.integers(1, 120), size=st.integers(1, 70),
    share=st.sampled_from([1.0, 0.95, 0.875, 0.5]), mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]),
    channels=st.sampled_from([1, 3]),
)  # fmt: skip
def test_pillow_alone_gives_exactly_what_evaluation_sees(
    width, height, size, share, mode, interpolation, channels
):
    pre = Preprocessing(
        image_size=size, mean=MEAN[:channels], std=STD[:channels], interpolation=interpolation,
        crop_pct=share, in_chans=channels, crop_mode=mode,
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    try:
        wanted = build_eval_transform(pre)(image).numpy()
    except (ValueError, ZeroDivisionError):  # a side of no pixels
        return
    found = to_pixels(image, pre)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(normalise(found, pre), wanted)


def test_very_long_pictures_are_cut_before_they_grow():
    pre = Preprocessing(image_size=8, mean=MEAN, std=STD, interpolation="bicubic", crop_pct=1.0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 900, 3), dtype=np.uint8))
    np.testing.assert_array_equal(normalise(to_pixels(image, pre), pre), build_eval_transform(pre)(image))


def test_without_normalisation_pixels_are_only_scaled():
    pre = Preprocessing(image_size=8, mean=MEAN, std=STD, interpolation="bicubic", crop_pct=1.0)
    plain = pre.without_normalisation()
    pixels = np.arange(192, dtype=np.uint8).reshape(3, 8, 8)
    assert normalise(pixels, plain) == pytest.approx(pixels / 255)
