"""timm's contract, for every network of the registry: the heavy ones without weights, on the meta device."""

import copy
import pickle

import pytest
import timm
import torch
from timm.models._manipulate import group_parameters

import xnext

NAMES = xnext.list_models()
DEBUG = xnext.list_models("*_debug")
FEATURE_CLASSES = ["list", "dict", "hook", "fx", "getter"]


def meta(name: str, **kwargs) -> tuple[torch.nn.Module, torch.Tensor]:
    model = timm.create_model(name, device="meta", **kwargs).eval()
    channels, height, width = model.pretrained_cfg["input_size"]
    return model, torch.empty(2, kwargs.get("in_chans", channels), height, width, device="meta")


def small(name: str, **kwargs) -> tuple[torch.nn.Module, torch.Tensor]:
    return xnext.create_model(name, **kwargs).eval(), torch.randn(2, kwargs.get("in_chans", 3), 32, 32)


@pytest.mark.parametrize("name", NAMES)
def test_declared_shapes_are_the_real_ones(name):
    model, image = meta(name, num_classes=7)
    features = model.forward_features(image)
    assert features.shape[1] == model.num_features
    assert tuple(features.shape[2:]) == tuple(model.pretrained_cfg["pool_size"])
    pre_logits = model.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (2, model.head_hidden_size)
    assert model(image).shape == (2, 7)
    state = model.state_dict()
    for field in ("first_conv", "classifier"):
        assert f"{model.pretrained_cfg[field]}.weight" in state
    assert model.get_classifier() is model.get_submodule(model.pretrained_cfg["classifier"])


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_place_and_a_device(name):
    model, _ = meta(name)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(groups) == {key for key, _ in model.named_parameters()}
        assert len(set(groups.values())) > 2
        stem, head = groups["stem.conv1.weight"], groups["head.fc.weight"]
        assert stem == 0 and head == max(groups.values())
    assert all(t.device.type == "meta" for t in [*model.parameters(), *model.buffers()])
    assert model.no_weight_decay() == set()


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_declared_channels_and_strides(name):
    model = timm.create_model(name, device="meta", features_only=True).eval()
    size = max(64, 2 * model.feature_info.reduction()[-1])
    maps = model(torch.empty(1, 3, size, size, device="meta"))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    for feature, reduction in zip(maps, model.feature_info.reduction(), strict=True):
        # Xception's stem has no padding, which takes two pixels a border.
        assert size / reduction - 4 <= feature.shape[-1] <= size / reduction


@pytest.mark.parametrize("name", DEBUG)
@pytest.mark.parametrize("kind", FEATURE_CLASSES)
def test_feature_extractors_agree_with_the_whole_network(name, kind):
    model, image = small(name)
    expected = model.forward_intermediates(image, intermediates_only=True)
    for out_indices in (tuple(range(len(expected))), (0, 2), (-1,)):
        torch.manual_seed(0)
        extractor = timm.create_model(
            name, features_only=True, feature_cls=kind, out_indices=out_indices
        ).eval()
        extractor.load_state_dict(rename_like(extractor, model))
        maps = extractor(image)
        maps = list(maps.values()) if kind == "dict" else maps
        for got, index in zip(maps, out_indices, strict=True):
            torch.testing.assert_close(got, expected[index])


def rename_like(extractor: torch.nn.Module, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Map the network's weights to an extractor's names, which flatten or prefix them."""
    # fx saves the blur's kernel, which is no part of the network's own state dict.
    tensors = [*model.named_parameters(), *model.named_buffers()]
    source = {key.replace(".", "_"): value for key, value in tensors}
    target = {}
    for key in extractor.state_dict():
        flat = (
            key.replace(".", "_").removeprefix("model_").removeprefix("body_").removeprefix("graph_module_")
        )
        target[key] = source[flat]
    return target


@pytest.mark.parametrize("name", DEBUG)
def test_intermediates_end_in_the_features(name):
    model, image = small(name)
    final, levels = model.forward_intermediates(image)
    torch.testing.assert_close(final, model.forward_features(image))
    torch.testing.assert_close(levels[-1], final)
    for index, level in enumerate(levels):
        early = model.forward_intermediates(image, indices=[index], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(early, [level])
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([index]) == [index]
        torch.testing.assert_close(pruned.forward_features(image), level)
        assert pruned(image).shape == (2, level.shape[1])
    assert len(model.forward_intermediates(image, indices=2, intermediates_only=True)) == 2


@pytest.mark.parametrize("name", DEBUG)
def test_every_parameter_gets_a_gradient(name):
    model, image = small(name, num_classes=5, drop_rate=0.1)
    model.train()(image).square().sum().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


@pytest.mark.parametrize("name", DEBUG)
def test_gradient_checkpointing_changes_no_gradient(name):
    model, image = small(name)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        assert all(stage.grad_checkpointing is enable for stage in model.stages)
        model(image).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for without, with_checkpoints in zip(*gradients, strict=True):
        torch.testing.assert_close(with_checkpoints, without)


@pytest.mark.parametrize("name", DEBUG)
def test_reset_classifier(name):
    model, image = small(name, num_classes=5, global_pool="max")
    features = model.forward_features(image)
    pooled = model.forward_head(features, pre_logits=True)
    model.reset_classifier(7)
    assert model.num_classes == 7 and model(image).shape == (2, 7)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    model.reset_classifier(0)
    torch.testing.assert_close(model(image), pooled)
    model.reset_classifier(3, "avg")
    assert model.global_pool == "avg"
    assert not torch.allclose(model.forward_head(features, pre_logits=True), pooled)
    model.reset_classifier(3, "")
    assert model(image).shape == (2, 3, *features.shape[2:])
    assert all(module.training is False for module in model.modules())


@pytest.mark.parametrize("name", DEBUG)
def test_logit_map_without_pooling_is_the_head_at_each_position(name):
    model, image = small(name, num_classes=4)
    features = model.forward_features(image)
    head = copy.deepcopy(model.head)
    model.reset_classifier(4, "")
    model.head.fc = head.fc
    logits = model(image)
    position = head(features[:, :, 1:2, 0:1])
    torch.testing.assert_close(logits[:, :, 1, 0], position)


@pytest.mark.parametrize("name", DEBUG)
@pytest.mark.parametrize("in_chans", [1, 4])
def test_input_channels(name, in_chans):
    model, image = small(name, in_chans=in_chans)
    assert model.in_chans == in_chans
    assert model(image).shape == (2, 1000)


@pytest.mark.parametrize("name", DEBUG)
def test_drop_rates_take_effect(name):
    model, image = small(name, drop_path_rate=0.5, num_classes=5)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.5)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(model(image), model(image))
    model, image = small(name, drop_rate=0.5)
    model.head.train()
    features = model.forward_features(image)
    head = model.forward_head
    assert not torch.allclose(head(features), head(features))


def test_drop_path_is_constant_in_xceptions_flow_and_rises_in_pyramids():
    def rates(name):
        model = timm.create_model(name, device="meta", drop_path_rate=0.2)
        return [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]

    assert rates("nexception_t") == [0.2] * 12
    pyramid = rates("inceptionnext_tiny")
    assert len(pyramid) == 17 and pyramid == sorted(pyramid)  # the first of 18 blocks is never dropped
    assert pyramid[0] == pytest.approx(0.2 / 17) and pyramid[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("name", DEBUG)
def test_dtype_layout_and_pickle(name):
    model, image = small(name)
    expected = model(image)
    layout = copy.deepcopy(model).to(memory_format=torch.channels_last)
    got = layout(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
    half = xnext.create_model(name, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.eval()(image.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(image), expected)


@pytest.mark.parametrize("name", DEBUG)
def test_features_stay_channels_last(name):
    model, image = small(name)
    model.to(memory_format=torch.channels_last)
    features = model.forward_features(image.to(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", DEBUG)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_and_export_compute_the_same(name):
    model, image = small(name)
    expected = model(image)
    torch.testing.assert_close(torch.jit.script(model)(image), expected)
    exported = torch.export.export(model, (image,))
    torch.testing.assert_close(exported.module()(image), expected)
    extractor = timm.create_model(name, features_only=True, feature_cls="getter", out_indices=(0, 1)).eval()
    torch.testing.assert_close(torch.jit.script(extractor)(image), extractor(image))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in DEBUG else pytest.mark.slow) for name in NAMES]
)
def test_compiles_into_one_graph(name):
    """fullgraph=True raises at a graph break; the eager backend needs no compiler and no weights."""
    model, image = meta(name, drop_path_rate=0.1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert compiled(image[:1]).shape == (1, 1000)
    compiled.train()(image)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEBUG)
def test_inductor_computes_the_same(name):
    model, image = small(name)
    torch._dynamo.reset()  # it compiles one function, such as Network.forward, only a few times
    torch.testing.assert_close(
        torch.compile(model, fullgraph=True)(image), model(image), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", DEBUG)
def test_a_refused_reset_changes_nothing_and_reset_other_makes_room(name):
    model, image = small(name, num_classes=6)
    before = model(image)
    fixed = len(model.head.hidden) > 0 or not isinstance(model.head.norm, torch.nn.Identity)
    if fixed:
        with pytest.raises(ValueError, match="reset_other"):
            model.reset_classifier(5, "catavgmax")
        assert model.num_classes == 6 and torch.equal(model(image), before)
    model.reset_classifier(5, "catavgmax", reset_other=True)
    assert model(image).shape == (2, 5) and model.head_hidden_size == 2 * model.num_features


@pytest.mark.parametrize("name", DEBUG)
def test_from_the_meta_device_through_a_checkpoint(name):
    source, image = small(name)
    model = xnext.create_model(name, device="meta")
    with pytest.raises(xnext.UserError, match="to_empty"):
        xnext.load_checkpoint(model, source.state_dict())
    model = model.to_empty(device="cpu").eval()
    for buffer in model.buffers():
        buffer.fill_(7)  # as to_empty may leave it
    xnext.load_checkpoint(model, source.state_dict())
    assert torch.equal(model(image), source(image))
    if hasattr(timm.models._manipulate, "reinit_non_persistent_buffers"):  # newer releases of timm
        blurs = sum(type(module).__name__ == "BlurPool2d" for module in model.modules())
        assert len(timm.models._manipulate.reinit_non_persistent_buffers(model)) == blurs


def test_unknown_names_and_options():
    with pytest.raises(xnext.UserError, match=r"unknown model 'inceptionnext_tinny'.*inceptionnext_tiny"):
        xnext.create_model("inceptionnext_tinny")
    with pytest.raises(TypeError, match=r"has no option 'squeeze_excit'.*squeeze_excite"):
        xnext.create_model("nexception_debug", squeeze_excit=True)
    with pytest.raises(xnext.UserError, match=r"unknown model 'xceptoin'"):
        xnext.get_config("xceptoin")


def test_create_model_is_timms():
    torch.manual_seed(0)
    ours = xnext.create_model("nexception_debug", num_classes=3)
    torch.manual_seed(0)
    theirs = timm.create_model("nexception_debug", num_classes=3)
    assert type(ours) is type(theirs) and ours.config == theirs.config
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert set(xnext.list_models()) <= set(timm.list_models())
    assert xnext.list_models("nexception_*p*") == ["nexception_tp", "nexception_tp_debug"]
