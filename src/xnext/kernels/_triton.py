"""The Triton kernels: depthwise correlation along strips, and the gradient of its weight.

A program makes a strip of the output: a tile of places on one axis of the image, A, times channels, that
slides along the other axis, S. Each row of input is read once for every tap on A, and added to all output
rows that it is part of. Their sums are kept in registers, a ring of which one is finished and written at
each step: a 3x3 kernel reads three shifted rows and multiplies nine times, a band along S reads one and
multiplies eleven times.

Addresses come from strides alone, so that every memory layout is right; channels-last is the fast one.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def _common(stride: int, dilation: int) -> int:
    """The greatest common divisor of a stride of 1 or 2 and a dilation."""
    return stride if dilation % stride == 0 else 1


@triton.jit
def _begin(phase, pad, TAPS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, BACK: tl.constexpr):
    """Of all output places that see the same taps, of which ``phase`` is the first: its first input and tap.

    Backwards the taps come from the last to the first, and of stride 2 every other one: an even place of the
    input is part of other outputs than an odd one, and with an even dilation one of the two is part of none.
    """
    COMMON: tl.constexpr = _common(STRIDE, DILATION)
    if BACK:
        SKIP: tl.constexpr = STRIDE // COMMON
        LAST: tl.constexpr = (TAPS + SKIP - 1) // SKIP - 1
        tap = (phase + pad) % SKIP
        place = phase + pad - tap * DILATION
        first = place // STRIDE - LAST * (DILATION // COMMON)
        if COMMON > 1:
            first = tl.where(place % STRIDE == 0, first, -(2**30))
        return first, tap + LAST * SKIP
    return phase * STRIDE - pad, 0


@triton.jit
def _tap(w_ptr, s, a, w_s, w_a, ok, TAPS_S: tl.constexpr, TAPS_A: tl.constexpr):
    """One tap of the weight for all channels of the tile, 0 where there is none."""
    inside = (s >= 0) & (s < TAPS_S) & (a >= 0) & (a < TAPS_A)
    return tl.load(w_ptr + s * w_s + a * w_a, ok & inside, 0.0).to(tl.float32)[None, :]


@triton.jit
def _add_column(
    sums, x_ptr, row_ok, i, p: tl.constexpr, weights, w_ptr, c_ok,
    a, first_a, x_size_a, x_a, tap_s, tap_a, w_s, w_a,
    TAPS_S: tl.constexpr, TAPS_A: tl.constexpr, COUNT_S: tl.constexpr, COUNT_A: tl.constexpr,
    RING: tl.constexpr, SKIP_S: tl.constexpr, SKIP_A: tl.constexpr, STEP_S: tl.constexpr,
    STEP_A: tl.constexpr, APART_A: tl.constexpr, NEXT: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Add to the rows of the ring what one row of input, shifted by tap number i across, brings them."""
    place = a * STEP_A + i * APART_A + first_a
    ok = (row_ok & (place >= 0) & (place < x_size_a))[:, None] & c_ok[None, :]
    u = tap_a + NEXT * SKIP_A * i
    if SKIP_A > 1:
        ok &= (u >= 0) & (u < TAPS_A)
    x = tl.load(x_ptr + (place * x_a)[:, None], ok, 0.0).to(tl.float32)
    added = ()
    for r in tl.static_range(RING):
        # Row r of the ring sees this input through tap number (RING - 1 - r) * STEP_S + p.
        if (RING - 1 - r) * STEP_S + p < COUNT_S:
            s = tap_s + NEXT * SKIP_S * ((RING - 1 - r) * STEP_S + p)
            seen = x
            if SKIP_S > 1:  # there may be no such tap, and zero times infinity is not zero
                seen = tl.where((s >= 0) & (s < TAPS_S), x, 0.0)
            if KEEP:
                weight = weights[((RING - 1 - r) * STEP_S + p) * COUNT_A + i]
            else:
                weight = _tap(w_ptr, s, u, w_s, w_a, c_ok, TAPS_S, TAPS_A)
            added += (sums[r] + seen * weight,)
        else:
            added += (sums[r],)
    return added


@triton.jit
def _write(row, b_ptr, c_ok, y_ptr, place, y_size_s, y_s, ok, HAS_BIAS: tl.constexpr):
    """Write a row of the output, if there is such a row; the bias takes no registers before that."""
    if HAS_BIAS:
        row += tl.load(b_ptr, c_ok, 0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + place * y_s, row.to(y_ptr.dtype.element_ty), ok & (place < y_size_s))


@triton.jit
def correlate_strip(
    x_ptr, w_ptr, b_ptr, y_ptr,
    c, c_ok,  # [BLOCK_C] channels of the tile
    a,  # [BLOCK_A] places on A, of one phase
    start, rows,  # places on S, of one phase
    phase_s, phase_a,
    x_size_s, x_size_a, y_size_s, y_size_a,
    x_s, x_a, x_c, y_s, y_a, y_c, w_s, w_a, w_c,  # strides
    again,  # 0, which the compiler must not know: it would read all taps ahead, and has too few registers
    pad_s, pad_a,
    TAPS_S: tl.constexpr, TAPS_A: tl.constexpr,
    STRIDE_S: tl.constexpr, STRIDE_A: tl.constexpr,
    DILATION_S: tl.constexpr, DILATION_A: tl.constexpr,
    BACK: tl.constexpr,  # from the gradient of the output to that of the input
    HAS_BIAS: tl.constexpr,
    KEEP: tl.constexpr,  # all taps in registers; otherwise they are read from a packed weight each time
):  # fmt: skip
    """Make a strip of the output from one image."""
    COMMON_S: tl.constexpr = _common(STRIDE_S, DILATION_S)
    COMMON_A: tl.constexpr = _common(STRIDE_A, DILATION_A)
    # From one tap that an output place sees to the next.
    SKIP_S: tl.constexpr = STRIDE_S // COMMON_S if BACK else 1
    SKIP_A: tl.constexpr = STRIDE_A // COMMON_A if BACK else 1
    # From the input place of the one to that of the other.
    APART_S: tl.constexpr = DILATION_S // COMMON_S if BACK else DILATION_S
    APART_A: tl.constexpr = DILATION_A // COMMON_A if BACK else DILATION_A
    # From one output place of a phase to the next, and as many rows of input that takes.
    MOVE_S: tl.constexpr = DILATION_S // COMMON_S * (STRIDE_S if BACK else 1)
    STEP_S: tl.constexpr = 1 if BACK else STRIDE_S // COMMON_S
    MOVE_A: tl.constexpr = STRIDE_A if BACK else 1
    STEP_A: tl.constexpr = 1 if BACK else STRIDE_A
    COUNT_S: tl.constexpr = (TAPS_S + SKIP_S - 1) // SKIP_S
    COUNT_A: tl.constexpr = (TAPS_A + SKIP_A - 1) // SKIP_A
    RING: tl.constexpr = (COUNT_S + STEP_S - 1) // STEP_S
    first_s, tap_s = _begin(phase_s, pad_s, TAPS_S, STRIDE_S, DILATION_S, BACK)
    first_a, tap_a = _begin(phase_a, pad_a, TAPS_A, STRIDE_A, DILATION_A, BACK)
    NEXT: tl.constexpr = -1 if BACK else 1
    w_ptr += c * w_c
    weights = ()
    if KEEP:
        for k in tl.static_range(COUNT_S * COUNT_A):
            s = tap_s + NEXT * SKIP_S * (k // COUNT_A)
            t = tap_a + NEXT * SKIP_A * (k % COUNT_A)
            weights += (_tap(w_ptr, s, t, w_s, w_a, c_ok, TAPS_S, TAPS_A),)
    zero = tl.zeros((a.shape[0], c.shape[0]), tl.float32)
    sums = ()
    for _ in tl.static_range(RING):
        sums += (zero,)
    x_ptr += (c * x_c)[None, :]
    out_a = a * MOVE_A + phase_a
    y_ptr += (out_a * y_a)[:, None] + (c * y_c)[None, :]
    y_ok = (out_a < y_size_a)[:, None] & c_ok[None, :]
    # Rows above the image bring nothing, nor do those below, but what is in the ring is still to be written.
    end = rows + RING - 1
    above = tl.maximum(0, APART_S - 1 - first_s) // (APART_S * STEP_S) - start
    above = tl.minimum(tl.maximum(above, 0), RING - 1)
    below = (tl.maximum(0, x_size_s - first_s) + APART_S * STEP_S - 1) // (APART_S * STEP_S) - start
    below = tl.minimum(tl.maximum(below, above), end)
    for t in range(above, below):
        for p in tl.static_range(STEP_S):
            row = ((start + t) * STEP_S + p) * APART_S + first_s
            row_ok = (row >= 0) & (row < x_size_s)
            if KEEP:
                for i in tl.static_range(COUNT_A):
                    sums = _add_column(
                        sums, x_ptr + row * x_s, row_ok, i, p, weights, w_ptr, c_ok,
                        a, first_a, x_size_a, x_a, tap_s, tap_a, w_s, w_a,
                        TAPS_S, TAPS_A, COUNT_S, COUNT_A, RING, SKIP_S, SKIP_A, STEP_S, STEP_A,
                        APART_A, NEXT, KEEP,
                    )  # fmt: skip
            else:
                for i in range(COUNT_A + again):
                    sums = _add_column(
                        sums, x_ptr + row * x_s, row_ok, i, p, weights, w_ptr, c_ok,
                        a, first_a, x_size_a, x_a, tap_s, tap_a, w_s, w_a,
                        TAPS_S, TAPS_A, COUNT_S, COUNT_A, RING, SKIP_S, SKIP_A, STEP_S, STEP_A,
                        APART_A, NEXT, KEEP,
                    )  # fmt: skip
        done = start + t - (RING - 1)
        ok = y_ok & (done >= start)
        _write(sums[0], b_ptr + c, c_ok, y_ptr, done * MOVE_S + phase_s, y_size_s, y_s, ok, HAS_BIAS)
        sums = sums[1:] + (zero,)
    for t in range(below, end):
        done = start + t - (RING - 1)
        ok = y_ok & (done >= start)
        _write(sums[0], b_ptr + c, c_ok, y_ptr, done * MOVE_S + phase_s, y_size_s, y_s, ok, HAS_BIAS)
        sums = sums[1:] + (zero,)


@triton.jit
def correlate(
    x_ptr, w_ptr, b_ptr, y_ptr,  # [N, C, S, A], [TAPS_S, TAPS_A, C], [C], [N, C, S, A], in any layout
    channels, x_size_s, x_size_a, y_size_s, y_size_a,
    x_first, x_n, x_s, x_a, x_c, y_first, y_n, y_s, y_a, y_c, w_s, w_a, w_c,  # first places and strides
    again,  # 0
    pad_s, pad_a,
    rows, strips,  # places on S of a strip, and how many strips a phase has
    TAPS_S: tl.constexpr, TAPS_A: tl.constexpr,
    STRIDE_S: tl.constexpr, STRIDE_A: tl.constexpr,
    DILATION_S: tl.constexpr, DILATION_A: tl.constexpr,
    BACK: tl.constexpr, HAS_BIAS: tl.constexpr, KEEP: tl.constexpr,
    ALIGN: tl.constexpr,  # what first places, strides and channels are counted in: so many are read at once
    WIDE: tl.constexpr,  # whether a tensor has places that 32 bits do not count
    BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Correlate each channel with its own taps; grid: (tiles of channels, tiles of A, images x strips)."""
    PHASES_S: tl.constexpr = DILATION_S // _common(STRIDE_S, DILATION_S) * (STRIDE_S if BACK else 1)
    PHASES_A: tl.constexpr = STRIDE_A if BACK else 1
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    tile = tl.program_id(1)
    strip = tl.program_id(2)
    image = strip // (strips * PHASES_S)
    strip = strip % (strips * PHASES_S)
    if WIDE:
        c, tile, strip, image = c.to(tl.int64), tile.to(tl.int64), strip.to(tl.int64), image.to(tl.int64)
    a = tile // PHASES_A * BLOCK_A + tl.arange(0, BLOCK_A)
    if not KEEP:
        w_s, w_a = w_s * ALIGN, w_a * ALIGN
    correlate_strip(
        x_ptr + (x_first + image * x_n) * ALIGN, w_ptr, b_ptr, y_ptr + (y_first + image * y_n) * ALIGN,
        c, c < channels * ALIGN, a, strip // PHASES_S * rows, rows,
        strip % PHASES_S, tile % PHASES_A,
        x_size_s, x_size_a, y_size_s, y_size_a,
        x_s * ALIGN, x_a * ALIGN, x_c, y_s * ALIGN, y_a * ALIGN, y_c,
        w_s, w_a, w_c, again, pad_s, pad_a,
        TAPS_S, TAPS_A, STRIDE_S, STRIDE_A, DILATION_S, DILATION_A, BACK, HAS_BIAS, KEEP,
    )  # fmt: skip


@triton.jit
def _copy_strip(
    x_ptr, y_ptr, c, c_ok, a, start, rows, size_s, size_a, x_s, x_a, x_c, y_s, y_a, y_c
):  # fmt: skip
    """Pass a strip on as it is."""
    ok = (a < size_a)[:, None] & c_ok[None, :]
    x_ptr += (a * x_a)[:, None] + (c * x_c)[None, :]
    y_ptr += (a * y_a)[:, None] + (c * y_c)[None, :]
    for row in range(start, tl.minimum(start + rows, size_s)):
        tl.store(y_ptr + row * y_s, tl.load(x_ptr + row * x_s, ok), ok)


@triton.jit
def mix(
    x_ptr, y_ptr,  # [N, C, H, W] in any layout; the last channels are mixed, in groups of the same width
    w0_ptr, b0_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr,  # square kernel, band along W, band along H
    identity, width,  # channels that pass, and those of a group
    height, length, x_first, x_n, x_h, x_w, x_c, y_first, y_n, y_h, y_w, y_c,
    w0_s, w0_a, w0_c, w1_s, w1_a, w1_c, w2_s, w2_a, w2_c,
    again,  # 0
    rows, strips, passing, mixed,  # tiles of the channels that pass, and of a group
    SQUARE: tl.constexpr, BAND: tl.constexpr,  # taps; without a BAND there is the square kernel alone
    BACK: tl.constexpr, HAS_BIAS: tl.constexpr, KEEP: tl.constexpr,
    ALIGN: tl.constexpr, WIDE: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mix all groups in one pass; grid: (tiles of channels, tiles across, images x strips).

    Programs that are neighbours in the first axis do the same places: what lies in one line of the cache is
    read and written at about the same time, whichever group it belongs to.
    """
    column = tl.program_id(0)
    tile = tl.program_id(1)
    image = tl.program_id(2) // strips
    strip = tl.program_id(2) % strips
    if WIDE:
        column, tile = column.to(tl.int64), tile.to(tl.int64)
        image, strip = image.to(tl.int64), strip.to(tl.int64)
    a = tile * BLOCK_A + tl.arange(0, BLOCK_A)
    x_h, x_w, y_h, y_w = x_h * ALIGN, x_w * ALIGN, y_h * ALIGN, y_w * ALIGN
    x_ptr += (x_first + image * x_n) * ALIGN
    y_ptr += (y_first + image * y_n) * ALIGN
    start = strip * rows
    if not KEEP:
        w0_s, w0_a, w1_s, w1_a = w0_s * ALIGN, w0_a * ALIGN, w1_s * ALIGN, w1_a * ALIGN
        w2_s, w2_a = w2_s * ALIGN, w2_a * ALIGN
    if column < passing:
        c = column * BLOCK_C + tl.arange(0, BLOCK_C)
        _copy_strip(
            x_ptr, y_ptr, c, c < identity * ALIGN, a, start, rows, height, length,
            x_h, x_w, x_c, y_h, y_w, y_c,
        )  # fmt: skip
    else:
        group = (column - passing) // mixed
        c = (column - passing) % mixed * BLOCK_C + tl.arange(0, BLOCK_C)
        c_ok = c < width * ALIGN
        begin = (identity + group * width) * ALIGN
        x_ptr += begin * x_c
        y_ptr += begin * y_c
        if group == 0:
            correlate_strip(
                x_ptr, w0_ptr, b0_ptr, y_ptr, c, c_ok, a, start, rows, 0, 0,
                height, length, height, length, x_h, x_w, x_c, y_h, y_w, y_c, w0_s, w0_a, w0_c, again,
                SQUARE // 2, SQUARE // 2, SQUARE, SQUARE, 1, 1, 1, 1, BACK, HAS_BIAS, KEEP,
            )  # fmt: skip
        elif BAND > 0:
            if group == 1:
                correlate_strip(
                    x_ptr, w1_ptr, b1_ptr, y_ptr, c, c_ok, a, start, rows, 0, 0,
                    length, height, length, height, x_w, x_h, x_c, y_w, y_h, y_c, w1_s, w1_a, w1_c, again,
                    BAND // 2, 0, BAND, 1, 1, 1, 1, 1, BACK, HAS_BIAS, KEEP,
                )  # fmt: skip
            else:
                correlate_strip(
                    x_ptr, w2_ptr, b2_ptr, y_ptr, c, c_ok, a, start, rows, 0, 0,
                    height, length, height, length, x_h, x_w, x_c, y_h, y_w, y_c, w2_s, w2_a, w2_c, again,
                    BAND // 2, 0, BAND, 1, 1, 1, 1, 1, BACK, HAS_BIAS, KEEP,
                )  # fmt: skip


@triton.jit
def correlate_weight(
    x_ptr, g_ptr,  # [N, C, S, A] input, and gradient of the output
    out_ptr,  # [splits, TAPS_S * TAPS_A + 1, C] float32
    channels, x_size_s, x_size_a, g_size_s, g_size_a,
    x_first, x_n, x_s, x_a, x_c, g_first, g_n, g_s, g_a, g_c,  # first places and strides
    pad_s, pad_a,
    rows, strips, tiles, items,  # groups of rows a strip, strips, tiles on A, and all of that of all images
    TAPS_S: tl.constexpr, TAPS_A: tl.constexpr,
    STRIDE_S: tl.constexpr, STRIDE_A: tl.constexpr,
    DILATION_S: tl.constexpr, DILATION_A: tl.constexpr,
    ALIGN: tl.constexpr, WIDE: tl.constexpr,
    PART: tl.constexpr,  # taps on A of a program
    BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add up what a split of the strips says of each tap, and of the bias.

    The grid is (tiles of channels, splits, parts of the taps on A). A strip is of the input here. A group
    of its rows, as many as lie between two outputs, is multiplied with each of the gradient's rows that it
    is part of, which stay in registers while they are needed. Beyond the border both are zeros.
    """
    PHASES_S: tl.constexpr = DILATION_S // _common(STRIDE_S, DILATION_S)
    STEP_S: tl.constexpr = STRIDE_S // _common(STRIDE_S, DILATION_S)
    RING: tl.constexpr = (TAPS_S + STEP_S - 1) // STEP_S
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.program_id(1)
    part = tl.program_id(2) * PART
    if WIDE:
        c = c.to(tl.int64)
    c_ok = (c < channels * ALIGN)[None, :]
    x_s, x_a, g_s, g_a = x_s * ALIGN, x_a * ALIGN, g_s * ALIGN, g_a * ALIGN
    sums = ()
    for _ in tl.static_range(TAPS_S * PART):
        sums += (tl.zeros((BLOCK_A, BLOCK_C), tl.float32),)
    of_bias = tl.zeros((BLOCK_A, BLOCK_C), tl.float32)
    for number in range(split, items, tl.num_programs(1)):
        item = tl.cast(number, tl.int64) if WIDE else number
        a = item % tiles * BLOCK_A + tl.arange(0, BLOCK_A)
        strip = item // tiles % (strips * PHASES_S)
        image = item // (tiles * strips * PHASES_S)
        phase, start = strip % PHASES_S, strip // PHASES_S * rows
        a_ok = (a < g_size_a)[:, None] & c_ok
        g_row = g_ptr + (g_first + image * g_n) * ALIGN + (a * g_a)[:, None] + (c * g_c)[None, :]
        x_row = x_ptr + (x_first + image * x_n) * ALIGN + (c * x_c)[None, :]
        size = (g_size_s - phase + PHASES_S - 1) // PHASES_S  # of the phase
        ring = ()
        for r in tl.static_range(RING):
            before = start + r - RING
            ok = a_ok & (before >= 0) & (before < size)
            ring += (tl.load(g_row + (before * PHASES_S + phase) * g_s, ok, 0.0).to(tl.float32),)
        for group in range(start, tl.minimum(start + rows, size + RING - 1)):
            ok = a_ok & (group < size)
            g = tl.load(g_row + (group * PHASES_S + phase) * g_s, ok, 0.0).to(tl.float32)
            ring = ring[1:] + (g,)
            of_bias += g
            inputs = ()
            for k in tl.static_range(STEP_S * PART):
                row = (group * STEP_S + k // PART) * DILATION_S + phase * STRIDE_S - pad_s
                place = a * STRIDE_A + (part + k % PART) * DILATION_A - pad_a
                ok = a_ok & ((place >= 0) & (place < x_size_a))[:, None] & (row >= 0) & (row < x_size_s)
                x = tl.load(x_row + row * x_s + (place * x_a)[:, None], ok, 0.0)
                inputs += (x.to(tl.float32),)
            added = ()
            for k in tl.static_range(TAPS_S * PART):
                x = inputs[k // PART % STEP_S * PART + k % PART]
                added += (sums[k] + x * ring[RING - 1 - k // PART // STEP_S],)
            sums = added
    taps = out_ptr + split * (TAPS_S * TAPS_A + 1) * channels * ALIGN + c
    for k in tl.static_range(TAPS_S * PART):
        tap = k // PART * TAPS_A + part + k % PART
        ok = (c < channels * ALIGN) & (part + k % PART < TAPS_A)
        tl.store(taps + tap * channels * ALIGN, tl.sum(sums[k], axis=0), ok)
    ok = (c < channels * ALIGN) & (part == 0)
    tl.store(taps + TAPS_S * TAPS_A * channels * ALIGN, tl.sum(of_bias, axis=0), ok)


@triton.jit
def add_up(
    sums_ptr, x_ptr, g_ptr,  # what correlate_weight left, and what it was given
    w_ptr, b_ptr,  # [TAPS_S, TAPS_A, C] in any layout, [C]
    splits, taps_a, images, channels, x_size_s, x_size_a, g_size_s, g_size_a,
    x_first, x_n, x_s, x_a, x_c, g_first, g_n, g_s, g_a, g_c, w_s, w_a, w_c,
    pad_s, pad_a, stride_s, stride_a, dilation_s, dilation_a,
    ALIGN: tl.constexpr, WIDE: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add up the splits of each tap, and of the bias; grid: (tiles of channels, taps and the bias).

    Zero times infinity is not zero: a tap that is not finite may have seen it beyond the border, and is added
    up again, from places inside both images alone.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_ok = (c < channels * ALIGN)[None, :]
    x_row = x_ptr + x_first * ALIGN + (c * x_c)[None, :]
    g_row = g_ptr + g_first * ALIGN + (c * g_c)[None, :]
    tap = tl.program_id(1)
    taps = tl.num_programs(1) - 1
    sums = tl.zeros((BLOCK_A, BLOCK_C), tl.float32)
    for first in range(0, splits, BLOCK_A):
        split = first + tl.arange(0, BLOCK_A)
        place = ((split * (taps + 1) + tap) * channels * ALIGN)[:, None] + c[None, :]
        sums += tl.load(sums_ptr + place, (split < splits)[:, None] & c_ok, 0.0)
    total = tl.sum(sums, axis=0)
    if tap == taps:
        tl.store(b_ptr + c, total.to(b_ptr.dtype.element_ty), c < channels * ALIGN)
    else:
        tap_s, tap_a = tap // taps_a, tap % taps_a
        if tl.max(tl.where(total - total == 0, 0, 1), axis=0) > 0:
            sums = tl.zeros((BLOCK_A, BLOCK_C), tl.float32)
            for number in range(images * g_size_s):
                line = tl.cast(number, tl.int64) if WIDE else number
                image, s = line // g_size_s, line % g_size_s
                r = s * stride_s + tap_s * dilation_s - pad_s
                for first in range(0, g_size_a, BLOCK_A):
                    a = first + tl.arange(0, BLOCK_A)
                    b = a * stride_a + tap_a * dilation_a - pad_a
                    ok = (a < g_size_a) & (b >= 0) & (b < x_size_a) & (r >= 0) & (r < x_size_s)
                    ok = ok[:, None] & c_ok
                    g = tl.load(g_row + (image * g_n + s * g_s + a * g_a)[:, None] * ALIGN, ok, 0.0)
                    x = tl.load(x_row + (image * x_n + r * x_s + b * x_a)[:, None] * ALIGN, ok, 0.0)
                    sums += x.to(tl.float32) * g.to(tl.float32)
            total = tl.sum(sums, axis=0)
        place = tap_s * w_s + tap_a * w_a + c * w_c
        tl.store(w_ptr + place, total.to(w_ptr.dtype.element_ty), c < channels * ALIGN)
