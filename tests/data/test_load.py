from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm.data
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xnext.data import FileSource, ImageData, absolute_spec, load_data, stratified_split
from xnext.data._load import _TORCH_SETS
from xnext.data._sources import ArraySource
from xnext.errors import UserError


def draw(root: Path, *names: str) -> Path:
    """Write one small picture for each name below root, each of another grey."""
    for grey, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (grey, grey, grey)).save(root / name)
    return root


def files(source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


# Digits


def test_digits_are_the_fixed_stratified_split():
    data = load_data("digits", seed=3)
    assert data.classes == tuple("0123456789")
    assert len(data.train) + len(data.val) == 1797
    assert not data.mirror
    assert not set(files(data.train)) & set(files(data.val))
    assert files(data.val) == files(load_data("digits", seed=4).val)
    counts = np.bincount(data.val.labels)
    assert np.all(np.abs(counts - np.bincount(data.train.labels) / 4) <= 1)


def test_digits_show_their_ink():
    from sklearn.datasets import load_digits

    data = load_data("digits")
    index = 7
    place = int(data.train.name(index).removeprefix("digits[").removesuffix("]"))
    ink = load_digits()
    assert data.train.labels[index] == ink.target[place]
    shown = np.asarray(data.train.read(index))
    assert np.abs(shown[..., 0] / 255 - ink.images[place] / 16).max() < 1 / 255


# Folders


@pytest.mark.parametrize("val", ["val", "validation", "test"])
def test_folder_with_a_split(tmp_path, val):
    draw(
        tmp_path,
        "train/cat/1.png",
        "train/cat/deep/2.jpg",
        "train/dog/3.png",
        f"{val}/cat/4.png",
        f"{val}/dog/5.png",
    )
    (tmp_path / "train/cat/readme.txt").write_text("not an image")
    (tmp_path / "train/dog/.hidden.png").touch()
    (tmp_path / "train/.cache").mkdir()
    data = load_data(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1]
    assert data.train.labels.dtype == np.int64
    assert files(data.val) == [str(tmp_path / val / "cat/4.png"), str(tmp_path / val / "dog/5.png")]
    assert data.train.read(2).size == (6, 5)


def test_class_folders_are_split_by_seed(tmp_path):
    draw(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(10)))
    first, again, other = (load_data(str(tmp_path), seed=seed) for seed in (0, 0, 1))
    assert files(first.val) == files(again.val) != files(other.val)
    assert np.bincount(first.val.labels).tolist() == [2, 2]
    assert len(set(files(first.train)) | set(files(first.val))) == 20
    for source in (first.train, first.val):
        for i, path in enumerate(files(source)):
            assert Path(path).parent.name == first.classes[source.labels[i]]
            assert np.array_equal(np.asarray(source.read(i)), np.asarray(Image.open(path)))


def test_a_class_may_be_called_train(tmp_path):
    draw(tmp_path, *(f"{name}/{i}.png" for name in ("train", "truck") for i in range(2)))
    assert load_data(str(tmp_path)).classes == ("train", "truck")


def test_unreadable_image_is_no_error_yet(tmp_path):
    draw(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png")
    (tmp_path / "train/a/1.png").write_bytes(b"")
    assert len(load_data(str(tmp_path)).train) == 2


@pytest.mark.parametrize(
    "names, folders, message",
    [
        ([], [], "no class folders"),
        (["1.png", "2.png"], [], "no class folders"),
        (["train/1.png", "val/1.png"], [], "train: has no class folders"),
        (["a/1.png", "a/2.png"], ["b"], "no image in class folder 'b'"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png"], ["val/b"], r"val: no image in class folder 'b'"),
        (["a/1.png", "a/2.png"], [], r"1 class \('a'\)"),
        (["a/1.png", "a/2.png", "b/1.png"], [], "class 'b' has 1 image"),
        (["train/a/1.png", "train/b/1.png"], [], "has train/ alone"),
        (["val/a/1.png", "val/b/1.png"], [], "has val/ alone"),
        (
            ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"],
            [],
            "only the training part has 'b'; only the held-out part has 'c'",
        ),
    ],
)
def test_folder_that_cannot_be_trained_on(tmp_path, names, folders, message):
    draw(tmp_path, *names)
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError, match=message) as caught:
        load_data(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folder_file_and_misspelt_name(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_data(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        load_data("digit")
    draw(tmp_path, "1.png")
    with pytest.raises(UserError, match=r"is a file; --data takes .*TABLE\.csv.*wds:SHARDS"):
        load_data(str(tmp_path / "1.png"))
    with pytest.raises(UserError, match=r"wds:.*Did you mean 'wds:'"):
        load_data("wds")
    for spec in ("~nobody-of-that-name/data", "x" * 5000):
        with pytest.raises(UserError):
            load_data(spec)


def test_forbidden_folder(tmp_path, monkeypatch):
    def refuse(_self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=rf"{tmp_path}: cannot be listed \(Permission denied\)"):
        load_data(str(tmp_path))


# Splits and data sets


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(2, 40), min_size=2, max_size=8), seed=st.integers(0, 2**32), data=st.data())
def test_split_is_a_stratified_partition(sizes, seed, data):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels[data.draw(st.permutations(range(len(labels))))]
    classes = [str(i) for i in range(len(sizes))]
    train, val = stratified_split(labels, classes, seed)
    assert sorted([*train, *val]) == list(range(len(labels)))
    for label, size in enumerate(sizes):
        assert np.sum(labels[val] == label) == max(1, round(0.2 * size))
    again = stratified_split(labels, classes, seed)
    assert np.array_equal(again[0], train)
    assert np.array_equal(again[1], val)


def test_a_class_is_split_alike_whatever_the_others_hold():
    few, many = (np.repeat([0, 1], [20, n]) for n in (5, 50))
    split = [stratified_split(labels, "ab", seed=1)[1] for labels in (few, many)]
    assert np.array_equal(split[0][split[0] < 20], split[1][split[1] < 20])


def test_classes_of_one_size_are_split_apart():
    val = stratified_split(np.repeat([0, 1], 50), "ab", seed=0)[1]
    assert not np.array_equal(val[:10], val[10:] - 50)


def test_with_several_labels_rare_classes_are_on_both_sides():
    labels = np.random.default_rng(0).random((400, 6)) < [0.5, 0.3, 0.02, 0.1, 0.02, 0.7]
    train, val = stratified_split(labels, "abcdef", seed=1)
    assert sorted([*train, *val]) == list(range(400))
    assert labels[train].any(axis=0).all() and labels[val].any(axis=0).all()
    assert 0.15 < len(val) / 400 < 0.25
    assert np.array_equal(stratified_split(labels, "abcdef", seed=1)[1], val)
    assert not np.array_equal(stratified_split(labels, "abcdef", seed=2)[1], val)


def test_data_needs_labelled_pictures_in_every_class():
    def source(*labels):
        return FileSource([f"{i}.png" for i in range(len(labels))], np.array(labels))

    with pytest.raises(UserError, match="no held-out images"):
        ImageData("set", ("a", "b"), source(0, 1), source())
    with pytest.raises(UserError, match="no training images of 'b'"):
        ImageData("set", ("a", "b"), source(0, 0), source(0, 1))
    with pytest.raises(UserError, match=r"1 held-out images without a class \(label -1\)"):
        ImageData("set", ("a", "b"), source(0, 1), source(0, -1))


def test_grey_and_colour_arrays_are_rgb():
    for shape in ((1, 4, 3), (1, 4, 3, 3)):
        images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        shown = np.asarray(ArraySource(images, np.array([0]), "set").read(0))
        assert shown.shape == (4, 3, 3)
        assert np.array_equal(shown[..., 0], images[0] if len(shape) == 3 else images[0, ..., 0])


# torchvision's sets


@pytest.mark.parametrize(
    "spec, message",
    [
        ("torch/cifar1000", "Did you mean 'cifar100'"),
        ("torch/cifar100?rot=x", "unknown option 'rot'.*Did you mean 'root'"),
        ("torch/cifar100?root=", "has no value"),
        ("torch/cifar100?download=yes", "true or false"),
        ("torch/cifar100?root=nowhere", "no usable files in nowhere.*download=true"),
    ],
)
def test_torch_spec_that_cannot_be_loaded(spec, message):
    with pytest.raises(UserError, match=message):
        load_data(spec)


@pytest.mark.parametrize("name", _TORCH_SETS)
def test_timm_knows_each_torch_set(tmp_path, name):
    """An unknown name is an AssertionError of timm; a known one misses its files."""
    with pytest.raises((OSError, RuntimeError)):
        timm.data.create_dataset(f"torch/{name}", root=str(tmp_path), split="train")


def test_torch_arrays_become_a_source(tmp_path, monkeypatch):
    class Tiny:
        classes: tuple[str, ...] = ("0 - zero", "1 - one")

        def __init__(self, root, train, download):
            assert (Path(root), download) == (tmp_path, True)
            self.data = np.full((4, 3, 3), 7 if train else 9, np.uint8)
            self.targets = np.array([[0, 5], [1, 5], [1, 5], [0, 5]])  # as QMNIST: the class comes first

        def __len__(self):
            return len(self.data)

    monkeypatch.setitem(timm.data.dataset_factory._TORCH_BASIC_DS, "mnist", Tiny)
    data = load_data(f"torch/mnist?root={tmp_path}&download=true")
    assert data.classes == Tiny.classes
    assert data.train.labels.tolist() == [0, 1, 1, 0]
    assert [np.asarray(part.read(1)).max() for part in (data.train, data.val)] == [7, 9]
    assert not data.mirror


def test_torch_files_become_a_source(tmp_path, monkeypatch):
    draw(tmp_path, "train/a.png", "train/b.png", "val/a.png", "val/b.png")

    class Tiny(SimpleNamespace):
        def __init__(self, root, split):
            paths = [str(tmp_path / split / name) for name in ("a.png", "b.png")]
            super().__init__(imgs=list(zip(paths, (0, 1), strict=True)), targets=[0, 1])
            self.classes = [("tench", "Tinca tinca"), ("goldfish",)]

        def __len__(self):
            return len(self.imgs)

    monkeypatch.setattr(timm.data.dataset_factory, "ImageNet", Tiny)
    data = load_data(f"torch/imagenet?root={tmp_path}")
    assert data.classes == ("tench, Tinca tinca", "goldfish")
    assert files(data.val) == [str(tmp_path / "val/a.png"), str(tmp_path / "val/b.png")]
    assert data.mirror


def test_real_torchvision_set_reads_its_files(tmp_path):
    """FakeData has no place in timm's list, so MNIST's own file format is written by hand."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    for part in ("train", "t10k"):
        header = np.array([2051, 2, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([2049, 2], ">i4").tobytes() + bytes([4, 2]))
    assert torchvision.datasets.MNIST(tmp_path).classes[4] == "4 - four"
    with pytest.raises(UserError, match="no training images of '0 - zero', '1 - one'"):
        load_data(f"torch/mnist?root={tmp_path}")


@pytest.mark.parametrize("spec", ["", "  "])
def test_an_empty_spec_is_not_the_current_folder(spec):
    with pytest.raises(UserError, match="spec is empty"):
        load_data(spec)


# Specs that last


def test_absolute_specs(tmp_path, monkeypatch):
    draw(tmp_path, "set/a/1.png", "cifar10/b/1.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec, absolute in (
        ("digits", "digits"),
        ("set", f"{tmp_path}/set"),
        ("~/set", f"{tmp_path}/set"),
        ("hf:set?label=x&val=data/*.parquet", f"hf:{tmp_path}/set?label=x&val=data/*.parquet"),
        ("hf:cifar100?train=test", "hf:cifar100?train=test"),
        ("torch/cifar10", "torch/cifar10"),
        ("torch/cifar10?root=set&download=true", f"torch/cifar10?root={tmp_path}/set&download=true"),
        ("set/t.csv?val=v.tsv&label=a", f"{tmp_path}/set/t.csv?val={tmp_path}/v.tsv&label=a"),
        ("~/t.parquet", f"{tmp_path}/t.parquet"),
        ("wds:{a,b}.tar?classes=set/c.txt", f"wds:{tmp_path}/{{a,b}}.tar?classes={tmp_path}/set/c.txt"),
        ("wds:/x/*.tar?val=../*.tar", f"wds:/x/*.tar?val={tmp_path}/../*.tar"),
    ):
        assert absolute_spec(spec) == absolute
        assert absolute_spec(absolute) == absolute
    with pytest.raises(UserError, match="unknown option"):
        absolute_spec("t.csv?vall=x")
