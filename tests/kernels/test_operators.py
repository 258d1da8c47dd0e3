"""The kernels compute what PyTorch computes, forwards and backwards, in every type and layout."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from quick import quick_kernels
from torch import Tensor

from xnext.kernels import (
    depthwise_conv2d,
    inception_dwconv2d,
    max_blur_pool2d,
    partial_depthwise_conv2d,
    reference,
    use_backend,
)
from xnext.kernels._geometry import Geometry
from xnext.kernels._operators import OPERATORS, Operator

TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

# Kernel, stride, padding, dilation; images are 9x13 places of 19 channels.
GEOMETRIES = [
    ((3, 3), 1, 1, 1), ((3, 3), 2, 1, 1), ((3, 3), 1, 2, 2), ((5, 5), 1, 2, 1), ((5, 5), 2, (0, 1), 1),
    ((7, 7), 1, 3, 1), ((9, 9), 2, 4, 1), ((1, 11), 1, (0, 5), 1),
    ((11, 1), 1, (5, 0), 1), ((1, 3), 2, (0, 1), 1), ((3, 1), 1, (3, 0), (3, 1)), ((3, 5), 2, (3, 4), 1),
    ((1, 1), 1, 0, 1), ((2, 4), 1, (1, 0), 1), ((3, 3), 2, 2, 2), ((3, 3), 2, 3, 3),
    ((5, 3), 2, (3, 4), (2, 3)), ((3, 3), 2, (1, 4), 4), ((1, 5), 2, (0, 3), (1, 2)),
]  # fmt: skip


MOVES = {
    "kernel": st.tuples(st.integers(1, 5), st.integers(1, 5)),
    "stride": st.sampled_from([1, 2]),
    "dilation": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "padding": st.tuples(st.integers(0, 4), st.integers(0, 4)),
}


def draw(*shape: int, dtype=torch.float32, device="cpu", seed=0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return values.to(device, dtype)


def error(value: Tensor, expected: Tensor) -> float:
    """Return how far a tensor is from another one, as a share of that."""
    assert value.shape == expected.shape
    value, expected = value.detach().double(), expected.detach()
    return float((value - expected).norm() / expected.norm().clamp_min(1e-12))


def assert_same(operator, expected, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> None:
    """Compare values and all gradients with the definition in float64."""
    pairs = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    given = [tensor.detach().requires_grad_() for tensor in (x, *pairs)]
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, *pairs)]
    with use_backend("triton"):
        y = operator(*given)
    wanted = expected(*exact)
    grad = draw(*y.shape, dtype=x.dtype, device=x.device, seed=1)
    grad = torch.empty_like(y).copy_(grad)
    y.backward(grad)
    wanted.backward(grad.double())
    tolerance = TOLERANCES[x.dtype]
    assert error(y, wanted) < tolerance
    for one, other in zip(given, exact, strict=True):
        assert one.grad is not None and one.grad.dtype == one.dtype
        assert error(one.grad, other.grad) < tolerance
    assert y.stride() == torch.empty_like(y, memory_format=torch.preserve_format).stride()


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), GEOMETRIES)
def test_any_kernel(device, kernel, stride, padding, dilation):
    x = draw(2, 19, 9, 13, device=device).to(memory_format=torch.channels_last)
    weight, bias = draw(19, 1, *kernel, device=device), draw(19, device=device)

    def run(function):
        return lambda x, w, b: function(x, w, b, pair(stride), pair(padding), pair(dilation))

    assert_same(run(depthwise_conv2d), run(reference.depthwise_conv2d), x, [weight], [bias])


def pair(value):
    return (value, value) if isinstance(value, int) else value


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 16, 70])
def test_any_type_and_layout(device, dtype, layout, channels):
    x = draw(2, channels, 6, 7, dtype=dtype, device=device).to(memory_format=LAYOUTS[layout])
    weight, bias = (
        draw(channels, 1, 3, 3, dtype=dtype, device=device),
        draw(channels, dtype=dtype, device=device),
    )
    assert_same(
        lambda x, w, b: depthwise_conv2d(x, w, b, padding=1),
        lambda x, w, b: reference.depthwise_conv2d(x, w, b, padding=(1, 1)),
        x, [weight], [bias],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("channels", "group", "side", "band", "dtype"),
    [
        *((19, 4, 3, 11, dtype) for dtype in TOLERANCES), (24, 8, 5, 3, torch.float32),
        (96, 12, 3, 11, torch.float32), (9, 3, 3, 7, torch.float32),
    ],
)  # fmt: skip
def test_the_inception_mixer(device, channels, group, side, band, dtype):
    how = {"dtype": dtype, "device": device}
    x = draw(2, channels, 6, 9, **how).to(memory_format=torch.channels_last)
    weights = [draw(group, 1, *sides, **how) for sides in ((side, side), (1, band), (band, 1))]
    biases = [draw(group, **how, seed=number) for number in range(3)]
    assert_same(inception_dwconv2d, reference.inception_dwconv2d, x, weights, biases)


@pytest.mark.parametrize(("channels", "group", "side"), [(19, 4, 3), (8, 8, 7), (70, 65, 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_of_the_channels(device, channels, group, side, layout):
    x = draw(2, channels, 7, 5, device=device).to(memory_format=LAYOUTS[layout])
    weights, biases = [draw(group, 1, side, side, device=device)], [draw(group, device=device)]
    assert_same(partial_depthwise_conv2d, reference.partial_depthwise_conv2d, x, weights, biases)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 12)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.sampled_from([(1, 1), (2, 2)]),
    dilation=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    layout=st.sampled_from(list(LAYOUTS)),
    rows=st.integers(0, 3),
    columns=st.integers(0, 3),
)
def test_any_shape_and_slice(sizes, kernel, stride, dilation, padding, layout, rows, columns):
    """The image is a slice of a larger one, and starts anywhere in it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, channels, height, width = sizes
    if any(
        side + 2 * pad <= gap * (taps - 1)
        for side, pad, gap, taps in zip((height, width), padding, dilation, kernel, strict=True)
    ):
        return
    whole = draw(images, channels + 5, height + 3, width + 3, device=device)
    x = whole.to(memory_format=LAYOUTS[layout])[
        :, 2 : 2 + channels, rows : rows + height, columns : columns + width
    ]
    weight, bias = draw(channels, 1, *kernel, device=device), draw(channels, device=device)
    with quick_kernels():
        assert_same(
            lambda x, w, b: depthwise_conv2d(x, w, b, stride, padding, dilation),
            lambda x, w, b: reference.depthwise_conv2d(x, w, b, stride, padding, dilation),
            x, [weight], [bias],
        )  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("layout", "sides"), [*zip(LAYOUTS, [(7, 8), (8, 7)], strict=True)])
def test_max_blur_pooling(device, dtype, layout, sides):
    x = draw(2, 19, *sides, dtype=dtype, device=device).to(memory_format=LAYOUTS[layout])
    assert_same(max_blur_pool2d, reference.max_blur_pool2d, x, [], [])


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(2, 20), st.integers(2, 12)),
    layout=st.sampled_from(list(LAYOUTS)),
    values=st.integers(1, 3),
)
def test_max_blur_pooling_of_any_shape_and_of_equal_values(sizes, layout, values):
    """Where several values are the largest it is PyTorch's choice that has the gradient."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = draw(*sizes, device=device).mul(values).round().to(memory_format=LAYOUTS[layout])
    with quick_kernels():
        assert_same(max_blur_pool2d, reference.max_blur_pool2d, x, [], [])


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (3, 4), slice(None)])
def test_max_blur_pooling_of_what_is_no_number(device, value, place):
    x = draw(1, 3, 8, 9, device=device).to(memory_format=torch.channels_last)
    x[0, 1][place] = value
    results = []
    for operator, backend in ((max_blur_pool2d, "triton"), (reference.max_blur_pool2d, "torch")):
        given = x.detach().requires_grad_()
        with use_backend(backend):
            y = operator(given)
        results.append((y.detach(), *torch.autograd.grad(y, given, draw(*y.shape, device=device))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (3, 4), (7, 8)])
def test_what_is_no_number_spreads_as_in_pytorch(device, stride, value, place):
    x = draw(1, 3, 8, 9, device=device).to(memory_format=torch.channels_last)
    weight = draw(3, 1, 3, 3, device=device)
    grad = draw(1, 3, *(-(-side // stride) for side in (8, 9)), device=device)
    for spoilt in (x, grad):
        kept = spoilt.clone()
        spoilt[0, 1, min(place[0], spoilt.shape[2] - 1), min(place[1], spoilt.shape[3] - 1)] = value
        results = []
        for backend in ("triton", "torch"):
            given = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
            with use_backend(backend):
                y = depthwise_conv2d(*given, stride=stride, padding=1)
            results.append([y.detach(), *torch.autograd.grad(y, given, grad)])
        ours, theirs = results
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, equal_nan=True)
        spoilt.copy_(kept)


@pytest.mark.filterwarnings("ignore:invalid value")
@settings(max_examples=50, deadline=None)
@given(
    **MOVES,
    which=st.integers(0, 1),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    place=st.tuples(st.integers(0, 99), st.integers(0, 99)),
)
def test_only_taps_that_see_what_is_no_number_are_spoilt(
    kernel, stride, dilation, padding, which, value, place
):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    moves = ((stride, stride), padding, dilation)
    size = Geometry(kernel, *moves).output_size((13, 9))
    if min(size) < 1:
        return
    pair = [draw(2, 3, 13, 9, device=device), draw(2, 3, *size, device=device)]  # image, gradient
    marks = [torch.ones_like(one) for one in pair]
    row, column = (number % side for number, side in zip(place, pair[which].shape[2:], strict=True))
    pair[which][1, 1, row, column] = value
    marks[which].zero_()[1, 1, row, column] = 1
    weight = torch.zeros(3, 1, *kernel, device=device, requires_grad=True)
    (seen,) = torch.autograd.grad(
        reference.depthwise_conv2d(marks[0], weight, None, *moves), weight, marks[1]
    )
    with quick_kernels(), use_backend("triton"):
        (ours,) = torch.autograd.grad(depthwise_conv2d(pair[0], weight, None, *moves), weight, pair[1])
    assert torch.equal(ours.isfinite(), seen == 0)


@pytest.mark.filterwarnings("ignore:invalid value")
@settings(max_examples=50, deadline=None)
@given(
    **MOVES,
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    tap=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_a_weight_that_is_no_number_spoils_what_sees_its_tap(kernel, stride, dilation, padding, value, tap):
    """What has the tap beyond the border may be spoilt too: in float64 it is in PyTorch, in float32 not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    moves = ((stride, stride), padding, dilation)
    if min(Geometry(kernel, *moves).output_size((13, 9))) < 1:
        return
    x, weight = draw(2, 3, 13, 9, device=device), draw(3, 1, *kernel, device=device)
    usual = reference.depthwise_conv2d(x, weight, None, *moves)
    mark = torch.zeros_like(weight)
    place = (1, 0, tap[0] % kernel[0], tap[1] % kernel[1])
    mark[place], weight[place] = 1, value
    seen = reference.depthwise_conv2d(torch.ones_like(x), mark, None, *moves) > 0
    beyond = torch.zeros_like(seen)
    beyond[:, 1] = ~seen[:, 1]
    with quick_kernels(), use_backend("triton"):
        ours = depthwise_conv2d(x, weight, None, *moves)
    assert torch.equal(ours[seen].isnan(), torch.full_like(ours[seen], math.isnan(value), dtype=torch.bool))
    assert not ours[seen].isfinite().any()
    assert (ours[beyond].isnan() | (ours[beyond] - usual[beyond]).abs().lt(math.inf)).all()
    untouched = ~(seen | beyond)
    torch.testing.assert_close(ours[untouched], usual[untouched], rtol=1e-5, atol=1e-5)


def poisoned(*shape: int, layout: torch.memory_format, device: torch.device) -> Tensor:
    """Return values with something around them, in memory, that would show in every result."""
    border = torch.full([size + 4 for size in shape], math.nan, device=device)
    border = border.to(memory_format=layout) if len(shape) == 4 else border
    inner = border[tuple(slice(2, -2) for _ in shape)]
    inner.copy_(draw(*shape))
    return inner


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), GEOMETRIES[:3] + GEOMETRIES[8:10])
def test_nothing_beyond_the_image_is_read_or_written(
    device, triton, kernel, stride, padding, dilation, layout
):
    how = {"layout": layout, "device": device}
    x, weight = (poisoned(*shape, **how).requires_grad_() for shape in ((2, 5, 9, 11), (5, 1, *kernel)))
    y = depthwise_conv2d(x, weight, None, stride, padding, dilation)
    results = [y, *torch.autograd.grad(y, (x, weight), poisoned(*y.shape, **how))]
    assert all(result.isfinite().all() for result in results)


WHOLE = ("inception 3 11", "partial 3", "max-blur")
"""The operators that are no single convolution."""


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", WHOLE)
def test_nor_by_the_other_operators(device, triton, name, layout):
    operator, how = OPERATORS[name], {"layout": layout, "device": device}
    shapes = [(2, 9, 7, 6), *operator.shapes(9)]
    given = [poisoned(*shape, **how).requires_grad_() for shape in shapes]
    y = operator.call(*given)
    results = [y, *torch.autograd.grad(y, given, poisoned(*y.shape, **how))]
    assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("name", ["3x3 stride 1", *WHOLE])
def test_two_runs_are_equal_to_the_bit(device, triton, name):
    operator = OPERATORS[name]
    x = draw(2, 16, 6, 7, device=device).to(memory_format=torch.channels_last)
    given = [x, *(draw(*shape, device=device) for shape in operator.shapes(16))]
    first, second = (gradients(operator, given) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="its peer is the interpreter")
@pytest.mark.parametrize("name", ["3x3 stride 1", "5x5 stride 2", *WHOLE])
def test_the_quick_stand_in_computes_what_the_interpreter_does(triton, name):
    operator = OPERATORS[name]
    given = [draw(*shape) for shape in [(2, 9, 7, 6), *operator.shapes(9)]]
    theirs = gradients(operator, given)
    with quick_kernels():
        ours = gradients(operator, given)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def gradients(operator: Operator, given: list[Tensor]) -> list[Tensor]:
    """Return the output and all gradients."""
    given = [tensor.detach().requires_grad_() for tensor in given]
    y = operator.call(*given)
    grad = torch.empty_like(y).copy_(draw(*y.shape, dtype=y.dtype, device=y.device))
    return [y.detach(), *torch.autograd.grad(y, given, grad)]


def test_no_images(device, triton):
    x = torch.zeros(0, 8, 6, 6, device=device, requires_grad=True)
    weights = [
        torch.ones(2, 1, *sides, device=device, requires_grad=True) for sides in ((3, 3), (1, 5), (5, 1))
    ]
    for y in (
        depthwise_conv2d(x, torch.ones(8, 1, 3, 3, device=device, requires_grad=True), padding=1),
        inception_dwconv2d(x, weights[0], None, weights[1], None, weights[2], None),
    ):
        assert y.shape == x.shape
        y.sum().backward()
    max_blur_pool2d(x).sum().backward()
    assert max_blur_pool2d(x).shape == (0, 8, 3, 3) and x.grad.shape == x.shape
    assert all(not weight.grad.any() for weight in weights)


@pytest.mark.parametrize("name", ["3x3 stride 1", *WHOLE])
def test_places_that_32_bits_do_not_count(device, triton, name):
    """Two images lie more than 2**31 values apart, of memory that nobody touches."""
    operator, apart = OPERATORS[name], 2**31 + 2**10
    storage = torch.empty(apart + 2**12, dtype=torch.bfloat16, device=device)
    far = storage.as_strided((2, 8, 6, 7), (apart, 1, 56, 8)).copy_(draw(2, 8, 6, 7))
    near = far.contiguous(memory_format=torch.channels_last)
    weights = [draw(*shape, dtype=torch.bfloat16, device=device) for shape in operator.shapes(8)]
    ours, same = (gradients(operator, [image, *weights]) for image in (far, near))
    assert all(torch.equal(one, other) for one, other in zip(ours, same, strict=True))
