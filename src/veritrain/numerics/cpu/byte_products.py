"""Products of integers through 8-bit digits: exact in the processor's byte units.

An integer q, |q| <= 2**(8 * planes - 2), is the sum of digits d_j in [-128, 127] times 256**j.
Adding 128 to each place makes them the bytes of an unsigned number, so they are found by shifts
alone.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.cpu.integers import ROUNDING, ROUNDING_BITS, jit
from veritrain.numerics.cpu.product_kernel import ProductKernel, Strides

_BIAS = np.int32(0x00808080)  # 128 in each of three places; a fourth is never needed
_SIGNS = np.int32(-0x7F7F7F80)  # 0x80808080


@jit
def _digits_kernel(shifted, out, target, plane_step, planes, left):
    """Write the digits of integers to which the bias was added; uses up `shifted`."""
    count = shifted.shape[0]
    for plane in range(planes):
        place = planes - 1 - plane if left else plane
        digits = out[target + place * plane_step : target + place * plane_step + count]
        for i in range(count):
            digits[i] = np.int8(shifted[i] - 128)
            shifted[i] = shifted[i] >> 8


@jit
def _by_row_kernel(x, factors, out, strides, planes, left):
    rows, count, source, source_step, target, target_step, plane_step = strides
    shifted = np.empty(count, np.int32)
    for r in range(rows):
        values = x[source + r * source_step : source + r * source_step + count]
        factor = factors[r]
        for i in range(count):
            rounded = np.float64(np.float64(values[i]) * factor + ROUNDING).view(np.int64)
            shifted[i] = np.int32(rounded - ROUNDING_BITS) + _BIAS
        _digits_kernel(shifted, out, target + r * target_step, plane_step, planes, left)


@jit
def _by_column_kernel(x, factors, out, strides, planes, left):
    rows, count, source, source_step, target, target_step, plane_step = strides
    shifted = np.empty(count, np.int32)
    for r in range(rows):
        values = x[source + r * source_step : source + r * source_step + count]
        for i in range(count):
            rounded = np.float64(np.float64(values[i]) * factors[i] + ROUNDING).view(np.int64)
            shifted[i] = np.int32(rounded - ROUNDING_BITS) + _BIAS
        _digits_kernel(shifted, out, target + r * target_step, plane_step, planes, left)


@jit
def _transposed_kernel(x, factors, out_dpc, place, source):
    """One channel at a time."""
    size, channels = place.shape[0], factors.shape[0]
    for c in range(channels):
        values = x[source + c * size : source + (c + 1) * size]
        factor = factors[c]
        for p in range(size):
            rounded = np.float64(np.float64(values[p]) * factor + ROUNDING).view(np.int64)
            shifted = np.int32(rounded - ROUNDING_BITS) + _BIAS
            for plane in range(out_dpc.shape[0]):
                out_dpc[plane, place[p], c] = np.int8(shifted - 128)
                shifted = shifted >> 8


@jit
def _transposed_words_kernel(x, factors, out_dpw, place, source):
    """Four channels at a time, whose digits are the bytes of one little-endian word."""
    size, words = place.shape[0], out_dpw.shape[2]
    block = 256
    shifted = np.empty((4, block), np.int32)
    packed = np.empty(block, np.int32)
    for low in range(0, size, block):
        count = min(block, size - low)
        for w in range(words):
            for lane in range(4):
                c = 4 * w + lane
                values = x[source + c * size + low : source + c * size + low + count]
                factor = factors[c]
                row = shifted[lane, :count]
                for i in range(count):
                    rounded = np.float64(np.float64(values[i]) * factor + ROUNDING).view(np.int64)
                    row[i] = np.int32(rounded - ROUNDING_BITS) + _BIAS
            a, b, c, d = shifted[0], shifted[1], shifted[2], shifted[3]
            for plane in range(out_dpw.shape[0]):
                for i in range(count):
                    halves = (a[i] & 255) | ((b[i] & 255) << 8)
                    packed[i] = (halves | ((c[i] & 255) << 16) | ((d[i] & 255) << 24)) ^ _SIGNS
                    a[i], b[i], c[i], d[i] = a[i] >> 8, b[i] >> 8, c[i] >> 8, d[i] >> 8
                target = out_dpw[plane]
                for i in range(count):
                    target[place[low + i], w] = packed[i]


@jit
def _combine_kernel(parts_gmn, total_mn, add):
    """The parts weighted by the powers of 256 (and the total): all values are integers up to
    2**53."""
    groups = parts_gmn.shape[0]
    value = np.empty(total_mn.shape[1], np.float64)
    for m in range(total_mn.shape[0]):
        total = total_mn[m]
        highest = parts_gmn[groups - 1, m]
        for n in range(total.shape[0]):
            value[n] = highest[n]
        for group in range(groups - 2, 0, -1):
            part = parts_gmn[group, m]
            for n in range(total.shape[0]):
                value[n] = value[n] * 256.0 + part[n]
        lowest = parts_gmn[0, m]
        if add:
            for n in range(total.shape[0]):
                total[n] += value[n] * 256.0 + lowest[n]
        else:
            for n in range(total.shape[0]):
                total[n] = value[n] * 256.0 + lowest[n]


class ByteProducts(ProductKernel):
    """See the module's docstring."""

    dtype = torch.int8

    def __init__(self, planes: int) -> None:
        """`planes`: digits of an integer, 2 or 3."""
        self.planes = planes
        self.result_bytes = 8 + 4 * (2 * planes - 1)

    @staticmethod
    @cache
    def of(bits: int) -> ByteProducts:
        """The kernel for integers of at most `bits` <= 22."""
        return ByteProducts(2 if bits <= 14 else 3)

    def by_row(
        self, x: np.ndarray, factors: np.ndarray, out: Tensor, strides: Strides, *, left: bool
    ) -> None:
        _by_row_kernel(x, factors, out.numpy().reshape(-1), strides, self.planes, left)

    def by_column(
        self, x: np.ndarray, factors: np.ndarray, out: Tensor, strides: Strides, *, left: bool
    ) -> None:
        _by_column_kernel(x, factors, out.numpy().reshape(-1), strides, self.planes, left)

    def transposed(
        self, x: np.ndarray, factors: np.ndarray, out: Tensor, place: np.ndarray, source: int
    ) -> None:
        if out.shape[2] % 4:
            _transposed_kernel(x, factors, out.numpy(), place, source)
        else:
            _transposed_words_kernel(x, factors, out.numpy().view(np.int32), place, source)

    def product(self, left: Tensor, right: Tensor, total: Tensor | None = None) -> Tensor:
        inner = left.shape[1] // self.planes
        shape = (left.shape[0], right.shape[1])
        parts = torch.empty((2 * self.planes - 1, *shape), dtype=torch.int32)
        for weight, part in enumerate(parts):
            first_left = max(0, self.planes - 1 - weight)
            first_right = max(0, weight - self.planes + 1)
            length = (self.planes - first_left - first_right) * inner
            torch.ops.aten._int_mm.out(
                left[:, first_left * inner : first_left * inner + length],
                right[first_right * inner : first_right * inner + length],
                out=part,
            )
        result = torch.empty(shape, dtype=torch.float64) if total is None else total
        _combine_kernel(parts.numpy(), result.numpy(), total is not None)
        return result
