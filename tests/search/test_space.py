"""Spaces: their points are values of the config, and what is no point is told in a line."""

import itertools
import random
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import xnext
from xnext.errors import UserError
from xnext.models import get_config
from xnext.search import Space

NEXCEPTION_T = {
    "stem": "patchify", "entry_kernel_size": "5", "middle_kernel_size": "5", "pool": "blur",
    "middle_block": "bottleneck", "squeeze_excite": "true", "act": "gelu", "entry_acts": "1",
    "middle_acts": "1", "norm": "batch", "entry_norms": "0+1", "middle_norms": "0+1",
}  # fmt: skip
XCEPTION = {
    "stem": "conv", "entry_kernel_size": "3", "middle_kernel_size": "3", "pool": "max",
    "middle_block": "plain", "squeeze_excite": "false", "act": "relu", "entry_acts": "0+1",
    "middle_acts": "0+1+2", "norm": "batch", "entry_norms": "0+1", "middle_norms": "0+1+2",
}  # fmt: skip
SMALL = {
    "network": "xception_debug",
    "choices": {"act": ["relu", "gelu"], "middle_block": ["plain", "bottleneck"], "expansion": [2, 3]},
    "conditions": {"expansion": {"middle_block": "bottleneck"}},
    "forbidden": [{"act": "relu", "expansion": 2}],
}
ALONE: dict[str, Any] = {"conditions": {}, "forbidden": []}


@pytest.fixture(scope="module")
def nexception() -> Space:
    return Space.load("nexception")


def test_the_published_networks_are_points(nexception):
    assert nexception.full_size(NEXCEPTION_T).config == get_config("nexception_t")
    theirs, ours = get_config("xception"), nexception.full_size(XCEPTION).config
    fields = {field for values in nexception.choices.values() for part in values.values() for field in part}
    assert fields > {"stem_dims", "middle_norms", "pool"}
    assert all(getattr(ours, field) == getattr(theirs, field) for field in fields)
    assert ours.middle_depth == theirs.middle_depth == 8


def test_the_search_is_at_reduced_size(nexception):
    config = nexception.architecture(NEXCEPTION_T, width=1 / 8).config
    assert (config.middle_depth, config.entry_dims, config.exit_dim) == (4, (64,), 128)
    network = xnext.create_model("xception", **nexception.architecture(NEXCEPTION_T, 1 / 8).model_args)
    assert sum(p.numel() for p in network.parameters()) < 1e6


def test_there_are_more_than_fifty_thousand_networks(nexception):
    assert nexception.count() == 2 * 4 * 4 * 3 * 2 * 2 * 4 * 3 * 7 * 2 * 3 * 7 > 50_000


@pytest.mark.parametrize("name", ["nexception"])
def test_counting_apart_is_counting_all(name):
    """Of a space that is small enough: the same choices, two values each."""
    space = Space.load(name)
    content = {
        "network": space._network,
        "fixed": space._fixed,
        "choices": {choice: dict(list(values.items())[:2]) for choice, values in space.choices.items()},
    }
    small = Space("small", content)
    points = list(small.points())
    configs = {small.architecture(point).config for point in points}
    assert small.count() == len(configs) == len(points) == 2 ** len(small.choices)


def test_the_union_counts_what_it_lists():
    """With all its conditions and prohibitions, but fewer values of most choices."""
    content = Space.load("union").content
    keep = {"stages": 3, "mixer": 3, "segments": 4}
    choices = {}
    for choice, values in content["choices"].items():
        most = keep.get(choice, 2 if choice in ("width", "branch_ratio", "kernel_size", "act") else 1)
        kept = list(values.items() if isinstance(values, dict) else values)[:most]
        choices[choice] = dict(kept) if isinstance(values, dict) else kept
    choices |= {"kernel_size": [3, 7], "entry_kernel_size": [3, 7, 9]}
    space = Space("small", content | {"choices": choices, "forbidden": content["forbidden"][:1]})
    points = list(space.points())
    assert space.count() == len({space.architecture(point).config for point in points}) == len(points) > 200


def test_every_network_of_the_union_computes():
    """At the size of a search; fused, it computes the same."""
    space, generator = Space.load("union"), random.Random(0)
    assert space.count() > 10**8
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen: dict[str, set[str]] = {}
    for _ in range(25):
        point = space.draw(generator)
        for choice, value in point.items():
            seen.setdefault(choice, set()).add(value)
        architecture = space.architecture(point, 1 / 8)
        network = xnext.create_model(architecture.model, num_classes=5, **architecture.model_args).eval()
        with torch.inference_mode():
            logits = network(image)
            assert logits.shape == (2, 5)
            torch.testing.assert_close(xnext.fuse(network)(image), logits, rtol=1e-4, atol=1e-5)
        assert space.full_size(point).config.num_levels == (5 if point["stages"] == "flow" else 4)
    assert seen["stages"] == {"flow", "pyramid", "isotropic"} and len(seen["mixer"]) == 3


def test_the_union_holds_the_other_space():
    union = Space.load("union")
    for point in (NEXCEPTION_T, XCEPTION):
        of_union = point | {
            "stages": "flow", "width": "1", "depth": "1", "mixer": "depthwise", "segments": "none",
        }  # fmt: skip
        theirs = Space.load("nexception")
        assert union.full_size(of_union).config == theirs.full_size(point).config
        assert union.architecture(of_union, 0.25).config == theirs.architecture(point, 0.25).config


def test_width_and_depth_are_factors():
    sizes = {"small": {"width": 0.5, "depth": 0.5}, "full": {"depth": 2, "full": {"depth": 4, "act": "celu"}}}
    space = Space("mine", {"network": "nexception_debug", "choices": {"size": sizes}})
    base = get_config("nexception_debug")
    small, full = (space.architecture({"size": size}).config for size in sizes)
    assert small.exit_dim == base.exit_dim / 2 and small.middle_depth == base.middle_depth / 2 == 1
    assert full.exit_dim == base.exit_dim and full.middle_depth == 4
    best = space.full_size({"size": "full"}).config
    assert (best.middle_depth, best.act) == (8, "celu") and space.count() == 2


def test_equal_networks_under_other_names_are_one():
    stems = {"one": {"stem_dims": [16]}, "same": {"stem_dims": [16]}, "other": {"stem_dims": [24]}}
    space = Space("mine", {"network": "nexception_debug", "choices": {"stem": stems, "act": ["relu"]}})
    assert len(list(space.points())) == 3 and space.count() == 2
    assert (
        space.architecture({"stem": "one", "act": "relu"}).config
        == space.architecture({"stem": "same", "act": "relu"}).config
    )


def test_conditions_and_prohibitions():
    space = Space("mine", SMALL)
    assert list(space.points()) == [
        {"act": "relu", "middle_block": "plain"},
        {"act": "relu", "middle_block": "bottleneck", "expansion": "3"},
        {"act": "gelu", "middle_block": "plain"},
        {"act": "gelu", "middle_block": "bottleneck", "expansion": "2"},
        {"act": "gelu", "middle_block": "bottleneck", "expansion": "3"},
    ]
    assert space.count() == 5
    for point, line in [
        ({"act": "relu", "middle_block": "plain", "expansion": "3"}, "exists only where middle_block is"),
        ({"act": "relu", "middle_block": "bottleneck", "expansion": "2"}, "act is relu and expansion is 2"),
        ({"act": "relu", "middle_block": "bottleneck"}, "expansion is missing"),
        ({"act": "rule", "middle_block": "plain"}, "act cannot be 'rule'; choose from relu, gelu"),
        ({"akt": "relu"}, "no choice 'akt'. Did you mean 'act'"),
    ]:
        with pytest.raises(UserError, match=line):
            space.architecture(point)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"chioces": {}}, "unknown key 'chioces'. Did you mean 'choices'"),
        ({"network": None}, "`network` must be a name"),
        ({"network": "resnet"}, "unknown model 'resnet'"),
        ({"choices": {}}, "names nothing to choose from"),
        ({"choices": [1]}, "`choices` must hold lines"),
        ({"choices": {"act": "relu"}, "conditions": {}, "forbidden": []}, "must have a list of values"),
        ({"choices": {"act": ["relu", "relu"]}, "conditions": {}, "forbidden": []}, "a value twice"),
        ({"choices": {"act": []}, "conditions": {}, "forbidden": []}, "'act' has no values"),
        ({"choices": {"act": ["rely"]}, "conditions": {}, "forbidden": []}, "act rely: act must be one of"),
        ({"choices": {"akt": ["relu"]}, "conditions": {}, "forbidden": []}, "no field 'akt'. Did you mean"),
        ({"choices": {"act": {"a": 1}}, "conditions": {}, "forbidden": []}, "must be a mapping of fields"),
        ({"fixed": {"middle_kernel_size": 4}}, "not an odd kernel size"),
        ({"fixed": {"middle_kernel_size": 10**8 + 1}}, "100000001 is too large, it may be up to 999"),
        ({"fixed": {"middle_depth": 10**8}}, "middle_depth=100000000 is too large, it may be up to 1,000"),
        ({"full": {"stem_dims": [10**9]}}, "stem_dims=.*1000000000.* is too large"),
        ({"full": {"middle_depht": 4}}, "no field 'middle_depht'"),
        ({"fixed": {"full": 3}}, "`fixed`: there is no field 'full'. Did you mean the `full` beside"),
        ({"full": {"full": {"act": "relu"}}}, "`full`: there is no field 'full'. Did you mean"),
        (ALONE | {"choices": {"size": {"s": {"full": {"full": {}}}}}}, "size s: there is no field 'full'"),
        ({"conditions": {"expansion": {"middle_blok": "plain"}}}, "names no choice: 'middle_blok'"),
        ({"conditions": {"expansion": {"middle_block": "wide"}}}, "middle_block has no value 'wide'"),
        ({"conditions": {"expand": {"act": "relu"}}}, "a condition of no choice: 'expand'"),
        ({"conditions": {"act": {"expansion": 2}, "expansion": {"act": "relu"}}}, "round in a circle"),
        ({"forbidden": {"act": "relu"}}, "must be a list"),
        ({"forbidden": [{"act": []}]}, "forbidden combination 1: act has a list without values"),
        (ALONE | {"choices": {"size": {"s": {"width": "wide"}}}}, "size s: width must be a factor"),
        (ALONE | {"choices": {"size": {"s": {"depth": 0}}}}, "size s: depth must be a factor"),
        (ALONE | {"choices": {"size": {"s": {"full": 3}}}}, "size s: `full` must hold lines"),
        (ALONE | {"choices": {"size": {"s": {"full": {"depth": "x"}}}}}, "size s: depth must be a factor"),
        ({"fixed": {"width": "wide"}}, "`fixed`: width must be a factor"),
        ({"full": {"depth": -1}}, "`full`: depth must be a factor"),
        (ALONE | {"choices": {"size": {"s": {"full": {"akt": 3}}}}}, "size s: .* has no field 'akt'"),
        (ALONE | {"choices": {"size": {"s": {"exit_dim": "x", "width": 2}}}}, "exit_dim must be a whole"),
        ({"forbidden": [{"act": ["relu", "gelu"], "expansion": 2}]}, "expansion: '2' is in no point"),
    ],
)  # fmt: skip
def test_mistakes_in_a_space_are_told_where_it_is_made(change, line):
    with pytest.raises(UserError, match=line) as error:
        Space("mine.yaml", SMALL | change)
    assert str(error.value).startswith("space mine.yaml: ") and "\n" not in str(error.value)


def test_names_of_spaces(tmp_path):
    with pytest.raises(UserError, match=r"unknown space 'nexeption'\. Did you mean 'nexception'"):
        Space.load("nexeption")
    (tmp_path / "twice.yaml").write_text("network: xception_debug\nchoices:\n  act: [relu]\n  act: [celu]\n")
    with pytest.raises(UserError) as told:
        Space.load(str(tmp_path / "twice.yaml"))
    file = tmp_path / "twice.yaml"
    assert str(told.value) == f"{file}: line 4: duplicate key 'act'; keep the one that is meant"
    with pytest.raises(UserError, match="cannot read"):
        Space.load(str(tmp_path / "none.yaml"))
    (tmp_path / "mine.yaml").write_text("network: xception_debug\nchoices:\n  act: [relu, celu]\n")
    assert Space.load(str(tmp_path / "mine.yaml")).count() == 2


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000], ids=["a long number", "many brackets"])
def test_what_no_yaml_reader_takes(tmp_path, value):
    (tmp_path / "mine.yaml").write_text(f"network: {value}\n")
    with pytest.raises(UserError, match=r"mine\.yaml is no YAML: .") as told:
        Space.load(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(told.value)


def test_too_many_combinations_are_not_counted():
    """Each of twenty choices changes the same field: only all combinations tell which are distinct."""
    values = {"relu": {"act": "relu"}, "gelu": {"act": "gelu"}}
    space = Space("mine", {"network": "xception_debug", "choices": {str(n): values for n in range(20)}})
    with pytest.raises(UserError, match="more than 1,000,000 combinations, too many to count: '0', '1', "):
        space.count()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_space_counts_what_it_lists(data):
    """Choices that share fields, depend on each other and exclude each other."""
    fields = {"act": ["relu", "gelu"], "pool": ["max", "blur"], "expansion": [2, 3], "middle_depth": [1, 2]}
    fields |= {"width": [0.5], "depth": [2]}
    draw_part = st.fixed_dictionaries(
        {}, optional={name: st.sampled_from(values) for name, values in fields.items()}
    )
    names = ["a", "b", "c", "d"]
    choices = {
        name: {str(i): part for i, part in enumerate(data.draw(st.lists(draw_part, min_size=1, max_size=3)))}
        for name in names
    }
    conditions, forbidden = {}, []
    for child, parent in itertools.combinations(reversed(names), 2):
        kind = data.draw(st.sampled_from(["free", "free", "condition", "forbidden"]))
        value = data.draw(st.sampled_from(list(choices[parent])))
        if kind == "condition":
            conditions[child] = {parent: value}
        elif kind == "forbidden":
            forbidden.append({parent: value, child: data.draw(st.sampled_from(list(choices[child])))})
    content = {"network": "xception_debug", "choices": choices, "conditions": conditions}
    try:
        space = Space("drawn", content | {"forbidden": forbidden})
    except UserError as error:
        assert "is in no point" in str(error)
        return
    points = list(space.points())
    assert space.count() == len({space.architecture(point).config for point in points})
    assert len({tuple(point.items()) for point in points}) == len(points)
