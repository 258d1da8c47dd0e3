import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xnext.errors import UserError
from xnext.training.batches import plan_batches
from xnext.training.setup import build_accelerator, prepare


@given(images=st.integers(2, 5000), half=st.integers(1, 300), odd=st.booleans(), even=st.booleans())
def test_batches_fit_batch_norm_and_mixing_and_lose_next_to_nothing(images, half, odd, even):
    wanted = 2 * half + (odd and not even)
    batch_size, drop_last = plan_batches(images, wanted, even)
    batches = [batch_size] * (images // batch_size)
    if not drop_last and images % batch_size:
        batches.append(images % batch_size)
    assert batches and all(2 <= batch <= wanted for batch in batches)
    lost = images - sum(batches)
    if even:
        assert all(batch % 2 == 0 for batch in batches) and lost < batch_size
        assert lost == 0 or images % 2
    else:
        assert lost <= 1


def test_one_image_is_too_few():
    with pytest.raises(UserError, match="at least two"):
        plan_batches(1, 16, even=False)


def test_the_optimizer_has_the_values_of_the_config(config):
    options = {
        "optimizer": "adamw",
        "opt_eps": 1e-3,
        "opt_betas": (0.8, 0.9),
        "lr": "0.1/64",
        "batch_size": 16,
    }
    optimizer = prepare(config(**options)).optimizer
    defaults = optimizer.optimizer.defaults
    assert (defaults["eps"], defaults["betas"], defaults["lr"]) == (1e-3, (0.8, 0.9), pytest.approx(0.05))
    momentum = prepare(config(optimizer="sgd", momentum=0.5)).optimizer.optimizer.defaults["momentum"]
    assert momentum == 0.5


def test_an_option_that_the_optimizer_lacks_is_named(config):
    with pytest.raises(UserError, match="optimizer sgd has no betas"):
        prepare(config(optimizer="sgd", opt_betas=(0.9, 0.99)))
    with pytest.raises(UserError, match="optimizer adamw has no momentum"):
        prepare(config(optimizer="adamw", momentum=0.9))


def test_layer_decay_lowers_the_rate_towards_the_image(config):
    setup = prepare(config(layer_decay=0.5, warmup=0, lr=1.0))
    rate = {id(p): group["lr"] for group in setup.optimizer.param_groups for p in group["params"]}
    model = setup.model
    stem, first, last, head = (
        rate[id(p)]
        for p in (
            model.stem.conv1.weight,
            model.stages[0].blocks[0].mlp.fc1.weight,
            model.stages[3].blocks[0].mlp.fc1.weight,
            model.head.fc.weight,
        )
    )
    assert stem < first < last < head == 1.0
    assert first == pytest.approx(2 * stem)


def test_norms_biases_and_what_the_network_names_do_not_decay(config):
    setup = prepare(config(weight_decay=0.3))
    decay = {
        id(parameter): group["weight_decay"]
        for group in setup.optimizer.param_groups
        for parameter in group["params"]
    }
    spared = setup.model.no_weight_decay()
    for name, parameter in setup.model.named_parameters():
        wanted = 0.0 if parameter.ndim < 2 or name in spared else 0.3
        assert decay[id(parameter)] == wanted, name


def test_network_is_built_as_told(config):
    plain = prepare(config())
    assert plain.model.num_classes == 3
    other = prepare(
        config(drop_rate=0.3, drop_path_rate=0.2, image_size=24, model_args={"strides": [1, 2, 2, 2]})
    )
    assert other.preprocessing.image_size == 24
    rates = {module.p for module in other.model.modules() if isinstance(module, torch.nn.Dropout)}
    assert 0.3 in rates
    paths = [module.drop_prob for module in other.model.modules() if type(module).__name__ == "DropPath"]
    assert max(paths) == pytest.approx(0.2)
    assert other.macs > plain.macs


def test_augmentation_and_seed_change_the_batches(config):
    def first_batch(**changes):
        return next(iter(prepare(config(**changes)).batches.train))[0]

    plain = first_batch(augment="none")
    assert torch.equal(plain, first_batch(augment="none"))
    assert not torch.equal(plain, first_batch(augment="none", seed=1))
    assert not torch.equal(plain, first_batch(augment="light"))
    assert not torch.equal(first_batch(augment="light"), first_batch(augment="strong"))


def test_workers_load_the_same_batches(config):
    alone, helped = (prepare(config(augment="none", workers=workers)).batches.train for workers in (0, 1))
    assert (alone.num_workers, helped.num_workers) == (0, 1)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(alone, helped, strict=True))


def test_precision_can_change_between_trainings(config):
    assert build_accelerator(config(amp="bf16")).mixed_precision == "bf16"
    assert build_accelerator(config(amp="off")).mixed_precision == "no"


def test_half_precision_needs_a_gpu(config):
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        build_accelerator(config(amp="fp16"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_said(config):
    with pytest.raises(UserError, match="--device cpu"):
        build_accelerator(config(device="cuda"))


def test_class_weights_may_be_in_the_home_folder(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights.yaml").write_text("{}")
    setup = prepare(config(class_weights="~/weights.yaml"))
    assert setup.config.class_weights == str(tmp_path / "weights.yaml")
