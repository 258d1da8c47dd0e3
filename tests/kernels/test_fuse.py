"""Fused networks infer the same in fewer passes."""

import copy
import sys
from collections import Counter

import pytest
import timm
import torch
from quick import quick_kernels
from torch import nn

import xnext
from xnext.errors import UserError
from xnext.kernels import _launch, use_backend
from xnext.kernels.fuse import FusedConv2d, FusedMetaNeXtBlock, _InParts, fuse_layers

fuse = sys.modules["xnext.kernels.fuse"]  # the module; xnext.kernels.fuse is its function

NETWORKS = [(name, {}) for name in xnext.list_models("*_debug")] + [
    ("inceptionnext_debug", {"bands": "sequential"}), ("inceptionnext_debug", {"branches": ("square",)}),
    ("inceptionnext_debug", {"output_stride": 8}), ("inceptionnext_debug", {"layer_scale": 0}),
    ("convnext_debug", {"mixer": "partial", "kernel_size": 3}), ("convnext_debug", {"norm": "batch"}),
    ("convnext_debug", {"mixer": "attention", "num_heads": 8}), ("xception_debug", {"residual": False}),
    ("xception_debug", {"inner_act": "relu"}), ("xception_debug", {"segments": 4}),
    ("nexception_debug", {"act": "elu"}), ("nexception_debug", {"pool": "max", "squeeze_excite": False}),
]  # fmt: skip


def trained(name: str, **options) -> nn.Module:
    """Return a network in which everything that is folded counts."""
    model = xnext.create_model(name, num_classes=7, drop_rate=0.1, drop_path_rate=0.1, **options).eval()
    generator = torch.Generator().manual_seed(1)
    for key, value in model.state_dict().items():
        if value.is_floating_point() and value.dim() == 1:
            low = 0.5 if key.endswith("running_var") or key.endswith("weight") else -0.5
            value.copy_(torch.rand(value.shape, generator=generator) + low)
    return model


def norms(model: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=str)
def test_every_network_infers_the_same(name, options):
    model, x = trained(name, **options), torch.randn(3, 3, 33, 40)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = xnext.fuse(model)
    exact = copy.deepcopy(model).double()(x.double()).detach()
    for image in (x, x.to(memory_format=torch.channels_last)):
        with torch.inference_mode():
            short = fused(image)
        with torch.no_grad():
            kept = fused(image.clone())
        recorded = fused(image)
        for y in (short, kept, recorded):
            assert float((y.double() - exact).norm() / exact.norm()) < 1e-5
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert not fused.training and not any(parameter.requires_grad for parameter in fused.parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["inceptionnext_debug", "nexception_debug", "xception_debug"])
def test_a_few_images_at_a_time_give_what_all_at_once_do(monkeypatch, name, layout):
    """Also the levels that somebody keeps."""
    fused = xnext.fuse(trained(name))
    x = torch.randn(5, 3, 33, 40).to(memory_format=layout)
    sizes = Counter()
    for module in fused.modules():
        if isinstance(module, _InParts):
            monkeypatch.setattr(module, "_compute", seen(module._compute, sizes))
    with torch.inference_mode():
        expected, levels = fused.forward_intermediates(x)
        assert set(sizes) == {5}
        monkeypatch.setattr(fuse, "_CACHE", 1)
        sizes.clear()
        y, same = fused.forward_intermediates(x)
        assert set(sizes) == {1}
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(levels, same, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert one.stride() == other.stride()
    sizes.clear()
    fused(x)  # where gradients are recorded
    assert set(sizes) == {5}


@pytest.mark.parametrize(
    ("room", "parts"), [(3600, [7]), (3500, [3, 3, 1]), (2100, [2, 2, 2, 1]), (9, [1] * 7)]
)
def test_parts_are_what_the_cache_holds(monkeypatch, room, parts):
    """An image of 8x8 places with 4 numbers each has 1024 bytes; what two caches hold is not cut."""
    sizes = []

    class Half(_InParts):
        _between = 4.0

        def _compute(self, x):
            sizes.append(len(x))
            return x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)

    monkeypatch.setattr(fuse, "_CACHE", room)
    x = torch.randn(7, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        y = Half()(x)
    assert sizes == parts and torch.equal(y, x[:, :, ::2, ::2])
    assert y.is_contiguous(memory_format=torch.channels_last)


def seen(compute, sizes):
    """Return a function that counts the images it is given."""

    def counted(x):
        sizes[len(x)] += 1
        return compute(x)

    return counted


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("inceptionnext_debug", 0), ("xception_debug", 0),
        ("nexception_debug", 1),  # of the stem, before a convolution with padding
        ("nexception_tp_debug", 1),  # of the head, after the pooling
    ],
)  # fmt: skip
def test_norms_are_folded_where_padding_allows(name, left):
    model = trained(name)
    assert norms(model) > 5 and norms(xnext.fuse(model)) == left


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "options", [{}, {"mixer": "partial", "kernel_size": 3}], ids=["inception", "partial"]
)
def test_the_kernel_leaves_channels_that_pass_where_they_lie(monkeypatch, options, layout):
    name = "convnext_debug" if options else "inceptionnext_debug"
    model, x = trained(name, **options), torch.randn(2, 3, 33, 40).to(memory_format=layout)
    fused, written = xnext.fuse(model), []
    mix = _launch.mix

    def count(image, weights, biases, y=None, *, back):
        written.append((image.shape[1], sum(map(len, weights)), y is not None))
        return mix(image, weights, biases, y, back=back)

    monkeypatch.setattr(_launch, "mix", count)
    with quick_kernels(), use_backend("triton"), torch.inference_mode():
        y = fused(x)
    exact = copy.deepcopy(model).double()(x.double()).detach()
    assert float((y.double() - exact).norm() / exact.norm()) < 1e-5
    # Of each stage the first block alone may not use the memory of its input again.
    depths = [len(stage.blocks) for stage in fused.stages]
    assert [in_place for _, _, in_place in written] == [i > 0 for depth in depths for i in range(depth)]
    assert all((channels == mixed) == in_place for channels, mixed, in_place in written)


def test_layers_become_fewer():
    layers = [
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Identity(), nn.Dropout(),
        nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 8, 2, groups=4), nn.GELU(), nn.GELU(),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 3, padding=1), nn.GELU(approximate="tanh"),
    ]  # fmt: skip
    plain = nn.Sequential(*layers).eval()
    for norm in (layers[1], layers[5], layers[9]):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    fused = nn.Sequential(*fuse_layers([plain]))
    kinds = [type(layer) for layer in fused]
    assert kinds == [FusedConv2d, FusedConv2d, nn.GELU, nn.BatchNorm2d, FusedConv2d, nn.GELU]
    assert [layer.activation for layer in fused if isinstance(layer, FusedConv2d)] == ["relu", "gelu", "none"]
    x = torch.randn(2, 3, 9, 9)
    with torch.inference_mode():
        torch.testing.assert_close(fused.eval()(x), plain(x), rtol=1e-5, atol=1e-5)


def test_it_uses_the_one_call_that_the_library_has(monkeypatch):
    calls = []
    fused, x = xnext.fuse(trained("inceptionnext_debug")), torch.randn(1, 3, 32, 32)
    forward = FusedConv2d._conv_forward
    monkeypatch.setattr(FusedConv2d, "_conv_forward", lambda *inputs: calls.append(1) or forward(*inputs))
    fused(x)
    recorded = len(calls)
    with torch.inference_mode():
        fused(x)
    with_activation = sum(m.activation == "gelu" for m in fused.modules() if isinstance(m, FusedConv2d))
    assert with_activation == 5 and len(calls) - recorded == recorded - with_activation


@pytest.mark.parametrize("name", ["inceptionnext_debug", "nexception_debug"])
def test_exports_and_compiles_like_any_other(name):
    fused, x = xnext.fuse(trained(name)), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = fused(x)
        program = torch.export.export(fused, (x,))
        assert not [node for node in program.graph.nodes if "mkldnn" in str(node.target)]
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-5, atol=1e-5)
        torch.compiler.reset()
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("inceptionnext_debug", {"mix": 5}),
        ("xception_debug", {"forward": 14}),
        ("nexception_debug", {"forward": 14, "max_blur": 3}),
    ],
)
def test_the_kernels_compute_what_they_can(device, monkeypatch, name, used):
    from xnext.kernels import _launch

    called = Counter()

    def count(operation):
        plain = getattr(_launch, operation)
        monkeypatch.setattr(_launch, operation, lambda *a, **k: called.update([operation]) or plain(*a, **k))

    for operation in ("forward", "mix", "max_blur"):
        count(operation)
    fused, x = xnext.fuse(trained(name)).to(device), torch.randn(1, 3, 16, 16, device=device)
    with use_backend("triton"):
        y = fused(x)
    assert called == used
    torch.testing.assert_close(y, fused(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["xception_debug", "nexception_debug", "inceptionnext_debug"])
def test_what_is_no_number_is_not_swallowed(name, value):
    model, x = trained(name), torch.randn(2, 3, 32, 32)
    x[0, 0, 13, 13] = value
    with torch.inference_mode():
        assert torch.equal(xnext.fuse(model)(x).isnan(), model(x).isnan()) and model(x)[0].isnan().all()


@pytest.mark.parametrize("name", xnext.list_models("*_debug"))
def test_forward_mode_derivatives(name):
    model, x = trained(name), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = (
            torch.func.jvp(net, (x,), (torch.ones_like(x),))[1] for net in (xnext.fuse(model), model)
        )
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["xception_debug", "inceptionnext_debug"])
def test_a_fused_network_is_fused_no_more(name):
    fused, x = xnext.fuse(trained(name)), torch.randn(2, 3, 32, 32)
    again = xnext.fuse(fused)
    assert again is not fused and torch.equal(again(x), fused(x))


@pytest.mark.parametrize("name", ["inceptionnext_debug", "inceptionnext_small_iso"])
def test_blocks_mix_in_place_and_leave_what_others_keep(name):
    """Neither the image nor a level of features may change when later blocks use memory again."""
    model = trained(name, depths=(2, 2, 2, 2), dims=(64, 64, 64, 64))
    fused, x = xnext.fuse(model), torch.randn(2, 3, 32, 32)
    blocks = [module for module in fused.modules() if isinstance(module, FusedMetaNeXtBlock)]
    assert [block.in_place for block in blocks] == [False, True] * (len(blocks) // 2)
    with torch.inference_mode():
        image = x.clone()
        last, levels = fused.forward_intermediates(image)
        expected_last, expected = model.forward_intermediates(x)
        for one, other in zip([last, *levels, image], [expected_last, *expected, x], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        kept = blocks[0](blocks[0](x.new_ones(1, blocks[0].layers[0].in_channels, 8, 8)))
        place = kept.data_ptr()
        passing = kept[:, :1].clone()
        blocks[1].mixer.mix_in_place(kept)
    assert kept.data_ptr() == place and torch.equal(kept[:, :1], passing)


@pytest.mark.parametrize("name", ["nexception_debug", "nexception_tp_debug"])
def test_what_is_left_of_norms_learns_nothing(name):
    fused, x = xnext.fuse(trained(name)), torch.randn(2, 3, 32, 32)
    expected = fused(x)
    fused.train()(x)
    assert torch.equal(fused.eval()(x), expected)


def test_bf16(device):
    model = trained("nexception_debug").to(device)
    x = torch.randn(2, 3, 32, 32, device=device)
    with torch.inference_mode():
        y = xnext.fuse(model.bfloat16())(x.bfloat16())
        expected = model.float()(x)
    assert float((y.float() - expected).norm() / expected.norm()) < 5e-2


def test_other_networks_are_refused():
    with pytest.raises(UserError, match=r"fuse takes networks of xnext.create_model, not ResNet"):
        xnext.fuse(timm.create_model("resnet18"))
