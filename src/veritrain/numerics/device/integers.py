"""Scaled integers and their sums in torch operations: the twins of `numerics.integers`.

Definitions and shapes are those of that module. Sums are of int64, so their order does not matter,
atomic additions included.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from veritrain.numerics.device import fused
from veritrain.numerics.integers import ROUNDING, ROUNDING_BITS, Slices, sum_bits

_NOT_FINITE = 0x7F800000  # magnitude bits of infinity; NaN is above
_MAGNITUDE = 0x7FFFFFFF
_LIMIT = 1 << 26  # values at a time: their float64 copies are bounded to a few GB


def power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent, float64, for int64 exponents of normal numbers."""
    return ((exponent + 1023) << 52).view(torch.float64)


def _tops(x: Tensor, shape: Slices) -> Tensor:
    """Magnitude bits of the largest value of each slice: int64 (P, C)."""
    num_p, num_a, num_c, num_b = shape
    if num_a * num_b == 0:
        return torch.zeros((num_p, num_c), dtype=torch.int64, device=x.device)
    magnitude = x.detach().view(torch.int32).view(shape) & _MAGNITUDE
    return magnitude.amax((1, 3)).to(torch.int64)


def _exponents(tops: Tensor) -> Tensor:
    """E of the definition."""
    return (tops >> 23).clamp_min(1) - 126


def _factors(tops: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Factor to integers and scale back; 0 and NaN where a slice is not finite."""
    shift = bits - _exponents(tops)
    finite = tops < _NOT_FINITE
    factor = torch.where(finite, power_of_two(shift), 0.0)
    return factor, torch.where(finite, power_of_two(-shift), math.nan)


def _rounded_bits(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor rounded half to even, int64; any integer where x is not finite."""
    return (x.double() * factor + ROUNDING).view(torch.int64) - int(ROUNDING_BITS)


def slice_scales(x: Tensor, shape: Slices, bits: int) -> tuple[Tensor, Tensor]:
    """Twin of `numerics.integers.slice_scales`."""
    return _factors(_tops(x, shape), bits)


def quantise(x: Tensor, shape: Slices, bits: int) -> tuple[Tensor, Tensor]:
    """Twin of `numerics.integers.quantise`."""
    factor, scale = slice_scales(x, shape, bits)
    if fused.serves(x.device):
        return fused.scaled(x, shape, factor), scale
    factor = factor[:, None, :, None]
    q = (x.detach().view(shape).double() * factor + ROUNDING) - ROUNDING
    return torch.where(factor == 0, 0.0, q).view(x.shape), scale


def total(x: Tensor, shape: Slices) -> Tensor:
    """Twin of `numerics.integers.total`."""
    num_p, num_a, num_c, num_b = shape
    if num_a * num_b == 0:
        return torch.zeros((num_p, num_c), dtype=torch.float32, device=x.device)
    factor, scale = slice_scales(x, shape, sum_bits(num_a * num_b))
    added = fused.added if fused.serves(x.device) else _added
    return (added(x, shape, factor).double() * scale).float()


def _added(x: Tensor, shape: Slices, factor: Tensor) -> Tensor:
    """Sum of each slice's integers: int64 (P, C)."""
    num_p, num_a, num_c, num_b = shape
    values = x.detach().view(shape)
    totals = torch.zeros((num_p, num_c), dtype=torch.int64, device=x.device)
    step = max(1, _LIMIT // max(num_p * num_c * num_b, 1))
    for start in range(0, num_a, step):
        part = _rounded_bits(values[:, start : start + step], factor[:, None, :, None])
        totals = totals + part.sum((1, 3))
    return totals


def rescale(c: Tensor, row_scale: Tensor, column_scale: Tensor) -> Tensor:
    """Twin of `numerics.integers.rescale`."""
    if fused.serves(c.device):
        return fused.rescale(c, row_scale, column_scale)
    return (c * row_scale[:, :, None] * column_scale[:, None, :] + 0.0).float()


def rescale_rows(c: Tensor, scale: Tensor) -> Tensor:
    """Twin of `numerics.integers.rescale_rows`."""
    return (c * scale[:, None] + 0.0).float()


def accumulate(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Twin of `numerics.integers.accumulate`."""
    num_n, num_d = values.shape
    totals = torch.zeros((num_rows, num_d), dtype=torch.int64, device=values.device)
    if num_n == 0 or num_d == 0:
        return totals.float()
    if int(rows.min()) < 0 or int(rows.max()) >= num_rows:
        raise IndexError(f"row index outside [0, {num_rows})")
    factor, scale = slice_scales(values, (1, 1, 1, num_n * num_d), sum_bits(num_n))
    totals.index_add_(0, rows, _rounded_bits(values.detach(), factor))
    return (totals.double() * scale).float()
