"""The operators are PyTorch's own for compile, export, autocast and checkpointing."""

import pytest
import torch
from quick import quick_kernels
from torch import nn
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from xnext.kernels import (
    _ops,
    depthwise_conv2d,
    inception_dwconv2d,
    max_blur_pool2d,
    partial_depthwise_conv2d,
    reference,
)


def image(device, *shape: int, dtype=torch.float32) -> torch.Tensor:
    x = torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    return x.requires_grad_()


def weight(device, *shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=dtype).requires_grad_()


@pytest.fixture
def quick():
    """What is registered is tried with kernels that take little time."""
    with quick_kernels():
        yield


def test_opcheck(device, quick):
    x, w, b = image(device, 2, 8, 6, 5), weight(device, 8, 1, 3, 3), weight(device, 8)
    grad = torch.randn(2, 8, 6, 5, device=device)
    moves = (1, 1), (1, 1), (1, 1)
    opcheck(_ops.depthwise_conv2d, (x, w, b, *moves))
    opcheck(_ops.depthwise_conv2d, (x, w, None, *moves))
    opcheck(_ops.backward_input, (grad, w.detach(), (6, 5), *moves))
    opcheck(_ops.backward_weight, (grad, x.detach(), (3, 3), *moves))
    weights = [weight(device, 2, 1, *sides) for sides in ((3, 3), (1, 5), (5, 1))]
    biases = [weight(device, 2) for _ in weights]
    opcheck(_ops.mix, (x, weights, biases))
    opcheck(_ops.mix, (x, weights[:1], []))
    opcheck(_ops.mix_into, (x.detach(), [w.detach() for w in weights], [], torch.empty_like(x)))
    opcheck(_ops.mix_backward_input, (grad, [w.detach() for w in weights]))
    opcheck(_ops.max_blur_pool2d, (x, True))
    opcheck(_ops.max_blur_pool2d, (x.detach(), False))
    codes = _ops.max_blur_pool2d(x, True)[1]
    opcheck(_ops.max_blur_backward_input, (torch.randn(2, 8, 3, 3, device=device), codes))


class Mixed(nn.Module):
    """One network with all operators."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(
            [torch.randn(2, 1, *sides) for sides in ((3, 3), (1, 5), (5, 1))] + [torch.randn(8, 1, 3, 3)]
        )

    def forward(self, x):
        hw, w, h, all_ = self.weights
        x = inception_dwconv2d(x, hw, None, w, None, h, None)
        return max_blur_pool2d(partial_depthwise_conv2d(depthwise_conv2d(x, all_, stride=2, padding=1), hw))


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_whole_graph_is_compiled(device, triton, quick, dynamic):
    torch.compiler.reset()
    network, x = Mixed().to(device), image(device, 2, 8, 6, 6)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected, got = network(x), compiled(x)
    assert torch.equal(got, expected) and got.stride() == expected.stride()
    parameters = [x, *network.parameters()]
    for one, other in zip(
        torch.autograd.grad(got.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_export_keeps_them(device, triton, quick):
    network, x = Mixed().to(device).eval(), image(device, 2, 8, 6, 6).detach()
    program = torch.export.export(network, (x,))
    called = {str(node.target) for node in program.graph.nodes}
    wanted = {f"xnext.{name}.default" for name in ("depthwise_conv2d", "mix", "max_blur_pool2d")}
    assert wanted <= called
    assert torch.equal(program.module()(x), network(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_that_of_convolutions(device, triton, dtype):
    x, w, b = image(device, 2, 8, 6, 6), weight(device, 8, 1, 3, 3), weight(device, 8)
    with torch.autocast(device.type, dtype=dtype):
        y = depthwise_conv2d(x, w, b, padding=1)
        expected = reference.depthwise_conv2d(x, w, b, padding=(1, 1))
        mixed = partial_depthwise_conv2d(x, w[:4], b[:4])
        pooled = max_blur_pool2d(x)
        assert pooled.dtype == reference.max_blur_pool2d(x).dtype
    assert y.dtype == expected.dtype == mixed.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    y.float().sum().backward()
    assert w.grad.dtype == torch.float32 and x.grad.dtype == torch.float32


def test_distributed_data_parallel(device, triton, quick, tmp_path):
    network, x = Mixed().to(device), image(device, 2, 8, 6, 6)
    plain = torch.autograd.grad(network(x).sum(), list(network.parameters()))
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        nn.parallel.DistributedDataParallel(network)(x).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(network.parameters(), plain, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs are of a GPU")
def test_cuda_graphs_replay_them(device, triton):
    network, x = Mixed().to(device), image(device, 2, 8, 6, 6)
    replayed = torch.cuda.make_graphed_callables(network, (x,))
    other = image(device, 2, 8, 6, 6)
    parameters = [other, *network.parameters()]
    expected = Mixed()
    expected.load_state_dict(network.state_dict())
    expected = expected.to(device)
    y = expected(other)
    grads = torch.autograd.grad(y.sum(), [other, *expected.parameters()])
    torch.testing.assert_close(replayed(other), y)
    torch.testing.assert_close(torch.autograd.grad(replayed(other).sum(), parameters), grads)


def test_checkpointing_computes_the_same_again(device, triton, quick):
    network, x = Mixed().to(device), image(device, 2, 8, 6, 6)
    plain = torch.autograd.grad(network(x).sum(), x)[0]
    again = torch.autograd.grad(checkpoint(network, x, use_reentrant=False).sum(), x)[0]
    assert torch.equal(plain, again)


def test_gradients_of_the_definition():
    """The reference is what the kernels are held against: its own gradients against finite differences."""
    x = torch.randn(1, 8, 5, 4, dtype=torch.float64, requires_grad=True)
    weights = [
        torch.randn(2, 1, *s, dtype=torch.float64, requires_grad=True) for s in ((3, 3), (1, 5), (5, 1))
    ]
    hw, w, h = weights
    assert torch.autograd.gradcheck(
        lambda x, hw, w, h: reference.inception_dwconv2d(x, hw, None, w, None, h, None), (x, hw, w, h)
    )
