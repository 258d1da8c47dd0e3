import io
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data as pictures

from xnext.data import BadImageError, decode_image, find_images
from xnext.data._decode import MAX_PIXELS, image_extensions
from xnext.errors import UserError

ASTRONAUT = Image.fromarray(pictures.astronaut()).resize((96, 64))
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TGA", "TIFF", "WEBP")


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_its_picture(kind):
    shown = pixels(decode_image(encode(ASTRONAUT, kind)))
    assert shown.shape == (64, 96, 3)
    assert np.abs(shown - np.asarray(ASTRONAUT)).mean() < (8 if kind in ("JPEG", "WEBP", "GIF") else 1e-9)


def test_content_decides_not_the_file_name(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode(ASTRONAUT, "PNG"))
    assert np.array_equal(pixels(decode_image(path)), np.asarray(ASTRONAUT))


def test_cmyk_keeps_its_colours():
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    for kind in ("JPEG", "TIFF"):
        assert np.allclose(pixels(decode_image(encode(ink, kind))), (255, 0, 0), atol=3)


@pytest.mark.parametrize("compression", [None, "jpeg", "tiff_lzw"])
def test_ycbcr_keeps_its_colours(compression):
    data = encode(ASTRONAUT.convert("YCbCr"), "TIFF", compression=compression)
    difference = np.abs(pixels(decode_image(data)) - np.asarray(ASTRONAUT))
    assert difference.mean() < (8 if compression == "jpeg" else 2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_is_scaled_not_clipped(kind):
    ramp = np.arange(0, 65536, 1000, dtype=np.uint16).reshape(6, 11)
    shown = pixels(decode_image(encode(Image.fromarray(ramp), kind)))
    assert np.array_equal(shown[..., 0], np.rint(ramp / 257))


def test_dark_16_bit_stays_dark():
    assert pixels(decode_image(encode(Image.fromarray(np.full((4, 4), 257, np.uint16)), "PNG"))).max() == 1


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_wide_pixels_are_spread_over_their_own_range(dtype):
    ramp = np.linspace(-1e6, 1e6, 256).astype(dtype).reshape(16, 16)
    shown = pixels(decode_image(encode(Image.fromarray(ramp), "TIFF")))
    assert np.array_equal(shown[..., 1], np.arange(256).reshape(16, 16))


def test_not_a_number_is_black_and_a_flat_float_picture_is_read():
    flat = np.full((4, 4), np.nan, np.float32)
    assert pixels(decode_image(encode(Image.fromarray(flat), "TIFF"))).max() == 0


def test_palette_with_alpha_lies_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    shown = pixels(decode_image(encode(image, "PNG", transparency=bytes([255, 0]))))
    assert shown.tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("mode, colour", [("RGBA", (0, 0, 0, 128)), ("LA", (0, 128))])
def test_half_transparent_black_is_grey(mode, colour):
    shown = pixels(decode_image(encode(Image.new(mode, (3, 3), colour), "PNG")))
    assert np.allclose(shown, 127, atol=1)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encode(red, kind, save_all=True, append_images=[blue])
    assert np.allclose(pixels(decode_image(data)), (255, 0, 0), atol=4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied(orientation, kind):
    # How a camera stores the upright picture for each value of the tag: the inverse of what a viewer does.
    store = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = ASTRONAUT.transpose(store[orientation]) if orientation > 1 else ASTRONAUT
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = decode_image(encode(stored, kind, exif=exif))
    assert shown.size == ASTRONAUT.size
    assert np.abs(pixels(shown) - np.asarray(ASTRONAUT)).mean() < 8


def test_damaged_exif_does_not_lose_the_picture():
    data = encode(ASTRONAUT, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert decode_image(data).size == ASTRONAUT.size


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("width, height", [(100_000, 100_000), (MAX_PIXELS + 1, 1), (10_000, 10_000)])
def test_decompression_bomb_is_refused_without_a_warning(width, height):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImageError, match="89 megapixels"):
            decode_image(png_that_claims(width, height), "bomb.png")


def test_a_lower_limit_of_pixels_is_kept_before_anything_is_decoded():
    with pytest.raises(BadImageError, match=r"a\.png: is larger than 2 megapixels"):
        decode_image(png_that_claims(2001, 1000), "a.png", max_pixels=2_000_000)
    with pytest.raises(BadImageError, match="damaged"):
        decode_image(png_that_claims(2000, 1000), "a.png", max_pixels=2_000_000)


def test_compressed_text_bomb_is_refused():
    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    data = encode(ASTRONAUT, "PNG")
    bomb = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(200_000_000), 9))
    with pytest.raises(BadImageError):
        decode_image(data[:33] + bomb + data[33:])


@pytest.mark.parametrize("kind", FORMATS)
def test_half_a_file_is_refused(kind, tmp_path):
    path = tmp_path / "half.img"
    data = encode(ASTRONAUT, kind)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadImageError) as caught:
        decode_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, reason",
    [(b"", "empty"), (b"just some text\n", "no image"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no image")],
)
def test_what_is_no_image_is_refused(tmp_path, content, reason):
    path = tmp_path / "no.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=reason):
        decode_image(path)


def test_missing_file_folder_and_forbidden_file(tmp_path, monkeypatch):
    with pytest.raises(BadImageError, match="No such file"):
        decode_image(tmp_path / "missing.png")
    with pytest.raises(BadImageError, match="not a file"):
        decode_image(tmp_path)
    path = tmp_path / "secret.png"
    path.write_bytes(encode(ASTRONAUT, "PNG"))

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadImageError, match="Permission denied"):
        decode_image(path)


def test_error_is_a_user_error_and_survives_pickling():
    error = pickle.loads(pickle.dumps(BadImageError("a.png", "is odd")))
    assert isinstance(error, UserError)
    assert (error.name, error.reason, str(error)) == (
        "a.png",
        "is odd",
        "a.png: is odd; replace or remove the file",
    )


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(FORMATS),
    cut=st.integers(0, 4000),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=20),
)
def test_damage_raises_nothing_but_bad_image_error(kind, cut, edits):
    data = bytearray(encode(ASTRONAUT.resize((24, 16)), kind))
    for place, value in edits:
        data[place % len(data)] = value
    try:
        image = decode_image(bytes(data[: max(1, len(data) - cut)]))
    except BadImageError:
        return
    assert image.mode == "RGB"


@settings(max_examples=100, deadline=None)
@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    fill=st.integers(0, 255),
    kind=st.sampled_from(["PNG", "TIFF"]),
)
def test_every_mode_becomes_rgb_of_the_same_size(mode, size, fill, kind):
    bands = len(Image.getmodebands(mode) * [0]) if mode != "I;16" else 1
    image = Image.new(mode, size, fill if bands == 1 else (fill,) * bands)
    try:
        data = encode(image, kind)
    except (OSError, ValueError, KeyError):
        return  # this format does not hold this mode
    shown = decode_image(data)
    assert (shown.mode, shown.size) == ("RGB", size)


def test_find_images_looks_below_and_skips_what_is_none(tmp_path):
    kept = [tmp_path / "a.PNG", tmp_path / "b" / "c.jpeg", tmp_path / "d.webp"]
    for path in [*kept, tmp_path / "notes.txt", tmp_path / ".hidden.png", tmp_path / "Thumbs.db"]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert find_images([tmp_path]) == kept
    odd = tmp_path / "notes.txt"
    assert find_images([odd, tmp_path / "b"]) == [odd, kept[1]]  # named by the user: taken as it is


def test_find_images_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such file"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no image file"):
        find_images([tmp_path])


def test_find_images_in_a_forbidden_folder(tmp_path, monkeypatch):
    def refuse(_self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        find_images([tmp_path])


def test_extensions_are_those_of_pictures():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif"} <= image_extensions()
    assert not {".eps", ".pdf", ".mpg", ".txt"} & image_extensions()
