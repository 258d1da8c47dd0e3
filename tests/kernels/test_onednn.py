"""Gradients of depthwise weights that a CPU takes in pieces are those of PyTorch."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from torch import Tensor

import xnext
from xnext.kernels import _onednn, depthwise_conv2d, use_backend

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch has no oneDNN here")


@pytest.fixture(autouse=True)
def any_image(monkeypatch):
    """Take pieces on any CPU, and for the smallest of images."""
    monkeypatch.setattr(_onednn, "_IS_SLOW", True)
    monkeypatch.setattr(_onednn, "_FEWEST", 1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def in_pieces(x: Tensor, weight: Tensor, **how) -> bool:
    """Return whether the gradient of a weight would be taken in pieces."""
    return depthwise_conv2d(x, weight.requires_grad_(), **how).grad_fn.name() == "_InColumnsBackward"


def error(value: Tensor, exact: Tensor) -> float:
    return float((value.detach() - exact.detach()).norm() / exact.detach().norm())


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 19),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    kernel=st.tuples(st.integers(3, 11), st.integers(3, 11)),
    padding=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    layout=st.sampled_from([torch.channels_last, torch.contiguous_format]),
    bias=st.booleans(),
)
def test_gradients_are_those_in_float64(batch, channels, size, kernel, padding, layout, bias):
    slow = kernel[1] > 3 or kernel[0] > size[0] or kernel[1] > size[1]
    assume(slow and all(size[i] + 2 * padding[i] >= kernel[i] for i in range(2)))
    x = draw(batch, channels, *size).to(memory_format=layout)
    tensors = [x, draw(channels, 1, *kernel), *([draw(channels)] if bias else [])]
    given_ = [tensor.requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y = depthwise_conv2d(*given_, padding=padding)
    assert y.grad_fn.name() == "_InColumnsBackward"
    wanted = F.conv2d(*exact, padding=padding, groups=channels)
    grad = draw(*y.shape, seed=1)
    y.backward(grad)
    wanted.backward(grad.double())
    assert error(y, wanted) < 1e-5
    for one, other in zip(given_, exact, strict=True):
        assert one.grad.shape == other.shape and error(one.grad, other.grad) < 1e-5


def test_only_what_was_measured_to_be_slow_is_taken_in_pieces(monkeypatch):
    x, weight = draw(2, 8, 12, 12), draw(8, 1, 5, 5)
    assert in_pieces(x, weight, padding=2)
    assert not in_pieces(x, weight, padding=2, stride=2)
    assert not in_pieces(x, weight, padding=4, dilation=2)
    assert not in_pieces(x, draw(8, 1, 3, 3), padding=1)
    assert not in_pieces(x, draw(8, 1, 1, 11), padding=(0, 5))
    assert not in_pieces(x, draw(8, 1, 11, 3), padding=(5, 1))
    assert in_pieces(x, draw(8, 1, 13, 3), padding=(6, 1))  # taller than the image
    assert not in_pieces(x.double(), weight.detach().double(), padding=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert not in_pieces(x, weight, padding=2)
    with use_backend("torch"):
        assert not in_pieces(x, weight, padding=2)
    with torch.no_grad():
        assert depthwise_conv2d(x, weight).grad_fn is None
    frozen = depthwise_conv2d(x.clone().requires_grad_(), weight.detach(), padding=2)
    assert frozen.grad_fn.name() == "ConvolutionBackward0"
    monkeypatch.setattr(_onednn, "_FEWEST", x.numel() + 1)
    assert not in_pieces(x, weight, padding=2)
    monkeypatch.setattr(_onednn, "_FEWEST", 1)
    monkeypatch.setattr(_onednn, "_IS_SLOW", False)
    assert not in_pieces(x, weight, padding=2)


def test_what_records_the_layer_finds_a_convolution(tmp_path):
    layer = torch.nn.Conv2d(8, 8, 7, padding=3, groups=8)
    xnext.accelerate(layer)
    x = draw(2, 8, 9, 9)
    expected = layer(x)
    assert expected.grad_fn.name() == "_InColumnsBackward"
    torch.jit.save(torch.jit.trace(layer, x), tmp_path / "traced.pt")
    torch.export.save(torch.export.export(layer, (x,)), tmp_path / "exported.pt2")
    for again in (
        torch.jit.load(tmp_path / "traced.pt"),
        torch.export.load(tmp_path / "exported.pt2").module(),
        torch.compile(layer, backend="aot_eager", fullgraph=True),
    ):
        assert error(again(x), expected) < 1e-6


def test_second_derivatives_and_transforms_are_pytorchs():
    x, weight = draw(2, 8, 9, 9), draw(8, 1, 7, 7)

    def penalty(backend: str) -> list[Tensor]:
        one, other = (tensor.clone().requires_grad_() for tensor in (x, weight))
        with use_backend(backend):
            y = depthwise_conv2d(one, other, padding=3).square().sum()
            first = torch.autograd.grad(y, (one, other), create_graph=True)
        return list(torch.autograd.grad(sum(value.square().sum() for value in first), (one, other)))

    for value, expected in zip(penalty("auto"), penalty("torch"), strict=True):
        assert error(value, expected) < 1e-4

    def loss(weight: Tensor, image: Tensor) -> Tensor:
        return depthwise_conv2d(image[None], weight, padding=3).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)
    for image, found in zip(x, each, strict=True):
        variable = weight.clone().requires_grad_()
        loss(variable, image).backward()
        assert error(found, variable.grad) < 1e-4
    direction = torch.ones_like(weight)
    found = torch.func.jvp(lambda weight: loss(weight, x[0]), (weight,), (direction,))[1]
    expected = (torch.func.grad(loss)(weight, x[0]) * direction).sum()
    assert error(found, expected) < 1e-3
