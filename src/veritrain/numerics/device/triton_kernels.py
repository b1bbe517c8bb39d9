"""Triton kernels of the integer arithmetic; see `fused`. Importing this module needs Triton.

Tensors are contiguous, seen as (P, A, C, B); `factor` and `totals` are (P, C).
"""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import triton
import triton.language as tl

_ROUNDING = tl.constexpr(6755399441055744.0)  # 1.5 * 2**52, as in `integers`
_ROUNDING_BITS = tl.constexpr(0x4338000000000000)


@triton.jit
def _sum_with_magic(x, factor):
    """x * factor + 1.5 * 2**52: two roundings, as fusion is off."""
    return x.to(tl.float64) * factor + tl.full(factor.shape, _ROUNDING, tl.float64)


@triton.jit
def _integer(x, factor):
    shifted = _sum_with_magic(x, factor).to(tl.int64, bitcast=True)
    return shifted - tl.full(shifted.shape, _ROUNDING_BITS, tl.int64)


@triton.jit
def scaled(x_ptr, factor_ptr, q_ptr, num_a, num_c, num_b, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    c = (i // num_b) % num_c
    p = i // (num_b * num_c) // num_a
    factor = tl.load(factor_ptr + p * num_c + c, mask=inside, other=0.0)
    x = tl.load(x_ptr + i, mask=inside, other=0.0)
    q = _sum_with_magic(x, factor) - tl.full(factor.shape, _ROUNDING, tl.float64)
    tl.store(q_ptr + i, tl.where(factor == 0.0, tl.zeros_like(q), q), mask=inside)


@triton.jit
def added_rows(x_ptr, factor_ptr, totals_ptr, num_a, num_c, num_b, BLOCK: tl.constexpr):
    parts = tl.cdiv(num_b, BLOCK)
    row = tl.program_id(0).to(tl.int64) // parts  # of (P, A, C)
    b = tl.program_id(0).to(tl.int64) % parts * BLOCK + tl.arange(0, BLOCK)
    place = row // num_c // num_a * num_c + row % num_c
    factor = tl.load(factor_ptr + place + tl.zeros_like(b))
    x = tl.load(x_ptr + row * num_b + b, mask=b < num_b, other=0.0)
    tl.atomic_add(totals_ptr + place, tl.sum(_integer(x, factor), 0))


@triton.jit
def added_columns(
    x_ptr, factor_ptr, totals_ptr, num_a, num_c, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    parts_a, parts_c = tl.cdiv(num_a, ROWS), tl.cdiv(num_c, COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    c = program % parts_c * COLUMNS + tl.arange(0, COLUMNS)
    a = program // parts_c % parts_a * ROWS + tl.arange(0, ROWS)
    p = program // parts_c // parts_a
    inside = (a < num_a)[:, None] & (c < num_c)[None, :]
    column = tl.zeros([ROWS, COLUMNS], tl.int64) + c[None, :]
    factor = tl.load(factor_ptr + p * num_c + column, mask=inside, other=0.0)
    x = tl.load(x_ptr + (p * num_a + a)[:, None] * num_c + column, mask=inside, other=0.0)
    totals = tl.sum(_integer(x, factor), 0)
    tl.atomic_add(totals_ptr + p * num_c + c, totals, mask=c < num_c)


@triton.jit
def rescale(c_ptr, row_ptr, column_ptr, out_ptr, num_m, num_n, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    row, n = i // num_n, i % num_n
    c = tl.load(c_ptr + i, mask=inside, other=0.0)
    rows = tl.load(row_ptr + row, mask=inside, other=0.0)
    columns = tl.load(column_ptr + row // num_m * num_n + n, mask=inside, other=0.0)
    scaled = c * rows * columns + tl.zeros_like(c)
    tl.store(out_ptr + i, scaled.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["key"])
def uniform24(key, out_ptr, count, BLOCK: tl.constexpr):
    """Philox4x32-10 as in `cpu.philox`: words of 32 bits in registers of 64, a block of 4 words a
    lane."""
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = tl.full([BLOCK], 0xFFFFFFFF, tl.uint64)
    k = key.to(tl.uint64) & mask
    m = key.to(tl.uint64) >> 32 & mask
    a, b = block.to(tl.uint64) & mask, block.to(tl.uint64) >> 32
    c, d = tl.zeros_like(a), tl.zeros_like(a)
    for _ in tl.static_range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k, q & mask, (p >> 32) ^ d ^ m, p & mask
        k, m = (k + 0x9E3779B9) & mask, (m + 0xBB67AE85) & mask
    i = block * 4
    tl.store(out_ptr + i, _unit(a), mask=i < count)
    tl.store(out_ptr + i + 1, _unit(b), mask=i + 1 < count)
    tl.store(out_ptr + i + 2, _unit(c), mask=i + 2 < count)
    tl.store(out_ptr + i + 3, _unit(d), mask=i + 3 < count)


@triton.jit
def _unit(word):
    """The top 24 bits as a fraction; nothing is rounded."""
    fraction = (word >> 8).to(tl.int64).to(tl.float64) * tl.full(word.shape, 2.0**-24, tl.float64)
    return fraction.to(tl.float32)
