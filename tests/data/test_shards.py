import bz2
import glob
import gzip
import io
import json
import lzma
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from xnext.data import BadImageError, absolute_spec, load_data
from xnext.data import _shards as shards_module
from xnext.errors import UserError


def png(grey):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(stream, "PNG")
    return stream.getvalue()


def pack(members, form=tarfile.PAX_FORMAT):
    """Return a tar file of names and contents; nothing as content makes a folder."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return stream.getvalue()


def write(path, *members, form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(members, form))
    return path


def write_classes(path, *labels, first=0):
    """Write a shard of grey pictures with these labels in .cls, the first of grey ``first``."""
    samples = [
        ((f"{i:04}.png", png(i)), (f"{i:04}.cls", str(label).encode()))
        for i, label in enumerate(labels, first)
    ]
    return write(path, *(member for sample in samples for member in sample))


def names(source):
    return [source.name(i) for i in range(len(source))]


def greys(source):
    return [int(np.asarray(source.read(i)).max()) for i in range(len(source))]


# Samples


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_one_name_are_a_sample(tmp_path, form):
    long = "d/" * 60 + "x" * 90
    train = write(
        tmp_path / "train.tar",
        ("README.txt", b"beside"),
        ("a.png", None),
        ("a/1.PNG", png(1)),
        ("a/1.seg.png", png(9)),
        ("a/1.cls", b"10\n"),
        ("b/1.cls", b" 9 "),
        ("b/1.json", b'{"label": 3}'),  # .cls comes first
        ("b/1.png", png(2)),
        ("a/._1.png", b"of another system"),
        ("v1.0/1.ppm", png(3)),
        ("v1.0/1.json", b'{"label": 10, "labels": [1]}'),
        (f"{long}.png", png(4)),
        (f"{long}.cls", b"9"),
        form=form,
    )
    val = write_classes(tmp_path / "val.tar", 9, 10)
    data = load_data(f"wds:{train}?val={val}")
    assert (data.classes, data.multilabel) == (("9", "10"), False)
    members = ("a/1.PNG", "b/1.png", "v1.0/1.ppm", f"{long}.png")
    assert names(data.train) == [f"{train}:{member}" for member in members]
    assert greys(data.train) == [1, 2, 3, 4]
    assert data.train.labels.tolist() == [1, 0, 1, 0]
    assert data.train.labels.dtype == np.int64
    assert names(data.val) == [f"{val}:0000.png", f"{val}:0001.png"]
    assert data.train.content(0) == png(1)


def test_labels_by_name_and_several_of_them(tmp_path):
    shard = tmp_path / "a.tar"
    write_classes(shard, *["owl", "Grauer Bär"] * 2)
    data = load_data(f"wds:{shard}")
    assert (data.classes, data.multilabel) == (("Grauer Bär", "owl"), False)
    cells = [["b", "a"], [], ["b", "b"]]
    members = [(f"{i}.{end}", png(i) if end == "webp" else json.dumps({"labels": cell}).encode())
               for i, cell in enumerate(cells) for end in ("webp", "json")]  # fmt: skip
    write(shard, *members)
    data = load_data(f"wds:{shard}?val={shard}")
    assert (data.classes, data.multilabel) == (("a", "b"), True)
    assert data.train.labels.tolist() == [[True, True], [False, False], [False, True]]


def test_a_file_names_the_classes(tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_text("\ufeffzebra\r\nant\n cat \n\n")
    shard = write_classes(tmp_path / "a.tar", 2, 0, 1)
    data = load_data(f"wds:{shard}?val={shard}&classes={classes}")
    assert data.classes == ("zebra", "ant", "cat")
    assert data.train.labels.tolist() == [2, 0, 1]
    write_classes(shard, "cat", "ant", "zebra")
    assert load_data(f"wds:{shard}?val={shard}&classes={classes}").train.labels.tolist() == [2, 1, 0]
    for labels, message in (
        ((0, 3), r"a\.tar:0001\.png: label 3 is none of the 3 given classes"),
        (("ant", "catt"), r"a\.tar:0001\.png: label 'catt' is none .* Did you mean 'cat'"),
        ((0, 1), "no training images of 'cat'"),
    ):
        write_classes(shard, *labels)
        with pytest.raises(UserError, match=message):
            load_data(f"wds:{shard}?val={shard}&classes={classes}")
    for text in (b"", b"a\nb\na\n", b"a\n\nb\n", b"\xe4\n"):
        classes.write_bytes(text)
        with pytest.raises(UserError, match=r"classes\.txt: (must name each class once|is no UTF-8)"):
            load_data(f"wds:{shard}?classes={classes}")
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        load_data(f"wds:{shard}?classes={tmp_path}/none.txt")


def test_without_shards_to_hold_out_the_seed_chooses(tmp_path):
    for i in range(4):
        write_classes(tmp_path / f"{i}.tar", *"ab" * 5, first=10 * i)
    first, again, other = (load_data(f"wds:{tmp_path}/{{0..3}}.tar", seed=seed) for seed in (0, 0, 1))
    assert names(first.val) == names(again.val) != names(other.val)
    assert (len(first.train), np.bincount(first.val.labels).tolist()) == (32, [4, 4])
    assert sorted([*greys(first.train), *greys(first.val)]) == list(range(40))


# Reading


def test_pictures_are_read_in_other_processes_and_threads(tmp_path):
    data = load_data(f"wds:{write_classes(tmp_path / 'a.tar', *'ab' * 4)}?val={tmp_path}/a.tar")
    assert greys(pickle.loads(pickle.dumps(data.train))) == list(range(8))
    data.train.read(0)  # nothing that is open here may be shared with the workers

    class Greys:
        def __len__(self):
            return len(data.train)

        def __getitem__(self, index):
            return int(np.asarray(data.train.read(index)).max())

    loader = DataLoader(Greys(), batch_size=1, num_workers=2, multiprocessing_context="fork")
    assert [int(grey) for grey in loader] == list(range(8))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(greys, [data.train] * 4)) == [list(range(8))] * 4


def test_pictures_alone_are_not_read_while_indexing(tmp_path):
    shard = write(
        tmp_path / "a.tar", ("0.png", b"no picture"), ("0.cls", b"a"), ("1.png", b""), ("1.cls", b"b")
    )
    train = load_data(f"wds:{shard}?val={shard}").train
    for index, reason in enumerate(("is no image", "the file is empty")):
        with pytest.raises(BadImageError, match=rf"a\.tar:{index}\.png: {reason}"):
            train.read(index)
    shard.unlink()
    with pytest.raises(BadImageError, match=r"a\.tar:0\.png: cannot be opened \(No such file"):
        train.read(0)


# Patterns


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("a{8..11}.tar", ["a8.tar", "a9.tar", "a10.tar", "a11.tar"]),
        ("a{008..011}", ["a008", "a009", "a010", "a011"]),
        ("a{0..010}", [f"a{i:03}" for i in range(11)]),
        ("a{2..0}", ["a0", "a1", "a2"]),
        ("a{0..2}{00..1}", ["a000", "a001", "a100", "a101", "a200", "a201"]),
        ("{a,b}-{1,2}", ["a-1", "a-2", "b-1", "b-2"]),
        ("x{a,,b}", ["xa", "x", "xb"]),
        ("{a,b{1..2}}", ["a", "b1", "a", "b2"]),  # each shard is taken once all the same
        ("a{b}c{}", ["a{b}c{}"]),
        ("a{x..y}", ["a{x..y}"]),
    ],
)
def test_braces(pattern, expected):
    assert list(shards_module._expand(pattern)) == expected


def test_patterns_find_files(tmp_path, monkeypatch):
    for place, name in enumerate(("x/08", "x/09", "x/10", "y/08", "[o]/08")):
        write_classes(tmp_path / f"{name}.tar", "a", "b", first=2 * place)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "x")
    backwards = lambda pattern, find=glob.glob: sorted(find(pattern), reverse=True)  # noqa: E731
    monkeypatch.setattr(glob, "glob", backwards)  # file systems list their files in any order
    for pattern, expected in (
        ("{08..10}.tar", [0, 1, 2, 3, 4, 5]),
        ("*.tar", [0, 1, 2, 3, 4, 5]),
        ("../{x,y}/08.tar", [0, 1, 6, 7]),
        ("~/y/*.tar", [6, 7]),
        ("{08,*,08}.tar", [0, 1, 2, 3, 4, 5]),
        ("[0-2]8.tar", [0, 1]),
        (f"{{{tmp_path}/x,~/y}}/08.tar", [0, 1, 6, 7]),
        ("../[o]/08.tar", [8, 9]),
    ):
        for spec in (f"wds:{pattern}?val=./08.tar", absolute_spec(f"wds:{pattern}?val=./08.tar")):
            assert greys(load_data(spec).train) == expected


def test_absolute_specs_work_from_any_folder(tmp_path, monkeypatch):
    for name in ("set/a0.tar", "set/a1.tar", "[old]/a0.tar"):
        write_classes(tmp_path / name, "a", "b")
    (tmp_path / "set/classes.txt").write_text("b\na\n")
    for folder, spec in (
        ("", "wds:set/a{0..1}.tar?val=set/*0.tar&classes=set/classes.txt"),
        ("set", "wds:a{0..1}.tar?val=../set/*0.tar&classes=classes.txt"),
        ("[old]", "wds:*.tar?val=../set/a0.tar&classes=../set/classes.txt"),
    ):
        monkeypatch.chdir(tmp_path / folder)
        expected, absolute = greys(load_data(spec).train), absolute_spec(spec)
        monkeypatch.chdir("/")
        there = load_data(absolute)
        assert greys(there.train) == expected
        assert (len(there.val), there.classes) == (2, ("b", "a"))
        assert absolute_spec(absolute) == absolute


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("", "is a folder"),
        ("{tmp}", r"is a folder; name its shards, as in wds:.*\*\.tar"),
        ("{tmp}/a{{0..2}}.tar", r"no shard .*a1\.tar"),
        ("{tmp}/a{{0..999999999}}.tar", r"no shard .*a1\.tar"),
        ("{tmp}/b*.tar", r"no shard .*b\*\.tar"),
        ("{tmp}/a0.tar?val={tmp}/none.tar", r"no shard .*none\.tar"),
        ("https://host/a{{0..2}}.tar", "local files; copy those of https://host"),
        ("{tmp}/a0.tar?val=s3://bucket/a.tar", "local files; copy those of s3://bucket/a.tar"),
        ("pipe:curl host", "local files"),
        ("{tmp}/a0.tar?class=x", "unknown option 'class'.*Did you mean 'classes'"),
        ("~nobody-of-that-name/a.tar", "home folder"),
        ("a\0*.tar", "zero byte"),
    ],
)
def test_patterns_without_files(tmp_path, pattern, message):
    write_classes(tmp_path / "a0.tar", "a", "b")
    with pytest.raises(UserError, match=message) as caught:
        load_data("wds:" + pattern.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


# Mistakes

ONE = {"0.png": b"x", "0.cls": b"1"}


@pytest.mark.parametrize(
    "members, message",
    [
        ({"0.png": b"x"}, r"a\.tar: sample '0' \(of .png\): it has no label"),
        ({"x/0.cls": b"1"}, r"a\.tar: sample 'x/0' \(of .cls\): it has no pictures"),
        ({"0.seg.png": b"x", "0.cls": b"1"}, r"\(of .seg.png, .cls\): it has no pictures"),
        ({"0.png": b"x", "0.jpg": b"x", "0.cls": b"1"}, "it has 2 pictures"),
        ({"0.png": b"x", "0.PNG": b"x", "0.cls": b"1"}, r"sample '0' has more than one \.png"),
        ({"0.png": b"x", "0.cls": b""}, "its label '' is neither a class number nor a name"),
        ({"0.png": b"x", "0.cls": b"-1"}, "its label -1 is neither"),
        ({"0.png": b"x", "0.cls": b"\xe4"}, "'0' .*can't decode"),
        ({"0.png": b"x", "0.json": b"{"}, "'0' .*Expecting"),
        ({"0.png": b"x", "0.json": b"[" * 100_000}, "'0' .*recursion"),
        ({"0.png": b"x", "0.json": b'{"class": 1}'}, "it has no label"),
        ({"0.png": b"x", "0.json": b'["label"]'}, "it has no label"),
        ({"0.png": b"x", "0.json": b'{"label": null}'}, "its label None is neither"),
        ({"0.png": b"x", "0.json": b'{"label": true}'}, "its label True is neither"),
        ({"0.png": b"x", "0.json": b'{"label": [1]}'}, r"its label \[1\] is neither"),
        ({"0.png": b"x", "0.json": b'{"label": "\\ud800"}'}, "surrogates not allowed"),
        ({"0.png": b"x", "0.json": b'{"labels": 1}'}, "its labels are no list"),
        ({"0.png": b"x", "0.json": b'{"labels": [1, 1.5]}'}, "its label 1.5 is neither"),
        ({"0.txt": b"x"}, "no sample in"),
        ({}, "no sample in"),
        (ONE | {"1.png": b"x", "1.cls": b"b"}, r"a\.tar:0\.png has a number .*a\.tar:1\.png a name"),
        (ONE | {"1.png": b"x", "1.json": b'{"labels": [1]}'}, r"0\.png has one label and .*1\.png a list"),
        ({"0.png": b"x", "0.json": b'{"labels": [1, "b"]}'}, "has a number as label"),
        ({"0.png": b"x", "0.json": b'{"labels": []}'}, "0 class;"),
        (ONE | {"1.png": b"x", "1.cls": b"1"}, r"1 class \('1'\)"),
    ],
)
def test_samples_that_are_not_whole(tmp_path, members, message):
    shard = write(tmp_path / "a.tar", *members.items())
    with pytest.raises(UserError, match=message) as caught:
        load_data(f"wds:{shard}?val={shard}")
    assert str(shard) in str(caught.value) and "\n" not in str(caught.value)


def test_both_parts_are_labelled_alike(tmp_path):
    train, val = write_classes(tmp_path / "a.tar", "a", "b"), write_classes(tmp_path / "b.tar", 0, 1)
    with pytest.raises(UserError, match=r"b\.tar:0000\.png has a number .*a\.tar:0000\.png a name"):
        load_data(f"wds:{train}?val={val}")


WHOLE = pack(
    [(f"{i // 2}.{('png', 'cls')[i % 2]}", (bytes(700), b"aabb"[i // 2 :][:1])[i % 2]) for i in range(8)]
)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "cannot be read as a tar file"),
        (b"text", "cannot be read as a tar file"),
        (gzip.compress(WHOLE), "compressed.*decompress it with gunzip"),
        (bz2.compress(WHOLE), "compressed.*decompress it with bunzip2"),
        (lzma.compress(WHOLE), "compressed.*decompress it with unxz"),
        (b"\x28\xb5\x2f\xfd and so on", "compressed.*decompress it with unzstd"),
        (WHOLE[: 512 + 300], "unexpected end of data"),
        (WHOLE[: 512 + 1024], "truncated or damaged"),  # whole blocks are left, but no end
        (WHOLE[: 512 + 1024 + 100], "truncated or damaged"),
        (WHOLE[:1536] + b"\xff" + WHOLE[1537:], "truncated or damaged"),  # the second header
        (bytes(1024), "no sample in"),
    ],
)
def test_damaged_shards(tmp_path, content, message):
    (tmp_path / "a.tar").write_bytes(WHOLE)
    assert len(load_data(f"wds:{tmp_path}/a.tar").train) == 2
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_data(f"wds:{tmp_path}/a.tar")
    assert f"{tmp_path}/a.tar" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.timeout(20)
def test_a_negative_size_does_not_go_round_for_ever(tmp_path):
    """Python's tarfile before 3.11.14 goes back with it (CVE-2025-8194)."""
    content = bytearray(pack([("0.png", b"x"), ("README", b""), ("0.cls", b"a")]))
    content[1024 + 124 : 1024 + 136] = (-512).to_bytes(12, "big", signed=True)
    mend_sum(content, 1024)
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"as a tar file \(the header of 'README' is damaged\)"):
        load_data(f"wds:{tmp_path}/a.tar")


def test_a_picture_with_holes_is_none(tmp_path):
    """Of a sparse file, the bytes in the shard are not those of the picture."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("0.png")
        info.size = 1024
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1024"}
        tar.addfile(info, io.BytesIO(b"1\n512\n512\n".ljust(1024, b"\0")))
        label = tarfile.TarInfo("0.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(b"a"))
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    with pytest.raises(UserError, match="it has no pictures"):
        load_data(f"wds:{tmp_path}/a.tar")


def mend_sum(content, begin):
    """Write the sum that belongs into the header at ``begin``."""
    content[begin + 148 : begin + 156] = b" " * 8
    content[begin + 148 : begin + 156] = b"%06o\0 " % sum(content[begin : begin + 512])


@settings(max_examples=200, deadline=None)
@given(
    cut=st.one_of(st.just(len(WHOLE)), st.integers(0, len(WHOLE))),
    changes=st.lists(
        st.tuples(st.integers(0, len(WHOLE) // 512 - 1), st.integers(0, 147), st.integers(0, 255)), max_size=4
    ),
    mend=st.booleans(),
)
def test_damaged_bytes_load_or_are_a_user_error(tmp_path_factory, cut, changes, mend):
    content = bytearray(WHOLE)
    for block, place, value in changes:
        begin = 512 * block
        content[begin + place] = value
        if mend:  # so that the header's sum is no protection
            mend_sum(content, begin)
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    path.write_bytes(content[:cut])
    try:
        load_data(f"wds:{path}")
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
