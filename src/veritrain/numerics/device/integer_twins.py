"""Scaled integers in torch operations: the twins of `cpu.integers`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from veritrain.numerics.cpu import integers
from veritrain.numerics.cpu.integers import ROUNDING, ROUNDING_BITS, Slices
from veritrain.numerics.device import fused
from veritrain.numerics.platform.devices import twin_of

_NOT_FINITE = 0x7F800000  # magnitude bits of infinity; NaN is above
_MAGNITUDE = 0x7FFFFFFF


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


def rounded_bits(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor rounded half to even, int64; any integer where x is not finite."""
    return (x.double() * factor + ROUNDING).view(torch.int64) - int(ROUNDING_BITS)


@twin_of(integers.slice_scales)
def slice_scales(x: Tensor, shape: Slices, bits: int) -> tuple[Tensor, Tensor]:
    return _factors(_tops(x, shape), bits)


@twin_of(integers.quantise)
def quantise(x: Tensor, shape: Slices, bits: int) -> tuple[Tensor, Tensor]:
    factor, scale = slice_scales(x, shape, bits)
    if fused.serves(x.device):
        return fused.scaled(x, shape, factor), scale
    factor = factor[:, None, :, None]
    q = (x.detach().view(shape).double() * factor + ROUNDING) - ROUNDING
    return torch.where(factor == 0, 0.0, q).view(x.shape), scale


def rescale(c: Tensor, row_scale: Tensor, column_scale: Tensor) -> Tensor:
    """Integers (P, M, N) times the scales of their rows (P, M) and columns (P, N), in float32."""
    if fused.serves(c.device):
        return fused.rescale(c, row_scale, column_scale)
    return (c * row_scale[:, :, None] * column_scale[:, None, :] + 0.0).float()


def rescale_rows(c: Tensor, scale: Tensor) -> Tensor:
    """Integers (R, N) times the scale of each row, in float32."""
    return (c * scale[:, None] + 0.0).float()
