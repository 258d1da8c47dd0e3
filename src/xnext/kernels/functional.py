"""The operators as users call them: checked, and computed by whoever is faster."""

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from xnext.errors import UserError
from xnext.kernels import _onednn, _ops, reference
from xnext.kernels._backend import effective_dtype, takes_triton
from xnext.kernels._geometry import MAX_BLUR, Geometry, Pair


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Convolve each channel with its own kernel.

    Args:
        x: ``[N, C, H, W]``; channels-last in memory is the fast layout, and the output has that of the input.
            A contiguous one is not copied but read in place, a value at a time.
        weight: ``[C, 1, kH, kW]``.
        bias: ``[C]``, or None.
        stride: For both axes, or ``(height, width)``; so are the next two.
        padding: Zeros around the image.
        dilation: Places from one tap to the next.

    Returns:
        ``[N, C, H', W']``, as ``torch.nn.functional.conv2d`` with ``groups=C``.

    Raises:
        UserError: Shapes, types or devices do not go together; or the backend ``triton`` was asked for and
            cannot compute this.
    """
    moves = _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1)
    check_inputs(x, [weight], [bias])
    if weight.shape[0] != x.shape[1]:
        raise UserError(
            f"weight {_shape(weight)} is for {len(weight)} channels, and the input is {_shape(x)}"
        )
    geometry = Geometry(_sides(weight), *moves)
    if min(geometry.output_size(x.shape[2:])) < 1:
        raise UserError(
            f"kernel {_shape(weight)} does not fit into the input {_shape(x)} with padding {geometry.padding}"
            f" and dilation {geometry.dilation}"
        )
    if takes_triton(geometry.name, x, geometry):
        return _ops.depthwise_conv2d(x, weight, bias, *moves)
    if _onednn.takes_columns(x, weight, geometry):
        return _onednn.depthwise_conv2d(x, weight, bias, geometry.padding)
    return reference.depthwise_conv2d(x, weight, bias, *moves)


def inception_dwconv2d(
    x: Tensor,
    weight_hw: Tensor,
    bias_hw: Tensor | None,
    weight_w: Tensor,
    bias_w: Tensor | None,
    weight_h: Tensor,
    bias_h: Tensor | None,
) -> Tensor:
    """Mix the last three groups of channels with a square kernel and two bands, and pass the others on.

    This is the token mixer of InceptionNeXt (Yu et al. 2024, algorithm 1, in the published order): identity,
    square kernel, band along the width, band along the height; all in one pass over the image.

    Args:
        x: ``[N, C, H, W]``, its layout as for ``depthwise_conv2d``.
        weight_hw: ``[G, 1, k, k]``, ``k`` odd, with ``3 G`` at most ``C``.
        bias_hw: ``[G]``, or None.
        weight_w: ``[G, 1, 1, b]``, ``b`` odd.
        bias_w: As ``bias_hw``.
        weight_h: ``[G, 1, b, 1]``.
        bias_h: As ``bias_hw``.

    Returns:
        ``[N, C, H, W]``.

    Raises:
        UserError: As ``depthwise_conv2d``.
    """
    weights, biases = [weight_hw, weight_w, weight_h], [bias_hw, bias_w, bias_h]
    check_inputs(x, weights, biases)
    group, (side, _), (_, band) = len(weight_hw), _sides(weight_hw), _sides(weight_w)
    wanted = [(group, 1, side, side), (group, 1, 1, band), (group, 1, band, 1)]
    if [tuple(weight.shape) for weight in weights] != wanted or not side % 2 or not band % 2:
        raise UserError(
            f"weights {', '.join(map(_shape, weights))} are no square kernel, band along the width and band"
            " along the height of odd sides and the same channels"
        )
    _check_mixed(x, weights)
    if takes_mixer(x, weights):
        return _ops.mix(x, weights, _all_or_none(biases, weight_hw))
    return reference.inception_dwconv2d(x, weight_hw, bias_hw, weight_w, bias_w, weight_h, bias_h)


def partial_depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve the last channels with a square kernel each, keeping the size, and pass the others on.

    Args:
        x: ``[N, C, H, W]``, its layout as for ``depthwise_conv2d``.
        weight: ``[G, 1, k, k]``, ``k`` odd, with ``G`` at most ``C``.
        bias: ``[G]``, or None.

    Returns:
        ``[N, C, H, W]``.

    Raises:
        UserError: As ``depthwise_conv2d``.
    """
    check_inputs(x, [weight], [bias])
    height, width = _sides(weight)
    if height != width or not height % 2:
        raise UserError(f"weight {_shape(weight)} is no square kernel of an odd side")
    _check_mixed(x, [weight])
    if takes_mixer(x, [weight]):
        return _ops.mix(x, [weight], _all_or_none([bias], weight))
    return reference.partial_depthwise_conv2d(x, weight, bias)


def max_blur_pool2d(x: Tensor) -> Tensor:
    """Halve an image: 3x3 maxima, then a 1-2-1 blur (Zhang, 2019) of stride 2 over reflected borders.

    Args:
        x: ``[N, C, H, W]`` with sides of at least 2, its layout as for ``depthwise_conv2d``.

    Returns:
        ``[N, C, (H + 1) // 2, (W + 1) // 2]``.

    Raises:
        UserError: As ``depthwise_conv2d``.
    """
    check_inputs(x, [], [])
    if min(x.shape[2:]) < 2:
        raise UserError(f"max-blur pooling reflects borders and needs sides of at least 2, not {_shape(x)}")
    if takes_triton("max-blur", x, MAX_BLUR):
        return _ops.max_blur_pool2d(x, torch.is_grad_enabled() and x.requires_grad)[0]
    return reference.max_blur_pool2d(x)


def takes_mixer(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Return whether the Triton kernel is to mix the last channels of x [N, C, H, W].

    Args:
        x: The image.
        weights: Of the square kernel, and maybe of the bands along W and along H.

    Raises:
        UserError: The backend ``triton`` was asked for and cannot compute this.
    """
    name = "partial {}" if len(weights) == 1 else "inception {} {}"
    return takes_triton(name.format(*(weight.shape[3] for weight in weights[:2])), x, *map(_same, weights))


def mix_last(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """Mix the last channels of x [N, C, H, W] where they lie, by Triton; the others are not touched.

    Args:
        x: The image, of which ``takes_mixer`` said yes; nothing of it may need a gradient.
        weights: As for ``takes_mixer``.
        biases: As many, or None for each that there is not.

    Returns:
        The last channels as they were before, ``[N, as many as are mixed, H, W]``.
    """
    last = x[:, -sum(map(len, weights)) :]
    before = last.clone()
    _ops.mix_into(before, weights, _all_or_none(biases, weights[0]), last)
    return before


def _all_or_none(biases: Sequence[Tensor | None], weight: Tensor) -> list[Tensor]:
    """Return a bias for each group as the kernel wants them, or none at all."""
    if all(bias is None for bias in biases):
        return []
    return [weight.new_zeros(len(weight)) if bias is None else bias for bias in biases]


def check_inputs(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    """Refuse an image, depthwise weights and biases that do not go together.

    Raises:
        UserError: With the shapes, types or devices.
    """
    for tensor in (x, *weights, *(bias for bias in biases if bias is not None)):
        if not isinstance(tensor, Tensor):
            raise UserError(f"images, weights and biases are tensors, not {type(tensor).__name__}")
    if x.dim() != 4:
        raise UserError(f"the input must be [N, C, H, W], not {_shape(x)}")
    if not all(x.shape[1:]):
        raise UserError(f"the input {_shape(x)} has no channels or no places")
    if not x.is_floating_point():
        raise UserError(f"the input {_shape(x)} must be of a floating-point type, not {x.dtype}")
    for weight, bias in zip(weights, biases, strict=True):
        if weight.dim() != 4 or weight.shape[1] != 1 or not all(weight.shape):
            raise UserError(f"a depthwise weight is [C, 1, kH, kW], not {_shape(weight)}")
        if bias is not None and tuple(bias.shape) != (len(weight),):
            raise UserError(f"bias {_shape(bias)} does not go with weight {_shape(weight)}")
    dtype = effective_dtype(x)
    for tensor in (*weights, *(bias for bias in biases if bias is not None)):
        if tensor.device != x.device:
            raise UserError(
                f"the input {_shape(x)} is on {x.device}, weight or bias {_shape(tensor)} on {tensor.device}"
            )
        if effective_dtype(tensor) != dtype:
            raise UserError(
                f"the input {_shape(x)} is {x.dtype}, weight or bias {_shape(tensor)} {tensor.dtype}"
            )


def _check_mixed(x: Tensor, weights: Sequence[Tensor]) -> None:
    if sum(map(len, weights)) > x.shape[1]:
        mixed = ", ".join(map(_shape, weights))
        raise UserError(f"weights {mixed} are for more channels than the input {_shape(x)} has")


def _same(weight: Tensor) -> Geometry:
    return Geometry(_sides(weight), padding=reference.same_padding(weight))


def _sides(weight: Tensor) -> Pair:
    return weight.shape[2], weight.shape[3]


def _pair(name: str, value: int | Sequence[int], least: int) -> Pair:
    """Return a value for each axis."""
    pair = value if isinstance(value, list | tuple) else (value, value)
    whole = all(isinstance(side, Integral) and not isinstance(side, bool) for side in pair)
    if len(pair) != 2 or not whole or min(pair) < least:
        raise UserError(f"{name} {value!r} must be one or two whole numbers of at least {least}")
    return int(pair[0]), int(pair[1])


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
