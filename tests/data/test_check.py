import io
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xnext.data import BadImageError, DataReport, ImageData, ImageSource, check_data, load_data
from xnext.data._check import _AT_ONCE
from xnext.errors import UserError


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def noise(seed: int, width: int = 40, height: int = 36) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class Bytes(ImageSource):
    """Pictures given as the bytes of their files."""

    def __init__(self, name: str, contents: list[bytes], labels):
        self.contents, self.labels, self._name = contents, np.asarray(labels), name

    def name(self, index: int) -> str:
        return f"{self._name}{index}"

    def content(self, index: int) -> bytes:
        return self.contents[index]


def check(train, train_labels, val=(), val_labels=(), classes=("cat", "dog")) -> DataReport:
    """Check pictures given as bytes; without held-out ones, two that are like no others."""
    val = val or [encode(noise(998)), encode(noise(999))]
    val_labels = val_labels or [0, 1]
    sources = Bytes("t", list(train), train_labels), Bytes("v", list(val), val_labels)
    return check_data(ImageData("set", classes, *sources))


def names(groups) -> list[list[str]]:
    return [[picture.name for picture in group] for group in groups]


def test_a_healthy_set_has_its_numbers_and_no_finding(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count + label):
                noise(100 * len(part) + 10 * label + index, width=40 + index).save(
                    tmp_path / part / name / f"{index}.png"
                )
    report = check_data(load_data(str(tmp_path)))
    assert (report.name, report.classes) == (str(tmp_path), ("cat", "dog"))
    assert report.images == {"train": 7, "val": 5}
    assert report.counts == {"train": (3, 4), "val": (2, 3)}
    assert (report.imbalance, report.classes_per_image) == (pytest.approx(4 / 3), 1)
    assert (report.width, report.height) == ((40, 41, 43), (36, 36, 36))
    assert str(report.width) == "40 to 43, median 41"
    assert str(report.height) == "36"
    assert report.small == 0
    assert not report.findings()


def test_mean_and_std_are_those_of_all_training_pixels_at_once():
    images = [
        noise(0, 7, 5),
        noise(1, 64, 48).convert("L"),
        noise(2, 1, 1),
        noise(3, 200, 2).convert("CMYK"),
        Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100),
    ]
    contents = [encode(image, "TIFF") for image in images] + [b"damaged"]
    report = check(contents, [0, 1, 0, 1, 0, 1])
    source = Bytes("", contents, [0] * 6)
    pixels = np.concatenate([np.asarray(source.read(i)).reshape(-1, 3) for i in range(5)]) / 255
    np.testing.assert_allclose(report.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(report.std, pixels.std(axis=0), rtol=1e-12)


def test_sizes_from_one_pixel_to_a_very_long_picture():
    train = [encode(Image.new("RGB", size, "red")) for size in ((1, 1), (5000, 1), (32, 32), (31, 32))]
    report = check(train, [0, 1, 0, 1])
    assert report.width == (1, 36, 5000)
    assert report.height == (1, 32, 36)
    assert report.small == 3


def test_what_cannot_be_read_is_named_with_the_reason_and_in_order():
    good = encode(noise(0))
    contents = [good[:100] if index % 97 == 5 else encode(noise(index, 3, 2)) for index in range(600)]
    report = check(contents, [0, 1] * 300, [b""], [0])
    assert list(report.unreadable["train"]) == [f"t{index}" for index in range(5, 600, 97)]
    assert "truncated" in report.unreadable["train"]["t5"]
    assert report.unreadable["val"] == {"v0": "the file is empty"}
    finding = report.findings()[0]
    assert str(finding) == "unreadable: 8; replace or remove what is damaged"
    assert finding.cases[-1] == "'v0': the file is empty"


def test_a_set_of_which_nothing_can_be_read():
    with pytest.raises(UserError, match=r"t0: is no image.*nor can any other training image"):
        check([b"nothing", b""], [0, 1])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), min_size=1, max_size=8),
)
def test_equal_pictures_are_found_as_by_comparing_each_with_each(train, val):
    """Against the plain definition: every two pictures with the same bytes."""
    pictures = [encode(noise(seed, 4, 3)) for seed in range(7)]
    train, val = [*train, (5, 0), (6, 1)], [*val, (6, 1)]  # a class needs a training picture
    report = check(
        [pictures[p] for p, _ in train], [c for _, c in train], [pictures[p] for p, _ in val],
        [c for _, c in val],
    )  # fmt: skip
    everything = [("t", i, *x) for i, x in enumerate(train)] + [("v", i, *x) for i, x in enumerate(val)]
    pairs = [(a, b) for a in everything for b in everything if a[:2] < b[:2] and a[2] == b[2]]

    def found(kind):
        return {picture.name for group in kind for picture in group}

    def expected(test):
        return {f"{part}{index}" for pair in pairs if test(*pair) for part, index, _, _ in pair}

    in_both = {a[2] for a, b in pairs if a[0] != b[0]}
    at_odds = {a[2] for a, b in pairs if a[3] != b[3]}
    assert found(report.duplicates) == expected(lambda a, b: a[0] == b[0])
    assert found(report.leaks) == expected(lambda a, b: a[2] in in_both)
    assert found(report.conflicts) == expected(lambda a, b: a[2] in at_odds)
    assert all(len({p.part for p in group}) == 1 for group in report.duplicates)
    assert not max(Counter(p.name for group in report.same for p in group).values(), default=0) > 1


def test_a_picture_in_several_places_is_found_with_its_names_and_classes():
    one, two, three = (encode(noise(seed)) for seed in range(3))
    report = check([one, two, one, three], [0, 1, 0, 1], [three, two], [0, 1])
    assert names(report.duplicates) == [["t0", "t2"]]
    assert names(report.leaks) == [["t1", "v1"], ["t3", "v0"]]
    assert names(report.conflicts) == [["t3", "v0"]]
    leak = next(finding for finding in report.findings() if finding.what == "in both parts")
    assert leak.cases[1] == "'t3' (training, 'dog') = 'v0' (held-out, 'cat')"


def test_what_is_unreadable_is_no_duplicate():
    report = check([b"", b"", encode(noise(0)), encode(noise(1))], [0, 1, 0, 1])
    assert len(report.unreadable["train"]) == 2
    assert not report.same


def test_a_picture_that_is_there_many_times_makes_one_short_line():
    report = check([encode(noise(0))] * 40, [0, 1] * 20)
    finding = next(finding for finding in report.findings() if finding.what.startswith("several"))
    assert len(finding.cases) == 1
    assert finding.cases[0].endswith(" and 35 more")


def test_a_class_that_is_not_held_out_is_named():
    report = check([encode(noise(0)), encode(noise(1))], [0, 1], [encode(noise(2))], [1])
    assert [str(finding) for finding in report.findings()] == [
        "classes never held out: 1; hold out some of their images"
    ]
    assert report.findings()[0].cases == ["'cat'"]


def test_pictures_of_several_classes():
    one, two, three = (encode(noise(seed)) for seed in range(3))
    both, none, cat = [True, True], [False, False], [True, False]
    report = check([one, two, three, two], [both, cat, none, cat], [one, three], [cat, none])
    assert report.multilabel
    assert report.counts == {"train": (3, 1), "val": (1, 0)}
    assert report.classes_per_image == 1
    assert names(report.conflicts) == [["t0", "v0"]]
    assert [picture.classes for picture in report.conflicts[0]] == [("cat", "dog"), ("cat",)]
    assert "'t2' (training, no class)" in report.findings()[0].cases[1]


def test_progress_sees_every_picture_and_the_total():
    seen = []

    def watch(looks, title, total):
        seen.append(total)
        for look in looks:
            seen.append(look)
            yield look

    data = load_data("digits")
    check_data(data, watch)
    assert seen[0] == len(seen) - 1 == len(data.train) + len(data.val)


def test_only_some_pictures_are_read_ahead():
    """A set may be larger than the memory."""
    reads = []

    class Counting(Bytes):
        def read(self, index):
            reads.append(index)
            raise BadImageError(self.name(index), "is odd")

    def first_alone(looks, title, total):
        yield next(iter(looks))
        assert len(reads) <= _AT_ONCE

    source = Counting("t", [b""] * 2000, [0, 1] * 1000)
    with pytest.raises(UserError):
        check_data(ImageData("set", ("a", "b"), source, source), first_alone)
    assert 0 < len(reads) <= _AT_ONCE


def test_the_report_as_json_holds_everything():
    one = encode(noise(0))
    odd = "\udcff[red]\n猫"
    report = check([one, one, b"", encode(noise(1))], [0, 1, 0, 1], [one], [0], classes=(odd, "dog"))
    values = json.loads(json.dumps(report.to_dict()))
    assert values["images"] == {"train": 4, "val": 1}
    assert values["classes"] == [{"class": odd, "train": 2, "val": 1}, {"class": "dog", "train": 2, "val": 0}]
    assert values["unreadable"] == {"train": [{"image": "t2", "reason": "the file is empty"}], "val": []}
    assert values["leaks"][0][2] == {"name": "v0", "part": "val", "classes": [odd]}
    assert [len(values[kind]) for kind in ("duplicates", "leaks", "conflicts", "findings")] == [1, 1, 1, 5]
    assert values["width"] == {"smallest": 40, "median": 40, "largest": 40}
