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
