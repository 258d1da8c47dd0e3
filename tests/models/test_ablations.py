"""Every ablation of the papers is a keyword; each must change what it names and nothing else."""

import dataclasses

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import xnext
from xnext.evaluation.complexity import count_macs, count_parameters
from xnext.models.layers import SeparableConv2d
from xnext.models.mixers import SegmentedConv2d


def build(name: str, **options) -> nn.Module:
    return timm.create_model(name, device="meta", **options).eval()


def kinds(model: nn.Module, *types: type) -> int:
    return sum(isinstance(module, types) for module in model.modules())


# Xception


def test_without_residual_connections_there_are_no_shortcuts():
    model = xnext.create_model("xception_debug", residual=False).eval()
    assert not any("shortcut" in key for key, _ in model.named_parameters())
    block = model.stages[1].blocks[1]
    image = torch.randn(1, 48, 4, 4)
    torch.testing.assert_close(block(image), block.layers(image))


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("elu", nn.ELU)])
def test_inner_activation_stands_between_depthwise_and_pointwise(name, kind):
    model = build("xception", inner_act=name)
    separable = [m for m in model.modules() if type(m).__name__ == "SeparableConv2d"]
    assert len(separable) == 34 and all(isinstance(m.act, kind) for m in separable)
    assert list(dict(separable[0].named_children())) == ["conv_dw", "act", "conv_pw"]
    assert count_parameters(model) == 22_855_952


def test_fully_connected_layers_before_the_classifier():
    model = build("xception", head_widths=(4096, 4096), num_classes=17_000)
    assert model.head_hidden_size == 4096
    extra = 2048 * 4096 + 4096 + 4096 * 4096 + 4096 + (4096 + 1) * 17_000
    assert count_parameters(model) == 22_855_952 - 2049 * 1000 + extra


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 64, None])
def test_segments_span_the_spectrum_from_regular_to_depthwise(segments):
    model = build("xception_debug", segments=segments)
    weights = {key: p for key, p in model.named_parameters() if "conv_dw" in key}
    for key, channels in {"stages.0.blocks.0.layers.conv1": 24, "stages.2.blocks.1.conv2": 128}.items():
        count = channels if segments is None else min(segments, channels)
        narrow, wider = divmod(channels, count)
        expected = 9 * (wider * (narrow + 1) ** 2 + (count - wider) * narrow**2)
        assert sum(p.numel() for k, p in weights.items() if k.startswith(key)) == expected


@pytest.mark.parametrize("name", ["xception_debug", "nexception_tp_debug"])
@pytest.mark.parametrize(
    ("mixer", "taps"),
    [
        ("depthwise", lambda width, side: width * side**2),
        ("partial", lambda width, side: width // 4 * side**2),
        ("inception", lambda width, side: width // 4 * (side**2 + 2 * 7)),
    ],
)
def test_the_separable_lineages_mix_as_metanext_does(name, mixer, taps):
    model = build(name, mixer=mixer, branch_ratio=1 / 4, band_kernel_size=7)
    side = 3 if name == "xception_debug" else 5
    weights = [(k, p) for k, p in model.named_parameters() if "conv_dw" in k]
    assert not any("bias" in k for k, _ in weights)
    for conv in (module for module in model.modules() if isinstance(module, SeparableConv2d)):
        width = conv.conv_pw.in_channels
        assert sum(p.numel() for p in conv.conv_dw.parameters()) == taps(width, side)
    pulse = torch.zeros(1, 24, 15, 15)
    pulse[:, :, 7, 7] = 1
    reach = [
        tuple((band.nonzero().amax(0) - band.nonzero().amin(0) + 1).tolist())
        for band in model.config.build_spatial(24, 3)(pulse)[0]
    ]
    identity, square, across, down = (1, 1), (3, 3), (1, 7), (7, 1)
    expected = {
        "depthwise": [square] * 24,
        "partial": [identity] * 18 + [square] * 6,
        "inception": [identity] * 6 + [square] * 6 + [across] * 6 + [down] * 6,
    }
    assert reach == expected[mixer]


@settings(max_examples=25, deadline=None)
@given(channels=st.integers(1, 24), segments=st.integers(1, 30), kernel_size=st.sampled_from([1, 3, 5]))
def test_a_segment_sees_only_itself(channels, segments, kernel_size):
    conv = SegmentedConv2d(channels, kernel_size, segments)
    image = torch.randn(1, channels, 5, 6, requires_grad=True)
    output = conv(image)
    assert output.shape == image.shape
    edges = torch.tensor_split(torch.arange(channels), min(segments, channels))
    for segment in edges:
        (gradient,) = torch.autograd.grad(output[:, segment].sum(), image, retain_graph=True)
        outside = [c for c in range(channels) if c not in segment]
        assert gradient[:, outside].abs().sum() == 0 and gradient[:, segment].abs().sum() > 0


# NEXcepTion's search space


def test_nexception_t_is_a_value_of_xceptions_config():
    ours, xception = xnext.get_config("nexception_t"), xnext.get_config("xception")
    changed = {f.name for f in dataclasses.fields(ours) if getattr(ours, f.name) != getattr(xception, f.name)}
    options = {name: getattr(ours, name) for name in changed}
    assert build("xception", **options).config == ours
    assert count_parameters(build("xception", **options)) == 24_544_976


CHOICES = {
    "stem": ["conv", "patchify"],
    "pool": ["max", "conv", "blur"],
    "entry_kernel_size": [3, 5, 7, 9],
    "middle_kernel_size": [3, 5, 7, 9],
    "middle_block": ["plain", "bottleneck"],
    "squeeze_excite": [False, True],
    "act": ["relu", "gelu", "elu", "celu"],
    "entry_acts": [(), (0,), (1,), (0, 1)],
    "middle_acts": [(), (1,), (0, 2), (0, 1, 2)],
    "norm": ["batch", "layer"],
    "entry_norms": [(), (0,), (1,), (0, 1)],
    "middle_norms": [(), (0, 1), (2,), (0, 1, 2)],
}


@settings(max_examples=30, deadline=None)
@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()}))
def test_every_point_of_the_search_space_is_a_network_that_trains(point):
    model = xnext.create_model("xception_debug", num_classes=4, **point).train()
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 4)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in CHOICES.items() for v in values], ids=lambda v: str(v)
)
def test_every_choice_changes_the_computation(field, value):
    """Equal weights where the shapes agree, another value of one field: another output.

    In training mode, since a new batch norm changes nothing at evaluation.
    """
    base = xnext.create_model("nexception_debug").train()
    other = xnext.create_model("nexception_debug", **{field: value}).train()
    if other.config == base.config:
        pytest.skip("the value that nexception_debug has")
    state = base.state_dict()
    shared = {
        k: v for k, v in state.items() if k in other.state_dict() and v.shape == other.state_dict()[k].shape
    }
    other.load_state_dict(shared, strict=False)
    image = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(base(image), other(image), rtol=1e-6, atol=1e-7)


# InceptionNeXt, table 8 of the paper: parameters to its precision of 0.1 M


@pytest.mark.parametrize(
    ("options", "millions"),
    [
        ({}, 28.1),
        ({"branches": ("square", "vertical")}, 28.0),
        ({"branches": ("square", "horizontal")}, 28.0),
        ({"branches": ("horizontal", "vertical")}, 28.0),
        ({"bands": "sequential"}, 28.1),
        ({"band_kernel_size": 7}, 28.0),
        ({"band_kernel_size": 9}, 28.1),
        ({"band_kernel_size": 13}, 28.1),
        ({"branch_ratio": 1 / 4}, 28.1),
        ({"branch_ratio": 1 / 16}, 28.0),
        ({"norm": "layer"}, 28.1),
    ],
    ids=str,
)
def test_inceptionnext_ablations_have_the_papers_size(options, millions):
    model = build("inceptionnext_tiny", **options)
    assert round(count_parameters(model) / 1e6, 1) == millions
    assert round(count_macs(model, (3, 224, 224)) / 1e9, 1) == 4.2
    if options.get("norm") == "layer":
        assert kinds(model, nn.BatchNorm2d) == 0


def test_layer_scale_starts_where_told_and_0_leaves_it_out():
    scaled = xnext.create_model("inceptionnext_debug", layer_scale=0.5)
    assert all(torch.equal(p, torch.full_like(p, 0.5)) for k, p in scaled.named_parameters() if "gamma" in k)
    plain = xnext.create_model("inceptionnext_debug", layer_scale=0)
    gammas = 24 + 40 + 2 * 64 + 88
    assert count_parameters(scaled) - count_parameters(plain) == gammas


def mixer(**options) -> nn.Module:
    model = xnext.create_model("inceptionnext_debug", **options)
    return model.stages[0].blocks[0].mixer  # 24 channels: 15 of identity, then 3 a branch


@pytest.mark.parametrize(
    ("removed", "channels"),
    [("square", slice(15, 18)), ("horizontal", slice(18, 21)), ("vertical", slice(21, 24))],
)
def test_a_removed_branch_passes_its_channels(removed, channels):
    branches = tuple(b for b in ("square", "horizontal", "vertical") if b != removed)
    image = torch.randn(1, 24, 8, 8)
    without, whole = mixer(branches=branches)(image), mixer()(image)
    assert torch.equal(without[:, channels], image[:, channels])
    assert not torch.equal(whole[:, channels], image[:, channels])
    assert torch.equal(without[:, :15], image[:, :15])


@pytest.mark.parametrize(
    ("channel", "reach"), [(0, (0, 0)), (15, (1, 1)), (18, (0, 5)), (21, (5, 0))], ids=["id", "hw", "w", "h"]
)
def test_branches_reach_as_far_as_their_kernels(channel, reach):
    image = torch.zeros(1, 24, 15, 15, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixer()(image)[0, channel, 7, 7], image)
    rows, columns = gradient[0, channel].nonzero(as_tuple=True)
    assert (rows.max() - 7, columns.max() - 7) == reach


def test_sequential_bands_reach_in_both_directions():
    image = torch.zeros(1, 24, 15, 15, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixer(bands="sequential")(image)[0, 21, 7, 7], image)
    rows, columns = gradient[0, 21].nonzero(as_tuple=True)
    assert (rows.max() - 7, columns.max() - 7) == (5, 5)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_stride_is_timms(output_stride):
    theirs = timm.create_model("inception_next_atto", output_stride=output_stride).eval()
    ours = timm.create_model("inceptionnext_atto", output_stride=output_stride).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    xnext.load_checkpoint(ours, theirs.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs.forward_intermediates(image)[1]
        if expected[-1].shape[2] != 64 // output_stride:
            pytest.skip("older releases of timm lose a row where they dilate")
        for a, b in zip(ours.forward_intermediates(image)[1], expected, strict=True):
            torch.testing.assert_close(a, b)
    assert ours.feature_info[-1]["reduction"] == output_stride


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "xception_debug",
            {"act": "gelo"},
            "act must be one of relu, gelu, elu, celu, not 'gelo'. Did you mean 'gelu'",
        ),
        ("xception_debug", {"middle_kernel_size": 4}, "middle_kernel_size=4 is not an odd"),
        ("xception_debug", {"entry_dims": ()}, "entry_dims"),
        ("xception_debug", {"entry_acts": (2,)}, "entry_acts=2"),
        ("xception_debug", {"segments": 0}, "segments"),
        ("xception_debug", {"segments": 2, "mixer": "partial"}, "segments=2 needs mixer='depthwise'"),
        ("xception_debug", {"mixer": "inception", "branch_ratio": 0.4}, "branch_ratio=0.4 must be at most"),
        ("nexception_tp_debug", {"mixer": "inception", "branch_ratio": 0.01}, "one channel of 16"),
        ("xception_debug", {"mixer": "attention"}, "mixer must be one of depthwise, partial, inception"),
        ("xception_debug", {"band_kernel_size": 4}, "band_kernel_size=4 is not an odd"),
        ("nexception_tp_debug", {"depths": (1, 2)}, "dims"),
        ("inceptionnext_debug", {"branch_ratio": 0.5}, "branch_ratio=0.5"),
        ("inceptionnext_debug", {"branch_ratio": 1e-3}, "branch_ratio"),
        (
            "inceptionnext_debug",
            {"branches": ("diagonal",)},
            "branches must be a list of one of square, .*'diagonal'",
        ),
        ("inceptionnext_debug", {"mixer": "attention", "num_heads": 5}, "num_heads=5"),
        ("inceptionnext_debug", {"bands": "sequential", "branches": ("square",)}, "sequential"),
        ("inceptionnext_debug", {"output_stride": 7}, "output_stride=7"),
        ("inceptionnext_debug", {"layer_scale": -1.0}, "layer_scale=-1.0"),
        ("inceptionnext_debug", {"layer_scale": float("nan")}, "layer_scale=nan"),
        ("inceptionnext_debug", {"num_heads": 0}, "num_heads=0 must be positive"),
        ("inceptionnext_debug", {"depths": (1, 1, 1001, 1)}, "depths=.* is too large, it may be up to 1,000"),
        ("inceptionnext_debug", {"dims": 16}, "dims must be a list of whole numbers, not 16"),
        ("inceptionnext_debug", {"branch_ratio": "x"}, "branch_ratio must be a number, not 'x'"),
        ("inceptionnext_debug", {"head": 3}, "head must be one of mlp, norm"),
        ("xception_debug", {"residual": "no"}, "residual must be true or false, not 'no'"),
        ("xception_debug", {"middle_acts": 1}, "middle_acts must be a list of whole numbers"),
        ("xception_debug", {"segments": True}, "segments must be a whole number, not True"),
        ("xception_debug", {"stem_dims": [[1]]}, "stem_dims must be a list of whole numbers"),
        ("xception_debug", {"middle_depth": -1}, "middle_depth=-1"),
        ("xception_debug", {"in_chans": 0}, "in_chans must be at least 1"),
        ("xception_debug", {"num_classes": -1}, "num_classes at least 0"),
        ("inceptionnext_debug", {"features_only": True, "out_indices": (0, 9)}, "levels 0 to 3, not 9"),
        ("inceptionnext_debug", {"layer_scale": None}, "layer_scale of inceptionnext_debug cannot be None"),
    ],
)
def test_impossible_networks_are_refused_at_construction(name, options, message):
    with pytest.raises(xnext.UserError, match=message):
        xnext.create_model(name, **options)


def test_no_classifier_has_fewer_than_no_classes():
    with pytest.raises(xnext.UserError, match="num_classes=-1"):
        xnext.create_model("xception_debug").reset_classifier(-1)
