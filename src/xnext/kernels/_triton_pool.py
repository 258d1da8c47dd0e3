"""The Triton kernels of max-blur pooling: 3x3 maxima, then a 1-2-1 blur of stride 2 over reflected borders.

A program makes a tile of places on W times channels and slides along H, as in ``_triton``; the maxima are
never written. Reflection never leaves the tile: what is beyond a border is the neighbour on the other side.
For the gradient the forward pass keeps one byte for each maximum, which of the nine values it is: a row-major
number that PyTorch's choice decides, the first of equals or the last that is not a number.
"""

import triton
import triton.language as tl


@triton.jit
def _larger(value, code, other, other_code, SAVE: tl.constexpr):
    """The larger of two and its code; a code costs more than a maximum that needs none."""
    if SAVE:
        take = (other > value) | (other != other)
        value = tl.where(take, other, value)
        code = tl.where(take, other_code, code)
    else:
        value = tl.maximum(value, other, propagate_nan=tl.PropagateNan.ALL)
    return value, code


@triton.jit
def _maxima_across(x_ptr, row, j, c_ok, size_h, size_w, x_h, x_w, SAVE: tl.constexpr):
    """Of a row of the image, the maxima of three around the places 2 j - 1, 2 j and 2 j + 1."""
    x_ptr += row * x_h
    row_ok = (row >= 0) & (row < size_h)
    inputs = ()
    for d in tl.static_range(5):
        w = 2 * j + d - 2
        ok = (row_ok & (w >= 0) & (w < size_w))[:, None] & c_ok
        inputs += (tl.load(x_ptr + (w * x_w)[:, None], ok, float("-inf")).to(tl.float32),)
    values = ()
    codes = ()
    for d in tl.static_range(3):
        # Left of the image is nothing to choose, even if all values are infinitely small.
        code = tl.where((2 * j + d - 2 >= 0)[:, None] & c_ok, 0, 1)
        value, code = _larger(inputs[d], code, inputs[d + 1], 1, SAVE)
        value, code = _larger(value, code, inputs[d + 2], 2, SAVE)
        values += (value,)
        codes += (code,)
    return values + codes


@triton.jit
def _maxima(above, here, below, is_first, SAVE: tl.constexpr):
    """The maxima of three rows of maxima, each at three places, and their codes."""
    values = ()
    codes = ()
    for d in tl.static_range(3):
        code = above[3 + d]
        if SAVE:
            code = tl.where(is_first, here[3 + d] + 3, code)
        value, code = _larger(above[d], code, here[d], here[3 + d] + 3, SAVE)
        value, code = _larger(value, code, below[d], below[3 + d] + 6, SAVE)
        values += (value,)
        codes += (code,)
    return values + codes


@triton.jit
def _blur(left, here, right, is_first, is_last):
    """Three neighbours weighted 1-2-1, of which the first or the last may be reflected."""
    return tl.where(is_first, right, left) + 2.0 * here + tl.where(is_last, left, right)


@triton.jit
def _piece(strips, WIDE: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which channels, pairs of places on W, image and strip a program makes."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    tile = tl.program_id(1)
    image = tl.program_id(2) // strips
    strip = tl.program_id(2) % strips
    if WIDE:
        c, tile, image, strip = c.to(tl.int64), tile.to(tl.int64), image.to(tl.int64), strip.to(tl.int64)
    return c, tile * BLOCK_A + tl.arange(0, BLOCK_A), image, strip


@triton.jit
def max_blur(
    x_ptr, y_ptr, code_ptr,  # [N, C, H, W], [N, C, H', W'], [N, H, W, C] uint8
    channels, size_h, size_w, out_h, out_w,
    x_first, x_n, x_h, x_w, x_c, y_first, y_n, y_h, y_w, y_c,  # first places and strides
    rows, strips,  # rows of output of a strip, and how many strips there are
    SAVE: tl.constexpr,  # whether codes are kept for the gradient
    ALIGN: tl.constexpr, WIDE: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Pool; grid: (tiles of channels, tiles of W', images x strips)."""
    c, j, image, strip = _piece(strips, WIDE, BLOCK_A, BLOCK_C)
    channels *= ALIGN
    c_ok = (c < channels)[None, :]
    x_ptr += (x_first + image * x_n) * ALIGN + (c * x_c)[None, :]
    y_ptr += (y_first + image * y_n) * ALIGN + (j * y_w * ALIGN)[:, None] + (c * y_c)[None, :]
    code_ptr += image * size_h * size_w * channels + (2 * j * channels)[:, None] + c[None, :]
    x_h, x_w, y_h = x_h * ALIGN, x_w * ALIGN, y_h * ALIGN
    y_ok = (j < out_w)[:, None] & c_ok
    w_first = (j == 0)[:, None]
    w_last = (2 * j + 1 == size_w)[:, None]
    right_ok = (2 * j + 1 < size_w)[:, None]
    start = strip * rows
    here = _maxima_across(x_ptr, 2 * start - 2, j, c_ok, size_h, size_w, x_h, x_w, SAVE)
    above = here
    before = tl.zeros((BLOCK_A, BLOCK_C), tl.float32)  # the blurred row of maxima above
    for i in range(start - 1, start + rows):
        below = _maxima_across(x_ptr, 2 * i + 1, j, c_ok, size_h, size_w, x_h, x_w, SAVE)
        last = _maxima_across(x_ptr, 2 * i + 2, j, c_ok, size_h, size_w, x_h, x_w, SAVE)
        even = _maxima(above, here, below, i == 0, SAVE)
        odd = _maxima(here, below, last, False, SAVE)
        middle = _blur(even[0], even[1], even[2], w_first, w_last)
        after = _blur(odd[0], odd[1], odd[2], w_first, w_last)
        y = _blur(before, middle, after, i == 0, 2 * i + 1 == size_h) * 0.0625
        ok = y_ok & (i >= start) & (i < out_h)
        tl.store(y_ptr + i * y_h, y.to(y_ptr.dtype.element_ty), ok)
        if SAVE:
            kept = code_ptr + 2 * i * size_w * channels
            tl.store(kept, even[4].to(tl.uint8), ok)
            tl.store(kept + channels, even[5].to(tl.uint8), ok & right_ok)
            ok &= 2 * i + 1 < size_h
            kept += size_w * channels
            tl.store(kept, odd[4].to(tl.uint8), ok)
            tl.store(kept + channels, odd[5].to(tl.uint8), ok & right_ok)
        above, here, before = below, last, after


@triton.jit
def _gradients_across(g_ptr, row, j, c_ok, out_h, out_w, g_h, g_w):
    """Of a row of the gradient the places j - 1, j and j + 1."""
    values = ()
    for d in tl.static_range(3):
        w = j + d - 1
        ok = ((row >= 0) & (row < out_h) & (w >= 0) & (w < out_w))[:, None] & c_ok
        values += (tl.load(g_ptr + row * g_h + (w * g_w)[:, None], ok, 0.0).to(tl.float32),)
    return values


@triton.jit
def _of_maxima(g, j, size_w):
    """From a row of gradients at j - 1, j and j + 1 to those of the maxima at 2 j - 1 to 2 j + 2."""
    # An odd place is in two blurs, and once more in the outer one where it is the next to a border.
    left = (
        tl.where(j == 1, 2.0, 1.0)[:, None] * g[0] + tl.where(2 * j + 1 == size_w, 2.0, 1.0)[:, None] * g[1]
    )
    right = (
        tl.where(j == 0, 2.0, 1.0)[:, None] * g[1] + tl.where(2 * j + 3 == size_w, 2.0, 1.0)[:, None] * g[2]
    )
    return left, 2.0 * g[1], right, 2.0 * g[2]


@triton.jit
def _add_maxima(sums, g, code_ptr, row, j, c_ok, size_h, size_w, channels, FIRST: tl.constexpr):
    """Give the gradients of a row of maxima to the values that they are; those above are in FIRST of sums."""
    codes = ()
    for d in tl.static_range(4):
        w = 2 * j + d - 1
        ok = ((row >= 0) & (row < size_h) & (w >= 0) & (w < size_w))[:, None] & c_ok
        codes += (tl.load(code_ptr + row * size_w * channels + (w * channels)[:, None], ok, 255),)
    added = ()
    for k in tl.static_range(8):  # rows of two places each
        total = sums[k]
        if (k // 2 >= FIRST) and (k // 2 < FIRST + 3):
            for d in tl.static_range(3):
                chosen = codes[k % 2 + d] == (k // 2 - FIRST) * 3 + 2 - d
                total = tl.where(chosen, total + g[k % 2 + d], total)
        added += (total,)
    return added


@triton.jit
def max_blur_input(
    g_ptr, dx_ptr, code_ptr,  # [N, C, H', W'], [N, C, H, W], [N, H, W, C] uint8
    channels, size_h, size_w, out_h, out_w,
    g_first, g_n, g_h, g_w, g_c, dx_first, dx_n, dx_h, dx_w, dx_c,  # first places and strides
    rows, strips,  # pairs of rows of the image of a strip, and how many strips there are
    ALIGN: tl.constexpr, WIDE: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of the image; grid: (tiles of channels, tiles of pairs on W, images x strips)."""
    c, j, image, strip = _piece(strips, WIDE, BLOCK_A, BLOCK_C)
    channels *= ALIGN
    c_ok = (c < channels)[None, :]
    g_ptr += (g_first + image * g_n) * ALIGN + (c * g_c)[None, :]
    code_ptr += image * size_h * size_w * channels + c[None, :]
    dx_ptr += (dx_first + image * dx_n) * ALIGN + (2 * j * dx_w * ALIGN)[:, None] + (c * dx_c)[None, :]
    g_h, g_w, dx_h, dx_w = g_h * ALIGN, g_w * ALIGN, dx_h * ALIGN, dx_w * ALIGN
    left_ok = (2 * j < size_w)[:, None] & c_ok
    right_ok = (2 * j + 1 < size_w)[:, None] & c_ok
    start = strip * rows
    zero = tl.zeros((BLOCK_A, BLOCK_C), tl.float32)
    sums = (zero, zero, zero, zero, zero, zero, zero, zero)
    before = _gradients_across(g_ptr, start - 1, j, c_ok, out_h, out_w, g_h, g_w)
    for i in range(start, start + rows + 1):
        # The maxima of the rows 2 i - 1 and 2 i finish the gradients of the rows 2 i - 2 and 2 i - 1.
        here = _gradients_across(g_ptr, i, j, c_ok, out_h, out_w, g_h, g_w)
        above = tl.where(i == 1, 2.0, 1.0)
        below = tl.where(2 * i + 1 == size_h, 2.0, 1.0)
        odd, even = (), ()
        for d in tl.static_range(3):
            odd += (above * before[d] + below * here[d],)
            even += (2.0 * here[d],)
        odd, even = _of_maxima(odd, j, size_w), _of_maxima(even, j, size_w)
        sums = _add_maxima(sums, odd, code_ptr, 2 * i - 1, j, c_ok, size_h, size_w, channels, 0)
        sums = _add_maxima(sums, even, code_ptr, 2 * i, j, c_ok, size_h, size_w, channels, 1)
        for k in tl.static_range(4):
            row = 2 * i - 2 + k // 2
            ok = (left_ok if k % 2 == 0 else right_ok) & (i > start) & (row < size_h)
            value = (sums[k] * 0.0625).to(dx_ptr.dtype.element_ty)
            tl.store(dx_ptr + row * dx_h + k % 2 * dx_w, value, ok)
        sums = sums[4:] + (zero, zero, zero, zero)
        before = here
