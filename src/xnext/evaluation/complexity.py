"""Size of a network: parameters, multiply-accumulates, activations, the smallest image it takes."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from xnext.errors import UserError


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, biases and norms included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: tuple[int, int, int], name: str = "the network") -> int:
    """Return the multiply-accumulates of one image: convolutions, linear layers, attention products.

    Runs on the meta device, so it neither computes nor changes ``model``. Blur pooling is a
    convolution with fixed weights and counts; norms, activations and pooling do not.

    Args:
        model: A network that takes float images of shape (1, C, H, W).
        input_size: (C, H, W) in pixels.
        name: What a line calls the network.

    Raises:
        UserError: It does not take square images of that size, as :func:`check_image_size` says it.
    """
    network = copy.deepcopy(model).to("meta").eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.empty(1, *input_size, device="meta", dtype=next(network.parameters()).dtype))
    except _UNFIT:
        check_image_size(model, input_size[-1], name)
        raise
    return counter.get_total_flops() // 2


def count_activations(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Return the values that convolutions, linear layers and attention products put out for one image.

    They are what the field calls activations (Radosavovic et al., "Designing Network Design Spaces",
    2020); timm's tables have them in millions.

    Args:
        model: A network that takes float images of shape (1, C, H, W).
        input_size: (C, H, W) in pixels.
    """
    network = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), _ActivationCounter() as counter:
        network(torch.empty(1, *input_size, device="meta", dtype=next(network.parameters()).dtype))
    return counter.count


_UNFIT = (RuntimeError, ValueError, AssertionError)  # timm asserts sizes
_PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm")


class _ActivationCounter(TorchDispatchMode):
    """Counts what products put out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **kwargs or {})
        if operator.namespace == "aten" and operator._schema.name.partition("::")[2] in _PRODUCTS:
            self.count += result.numel()
        return result


def smallest_image_size(model: nn.Module, limit: int = 512, first: int = 1) -> int:
    """Return the smallest square image, in pixels a side, that ``model`` takes.

    Args:
        model: A network of images.
        limit: The largest to try.
        first: The smallest to try.

    Raises:
        UserError: No size up to ``limit`` works.
    """
    network = copy.deepcopy(model).to("meta").eval()
    last = max(first, limit)
    for size in range(first, last + 1):
        if takes(network, size):
            return size
    raise UserError(f"{type(model).__name__} takes no image of {first} to {last} pixels a side")


def check_image_size(
    model: nn.Module, size: int, name: str = "the network", option: str = "--image-size"
) -> None:
    """Check that ``model`` takes square images of ``size`` pixels a side.

    Args:
        model: On any device.
        size: In pixels.
        name: What the line calls it.
        option: By which the user gave the size.

    Raises:
        UserError: It does not; the line names the smallest size that works.
    """
    if takes(copy.deepcopy(model).to("meta").eval(), size):
        return
    smallest = smallest_image_size(model)
    if size < smallest:
        raise UserError(f"image size {size} is too small for {name}; use {option} {smallest} or more")
    raise UserError(f"{name} does not take images of {size} pixels; {option} {smallest} is one that it does")


def takes(network: nn.Module, size: int) -> bool:
    """Return whether a network that is on the meta device takes square images of ``size`` pixels a side."""
    in_chans = getattr(network, "in_chans", 3)
    try:
        with torch.no_grad():
            network(
                torch.empty(1, in_chans, size, size, device="meta", dtype=next(network.parameters()).dtype)
            )
    except _UNFIT:
        return False
    return True
