"""Who computes an operator, and what is said to those who ask for what cannot be."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xnext.errors import UserError
from xnext.kernels import (
    _backend,
    depthwise_conv2d,
    inception_dwconv2d,
    max_blur_pool2d,
    partial_depthwise_conv2d,
    use_backend,
)

X = torch.randn(2, 8, 6, 6)
WEIGHT = torch.randn(8, 1, 3, 3)


@pytest.fixture
def launched(monkeypatch):
    """Count what Triton is asked to compute."""
    from xnext.kernels import _launch

    calls, forward = [], _launch.forward
    monkeypatch.setattr(_launch, "forward", lambda *inputs: calls.append(1) or forward(*inputs))
    return calls


def test_each_backend_computes_its_own_way(launched):
    x, weight = (X.cuda(), WEIGHT.cuda()) if torch.cuda.is_available() else (X, WEIGHT)
    results = {}
    for backend, times in (("torch", 0), ("triton", 1)):
        launched.clear()
        with use_backend(backend):
            results[backend] = depthwise_conv2d(x, weight, padding=1)
        assert len(launched) == times
    torch.testing.assert_close(results["torch"], results["triton"])


def test_auto_takes_what_was_measured_to_be_faster(monkeypatch):
    rows = {"a 16-bit training": 1000, "a 32-bit inference": 10}
    monkeypatch.setattr(_backend, "_winners", lambda capability: rows)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    class Image:
        device = torch.device("cuda:0")

        def __init__(self, step, numel, dtype=torch.bfloat16):
            self.stride, self.numel, self.dtype = lambda dim: step, lambda: numel, dtype
            self.is_floating_point = lambda: True

    assert _backend.is_faster("a", Image(1, 1000))
    assert _backend.is_faster("a", Image(1, 1000, torch.float16))
    assert not _backend.is_faster("a", Image(1, 999))
    assert not _backend.is_faster("a", Image(36, 1000))
    assert not _backend.is_faster("b", Image(1, 1000))
    assert not _backend.is_faster("a", Image(1, 1000, torch.float32))
    assert not _backend.is_faster("a", X)
    with torch.no_grad():
        assert not _backend.is_faster("a", Image(1, 1000))
        assert _backend.is_faster("a", Image(1, 10, torch.float32))


def test_operators_ask_for_their_own_rows(device, monkeypatch):
    """Each is measured as a whole."""
    asked = []
    monkeypatch.setattr(_backend, "is_faster", lambda name, x: asked.append(name) and False)
    x, weight, band = X.to(device), WEIGHT.to(device), torch.ones(2, 1, 1, 5, device=device)
    depthwise_conv2d(x, weight, padding=1, stride=2)
    inception_dwconv2d(x, weight[:2], None, band, None, band.mT, None)
    partial_depthwise_conv2d(x, weight[:4])
    max_blur_pool2d(x)
    assert asked == ["3x3 stride 2", "inception 3 5", "partial 3", "max-blur"]


def test_the_choice_ends_with_its_block():
    with use_backend("triton"):
        with pytest.raises(ZeroDivisionError), use_backend("torch"):
            raise ZeroDivisionError
        assert _backend._backend == "triton"
    assert _backend._backend == "auto"
    with pytest.raises(UserError, match=r"no backend 'trtion'.*'triton'"), use_backend("trtion"):
        pass


@pytest.mark.parametrize(
    ("x", "weight", "how", "reason"),
    [
        (X.double(), WEIGHT.double(), {}, "it has no float64"),
        (torch.randn(1, 8, 20, 20), torch.randn(8, 1, 13, 3), {}, "kernel 13x3 is larger than 11"),
        (X, WEIGHT, {"stride": 3}, "stride (3, 3) is neither 1 nor 2"),
        (X, WEIGHT, {"stride": (1, 2)}, "stride (1, 2) is neither 1 nor 2"),
    ],
)
def test_triton_raises_where_it_cannot_and_auto_falls_back(x, weight, how, reason):
    expected = F.conv2d(x, weight, groups=8, **how)
    assert torch.equal(depthwise_conv2d(x, weight, **how), expected)
    with use_backend("triton"), pytest.raises(UserError) as caught:
        depthwise_conv2d(x, weight, **how)
    assert str(caught.value).startswith("backend triton: ") and reason in str(caught.value)


def test_other_devices_and_forward_derivatives_are_left_to_pytorch(device):
    assert depthwise_conv2d(X.to("meta"), WEIGHT.to("meta"), padding=np.int64(1)).shape == X.shape
    x, weight = X.to(device), WEIGHT.to(device)

    def run(x):
        return depthwise_conv2d(x, weight)

    expected = torch.func.jvp(run, (x,), (x,))[1]
    torch.testing.assert_close(expected, run(x), rtol=1e-4, atol=1e-5)
    with use_backend("triton"), pytest.raises(UserError, match="it has no forward-mode derivatives"):
        torch.func.jvp(run, (x,), (x,))


def test_under_autocast_float64_does_not_go_with_others():
    with torch.autocast("cpu"), pytest.raises(UserError, match=r"\[8, 1, 3, 3\] torch.float64"):
        depthwise_conv2d(X, WEIGHT.double())


def test_a_mixer_of_which_some_groups_have_a_bias(device, triton):
    x = X.to(device)
    hw, w, h = (torch.randn(2, 1, *sides, device=device) for sides in ((3, 3), (1, 5), (5, 1)))
    bias = torch.randn(2, device=device)
    y = inception_dwconv2d(x, hw, None, w, bias, h, None)
    with use_backend("torch"):
        torch.testing.assert_close(y, inception_dwconv2d(x, hw, None, w, bias, h, None))


def test_without_triton_or_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(_backend, "INTERPRETED", False)
    with use_backend("triton"), pytest.raises(UserError, match="cpu is no NVIDIA or AMD GPU"):
        depthwise_conv2d(X, WEIGHT)
    monkeypatch.setattr(_backend, "HAS_TRITON", False)
    with use_backend("triton"), pytest.raises(UserError, match="Triton is not installed"):
        depthwise_conv2d(X, WEIGHT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: depthwise_conv2d(X[0], WEIGHT), "[N, C, H, W], not [8, 6, 6]"),
        (lambda: depthwise_conv2d(X, WEIGHT[:4]), "is for 4 channels, and the input is [2, 8, 6, 6]"),
        (lambda: depthwise_conv2d(X, torch.randn(8, 8, 3, 3)), "[C, 1, kH, kW], not [8, 8, 3, 3]"),
        (lambda: depthwise_conv2d(X, WEIGHT, torch.zeros(7)), "bias [7] does not go with weight [8,"),
        (lambda: depthwise_conv2d(X, WEIGHT.half()), "weight or bias [8, 1, 3, 3] torch.float16"),
        (lambda: depthwise_conv2d(X, WEIGHT.to("meta")), "is on cpu, weight or bias [8, 1, 3, 3] on meta"),
        (lambda: depthwise_conv2d(X, WEIGHT, padding=-1), "padding -1 must be"),
        (lambda: depthwise_conv2d(X, WEIGHT, stride=0), "stride 0 must be"),
        (lambda: depthwise_conv2d(X, WEIGHT, padding="same"), "padding 'same' must be"),
        (lambda: depthwise_conv2d(X, WEIGHT, padding=0.5), "padding 0.5 must be"),
        (lambda: depthwise_conv2d(X, WEIGHT, padding=True), "padding True must be"),
        (lambda: depthwise_conv2d(X, WEIGHT[:, :, :0]), "[C, 1, kH, kW], not [8, 1, 0, 3]"),
        (lambda: depthwise_conv2d(X[:, :0], WEIGHT[:0]), "[2, 0, 6, 6] has no channels"),
        (lambda: max_blur_pool2d(X[:, :0]), "[2, 0, 6, 6] has no channels"),
        (lambda: depthwise_conv2d(X.to("meta"), WEIGHT.half().to("meta")), "[8, 1, 3, 3] torch.float16"),
        (lambda: depthwise_conv2d(X.long(), WEIGHT.long()), "[2, 8, 6, 6] must be of a floating-point type"),
        (lambda: max_blur_pool2d(X.int()), "[2, 8, 6, 6] must be of a floating-point type"),
        (lambda: depthwise_conv2d(X, WEIGHT, dilation=(1, 1, 1)), "dilation (1, 1, 1) must be"),
        (lambda: depthwise_conv2d(X, WEIGHT, dilation=3), "does not fit into the input [2, 8, 6, 6]"),
        (lambda: max_blur_pool2d(X[:, :, :1]), "needs sides of at least 2, not [2, 8, 1, 6]"),
        (lambda: partial_depthwise_conv2d(X, torch.randn(9, 1, 3, 3)), "than the input [2, 8, 6, 6]"),
        (lambda: partial_depthwise_conv2d(X, torch.randn(4, 1, 3, 5)), "[4, 1, 3, 5] is no square kernel"),
        (lambda: partial_depthwise_conv2d(X, torch.randn(4, 1, 4, 4)), "[4, 1, 4, 4] is no square kernel"),
        (
            lambda: inception_dwconv2d(
                X, WEIGHT[:2], None, torch.randn(2, 1, 1, 5), None, torch.randn(2, 1, 3, 1), None
            ),
            "[2, 1, 1, 5], [2, 1, 3, 1] are no square kernel, band",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told_with_its_shapes(call, message):
    for backend in ("torch", "triton"):
        with use_backend(backend), pytest.raises(UserError) as caught:
            call()
        assert message in str(caught.value)
