import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xnext.training.states import States


def state(value: float) -> dict:
    return {"value": value, "weights": {"w": torch.full((50,), value)}, "none": None, "rows": [{"epoch": 1}]}


def same(one: dict, other: dict) -> bool:
    return one["value"] == other["value"] and torch.equal(one["weights"]["w"], other["weights"]["w"])


def test_the_newest_state_is_loaded_and_only_as_many_are_kept(tmp_path):
    states = States(tmp_path, keep=3)
    assert states.load() == (None, [])
    for step in (1, 9, 10, 100):
        states.save(step, state(step))
    loaded, damaged = States(tmp_path).load()
    assert same(loaded, state(100)) and not damaged
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
        f"state-{step:08}.pt" for step in (9, 10, 100)
    ]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[: len(b) // 2], bytes.upper])
def test_a_damaged_state_is_passed_over_and_said(tmp_path, damage):
    states = States(tmp_path)
    states.save(1, state(1))
    newest = states.save(2, state(2))
    newest.write_bytes(damage(newest.read_bytes()))
    loaded, damaged = states.load()
    assert same(loaded, state(1))
    assert len(damaged) == 1 and f"{newest} is damaged" in damaged[0]


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_changes_nothing_that_is_loaded(tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("states")
    states = States(folder)
    states.save(1, state(1))
    newest = states.save(2, state(2))
    content = bytearray(newest.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    newest.write_bytes(content)
    loaded, damaged = states.load()
    assert same(loaded, state(1) if damaged else state(2))


@pytest.mark.parametrize("pointer", ["", "state-00000001.pt", "nothing", "\xff"])
def test_a_pointer_that_is_behind_or_damaged_is_no_matter(tmp_path, pointer):
    states = States(tmp_path)
    for step in (1, 2):
        states.save(step, state(step))
    (tmp_path / "newest-state").write_text(pointer)
    loaded, _ = states.load()
    assert same(loaded, state(1 if pointer.endswith("1.pt") else 2))
