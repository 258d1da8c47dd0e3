"""What users do wrong to a search, or find in its folder: a line, and no result of another network."""

import json
import shutil

import pytest

from xnext.cli import main
from xnext.errors import UserError
from xnext.search import Search, Space


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
        ({"width": 1e9}, "width 1e.09 makes networks that do not fit"),
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


@pytest.mark.parametrize("damage", ["a line is gone", "no status", "no point", "no settings"])
def test_a_journal_that_somebody_altered(config, tmp_path, capsys, damage):
    Search.create(tmp_path / "search", config(trials=2)).run()
    journal = tmp_path / "search" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    asked = next(place for place, line in enumerate(lines) if "ask" in line)
    if damage == "a line is gone":
        del lines[asked]
    elif damage == "no point":
        del lines[asked]["point"]
    elif damage == "no status":
        next(line for line in lines if "tell" in line).pop("status")
    else:
        lines[0]["settings"] = {}
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for command in (["search", "show", str(tmp_path / "search")],):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "is damaged" in line


@pytest.mark.parametrize(
    "content",
    [
        {"network": "xception", "choices": {"act": ["relu"]}, "conditions": {1: {"act": "relu"}}},
        {"network": "xception", "fixed": {"network": 3}, "choices": {"act": ["relu"]}},
        {"network": "xception", "choices": {"net": {"a": {"network": ["x"]}, "b": {"network": "xception"}}}},
    ],
    ids=["a number for a choice", "a number for a network", "a list for a network"],
)
def test_spaces_with_other_types(content):
    with pytest.raises(UserError):
        Space("mine", content)


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
