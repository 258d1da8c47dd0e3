"""From tensors to a launch: which axis the strips run along, which tile, which grid."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import reduce
from math import gcd
from typing import Any

import torch
from torch import Tensor

from xnext.kernels._geometry import MAX_BLUR, Geometry, Pair, empty_like
from xnext.kernels._tiles import Tile, find_tile
from xnext.kernels._triton import add_up, correlate, correlate_weight
from xnext.kernels._triton import mix as mix_kernel
from xnext.kernels._triton_pool import max_blur as max_blur_kernel
from xnext.kernels._triton_pool import max_blur_input as max_blur_input_kernel

_SPLITS = 1024
"""Programs that share the strips of a weight gradient; each leaves a sum to be added up."""

_SUM = Tile(places=2048, channels=32)
"""The piece of the sum of what they leave."""

_ORDERS = ((1, 2, 0), (2, 1, 0), (1, 2, 0))
"""Of each mixed group's weight [C, kH, kW]: taps along its strips, across, channels."""

_WIDEST_READ = 16  # bytes that a thread reads at once
_WIDE = 2**31 - 2**20  # elements; a tile may reach beyond the last one


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the convolution of x [N, C, H, W] with a weight [C, 1, kH, kW] and a bias [C]."""
    y = empty_like(x, geometry.output_size(x.shape[2:]))
    return _correlate(x, weight, bias, y, geometry, back=False)


def backward_input(grad: Tensor, weight: Tensor, size: Sequence[int], geometry: Geometry) -> Tensor:
    """Return the gradient of an input of this height and width from that of the output."""
    return _correlate(grad, weight, None, empty_like(grad, size), geometry, back=True)


def backward_weight(grad: Tensor, x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight [C, 1, kH, kW] and of the bias [C], in the input's type."""
    images, channels = x.shape[:2]
    make = x.new_empty if x.numel() else x.new_zeros
    weight, bias = make((channels, 1, *geometry.kernel)), make((channels,))
    if not x.numel():
        return weight, bias
    s, a = geometry.axes
    (taps_s, taps_a), (stride_s, stride_a), (pad_s, pad_a), (dilation_s, dilation_a) = _turn(geometry)
    size_s, size_a = grad.shape[2 + s], grad.shape[2 + a]
    tile = find_tile("weight", taps_s, taps_a, stride_s)
    block_a, block_c = tile.blocks(channels, size_a)
    common = gcd(stride_s, dilation_s)
    phases = dilation_s // common
    groups = -(-size_s // phases) + -(-taps_s * common // stride_s) - 1
    rows = min(tile.rows, groups)
    strips, tiles = -(-groups // rows), -(-size_a // block_a)
    items = images * strips * phases * tiles
    parts, columns = -(-taps_a // tile.part), -(-channels // block_c)
    splits = max(1, min(items, _SPLITS // (parts * columns)))
    sums = x.new_empty((splits, taps_s * taps_a + 1, channels), dtype=torch.float32)
    align = _alignment(x, grad)
    (x_base, *x_place), (g_base, *g_place) = _place(x, s, a, align), _place(grad, s, a, align)
    with _on(x):
        correlate_weight[columns, splits, parts](
            x_base, g_base, sums,
            channels // align, x.shape[2 + s], x.shape[2 + a], size_s, size_a,
            *x_place, *g_place, pad_s, pad_a, rows, strips, tiles, items,
            TAPS_S=taps_s, TAPS_A=taps_a, STRIDE_S=stride_s, STRIDE_A=stride_a,
            DILATION_S=dilation_s, DILATION_A=dilation_a,
            ALIGN=align, WIDE=_is_wide(x, grad), PART=tile.part, BLOCK_A=block_a, BLOCK_C=block_c,
            num_warps=tile.warps,
        )  # fmt: skip
        block_a, block_c = _SUM.blocks(channels, max(splits, size_a))
        add_up[-(-channels // block_c), taps_s * taps_a + 1](
            sums, x_base, g_base, weight, bias,
            splits, taps_a, images, channels // align, x.shape[2 + s], x.shape[2 + a], size_s, size_a,
            *x_place, *g_place, weight.stride(2 + s), weight.stride(2 + a), weight.stride(0),
            pad_s, pad_a, stride_s, stride_a, dilation_s, dilation_a,
            ALIGN=align, WIDE=_is_wide(x, grad), BLOCK_A=block_a, BLOCK_C=block_c, num_warps=_SUM.warps,
        )  # fmt: skip
    return weight, bias


def _correlate(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, geometry: Geometry, *, back: bool
) -> Tensor:
    """Fill y [N, C, H, W] from x, forwards or backwards."""
    if not y.numel():
        return y
    images, channels = y.shape[:2]
    s, a = geometry.axes
    (taps_s, taps_a), (stride_s, stride_a), (pad_s, pad_a), (dilation_s, dilation_a) = _turn(geometry)
    phases_s = dilation_s // gcd(stride_s, dilation_s) * (stride_s if back else 1)
    phases_a = stride_a if back else 1
    tile = find_tile("input" if back else "forward", taps_s, taps_a, stride_s)
    length, across = -(-y.shape[2 + s] // phases_s), -(-y.shape[2 + a] // phases_a)
    block_a, block_c = tile.blocks(channels, across)
    columns, tiles = -(-channels // block_c), -(-across // block_a) * phases_a
    rows = tile.strip(length, columns * tiles * images * phases_s)
    strips = -(-length // rows)
    align = _alignment(x, y)
    taps, steps = _taps(weight, (1 + s, 1 + a, 0), tile, align)
    (x_base, *x_place), (y_base, *y_place) = _place(x, s, a, align), _place(y, s, a, align)
    with _on(x):
        correlate[columns, tiles, images * strips * phases_s](
            x_base, taps, taps if bias is None else bias, y_base,
            channels // align, x.shape[2 + s], x.shape[2 + a], y.shape[2 + s], y.shape[2 + a],
            *x_place, *y_place, *steps, 0, pad_s, pad_a, rows, strips,
            TAPS_S=taps_s, TAPS_A=taps_a, STRIDE_S=stride_s, STRIDE_A=stride_a,
            DILATION_S=dilation_s, DILATION_A=dilation_a, BACK=back, HAS_BIAS=bias is not None,
            KEEP=tile.keep, ALIGN=align, WIDE=_is_wide(x, y), BLOCK_A=block_a, BLOCK_C=block_c,
            num_warps=tile.warps,
        )  # fmt: skip
    return y


def mix(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], y: Tensor | None = None, *, back: bool
) -> Tensor:
    """Return x [N, C, H, W] with its last groups of channels mixed, or the gradient of that.

    Args:
        x: The image, or backwards the gradient of the output.
        weights: Of the square kernel, and maybe of the bands along W and along H.
        biases: As many, or none.
        y: Where to write it, of the same shape and other memory; default: a new tensor.
        back: Which of the two.
    """
    y = empty_like(x, x.shape[2:]) if y is None else y
    if not y.numel():
        return y
    images, channels, height, length = x.shape
    width, square = len(weights[0]), weights[0].shape[2]
    band = weights[1].shape[3] if len(weights) > 1 else 0
    identity = channels - len(weights) * width
    tile = find_tile("mix", max(square, band), square, 1)
    longest = max(height, length) if band else length
    block_a, block_c = tile.blocks(width, longest)
    passing, mixed = -(-identity // block_c), -(-width // block_c)
    columns, tiles = passing + len(weights) * mixed, -(-longest // block_a)
    rows = tile.strip(max(height, longest), columns * tiles * images)
    strips = -(-max(height, longest if band else 0) // rows)
    align = gcd(_alignment(x, y), identity, width)
    taps = [_taps(weight, order, tile, align) for weight, order in zip(weights, _ORDERS, strict=False)]
    taps += taps[:1] * (3 - len(taps))  # a kernel's arguments are always there
    offsets = [*biases, *(tap for tap, _ in taps)][:3]
    (x_base, *x_place), (y_base, *y_place) = _place(x, 0, 1, align), _place(y, 0, 1, align)
    with _on(x):
        mix_kernel[columns, tiles, images * strips](
            x_base, y_base, *(one for (tap, _), b in zip(taps, offsets, strict=True) for one in (tap, b)),
            identity // align, width // align, height, length, *x_place, *y_place,
            *(step for _, steps in taps for step in steps), 0, rows, strips, passing, mixed,
            SQUARE=square, BAND=band, BACK=back, HAS_BIAS=bool(biases), KEEP=tile.keep,
            ALIGN=align, WIDE=_is_wide(x, y), BLOCK_A=block_a, BLOCK_C=block_c, num_warps=tile.warps,
        )  # fmt: skip
    return y


def max_blur(x: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """Return x [N, C, H, W] pooled, and which value each maximum is, [N, H, W, C] uint8 or empty."""
    images, channels, height, width = x.shape
    y = empty_like(x, MAX_BLUR.output_size((height, width)))
    codes = x.new_empty((images, height, width, channels) if save else (0,), dtype=torch.uint8)
    _pool(max_blur_kernel, "pool", x, y, codes, (height, width), SAVE=save)
    return y, codes


def max_blur_backward_input(grad: Tensor, codes: Tensor) -> Tensor:
    """Return the gradient of the image from that of the output and what the forward pass kept."""
    image = codes.shape[1:3]
    x = empty_like(grad, image)
    _pool(max_blur_input_kernel, "pool_input", grad, x, codes, image)
    return x


def _pool(
    kernel: Any, operation: str, source: Tensor, target: Tensor, codes: Tensor, image: Sequence[int],
    **constants: Any,
) -> None:  # fmt: skip
    """Fill target [N, C, H, W] from source; a place of the output is a pair of places of the image."""
    if not target.numel():
        return
    images, channels = target.shape[:2]
    out_h, out_w = MAX_BLUR.output_size(image)
    tile = find_tile(operation, 3, 3, 2)
    block_a, block_c = tile.blocks(channels, out_w)
    columns, tiles = -(-channels // block_c), -(-out_w // block_a)
    rows = tile.strip(out_h, columns * tiles * images)
    strips = -(-out_h // rows)
    align = _alignment(source, target)
    (source_base, *source_place), (target_base, *target_place) = (
        _place(tensor, 0, 1, align) for tensor in (source, target)
    )
    with _on(source):
        kernel[columns, tiles, images * strips](
            source_base, target_base, codes, channels // align, *image, out_h, out_w,
            *source_place, *target_place, rows, strips, ALIGN=align, WIDE=_is_wide(source, target, codes),
            BLOCK_A=block_a, BLOCK_C=block_c, num_warps=tile.warps, **constants,
        )  # fmt: skip


def _taps(
    weight: Tensor, order: tuple[int, int, int], tile: Tile, align: int
) -> tuple[Tensor, tuple[int, int, int]]:
    """Return a weight [C, 1, kH, kW] as [taps along the strips, across, C], with strides for a kernel.

    Taps that do not stay in registers are read again and again: they are packed, and converted once.
    """
    taps = weight[:, 0].permute(order)
    if tile.keep:
        return taps, taps.stride()  # type: ignore[return-value]
    taps = taps.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
    s, a, c = taps.stride()
    return taps, (s // align, a // align, c)


def _turn(geometry: Geometry) -> tuple[Pair, Pair, Pair, Pair]:
    """Return kernel, stride, padding and dilation, each along the strips and across."""
    s, a = geometry.axes
    kernel, stride, padding, dilation = (
        (pair[s], pair[a]) for pair in (geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
    )
    return kernel, stride, padding, dilation


def _alignment(*tensors: Tensor) -> int:
    """Return how many channels may be read at once: a power of 2 that all addresses are multiples of.

    It speaks of the offset in the storage, of which a part of the channels begins anywhere.
    """
    if any(tensor.stride(1) != 1 for tensor in tensors):
        return 1
    steps = [_WIDEST_READ // tensors[0].element_size()]
    for tensor in tensors:
        steps += [tensor.shape[1], int(tensor.storage_offset())]
        steps += [tensor.stride(dim) for dim in (0, 2, 3) if tensor.shape[dim] > 1]
    return reduce(gcd, steps)


def _place(tensor: Tensor, s: int, a: int, align: int) -> tuple[Any, ...]:
    """Return the first element of a storage, and as kernels want them the place in it and the strides."""
    base = tensor.as_strided((1,), (1,), 0)
    steps = [tensor.storage_offset(), tensor.stride(0), tensor.stride(2 + s), tensor.stride(2 + a)]
    return base, *(step // align for step in steps), tensor.stride(1)


def _is_wide(*tensors: Tensor) -> bool:
    """Return whether a place in one of them takes more than 32 bits."""
    return any(
        tensor.storage_offset()
        + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        >= _WIDE
        for tensor in tensors
    )


def _on(tensor: Tensor) -> Any:
    """Launch on the tensor's own GPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
