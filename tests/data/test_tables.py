import csv
import io

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xnext.data import BadImageError, absolute_spec, load_data
from xnext.errors import UserError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def files(source):
    return [source.name(i) for i in range(len(source))]


def rows(*lines):
    return "".join(f"{line}\n" for line in lines)


def damaged(original):
    """Bytes that were cut off or changed here and there, or that are something else."""
    changes = st.lists(st.tuples(st.integers(0, len(original) - 1), st.integers(0, 255)), max_size=8)

    def change(pairs):
        content = bytearray(original)
        for place, value in pairs:
            content[place] = value
        return bytes(content)

    cut = st.integers(0, len(original)).map(lambda end: original[:end])
    return st.one_of(st.binary(max_size=300), cut, changes.map(change))


# One class a row


def test_paths_are_relative_to_each_table(tmp_path):
    outside = tmp_path / "outside.png"
    for grey, path in enumerate((tmp_path / "train/a.png", tmp_path / "held/a.png", outside)):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3), (grey, grey, grey)).save(path)
    train = write(tmp_path / "train/photos.csv", rows("file,label", "a.png,dog", f"{outside},cat"))
    val = write(tmp_path / "held/photos.csv", rows("label,file", "cat,a.png"))
    data = load_data(f"{train}?val={val}")
    assert (data.classes, data.multilabel) == (("cat", "dog"), False)
    assert files(data.train) == [str(tmp_path / "train/a.png"), str(outside)]
    assert files(data.val) == [str(tmp_path / "held/a.png")]
    assert (data.train.labels.tolist(), data.val.labels.tolist()) == ([1, 0], [0])
    assert data.train.labels.dtype == np.int64
    assert [np.asarray(part.read(0)).max() for part in (data.train, data.val)] == [0, 1]


def test_text_stays_as_it_is_written(tmp_path):
    table = write(tmp_path / "t.csv", rows("path,label,split", '"a, b.png","007",train', "0x1F, NA ,train"))
    write(tmp_path / "v.csv", rows("path,label", "001,nan", "1e3,007"))
    with pytest.raises(UserError, match="no training images of 'nan'"):
        load_data(f"{table}?val={tmp_path}/v.csv")
    write(tmp_path / "v.csv", "\ufeffpath,label\r\n001,NA\r\n\r\n1e3,007\r\n")  # as Excel writes it
    data = load_data(f"{table}?val={tmp_path}/v.csv")
    assert data.classes == ("007", "NA")
    assert files(data.train) == [str(tmp_path / "a, b.png"), str(tmp_path / "0x1F")]
    assert files(data.val) == [str(tmp_path / "001"), str(tmp_path / "1e3")]


@pytest.mark.parametrize(
    "labels, classes",
    [
        (["10", "9", "-1", "9.5"], ("-1", "9", "9.5", "10")),
        (["10", "9", "a", "1"], ("1", "10", "9", "a")),
        (["1", "01", "1.0", "0"], ("0", "01", "1", "1.0")),
    ],
)
def test_classes_are_sorted_by_value_if_all_are_numbers(tmp_path, labels, classes):
    table = write(tmp_path / "t.csv", rows("file,class", *(f"{i}.png,{x}" for i, x in enumerate(labels * 2))))
    data = load_data(table)
    assert data.classes == classes
    for part in (data.train, data.val):
        for name, label in zip(files(part), part.labels, strict=True):
            assert labels[int(name.removesuffix(".png").rpartition("/")[2]) % 4] == classes[label]


@pytest.mark.parametrize("name", ["image", "Path", "file_name", "image_path", "filename"])
@pytest.mark.parametrize("ending, comma", [("csv", ","), ("TSV", "\t")])
def test_plain_columns_are_found(tmp_path, name, ending, comma):
    lines = [f"id{comma}{name}{comma}Label", *(f"{i}{comma}{i}.png{comma}{'ab'[i % 2]}" for i in range(10))]
    data = load_data(write(tmp_path / f"t.{ending}", rows(*lines)), seed=1)
    assert (len(data.train), len(data.val), data.classes) == (8, 2, ("a", "b"))
    again, other = (load_data(str(tmp_path / f"t.{ending}"), seed=seed) for seed in (1, 2))
    assert files(again.val) == files(data.val) != files(other.val)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=6, unique_by=str.strip
    )
)
def test_every_name_survives(tmp_path_factory, names):
    names = [name for name in names if name.strip()]
    if len(names) < 2:
        return
    text = io.StringIO()
    csv.writer(text).writerows([("file", "label"), *((f"{i}.png", name) for i, name in enumerate(names * 2))])
    data = load_data(write(tmp_path_factory.mktemp("t") / "t.csv", text.getvalue()))
    assert set(data.classes) == {name.strip() for name in names}


# Several classes a row


@pytest.mark.parametrize(
    "options, cells",
    [
        ("", ["cat|dog", "dog; owl ;dog", "", "owl"]),
        ("?labels=tags", ["dog|cat", "owl|dog", "|", " owl"]),
        ("?labels=tags&separator=.", ["cat.dog", "dog.owl", ".", "owl"]),
    ],
)
def test_several_classes_in_a_cell(tmp_path, options, cells):
    table = rows("image,tags", *(f"{i}.png,{cell}" for i, cell in enumerate(cells)))
    val = write(tmp_path / "v.csv", table)
    data = load_data(write(tmp_path / "t.csv", table) + f"{options or '?'}&val={val}".replace("?&", "?"))
    assert (data.classes, data.multilabel) == (("cat", "dog", "owl"), True)
    assert data.train.labels.dtype == bool
    assert data.train.labels.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]]


def test_label_and_labels_choose_how_a_column_is_read(tmp_path):
    table = write(tmp_path / "t.csv", rows("image,label,tags", *["1.png,a|b,x", "2.png,c,x|y"] * 2))
    with pytest.raises(
        UserError, match=r"2 columns could be the label \('label', 'tags'\) among .*labels=COLUMN"
    ):
        load_data(table)
    assert load_data(f"{table}?label=label").classes == ("a|b", "c")
    assert load_data(f"{table}?labels=label").classes == ("a", "b", "c")
    assert load_data(f"{table}?labels=tags").multilabel


@pytest.mark.parametrize("no, yes", [("0", "1"), ("False", "TRUE"), ("0.0", "1.0")])
def test_a_column_a_class(tmp_path, no, yes):
    head = ",Path,zebra,ant,split"  # pandas writes its row numbers into a column without a name
    lines = [f"0,1.jpg,{yes},{no},train", f"1,2.jpg,{no},{yes},train", f"2,3.jpg,{no},{no},valid"]
    data = load_data(write(tmp_path / "t.csv", rows(head, *lines)))
    assert (data.classes, data.multilabel) == (("zebra", "ant"), True)
    assert data.train.labels.tolist() == [[True, False], [False, True]]
    assert data.val.labels.tolist() == [[False, False]]


def test_classes_of_columns_are_matched_by_name(tmp_path):
    table = write(tmp_path / "t.csv", rows("file,a,b", "1.png,1,0", "2.png,0,1"))
    val = write(tmp_path / "v.csv", rows("b,Split,file,a", "1,train,3.png,0", "0,test,4.png,1"))
    assert load_data(f"{table}?val={val}").val.labels.tolist() == [[False, True], [True, False]]
    assert load_data(f"{val}?val={table}").classes == ("b", "a")
    write(tmp_path / "v.csv", rows("b,file,c", "1,3.png,0"))
    with pytest.raises(UserError, match="training part has 'a'; only the held-out part has 'c'"):
        load_data(f"{table}?val={val}")


# Splits


@pytest.mark.parametrize(
    "words, held_out",
    [
        (["train", "train", "val", "test"], [2]),
        (["Train", "TRAIN", "test", "validation"], [3]),
        (["train", "train", "test", "test"], [2, 3]),
        (["train", "train", "valid", "val"], [2, 3]),
        (["train", "train", "train", "train"], None),
    ],
)
def test_a_column_splits_the_rows(tmp_path, words, held_out):
    cells = zip("abab", words, strict=True)
    table = write(
        tmp_path / "t.csv", rows("file,label,part", *(f"{i},{a},{b}" for i, (a, b) in enumerate(cells)))
    )
    data = load_data(f"{table}?split=part")
    if held_out is None:
        assert (len(data.train), len(data.val)) == (2, 2)
    else:
        assert files(data.train) == [str(tmp_path / "0"), str(tmp_path / "1")]
        assert files(data.val) == [str(tmp_path / str(i)) for i in held_out]
        assert data.val.labels.tolist() == [i % 2 for i in held_out]


# Parquet


def test_parquet_columns(tmp_path):
    frame = pandas.DataFrame({"file": ["1.png", "2.png", "3.png"], "label": [10, 9, 10]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "v.csv")
    data = load_data(f"{tmp_path}/t.parquet?val={tmp_path}/v.csv")
    assert data.classes == ("9", "10")
    assert data.train.labels.tolist() == data.val.labels.tolist() == [1, 0, 1]
    assert files(data.train) == files(data.val) == [str(tmp_path / f"{i}.png") for i in (1, 2, 3)]


@pytest.mark.parametrize(
    "cells, classes",
    [
        ([["b", "a"], [], None, ["b", None]], ("a", "b")),
        ([[2, 11], [], None, [11]], ("2", "11")),
        (["b|a", "", None, "b"], ("a", "b")),
        ([2.0, 11.0, None, 11.0], ("2", "11")),
    ],
)
def test_parquet_labels(tmp_path, cells, classes):
    table = pyarrow.table({"image": [f"{i}.png" for i in range(4)], "labels": cells})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    data = load_data(f"{tmp_path}/t.parquet?val={tmp_path}/t.parquet")
    assert data.classes == classes
    expected = [[True, cells[0] != 2.0], [False, cells[1] == 11.0], [False, False], [False, True]]
    assert data.train.labels.tolist() == expected


def test_parquet_index_and_truth(tmp_path):
    index = pandas.Index(["1.png", "2.png"], name="file")
    pandas.DataFrame({"b": [True, False], "a": [0.0, 1.0]}, index=index).to_parquet(tmp_path / "t.parquet")
    frame = pandas.DataFrame({"file": ["0", "1.png", "2.png"], "b": [1, 1, 0], "a": [1, 0, 1]})
    frame[frame.file != "0"].to_parquet(tmp_path / "v.parquet")  # with a nameless index of 1 and 2
    data = load_data(f"{tmp_path}/t.parquet?val={tmp_path}/v.parquet")
    assert data.classes == ("b", "a")
    assert data.train.labels.tolist() == data.val.labels.tolist() == [[True, False], [False, True]]
    assert files(data.train) == files(data.val) == [str(tmp_path / "1.png"), str(tmp_path / "2.png")]


def test_parquet_with_other_things(tmp_path):
    columns = {"image": [{"bytes": b"x", "path": "1.png"}] * 2, "file": ["1", "2"], "label": [["a"], ["b"]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    for options, message in (
        ("?image=image&labels=label", r"'image' holds no text; pictures in a table are read by hf:FOLDER"),
        ("?image=file", r"'label' holds no text; .*\?labels=label"),
        ("?image=file&labels=image", "'image' holds neither text nor lists"),
    ):
        with pytest.raises(UserError, match=message):
            load_data(f"{tmp_path}/t.parquet{options}")
    twice = pyarrow.Table.from_arrays([pyarrow.array(["1"])] * 2, names=["file", "file"])
    pyarrow.parquet.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="more than one column is called 'file'"):
        load_data(f"{tmp_path}/t.parquet")


# Paths and places


def test_absolute_specs_work_from_any_folder(tmp_path, monkeypatch):
    write(tmp_path / "set/t.csv", rows("file,label", "1.png,a", "2.png,b"))
    write(tmp_path / "set/v.csv", rows("file,label", "3.png,a"))
    (tmp_path / "link.csv").symlink_to("set/t.csv")
    monkeypatch.chdir(tmp_path)
    for table, place in (
        ("set/t.csv", tmp_path / "set"),
        ("link.csv", tmp_path),
        ("set/../link.csv", tmp_path),
    ):
        spec = f"{table}?val=set/v.csv&label=label"
        wanted = [[str(place / "1.png"), str(place / "2.png")], [str(tmp_path / "set/3.png")]]
        absolute = absolute_spec(spec)
        with monkeypatch.context() as context:
            context.chdir("/")
            data = load_data(absolute)
            assert [files(data.train), files(data.val)] == wanted
            assert absolute_spec(absolute) == absolute


def test_images_are_not_looked_for_while_loading(tmp_path):
    data = load_data(write(tmp_path / "t.csv", rows("file,label", *["1\0.png,a", "none.png,b"] * 2)))
    for index in range(2):
        with pytest.raises(BadImageError, match="cannot be opened"):
            data.train.read(index)


# Mistakes


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("", "", "it is empty"),
        ("\n\n", "", "it is empty"),
        ("file,label\n", "", "it has no rows"),
        ("file,label\n1.png,a,b\n2.png,b\n", "", "line 2 has 3 cells, and the first 2"),
        ("file,label\n1.png,a\n\n2.png\n", "", "line 4 has 1 cells, and the first 2"),
        ('file,label\n"1.png,a\n', "", "unexpected end of data"),
        ("file,label, label\n1.png,a,b\n", "", "more than one column is called 'label'"),
        ("file,label\n1.png,b\xe4r\n".encode("latin-1"), "", "no UTF-8 text"),
        ("file,label\n1.png,a\n".encode("utf-16"), "", "no UTF-8 text"),
        (
            "photo,label\n1.png,a\n",
            "",
            r"no image column among 'photo', 'label'; choose one with \?image=COLUMN",
        ),
        ("path,file,label\n1,1,a\n", "", r"2 columns could be the image \('path', 'file'\)"),
        ("file,label\n1.png,a\n", "?image=fiel", "no column 'fiel'; .*Did you mean 'file'"),
        ("file,label\n1.png,a\n", "?label=labl", "no column 'labl'; .*Did you mean 'label'"),
        ("file,label\n1.png,a\n", "?lable=a", "unknown option 'lable'.*Did you mean 'label'"),
        ("file,label\n1.png,a\n", "?label=label&labels=label", "give one of them"),
        ("file,label\n1.png,a\n", "?separator=x", "separator= is for .* add labels=COLUMN"),
        ("file,a\n1.png,0\n", "?separator=x", "separator= is for .* add labels=COLUMN"),
        ("file,label\n1.png,a\n2.png,\n", "", "row 2 has no 'label'"),
        ("file,label\n,a\n2.png,b\n", "", "row 1 has no 'file'"),
        (
            "file,species\n1.png,a\n",
            "",
            r"no label column among 'file', 'species'; .*row 1 of .* has 'a' in 'species'",
        ),
        ("file,a,b\n1.png,0,1\n2.png,1,\n", "", "row 2 of .* has '' in 'b'"),
        ("file,a,b\n1.png,0,1\n2.png,1,-1\n", "", "row 2 of .* has '-1' in 'b'"),
        ("file\n1.png\n", "", "no label column among 'file'"),
        (
            "file,label,split\n1,a,train\n2,b,tets\n",
            "",
            "row 2 has 'tets' in column 'split'.*Did you mean 'test'",
        ),
        ("file,label,split\n1,a,train\n2,b,\n", "", "row 2 has no 'split'"),
        ("file,label,split\n1,a,test\n2,b,test\n", "", "no training images"),
        (
            "file,label,split\n1,a,train\n2,b,train\n",
            "?split=splitt",
            "no column 'splitt'.*Did you mean 'split'",
        ),
        ("file,label,split\n1,a,train\n2,b,train\n", "?split=split&val=x.csv", "give one of them"),
        (
            "file,label\n1,a\n2,b\n",
            "?val=nowhere.csv",
            r"nowhere.csv: cannot be read as a table \(No such file",
        ),
        ("file,label\n1,a\n2,b\n", "?val=v.txt", r"v.txt: no table; one ends in .csv, .tsv, .parquet"),
        ("file,label\n1,a\n2,a\n", "", r"1 class \('a'\)"),
        ("file,label\n1,a\n2,a\n3,b\n", "", "class 'b' has 1 image"),
        ("file,labels\n1,\n2,\n", "", "0 class;"),
    ],
)
def test_a_table_that_cannot_be_trained_on(tmp_path, text, options, message):
    table = write(tmp_path / "t.csv", text)
    with pytest.raises(UserError, match=message) as caught:
        load_data(table + options)
    assert "\n" not in str(caught.value)
    assert options or table in str(caught.value)


def test_other_columns_in_the_held_out_table(tmp_path):
    table = write(tmp_path / "t.csv", rows("file,label", "1,a", "2,b"))
    val = write(tmp_path / "v.csv", rows("file,class", "3,a"))
    with pytest.raises(UserError, match=r"v\.csv: no column 'label'; there are 'file', 'class'"):
        load_data(f"{table}?val={val}")


def test_what_is_no_file(tmp_path):
    (tmp_path / "t.csv").mkdir()
    for spec in (f"{tmp_path}/t.csv", f"{tmp_path}/none.parquet", "~nobody-of-that-name/t.csv", "\0.csv"):
        with pytest.raises(UserError):
            load_data(spec)


@settings(max_examples=150, deadline=None)
@given(content=damaged(b'file,labels,split\n"1.png",a|b,train\n2.png,"b",train\n3.png,a,test\n'))
def test_damaged_text_loads_or_is_a_user_error(tmp_path_factory, content):
    load_or_refuse(tmp_path_factory.getbasetemp() / "damaged.csv", content)


def parquet():
    stream = io.BytesIO()
    table = pyarrow.table(
        {"file": ["1.png", "2.png"], "labels": [["a"], ["a", "b"]], "split": ["train", "val"]}
    )
    pyarrow.parquet.write_table(table, stream)
    return stream.getvalue()


@settings(max_examples=150, deadline=None)
@given(content=damaged(parquet()))
def test_damaged_parquet_loads_or_is_a_user_error(tmp_path_factory, content):
    load_or_refuse(tmp_path_factory.getbasetemp() / "damaged.parquet", content)


def load_or_refuse(path, content):
    path.write_bytes(content)
    try:
        load_data(str(path))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
