"""Pictures without labels, from everything that names some."""

import io
import pickle
import tarfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xnext.data import load_data, load_pictures
from xnext.errors import UserError


def png(grey):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path, greys, beside=()):
    with tarfile.open(path, "w") as tar:
        for name, content in (*((f"{grey}.png", png(grey)) for grey in greys), *beside):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Go to a folder with pictures of the greys 0 to 13 in places of every kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    for grey, name in enumerate(("folder/a.png", "folder/deep/b.png", "c", "d.png", "e.png")):
        (tmp_path / name).write_bytes(png(grey))
    (tmp_path / "folder" / "notes.txt").write_text("no picture")
    (tmp_path / "table.csv").write_text("path,what\nd.png,x\ne.png,\n")
    write_shard(tmp_path / "s-0.tar", (5, 6), [("5.cls", b"cat"), ("6.json", b"no JSON"), ("README.md", b"")])
    write_shard(tmp_path / "s-1.tar", (7,))
    for part, greys in (("train", (8, 9, 10)), ("test", (11, 12, 13))):
        cells = [{"bytes": png(grey), "path": None if grey % 2 else f"{grey}.png"} for grey in greys]
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        frame = pd.DataFrame({"image": cells, "stars": [1, 2, 3]})
        import datasets

        features = datasets.Features({"image": datasets.Image(), "stars": datasets.Value("int64")})
        rows = datasets.Dataset.from_pandas(frame, features=features)
        rows.to_parquet(str(tmp_path / "hub" / "data" / f"{part}-00000-of-00001.parquet"))
    return tmp_path


SPECS = ["folder", "c", "table.csv", "wds:s-{0..1}.tar", "hf:hub"]


def greys(source):
    return [int(np.asarray(source.read(index)).max()) for index in range(len(source))]


def names(source):
    return [source.name(index) for index in range(len(source))]


def test_every_kind_in_order_by_absolute_names(places):
    source = load_pictures(SPECS)
    assert greys(source) == list(range(14))
    assert source.labels.tolist() == [-1] * 14
    files = ["folder/a.png", "folder/deep/b.png", "c", "d.png", "e.png", "s-0.tar:5.png", "s-0.tar:6.png"]
    hub = [f"hf:{places}/hub train[{index}]" for index in range(3)]
    hub += [f"hf:{places}/hub test[{index}]" for index in range(3)]
    hub[0], hub[2], hub[4] = f"{hub[0]} (8.png)", f"{hub[2]} (10.png)", f"{hub[4]} (12.png)"
    assert names(source) == [*(f"{places}/{name}" for name in (*files, "s-1.tar:7.png")), *hub]


@pytest.mark.parametrize(("begin", "end"), [(0, 14), (0, 1), (2, 3), (1, 9), (6, 12), (10, 14), (13, 14)])
def test_a_part_is_what_it_says_also_in_another_process(places, begin, end):
    source = load_pictures(SPECS)
    part = pickle.loads(pickle.dumps(source.part(begin, end)))
    assert (names(part), greys(part)) == (names(source)[begin:end], list(range(begin, end)))
    assert names(part.part(0, 1)) == names(source)[begin : begin + 1]


def test_a_part_is_small(tmp_path):
    paths = [f"{tmp_path}/{index:09}.png" for index in range(10_000)]
    (tmp_path / "table.csv").write_text("\n".join(["path", *paths]))
    source = load_pictures([str(tmp_path / "table.csv")])
    assert len(pickle.dumps(source.part(5000, 5010))) < 10_000 < len(pickle.dumps(source)) / 20


def test_the_fingerprint_tells_what_differs(places):
    known = load_pictures(SPECS).fingerprint()
    assert load_pictures(SPECS).fingerprint() == known
    assert load_pictures(SPECS[::-1]).fingerprint() != known
    assert load_pictures(["./folder", *SPECS[1:]]).fingerprint() == known
    write_shard(places / "s-1.tar", (7,), [("x.txt", b"")])
    assert load_pictures(SPECS).fingerprint() == known
    write_shard(places / "s-1.tar", (), [("x.txt", b""), ("7.png", png(7))])
    assert load_pictures(SPECS).fingerprint() != known, "it lies elsewhere"
    (places / "folder" / "a.png").rename(places / "folder" / "A.png")
    assert load_pictures(SPECS[:1]).fingerprint() != load_pictures(SPECS[1:2]).fingerprint()


def test_options(places):
    assert greys(load_pictures(["hf:hub?split=test"])) == [11, 12, 13]
    assert greys(load_pictures(["hf:hub?split=data/test-*&image=image"])) == [11, 12, 13]
    assert greys(load_pictures(["table.csv?image=path"])) == [3, 4]


@pytest.mark.parametrize(("spec", "line"), [
    ("none.png", "none.png: no such file or folder"),
    ("hub", "no image file in this folder"),
    ("wds:s-9.tar", "no shard s-9.tar|no shard .*/s-9.tar"),
    ("wds:s-0.tar?val=x", "unknown option 'val'; it takes none"),
    ("wds:table.csv", "table.csv: cannot be read as a tar file"),
    ("hf:none/at/all", "no such folder"),
    ("hf:hub?split=tset", "no split 'tset'.*'test'"),
    ("hf:hub?train=test", "unknown option 'train'; it takes 'split', 'image', 'config'"),
    ("hf:hub?image=stars", "column 'stars' holds no images"),
    ("table.csv?image=wat", "no column 'wat'.*'what'"),
    ("none.csv", "none.csv: cannot be read as a table"),
])  # fmt: skip
def test_one_line_of_what_names_nothing(places, spec, line):
    with pytest.raises(UserError, match=line) as caught:
        load_pictures(["folder", spec])
    assert "\n" not in str(caught.value)


def test_shards_of_readmes_alone(places):
    write_shard(places / "s-2.tar", (), [("README.md", b"")])
    with pytest.raises(UserError, match=r"no picture in /.*s-2\.tar"):
        load_pictures(["wds:s-2.tar"])
    with pytest.raises(UserError, match="it has no label"):
        load_data("wds:s-1.tar")
