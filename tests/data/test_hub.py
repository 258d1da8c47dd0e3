import io
import pickle

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xnext.data import BadImageError, ImageDataset, load_data
from xnext.errors import UserError

LABEL = datasets.ClassLabel(names=["cat", "dog"])


def png(grey: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(stream, "PNG")
    return stream.getvalue()


def write(path, labels, *, feature=LABEL, cells=None, extra=None):
    """Write a parquet file of grey pictures, row i of grey i."""
    cells = cells or [{"bytes": png(i), "path": f"{i}.png"} for i in range(len(labels))]
    columns = {"image": cells, "label": labels} | {
        name: values for name, (_, values) in (extra or {}).items()
    }
    features = {"image": datasets.Image(), "label": feature} | {n: f for n, (f, _) in (extra or {}).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    """Keep the prepared tables out of the user's cache, and the tests off the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    write(root / "data/train-00000-of-00002.parquet", [0, 1, 1])
    write(root / "data/train-00001-of-00002.parquet", [0, 1])
    write(root / "data/test-00000-of-00001.parquet", [1, 0])
    return root


def test_local_folder_of_parquet(folder):
    before = sorted(folder.rglob("*"))
    data = load_data(f"hf:{folder}")
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 1, 1, 0, 1]
    assert data.val.labels.tolist() == [1, 0]
    assert [int(np.asarray(data.train.read(i)).max()) for i in range(5)] == [0, 1, 2, 0, 1]
    assert data.train.name(2) == "train[2] (2.png)"
    assert sorted(folder.rglob("*")) == before


def test_progress_is_drawn_in_a_terminal_alone(folder, capfd, monkeypatch):
    load_data(f"hf:{folder}")
    assert capfd.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    load_data(f"hf:{folder}?train=data/train-00001*")
    assert "Generating" in capfd.readouterr().err


def test_one_shard_of_train_and_all_of_test(folder):
    data = load_data(f"hf:{folder}?train=data/train-00001*")
    assert data.train.labels.tolist() == [0, 1]
    assert data.val.labels.tolist() == [1, 0]
    both = load_data(f"hf:{folder}?train=data/train-00001*&val=data/train-00000*")
    assert both.val.labels.tolist() == [0, 1, 1]
    assert load_data(f"hf:{folder}?train=test&val=train").train.labels.tolist() == [1, 0]


def test_without_a_held_out_split_the_seed_makes_one(tmp_path):
    write(tmp_path / "set/train.parquet", [0, 1] * 10)
    splits = [load_data(f"hf:{tmp_path}/set", seed=seed).val for seed in (0, 0, 1)]
    names = [[split.name(i) for i in range(len(split))] for split in splits]
    assert names[0] == names[1] != names[2]
    assert np.bincount(splits[0].labels).tolist() == [2, 2]


@pytest.mark.parametrize(
    "feature, labels, classes",
    [
        (datasets.Value("string"), ["dog", "cat", "dog"], ("cat", "dog")),
        (datasets.Value("int32"), [10, 9, 10], ("9", "10")),
    ],
)
def test_labels_may_be_plain_values(tmp_path, feature, labels, classes):
    for part in ("train", "validation"):
        write(tmp_path / f"set/{part}.parquet", labels, feature=feature)
    data = load_data(f"hf:{tmp_path}/set")
    assert data.classes == classes
    assert data.train.labels.tolist() == [1, 0, 1]


def test_bad_rows_are_named_and_nothing_else(tmp_path):
    cells = [{"bytes": png(0), "path": None}, {"bytes": b"", "path": "x.png"}, None]
    cells += [{"bytes": png(3)[:40], "path": None}, {"bytes": png(4), "path": None}]
    labels = [0, 1, 0, 1, 1]
    for part in ("train", "test"):
        write(tmp_path / f"set/{part}.parquet", labels, cells=cells)
    train = load_data(f"hf:{tmp_path}/set").train
    with pytest.raises(BadImageError, match=r"train\[1\] \(x.png\): the file is empty"):
        train.read(1)
    dataset = ImageDataset(train, lambda image: np.asarray(image), training=True)
    assert sorted(dataset.bad_images) == [1, 2, 3]


@pytest.mark.parametrize(
    "cell", [lambda content: {"bytes": content, "path": "x.png"}, lambda content: content]
)
def test_tables_of_other_libraries_do_not_say_what_an_image_is(tmp_path, cell):
    """pandas writes structs and bytes."""
    for part in ("train", "test"):
        table = pd.DataFrame({"photo": [cell(png(i)) for i in range(3)], "label": ["cat", "dog", "cat"]})
        (tmp_path / "set").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / f"set/{part}.parquet")
    train = load_data(f"hf:{tmp_path}/set").train
    assert [np.asarray(train.read(i)).max() for i in range(3)] == [0, 1, 2]


def test_pictures_in_files_beside_the_table(tmp_path):
    for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        path = tmp_path / "set" / part / name / "1.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png(5))
    data = load_data(f"hf:{tmp_path}/set")
    assert data.classes == ("a", "b")
    assert np.asarray(data.val.read(1)).max() == 5


def test_source_survives_pickling(folder):
    train = pickle.loads(pickle.dumps(load_data(f"hf:{folder}").train))
    assert np.asarray(train.read(2)).max() == 2


def test_columns_are_chosen_by_name_where_they_are_not_plain(tmp_path):
    extra = {"coarse": (datasets.ClassLabel(names=["x", "y"]), [1, 0, 1])}
    for part in ("train", "test"):
        write(tmp_path / f"set/{part}.parquet", [0, 1, 1], extra=extra)
    spec = f"hf:{tmp_path}/set"
    with pytest.raises(
        UserError, match=r"2 columns could be the label \('label', 'coarse'\).*\?label=COLUMN"
    ):
        load_data(spec)
    data = load_data(f"{spec}?label=coarse&image=image")
    assert data.classes == ("x", "y")
    assert data.train.labels.tolist() == [1, 0, 1]
    for options, message in (
        ("label=coarser", "Did you mean 'coarse'"),
        ("label=image", "neither class labels"),
        ("label=label&image=coarse", "column 'coarse' holds no images"),
        ("label=label&train=trian", "no split 'trian'.*Did you mean 'train'"),
        ("label=label&train=data/none-*", "cannot be loaded"),
        ("lable=label", "Did you mean 'label'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_data(f"{spec}?{options}")
        assert "\n" not in str(caught.value)


def test_parts_with_other_classes_or_without_labels(tmp_path):
    write(tmp_path / "other/train.parquet", [0, 1])
    write(tmp_path / "other/test.parquet", [0, 1], feature=datasets.ClassLabel(names=["cat", "cow"]))
    for options in ("", "?train=train.parquet&val=test.parquet"):
        with pytest.raises(UserError, match="training part has 'dog'; only the held-out part has 'cow'"):
            load_data(f"hf:{tmp_path}/other{options}")
    write(tmp_path / "hidden/train.parquet", [0, 1])
    write(tmp_path / "hidden/test.parquet", [-1, -1])
    with pytest.raises(UserError, match="2 held-out images without a class"):
        load_data(f"hf:{tmp_path}/hidden")
    write(tmp_path / "gaps/train.parquet", [0, None, 1])
    with pytest.raises(UserError, match="some rows have no 'label'"):
        load_data(f"hf:{tmp_path}/gaps")
    write(tmp_path / "empty/train.parquet", [0, 0])
    write(tmp_path / "empty/test.parquet", [0, 0])
    with pytest.raises(UserError, match="no training images of 'dog'"):
        load_data(f"hf:{tmp_path}/empty")


def test_no_such_folder_and_no_network():
    for spec in ("hf:", "hf:./nowhere", "hf:/nowhere/set", "hf:a/b/c", "hf:~nobody-of-that-name"):
        with pytest.raises(UserError, match=r"no such (home )?folder"):
            load_data(spec)
    with pytest.raises(UserError, match="hf:nobody/nothing: cannot be loaded"):
        load_data("hf:nobody/nothing")


def test_damaged_parquet(tmp_path):
    write(tmp_path / "set/train.parquet", [0, 1])
    (tmp_path / "set/test.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_data(f"hf:{tmp_path}/set")


def test_configurations_of_a_dataset_card(tmp_path):
    root = tmp_path / "set"
    write(root / "a/one.parquet", [0, 1])
    write(root / "b/two.parquet", [1, 0, 1])
    (root / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: small\n  data_files:\n"
        "  - split: train\n    path: a/one.parquet\n  - split: validation\n    path: b/two.parquet\n"
        "- config_name: other\n  data_files:\n  - split: train\n    path: b/two.parquet\n---\n"
    )
    data = load_data(f"hf:{root}?config=small")
    assert (len(data.train), len(data.val)) == (2, 3)
    with pytest.raises(UserError, match=r"small.*other") as caught:
        load_data(f"hf:{root}")
    assert "\n" not in str(caught.value)


# Several labels a row


def write_lists(root, feature, train, val=None, **extra):
    blank = [0] * len(train)
    for part, cells in (("train", train), ("test", val or train)):
        columns = {"objects": (feature, cells)} | {
            name: (kind, blank[: len(cells)]) for name, kind in extra.items()
        }
        write(root / f"{part}.parquet", [1.5] * len(cells), feature=datasets.Value("float32"), extra=columns)
    return f"hf:{root}"


@pytest.mark.parametrize(
    "item, cells, classes",
    [
        (LABEL, [[1, 0], [], [1, 1]], ("cat", "dog")),
        (datasets.Value("string"), [["dog", "cat"], [], ["dog"]], ("cat", "dog")),
        (datasets.Value("int16"), [[10, 9], [], [10]], ("9", "10")),
    ],
)
@pytest.mark.parametrize("kind", [datasets.List, datasets.Sequence, datasets.LargeList])
def test_a_column_of_lists_is_found_where_nothing_else_could_be_the_label(
    tmp_path, kind, item, cells, classes
):
    spec = write_lists(tmp_path / "set", kind(item), cells, [*cells, cells[0]])
    for data in (load_data(spec), load_data(f"{spec}?labels=objects")):
        assert (data.classes, data.multilabel) == (classes, True)
        assert data.train.labels.dtype == bool
        assert data.train.labels.tolist() == [[True, True], [False, False], [False, True]]
        assert len(data.val) == 4


def test_one_label_a_row_comes_before_lists(tmp_path):
    lists = datasets.List(datasets.Value("string"))
    spec = write_lists(tmp_path / "set", lists, [["a"], ["b"]], kind=datasets.Value("int32"))
    with pytest.raises(UserError, match=r"1 class \('0'\)"):
        load_data(spec)
    assert load_data(f"{spec}?labels=objects").classes == ("a", "b")
    for options, message in (
        ("labels=kind", "column 'kind' holds no lists"),
        ("labels=label", "column 'label' holds no lists"),
        ("label=objects", r"choose it with \?labels=objects"),
        ("label=kind&labels=objects", "give one of them"),
        ("labels=object", "Did you mean 'objects'"),
    ):
        with pytest.raises(UserError, match=message):
            load_data(f"{spec}?{options}")


def test_two_columns_of_lists(tmp_path):
    lists = datasets.List(LABEL)
    extra = {name: (lists, [[0], [1]]) for name in ("objects", "things")}
    for part in ("train", "test"):
        write(tmp_path / f"set/{part}.parquet", [1.5, 1.5], feature=datasets.Value("float32"), extra=extra)
    with pytest.raises(UserError, match=r"2 columns could be the label \('objects', 'things'\)"):
        load_data(f"hf:{tmp_path}/set")


def test_lists_that_are_not_whole(tmp_path):
    lists = datasets.List(LABEL)
    for name, cells, message in (
        ("null", [[0], None, [1]], "some rows have no 'objects'"),
        ("inside", [[0], [None], [1]], "some rows have no 'objects'"),
        ("odd", [[0], [1, -1]], "label -1, which is no class"),
        ("missing", [[0], [0]], "no training images of 'dog'"),
    ):
        with pytest.raises(UserError, match=message):
            load_data(write_lists(tmp_path / name, lists, cells))
    write_lists(tmp_path / "set", lists, [[0], [1]])
    other = datasets.List(datasets.ClassLabel(names=["cat", "cow"]))
    write(
        tmp_path / "set/test.parquet",
        [1.5],
        feature=datasets.Value("float32"),
        extra={"objects": (other, [[1]])},
    )
    with pytest.raises(UserError, match="training part has 'dog'; only the held-out part has 'cow'"):
        load_data(f"hf:{tmp_path}/set")


def test_lists_are_split_by_seed(tmp_path):
    extra = {"tags": (datasets.List(LABEL), [[0], [0, 1]] * 10)}
    write(tmp_path / "set/train.parquet", [1.5] * 20, feature=datasets.Value("float32"), extra=extra)
    data = load_data(f"hf:{tmp_path}/set")
    assert data.multilabel and data.val.labels.any(axis=0).all() and len(data.train) + len(data.val) == 20
