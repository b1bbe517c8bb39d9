"""Fused CPU kernels of the integer arithmetic that gives `exact` numerics its order-free sums.

A *slice* is the set of values that share one power-of-two scale: a row, a column, a channel.
Tensors are seen as four axes (P, A, C, B), C-contiguous; one slice is x[p, :, c, :]. Rows of an (R,
K) matrix are (1, 1, R, K), its columns (1, R, K, 1), the channels of an image batch (1, N, C, H*W).

Definitions (docs/numerics.md, "Scaled integers"):
    top(s)   = largest magnitude of the slice
    E(s)     = exponent with 2**(E-1) <= top < 2**E; subnormals and zero count as E = -125
    q(x)     = x * 2**(bits - E) rounded half to even: an integer of magnitude at most 2**bits
A slice that holds an infinity or a NaN has the scale NaN and the integers 0, so all that is
computed from it is NaN.

Every operation here is an IEEE basic operation on binary32/binary64, without contraction or
reassociation (fastmath stays off), or an integer operation: the bits do not depend on the machine.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.platform.devices import on_cpu
from veritrain.numerics.platform.parallel import grain_of, run
from veritrain.runtime.kernels import kernel

# Adding 1.5 * 2**52 to |x| <= 2**51 rounds x half to even to an integer (round-to-nearest mode);
# the low bits of the sum then are that integer.
ROUNDING = 1.5 * 2.0**52
ROUNDING_BITS = np.float64(ROUNDING).view(np.int64)
_NOT_FINITE = np.int32(0x7F800000)  # magnitude bits of infinity; NaN is above
_MAGNITUDE = np.int32(0x7FFFFFFF)

jit = kernel()

Slices: TypeAlias = tuple[int, int, int, int]  # (P, A, C, B)

MAX_BITS = 51  # of a rounded value, by the rounding trick
EXACT_BITS = 53  # integers up to 2**53 are exact in binary64


FULL_GRADE = 22  # bits: the integer is three signed bytes
NARROW_GRADE = 14  # two


def contraction_bits(inner: int, grade: int = FULL_GRADE) -> int:
    """Bits of each operand of a contraction of inner length `inner` >= 1.

    Sums of `inner` products of two such integers stay within 2**53; `grade` is the most.
    """
    return min(grade, (EXACT_BITS - _ceil_log2(inner)) // 2)


def sum_bits(count: int) -> int:
    """Bits of each summand of a sum of `count` >= 1 values; the sum stays within 2**53."""
    return min(MAX_BITS, EXACT_BITS - _ceil_log2(count))


def _ceil_log2(n: int) -> int:
    return (n - 1).bit_length()


@jit
def _top_bits(bits_pacb, p, c):
    """Magnitude bits of the largest value of slice (p, c): integer order is magnitude order."""
    top = np.int32(0)
    for a in range(bits_pacb.shape[1]):
        row = bits_pacb[p, a, c]
        for b in range(row.shape[0]):
            top = max(top, np.int32(row[b] & _MAGNITUDE))
    return top


@jit
def exponent(top):
    """E of the definition, from magnitude bits."""
    return max(top >> 23, 1) - 126


@jit
def _scales_kernel(bits_pacb, bits, factor_pc, scale_pc, start, stop):
    num_c = bits_pacb.shape[2]
    for s in range(start, stop):
        p = s // num_c
        c = s - p * num_c
        top = _top_bits(bits_pacb, p, c)
        finite = top < _NOT_FINITE
        scale_pc[p, c] = math.ldexp(1.0, exponent(top) - bits) if finite else np.nan
        factor_pc[p, c] = math.ldexp(1.0, bits - exponent(top)) if finite else 0.0


@jit
def _scales_columns_kernel(bits_pac, bits, factor_pc, scale_pc, width, start, stop):
    """The same where B = 1: blocks of `width` neighbouring slices, so that memory is read in
    order."""
    num_c = bits_pac.shape[2]
    blocks = (num_c + width - 1) // width
    for block in range(start, stop):
        p = block // blocks
        low = (block - p * blocks) * width
        high = min(low + width, num_c)
        top = np.zeros(high - low, np.int32)
        for a in range(bits_pac.shape[1]):
            row = bits_pac[p, a, low:high]
            for i in range(row.shape[0]):
                top[i] = max(top[i], np.int32(row[i] & _MAGNITUDE))
        for i in range(high - low):
            finite = top[i] < _NOT_FINITE
            scale = math.ldexp(1.0, exponent(top[i]) - bits)
            scale_pc[p, low + i] = scale if finite else np.nan
            factor_pc[p, low + i] = 1.0 / scale if finite else 0.0


@jit
def _quantise_kernel(x_pacb, bits_pacb, bits, q_pacb, scale_pc, start, stop):
    num_c = x_pacb.shape[2]
    for s in range(start, stop):
        p = s // num_c
        c = s - p * num_c
        top = _top_bits(bits_pacb, p, c)
        finite = top < _NOT_FINITE
        scale_pc[p, c] = math.ldexp(1.0, exponent(top) - bits) if finite else np.nan
        factor = math.ldexp(1.0, bits - exponent(top)) if finite else 0.0
        for a in range(x_pacb.shape[1]):
            source = x_pacb[p, a, c]
            target = q_pacb[p, a, c]
            if finite:
                for b in range(source.shape[0]):
                    target[b] = (np.float64(source[b]) * factor + ROUNDING) - ROUNDING
            else:
                for b in range(source.shape[0]):
                    target[b] = 0.0


@jit
def _quantise_columns_kernel(x_pac, bits_pac, bits, q_pac, scale_pc, width, start, stop):
    """The same where B = 1: blocks of `width` neighbouring slices, so that memory is read in
    order."""
    num_a, num_c = x_pac.shape[1], x_pac.shape[2]
    blocks = (num_c + width - 1) // width
    top = np.empty(width, np.int32)
    factor = np.empty(width, np.float64)
    for block in range(start, stop):
        p = block // blocks
        low = (block - p * blocks) * width
        high = min(low + width, num_c)
        top[:] = 0
        for a in range(num_a):
            row = bits_pac[p, a, low:high]
            for i in range(row.shape[0]):
                top[i] = max(top[i], np.int32(row[i] & _MAGNITUDE))
        for i in range(high - low):
            finite = top[i] < _NOT_FINITE
            scale_pc[p, low + i] = math.ldexp(1.0, exponent(top[i]) - bits) if finite else np.nan
            factor[i] = math.ldexp(1.0, bits - exponent(top[i])) if finite else np.nan
        for a in range(num_a):
            source = x_pac[p, a, low:high]
            target = q_pac[p, a, low:high]
            for i in range(source.shape[0]):
                value = (np.float64(source[i]) * factor[i] + ROUNDING) - ROUNDING
                target[i] = value if value == value else 0.0


# A product of zeros may come out of a matrix product as -0; adding +0 makes every zero +0.


@jit
def _rescale_kernel(c_rn, row_scale_r, column_scale_pn, rows_per_p, out_rn, start, stop):
    for r in range(start, stop):
        source = c_rn[r]
        target = out_rn[r]
        columns = column_scale_pn[r // rows_per_p]
        for n in range(source.shape[0]):
            target[n] = np.float32(source[n] * row_scale_r[r] * columns[n] + 0.0)


def rows_of(x: Tensor) -> Slices:
    """One slice for each row of (R, D)."""
    return 1, 1, x.shape[0], x.shape[1]


def channels_of(x: Tensor) -> Slices:
    """One slice for each channel of (N, C, *S), over all samples."""
    return 1, x.shape[0], x.shape[1], math.prod(x.shape[2:])


def _pacb(x: Tensor, shape: Slices) -> tuple[np.ndarray, np.ndarray]:
    """The values of a contiguous fp32 tensor as (P, A, C, B), and the same memory as int32."""
    values = x.detach().numpy().reshape(shape)
    return values, values.view(np.int32)


_COLUMN_BLOCK = 256  # slices; two such rows of fp32 and their factors stay in the first-level cache


@on_cpu
def quantise(x: Tensor, shape: Slices, bits: int) -> tuple[Tensor, Tensor]:
    """Round each slice of `x` to scaled integers.

    Args:
        x: float32, contiguous; seen as `shape` = (P, A, C, B).
        bits: integer width, at most 51.

    Returns:
        The integers as float64 in the shape of `x`, and the scale of each slice, float64 (P, C);
        integer times scale is the rounded value.
    """
    num_p, num_a, num_c, num_b = shape
    values, pattern = _pacb(x, shape)
    q = torch.empty(x.shape, dtype=torch.float64)
    scale = torch.empty((num_p, num_c), dtype=torch.float64)
    target = q.numpy().reshape(shape)
    if num_b == 1 and num_a > 1:
        width = min(_COLUMN_BLOCK, num_c)
        blocks = num_p * -(-num_c // max(width, 1))
        run(
            _quantise_columns_kernel, blocks,
            values[..., 0], pattern[..., 0], bits, target[..., 0], scale.numpy(), width,
            grain=grain_of(num_a * width),
        )  # fmt: skip
    else:
        run(
            _quantise_kernel, num_p * num_c, values, pattern, bits, target, scale.numpy(),
            grain=grain_of(num_a * num_b),
        )  # fmt: skip
    return q, scale


def rescale(c: Tensor, row_scale: Tensor, column_scale: Tensor, out: Tensor) -> None:
    """Scale integer products back and round once to float32.

    Args:
        c: float64 (P, M, N), contiguous: integers of magnitude at most 2**53.
        row_scale: float64 (P, M). column_scale: float64 (P, N). Powers of two or NaN.
        out: float32 (P, M, N), contiguous.
    """
    num_p, num_m, num_n = c.shape
    run(
        _rescale_kernel, num_p * num_m,
        c.numpy().reshape(num_p * num_m, num_n), row_scale.numpy().reshape(-1),
        column_scale.numpy(), max(num_m, 1), out.numpy().reshape(num_p * num_m, num_n),
        grain=grain_of(num_n),
    )  # fmt: skip


@on_cpu
def slice_scales(x: Tensor, shape: Slices, bits: int) -> tuple[Tensor, Tensor]:
    """Factor to integers and scale back of each slice, float64 (P, C), without rounding anything.

    A slice that is not finite has the factor 0 and the scale NaN.
    """
    num_p, num_a, num_c, num_b = shape
    _, pattern = _pacb(x, shape)
    factor = torch.empty((num_p, num_c), dtype=torch.float64)
    scale = torch.empty((num_p, num_c), dtype=torch.float64)
    if num_b == 1 and num_a > 1:
        width = min(_COLUMN_BLOCK, num_c)
        run(
            _scales_columns_kernel, num_p * -(-num_c // max(width, 1)),
            pattern[..., 0], bits, factor.numpy(), scale.numpy(), width,
            grain=grain_of(num_a * width),
        )  # fmt: skip
    else:
        run(
            _scales_kernel, num_p * num_c, pattern, bits, factor.numpy(), scale.numpy(),
            grain=grain_of(num_a * num_b),
        )  # fmt: skip
    return factor, scale
