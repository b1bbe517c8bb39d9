"""Fused CPU kernels of exact sums: scaled integers added in any order (docs/numerics.md, "Sum").

All values of a slice share one power-of-two scale, so that its largest magnitude has to be known
before the first integer is. The kernels read memory once all the same: they add block by block
under the scale of the largest value so far and start again where a later block has a larger
exponent, which among values in no particular order happens early, if at all.

A value times a power of two is exact, so that adding the rounding constant to it is one rounding
with or without a fused multiply-add: only here, in `_jit`, may the two be contracted.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.cpu.integers import (
    EXACT_BITS,
    MAX_BITS,
    ROUNDING,
    ROUNDING_BITS,
    Slices,
    exponent,
    jit,
    sum_bits,
)
from veritrain.numerics.platform.devices import on_cpu
from veritrain.numerics.platform.parallel import GRAIN, grain_of, run
from veritrain.runtime.kernels import kernel

# Kernels that allocate nothing: without reference counts, of which each view of a row costs
# several. What they need beyond their arguments a kernel made by `integers.jit` allocates around
# them.
bare_jit = kernel(_nrt=False)
_jit = kernel(_nrt=False, fastmath={"contract"})

_MAGNITUDE = np.int32(0x7FFFFFFF)
_NOT_FINITE = np.int32(0x7F800000)  # magnitude bits of infinity; NaN is above
_BLOCK = 4096  # values; they stay in the first-level cache between the two loops over them
_STARTS = 3  # the third is under the largest magnitude of all
_NARROW = 16  # values of a row
_COLUMN_BLOCK = 512  # slices; their tops, factors and totals stay there too


@bare_jit
def power_of_two(n):
    """2**n as binary64, -1022 <= n <= 1023: from its bits, which vectorises."""
    return np.int64((np.int64(n) + 1023) << 52).view(np.float64)


@bare_jit
def magnitude(value):
    """Bits of |value|."""
    return np.int32(np.float32(value).view(np.int32) & _MAGNITUDE)


@_jit
def scaled_bits(value, factor):
    """The integer of `value` plus `ROUNDING_BITS`."""
    return np.float64(np.float64(value) * factor + ROUNDING).view(np.int64)


@_jit
def top_bits(values):
    """Magnitude bits of the largest of float32 `values`: integer order is magnitude order."""
    pattern = values.view(np.int32)
    top = np.int32(0)
    for i in range(pattern.shape[0]):
        top = max(top, np.int32(pattern[i] & _MAGNITUDE))
    return top


@_jit
def integer_sum(values, factor):
    """Sum of the integers of `values` under one factor."""
    total = np.int64(0)
    for i in range(values.shape[0]):
        total += scaled_bits(values[i], factor)
    return total - values.shape[0] * ROUNDING_BITS


@bare_jit
def _slice_sum(x_pacb, p, c, bits, least):
    """(magnitude bits that fix the scale, integer sum) of slice (p, c); the bits are at least
    `least`."""
    num_a, num_b = x_pacb.shape[1], x_pacb.shape[3]
    top, total = least, np.int64(0)
    a = b = starts = 0
    while a < num_a:
        block = x_pacb[p, a, c, b : b + _BLOCK]
        higher = max(top, top_bits(block))
        if higher >= _NOT_FINITE:
            return higher, np.int64(0)
        if exponent(higher) > exponent(top) and (a > 0 or b > 0):
            starts += 1
            if starts == _STARTS:
                for i in range(num_a):
                    higher = max(higher, top_bits(x_pacb[p, i, c]))
            top, total = higher, np.int64(0)
            a = b = 0
            continue
        top = higher
        total += integer_sum(block, power_of_two(bits - exponent(top)))
        b += _BLOCK
        if b >= num_b:
            a += 1
            b = 0
    return top, total


@bare_jit
def rounded(top, total, bits):
    """An integer sum in float32, NaN where the largest magnitude is not finite."""
    if top >= _NOT_FINITE:
        return np.float32(np.nan)
    return np.float32(np.float64(total) * power_of_two(exponent(top) - bits))


@bare_jit
def _total_kernel(x_pacb, bits, total_pc, start, stop):
    num_c = x_pacb.shape[2]
    for s in range(start, stop):
        p = s // num_c
        c = s - p * num_c
        top, total = _slice_sum(x_pacb, p, c, bits, np.int32(0))
        total_pc[p, c] = rounded(top, total, bits)


@bare_jit
def _piece_kernel(values, bits, least, start, stop):
    return _slice_sum(values[start:stop].reshape(1, 1, 1, stop - start), 0, 0, bits, least)


@jit
def _total_columns_kernel(x_pac, bits, total_pc, width, start, stop):
    """Slices x[p, :, c]: blocks of `width` neighbouring ones, so that memory is read in order."""
    num_c = x_pac.shape[2]
    blocks = (num_c + width - 1) // width
    tops, factors = np.empty(width, np.int32), np.empty(width, np.float64)
    totals = np.empty(width, np.int64)
    for block in range(start, stop):
        p = block // blocks
        low = (block - p * blocks) * width
        high = min(low + width, num_c)
        _add_columns(x_pac[p], low, high, bits, tops, factors, totals, total_pc[p])


@_jit
def _add_columns(x_ac, low, high, bits, tops, factors, totals, out_c):
    num_a = x_ac.shape[0]
    tops[:] = 0
    totals[:] = 0
    for a in range(num_a):
        pattern = x_ac[a, low:high].view(np.int32)
        for i in range(pattern.shape[0]):
            tops[i] = max(tops[i], np.int32(pattern[i] & _MAGNITUDE))
    for i in range(high - low):
        factors[i] = power_of_two(bits - exponent(tops[i]))
    for a in range(num_a):
        source = x_ac[a, low:high]
        for i in range(source.shape[0]):
            totals[i] += scaled_bits(source[i], factors[i])
    for i in range(high - low):
        out_c[low + i] = rounded(tops[i], totals[i] - num_a * ROUNDING_BITS, bits)


@bare_jit
def exact_sum(values):
    """Sum of a 1-D contiguous float32 array as integers of `sum_bits(len)`, rounded once to
    float32."""
    count = values.shape[0]
    log2 = 0
    while (1 << log2) < count:
        log2 += 1
    bits = min(MAX_BITS, EXACT_BITS - log2)
    if count > _BLOCK:
        top, total = _slice_sum(values.reshape(1, 1, 1, count), 0, 0, bits, np.int32(0))
    else:
        top = top_bits(values)
        total = integer_sum(values, power_of_two(bits - exponent(top)))
    return rounded(top, total, bits)


@jit
def _add_rows_kernel(values_nd, order_n, first_g, row_g, bits, top, out_rd, start, stop):
    """Group g adds values[order[first_g[g]:first_g[g + 1]]] into its row; nobody else writes
    there."""
    totals = np.empty(values_nd.shape[1], np.int64)
    _add_rows(values_nd, order_n, first_g, row_g, bits, top, totals, out_rd, start, stop)


@_jit
def _add_rows(values_nd, order_n, first_g, row_g, bits, top, totals, out_rd, start, stop):
    factor = power_of_two(bits - exponent(top))
    for g in range(start, stop):
        totals[:] = 0
        count = first_g[g + 1] - first_g[g]
        for n in range(count):
            source = values_nd[order_n[first_g[g] + n]]
            for d in range(source.shape[0]):
                totals[d] += scaled_bits(source[d], factor)
        out = out_rd[row_g[g]]
        for d in range(out.shape[0]):
            out[d] = rounded(top, totals[d] - count * ROUNDING_BITS, bits)


@on_cpu
def total(x: Tensor, shape: Slices) -> Tensor:
    """Sum each slice of `x` as integers of `sum_bits(A * B)`, rounded once to float32: (P, C).

    The sum of an empty slice is +0.

    Args:
        x: float32, contiguous; seen as `shape` = (P, A, C, B), one slice x[p, :, c, :].
    """
    num_p, num_a, num_c, num_b = shape
    if x.numel() == 0:
        return torch.zeros((num_p, num_c), dtype=torch.float32)
    values = x.detach().numpy()
    bits = sum_bits(num_a * num_b)
    if num_p * num_c == 1:
        return torch.full((1, 1), _whole_sum(values.reshape(-1), bits), dtype=torch.float32)
    out = torch.empty((num_p, num_c), dtype=torch.float32)
    if num_b == 1 and num_a > 1:
        width = min(_COLUMN_BLOCK, num_c)
        run(
            _total_columns_kernel, num_p * -(-num_c // width),
            values.reshape(shape)[..., 0], bits, out.numpy(), width, grain=grain_of(num_a * width),
        )  # fmt: skip
    else:
        run(
            _total_kernel, num_p * num_c, values.reshape(shape), bits, out.numpy(),
            grain=grain_of(num_a * num_b),
        )  # fmt: skip
    return out


def _whole_sum(values: np.ndarray, bits: int) -> float:
    """All of `values` as one slice, in threads; pieces under a smaller scale are added once
    more."""
    least = np.int32(0)
    pieces = run(_piece_kernel, values.size, values, bits, least, grain=GRAIN)
    top = max(np.int32(top) for top, _ in pieces)
    if any(exponent(piece_top) < exponent(top) for piece_top, _ in pieces):
        pieces = run(_piece_kernel, values.size, values, bits, top, grain=GRAIN)
    return float(rounded(top, np.int64(sum(int(part) for _, part in pieces)), bits))


@on_cpu
def sum_of_squares(x: Tensor) -> Tensor:
    """Sum of x * x, each product rounded to float32, over a whole contiguous tensor: a scalar.

    Infinite where a square is, NaN where a value is.
    """
    values = x.detach().numpy().reshape(-1)
    if values.size == 0:
        return torch.zeros((), dtype=torch.float32)
    bits = sum_bits(values.size)
    # the square of the largest is the largest square, also when rounded
    largest = torch.tensor(int(largest_magnitude(x)), dtype=torch.int32).view(torch.float32)
    largest_square = largest * largest
    top = np.int32(largest_square.view(torch.int32).item())
    if top >= _NOT_FINITE:
        return largest_square
    parts = run(_squares_kernel, values.size, values, bits, top)
    return torch.tensor(rounded(top, np.int64(sum(parts)), bits), dtype=torch.float32)


@bare_jit
def _square(value):
    return value * value


@_jit
def _squares_kernel(values, bits, top, start, stop):
    part, factor = values[start:stop], power_of_two(bits - exponent(top))
    total = np.int64(0)
    for i in range(part.shape[0]):
        total += scaled_bits(_square(part[i]), factor)
    return total - part.shape[0] * ROUNDING_BITS


@on_cpu
def accumulate(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Add `values[n]` to row `rows[n]` of a zero matrix, exactly, in no order.

    All of `values` is one slice of `sum_bits(N)`: no row can receive more than N summands.

    Args:
        values: float32 (N, D) contiguous. rows: int64 (N,), each in [0, num_rows).

    Returns:
        float32 (num_rows, D); NaN everywhere if a value is not finite.

    Raises:
        IndexError: a row outside the range.
    """
    num_n, num_d = values.shape
    out = torch.zeros((num_rows, num_d), dtype=torch.float32)
    if num_n == 0:
        return out
    if int(rows.min()) < 0 or int(rows.max()) >= num_rows:
        raise IndexError(f"row index outside [0, {num_rows})")
    top = largest_magnitude(values)
    if top >= _NOT_FINITE:
        return out.fill_(math.nan)
    if num_d < _NARROW:
        return _accumulate_narrow(values, rows, sum_bits(num_n), top, out)
    order = torch.argsort(rows)
    found, counts = torch.unique_consecutive(rows[order], return_counts=True)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    run(
        _add_rows_kernel, found.numel(), values.detach().numpy(), order.numpy(), first.numpy(),
        found.numpy(), sum_bits(num_n), top, out.numpy(), grain=grain_of(num_d),
    )  # fmt: skip
    return out


def _accumulate_narrow(
    values: Tensor, rows: Tensor, bits: int, top: np.int32, out: Tensor
) -> Tensor:
    """For rows so short that sorting them costs more than a total for each place."""
    totals = torch.zeros(out.shape, dtype=torch.int64).numpy()
    _add_all(values.detach().numpy(), rows.numpy(), power_of_two(bits - exponent(top)), totals)
    run(_round_kernel, out.shape[0], totals, bits, top, out.numpy(), grain=grain_of(out.shape[1]))
    return out


@bare_jit
def _add_all(values_nd, row_n, factor, total_rd):
    for n in range(values_nd.shape[0]):
        for d in range(values_nd.shape[1]):
            total_rd[row_n[n], d] += scaled_bits(values_nd[n, d], factor) - ROUNDING_BITS


@bare_jit
def _round_kernel(total_rd, bits, top, out_rd, start, stop):
    for r in range(start, stop):
        for d in range(total_rd.shape[1]):
            out_rd[r, d] = rounded(top, total_rd[r, d], bits)


def largest_magnitude(x: Tensor) -> np.int32:
    """Magnitude bits of the largest value of a contiguous float32 tensor."""
    flat = x.detach().numpy().reshape(-1)
    return np.int32(max(run(_top_kernel, flat.size, flat)))


@bare_jit
def _top_kernel(values, start, stop):
    return top_bits(values[start:stop])
