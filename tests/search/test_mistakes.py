"""What users do wrong to a search, or find in its folder: a line, and no result of another network."""

import json
import shutil

import pytest

from xnext._workers import require_free_of
from xnext.cli import main
from xnext.errors import UserError
from xnext.search import Search, Space
from xnext.search import search as search_module
from xnext.search.trial import Trial


def words(config) -> list[str]:
    plain = ("space", "trials", "max_epochs", "optimizer", "width", "image_size", "batch_size", "device")
    flat = [word for name in plain for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    return ["search", config.data, *flat]


def test_after_a_cut_journal_no_network_gets_the_result_of_another(config, tmp_path):
    Search.create(tmp_path / "search", config(trials=3)).run()
    journal = tmp_path / "search" / "journal.jsonl"
    settings = json.loads(journal.read_text().splitlines()[0])
    settings["settings"]["seed"] = 5
    journal.write_text(json.dumps(settings) + "\n")
    found = Search.open(tmp_path / "search")
    found.run()
    fresh = Search.create(tmp_path / "fresh", config(trials=3, seed=5))
    fresh.run()
    assert [one.query for one in found.history.records] == [one.query for one in fresh.history.records]
    assert [one.values for one in found.history.records] == [one.values for one in fresh.history.records]


def test_it_begins_in_no_folder_of_somebody_else(config, tmp_path):
    """Though of its own names; and leaves it as it is."""
    mine = tmp_path / "search" / "data" / "set.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match="search is not empty; choose another --output"):
        Search.create(tmp_path / "search", config())
    assert mine.read_text() == "mine" and [*tmp_path.rglob("*.*")] == [mine]
    with pytest.raises(
        UserError, match=r"cannot begin a search in .*set\.json: Not a directory; choose another"
    ):
        Search.create(mine, config())


def test_of_two_that_begin_one_is_told(config, tmp_path, monkeypatch):
    """Whether the other is at it, or was quicker while the first was reading the images."""
    path = tmp_path / "search"
    path.mkdir()
    with require_free_of(path, "another"), pytest.raises(UserError, match="a search is running there"):
        Search.create(path, config())
    check = search_module.check_networks

    def overtaken(*arguments):
        monkeypatch.setattr(search_module, "check_networks", check)
        Search.create(path, config(seed=7))
        return check(*arguments)

    monkeypatch.setattr(search_module, "check_networks", overtaken)
    with pytest.raises(UserError, match="search exists already; choose another --output, or go on"):
        Search.create(path, config(seed=8))
    assert Search.open(path).config.seed == 7


@pytest.mark.parametrize("left", [("journal.jsonl", ".data.tmp", ".lock"), (".data.tmp", ".lock")])
def test_a_kill_at_its_very_beginning(config, tmp_path, left):
    """Before its images have their name, it goes on; before it has a journal, it is begun again."""
    path = tmp_path / "search"
    Search.create(path, config(trials=1))
    (path / "data").rename(path / ".data.tmp")
    for entry in path.iterdir():
        if entry.name not in left:
            entry.unlink()
    search = Search.open(path) if "journal.jsonl" in left else Search.create(path, config(trials=1))
    search.run()
    assert [record.status for record in search.history.records] == ["success"]
    assert not (path / ".data.tmp").exists()


def test_without_its_images_it_does_not_go_on(config, tmp_path):
    """Each trial would fail, and be told so to the optimiser for ever."""
    Search.create(tmp_path / "search", config(trials=1)).run()
    search = Search.open(tmp_path / "search")
    shutil.move(tmp_path / "search" / "data", tmp_path / "data")
    search.resume({"trials": 2})
    before = (tmp_path / "search" / "journal.jsonl").read_bytes()
    with pytest.raises(
        UserError, match="data, the decoded images of the search, is missing or damaged; put it"
    ):
        search.run()
    assert (tmp_path / "search" / "journal.jsonl").read_bytes() == before
    shutil.move(tmp_path / "data", tmp_path / "search" / "data")
    search.run()
    assert [record.status for record in search.history.records] == ["success"] * 2


def test_networks_without_a_journal(config, tmp_path):
    Search.create(tmp_path / "search", config(trials=1)).run()
    (tmp_path / "search" / "journal.jsonl").unlink()
    with pytest.raises(UserError, match="holds networks of a search whose journal is missing"):
        Search.create(tmp_path / "search", config())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"limit": ("macs<=1", "macs<=2")}, "limit macs is given twice"),
        ({"device": "cuda"}, "PyTorch finds no GPU here"),
        ({"amp": "fp16"}, "amp fp16 needs a GPU"),
        (
            {"image_size": 1},
            "image size 1 is too small for networks of space .*space.yaml; use --image-size 2 or",
        ),
        ({"batch_size": 1}, "batch size 1: batch norm cannot normalise one image of this size"),
        ({"max_epochs": 10**12}, "max_epochs is 1000000000000; it must be at most 10000"),
        ({"workers": 10**22}, "workers is 10000000000000000000000; it must be at most 1000"),
        ({"image_size": 10**22}, "image_size is 10000000000000000000000; it must be at most"),
        ({"batch_size": 10**22}, "batch_size is 10000000000000000000000; it must be at most"),
        ({"objective": ("top2",)}, "unknown objective 'top2'. Did you mean 'top1'"),
        ({"width": 6e4}, "width 60000 makes networks that do not fit"),
        ({"width": 1e9}, "width 1e.09 makes networks that there are not: stem_dims=.* is too large"),
    ],
)
def test_what_cannot_be_leaves_nothing_behind(config, tmp_path, monkeypatch, changes, told):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=told):
        Search.create(tmp_path / "search", config(**changes))
    assert not (tmp_path / "search" / "journal.jsonl").exists()


def test_images_that_cannot_be_read_are_told_at_once(config, tmp_path):
    shutil.copytree(config().data, tmp_path / "pictures")
    victim = next((tmp_path / "pictures" / "train").glob("*/*.png"))
    content = victim.read_bytes()
    victim.write_bytes(content[:50])
    with pytest.raises(UserError, match=rf"1 of 48 training images cannot be read \('.*{victim.name}'\)"):
        Search.create(tmp_path / "search", config(data=str(tmp_path / "pictures")))
    victim.write_bytes(content)
    Search.create(tmp_path / "search", config(data=str(tmp_path / "pictures"), trials=1)).run()


@pytest.fixture(scope="module")
def searched(module_config, tmp_path_factory):
    """Return the folder of a search; tests must not change it."""
    path = tmp_path_factory.mktemp("searched") / "search"
    Search.create(path, module_config(trials=2)).run()
    return path


ALTERED = {
    "a word for a time": {"elapsed": "zz"}, "a word for a cost": {"costs": ["x"]}, "no costs": {"costs": []},
    "another status": {"status": "sucess"}, "a word for a value": {"values": {"top1": "high"}},
}  # fmt: skip


@pytest.mark.parametrize(
    "damage", ["a line is gone", "no status", "no point", "no settings", "another value", *ALTERED]
)
def test_a_journal_that_somebody_altered(searched, tmp_path, capsys, damage):
    shutil.copytree(searched, tmp_path / "search")
    journal = tmp_path / "search" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    asked = next(place for place, line in enumerate(lines) if "ask" in line)
    if damage == "a line is gone":
        del lines[asked]
    elif damage == "no point":
        del lines[asked]["point"]
    elif damage == "another value":
        lines[asked]["point"] = dict.fromkeys(lines[asked]["point"], "nothere")
    elif damage in ALTERED:
        next(line for line in lines if "tell" in line).update(ALTERED[damage])
    elif damage == "no status":
        next(line for line in lines if "tell" in line).pop("status")
    else:
        lines[0]["settings"] = {}
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["search", "show", str(tmp_path / "search")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is damaged" in line


def test_settings_that_somebody_altered(searched, tmp_path):
    shutil.copytree(searched, tmp_path / "search")
    journal = tmp_path / "search" / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"width": 1.0', '"width": "x"'))
    with pytest.raises(UserError, match=r"journal\.jsonl: width must be a number, not 'x'"):
        Search.open(tmp_path / "search")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            {"network": "xception", "choices": {"act": ["relu"]}, "conditions": {1: {"act": "relu"}}},
            "space mine: a condition of no choice: 1.",
        ),
        (
            {"network": "xception", "fixed": {"network": 3}, "choices": {"act": ["relu"]}},
            "space mine: act relu: unknown model 3. `xnext models` lists them.",
        ),
        (
            {
                "network": "xception",
                "choices": {"net": {"a": {"network": ["x"]}, "b": {"network": "xception"}}},
            },
            "space mine: net a: unknown model ['x']. `xnext models` lists them.",
        ),
    ],
    ids=["a number for a choice", "a number for a network", "a list for a network"],
)
def test_spaces_with_other_types(content, told):
    with pytest.raises(UserError) as error:
        Space("mine", content)
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["show", "DIR", "--train"], "`xnext search show` makes no use of --train"),
        (["show", "DIR", "--trials", "0"], "`xnext search show` makes no use of --trials"),
        (
            ["best", "DIR", "--output", "x", "--limit", "y"],
            "`xnext search best` makes no use of --output, --limit",
        ),
        (["--count", "--resume"], "`xnext search --count` makes no use of --resume"),
        (["--count", "photos"], "`xnext search --count` makes no use of 'photos'"),
        (["photos", "--output", "x", "--trials", "3", "--train"], "`xnext search` makes no use of --train"),
        (["--resume", "--output", "x", "--train"], "`xnext search` makes no use of --train"),
    ],
)
def test_options_that_do_nothing_are_refused(words, told, capsys):
    assert main(["search", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"xnext: error: {told}; leave it out"


def test_the_least_size_is_that_which_all_networks_take(config, tmp_path):
    """Of nexception, blur pooling after a stem of convolutions needs more than the first network."""
    with pytest.raises(UserError, match="use --image-size 11 or more"):
        Search.create(tmp_path / "search", config(space="nexception", width=0.1, image_size=8))
    assert not (tmp_path / "search").exists()
    checked = Search.create(tmp_path / "search", config(space="nexception", width=0.1, image_size=11))
    assert checked.config.image_size == 11


def test_a_limit_that_nothing_meets_ends_the_search(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("xnext.search.search._REJECTED_AT_FIRST", 4)
    limited = config(trials=100, limit=("params<=1000", "macs<=1e9"))
    search = Search.create(tmp_path / "search", limited)
    with pytest.raises(UserError) as told:
        search.run()
    sizes = [record.values for record in search.history.records]
    least = [min(size[name] for size in sizes) for name in ("params", "macs")]
    assert str(told.value) == (
        f"each of the first 4 networks is over a limit (params<=1,000: the smallest has {least[0]:,};"
        f" macs<=1,000,000,000: the smallest has {least[1]:,}); begin another search with higher ones, or"
        " look further with --resume"
    )
    assert len(sizes) == 4 and least[0] > 1000
    assert main(["search", "--resume", "--output", str(tmp_path / "search")]) == 2
    assert "each of the first 8 networks is over a limit" in capsys.readouterr().err
    monkeypatch.setattr("xnext.search.search._REJECTED_AT_FIRST", 100)
    whole = Search.create(tmp_path / "whole", config(trials=8, limit=limited.limit))
    whole.run()
    found = Search.open(tmp_path / "search").history.records
    assert [record.query for record in found] == [record.query for record in whole.history.records]
    assert [record.values for record in found] == [record.values for record in whole.history.records]


def test_a_search_whose_first_trainings_all_fail_ends(config, tmp_path, monkeypatch):
    """Also where some networks before them are over a limit."""

    def diverging(**told) -> Trial:
        return Trial(**told | {"training": told["training"] | {"lr": "1e30"}})

    monkeypatch.setattr("xnext.search.search.Trial", diverging)
    search = Search.create(tmp_path / "search", config(trials=100, limit=("params<=7000",)))
    with pytest.raises(UserError, match=r"each of the first 5 trials went wrong, the last one so: diverged"):
        search.run()
    assert [record.status for record in search.history.records].count("diverged") == 5
    assert "rejected" in [record.status for record in search.history.records]
    assert search.history.records[-1].status == "diverged"
    with pytest.raises(UserError, match="each of the first 10 trials went wrong"):
        Search.open(tmp_path / "search").run()


def test_of_two_that_go_on_the_later_is_told(config, tmp_path):
    """It has read the journal before the other wrote into it."""
    Search.create(tmp_path / "search", config(trials=1))
    one, other = (Search.open(tmp_path / "search") for _ in range(2))
    one.run()
    journal = (tmp_path / "search" / "journal.jsonl").read_bytes()
    with pytest.raises(UserError, match="has got lines of another process meanwhile"):
        other.run()
    assert (tmp_path / "search" / "journal.jsonl").read_bytes() == journal


def test_it_says_when_nothing_is_left_and_why_nothing_succeeded(config, tmp_path, capsys):
    small = tmp_path / "small.yaml"
    small.write_text("network: nexception_debug\nchoices: {act: [relu, gelu]}\n")
    command = [*words(config(space=str(small), trials=30, max_epochs=1)), "--output", str(tmp_path / "a")]
    assert main(command) == 0
    assert "nothing left to try" in capsys.readouterr().out
    assert main(["search", "show", str(tmp_path / "a")]) == 0
    assert "nothing is left to try" in capsys.readouterr().out
    limited = [*words(config(trials=2)), "--limit", "params<=10", "--output", str(tmp_path / "b")]
    assert main(limited) == 2
    assert "the last one so: rejected (params" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "b")]) == 0
    page = (tmp_path / "b" / "report.html").read_text()
    assert "No trial succeeded." in page and page.count("<td>rejected</td>") == 2
