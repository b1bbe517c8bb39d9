"""Exact sums in torch operations: the twins of `cpu.exact_sums`.

Sums are of int64, so their order does not matter, atomic additions included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from veritrain.numerics.cpu import exact_sums
from veritrain.numerics.cpu.integers import Slices, sum_bits
from veritrain.numerics.device import fused
from veritrain.numerics.device.integer_twins import rounded_bits, slice_scales
from veritrain.numerics.platform.devices import twin_of

_LIMIT = 1 << 26  # values at a time: their float64 copies are bounded to a few GB


@twin_of(exact_sums.total)
def total(x: Tensor, shape: Slices) -> Tensor:
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
        part = rounded_bits(values[:, start : start + step], factor[:, None, :, None])
        totals = totals + part.sum((1, 3))
    return totals


@twin_of(exact_sums.accumulate)
def accumulate(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    num_n, num_d = values.shape
    totals = torch.zeros((num_rows, num_d), dtype=torch.int64, device=values.device)
    if num_n == 0 or num_d == 0:
        return totals.float()
    if int(rows.min()) < 0 or int(rows.max()) >= num_rows:
        raise IndexError(f"row index outside [0, {num_rows})")
    factor, scale = slice_scales(values, (1, 1, 1, num_n * num_d), sum_bits(num_n))
    totals.index_add_(0, rows, rounded_bits(values.detach(), factor))
    return (totals.double() * scale).float()


@twin_of(exact_sums.sum_of_squares)
def sum_of_squares(x: Tensor) -> Tensor:
    squares = x.detach() * x.detach()
    found = total(squares, (1, 1, 1, x.numel())).view(())
    return torch.where(found.isnan(), squares.amax(), found) if x.numel() else found
