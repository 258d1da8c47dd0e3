"""The table of tiles and winners, and how it is measured again."""

import json
from collections.abc import Callable

import pytest
import torch
from triton.runtime.errors import OutOfResources

from xnext.kernels import _backend, _tiles, tune
from xnext.kernels._operators import OPERATORS

ON_GPU = torch.cuda.is_available()


@pytest.fixture
def tiles(monkeypatch):
    """A copy of the table that a test may change."""
    rows = {operation: dict(sizes) for operation, sizes in _tiles.read_tiles().items()}
    monkeypatch.setattr(tune, "read_tiles", lambda: rows)
    return rows


def test_the_fastest_tile_is_found():
    def seconds(tile: _tiles.Tile) -> float:
        return abs(tile.places - 1024) + abs(tile.warps - 8) * 100 + (not tile.keep)

    start = _tiles.Tile(places=256, keep=False)
    assert tune.improve(start, ["places", "warps", "keep"], seconds) == _tiles.Tile(places=1024, warps=8)
    assert tune.improve(start, ["places"], seconds) == _tiles.Tile(places=1024, keep=False)


@pytest.mark.parametrize(
    ("times", "least"),
    [
        ([(10, 2.0, 1.0), (20, 1.0, 2.0), (40, 1.0, 2.0)], 20),
        ([(10, 1.0, 2.0), (20, 2.0, 1.0), (40, 1.0, 2.0)], 40),
        ([(20, 1.0, 2.0), (20, 2.0, 1.0), (40, 1.0, 2.0)], 40),
        ([(10, 1.0, 2.0), (40, 1.0, 1.0)], None),
        ([(10, 1.0, 2.0)], 10),
    ],
)
def test_who_wins_does_so_at_every_larger_size(times, least):
    assert tune.least_winning(times) == least


@pytest.mark.parametrize("operation", _tiles.read_tiles())
def test_every_row_can_be_measured(device, tiles, operation):
    """With the smallest images, and a clock that prefers few warps."""
    size = next(iter(tiles[operation]))
    called = []

    def measure(call: Callable[[], object]) -> float:
        if not called:
            called.append(call())
        return tiles[operation][size].warps

    call = tune.work(operation, size, (1, 8, 4, 4), device)
    assert tune.tune_tile(operation, size, call, measure).warps == 2
    assert called[0] is not None and tiles[operation][size].warps == 2


def test_a_tile_that_is_too_large_is_not_chosen(device, tiles):
    def measure(call: Callable[[], object]) -> float:
        if tiles["pool"][3, 3, 2].places > 512:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return 1 / tiles["pool"][3, 3, 2].places

    assert tune.tune_tile("pool", (3, 3, 2), lambda: None, measure).places == 512
    with pytest.raises(ZeroDivisionError):
        tune.tune_tile("pool", (3, 3, 2), lambda: None, lambda call: 1 / 0)


def test_winners_are_measured_in_every_way(device, monkeypatch):
    monkeypatch.setattr(tune, "SHAPES", ((8, 3),))
    monkeypatch.setattr(tune, "BATCHES", (1, 2))
    calls = []

    def measure(call: Callable[[], object]) -> float:
        calls.append(call())
        return len(calls) % 2

    operators = [OPERATORS[name] for name in ("3x3 stride 1", "max-blur")]
    if ON_GPU:
        operators = list(OPERATORS.values())
    assert dict(tune.find_winners(operators, device, measure)) == {}
    assert len(calls) == len(operators) * 2 * 2 * 2 * 2
    for ours, theirs in zip(calls[::2], calls[1::2], strict=True):
        ours, theirs = (results if isinstance(results, tuple) else (results,) for results in (ours, theirs))
        assert [one.shape for one in ours] == [other.shape for other in theirs]
    found = dict(tune.find_winners(operators[:1], device, lambda call: -measure(call)))
    assert found == {
        f"3x3 stride 1 {bits}-bit {mode}": 72 for bits in (16, 32) for mode in ("inference", "training")
    }


def test_the_table_is_written_as_it_was_read():
    table = _tiles.read_table()
    text = tune.dump(table)
    assert json.loads(text) == table
    assert '"5x5x1": {"channels": 32, "warps": 2, "keep": false}' in text
    assert all(len(line) < 130 for line in text.splitlines())
    rows = {
        "x".join(map(str, size)): tune.changed(tile) for size, tile in _tiles.read_tiles()["input"].items()
    }
    assert rows == table["tiles"]["input"]


def test_a_new_table_counts_at_once(monkeypatch, tmp_path):
    """The same process may go on to measure networks with it."""
    path = tmp_path / "tiles.json"
    monkeypatch.setattr(_tiles.resources, "files", lambda package: tmp_path)
    tune.write_table(path, _tiles.read_table() | {"winners": {"9.0": {"a": 1}}})
    try:
        assert _backend._winners((9, 0)) == {"a": 1}
    finally:
        _tiles.read_table.cache_clear()
        _tiles.read_tiles.cache_clear()


@pytest.mark.skipif(ON_GPU, reason="would measure")
def test_without_a_gpu_it_says_so(capsys):
    assert tune.main([]) == 2
    assert capsys.readouterr().err == "xnext.kernels.tune: error: PyTorch finds no GPU here\n"
