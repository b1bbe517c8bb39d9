"""Products of integers in binary64: one plane, any matrix library."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.cpu.integers import ROUNDING, jit
from veritrain.numerics.cpu.product_kernel import ProductKernel, Strides


@jit
def _by_row_kernel(x, factors, out, strides):
    rows, count, source, source_step, target, target_step, _ = strides
    for r in range(rows):
        values = x[source + r * source_step : source + r * source_step + count]
        integers = out[target + r * target_step : target + r * target_step + count]
        factor = factors[r]
        for i in range(count):
            integers[i] = (np.float64(values[i]) * factor + ROUNDING) - ROUNDING


@jit
def _by_column_kernel(x, factors, out, strides):
    rows, count, source, source_step, target, target_step, _ = strides
    for r in range(rows):
        values = x[source + r * source_step : source + r * source_step + count]
        integers = out[target + r * target_step : target + r * target_step + count]
        for i in range(count):
            integers[i] = (np.float64(values[i]) * factors[i] + ROUNDING) - ROUNDING


@jit
def _transposed_kernel(x, factors, out_pc, place, source):
    size, channels = place.shape[0], factors.shape[0]
    for low in range(0, size, 64):  # so that what is written stays in the cache
        high = min(low + 64, size)
        for c in range(channels):
            values = x[source + c * size : source + (c + 1) * size]
            factor = factors[c]
            for p in range(low, high):
                out_pc[place[p], c] = (np.float64(values[p]) * factor + ROUNDING) - ROUNDING


class Float64Products(ProductKernel):
    """See the module's docstring."""

    planes = 1
    dtype = torch.float64
    result_bytes = 8

    def by_row(
        self, x: np.ndarray, factors: np.ndarray, out: Tensor, strides: Strides, *, left: bool
    ) -> None:
        _by_row_kernel(x, factors, out.numpy().reshape(-1), strides)

    def by_column(
        self, x: np.ndarray, factors: np.ndarray, out: Tensor, strides: Strides, *, left: bool
    ) -> None:
        _by_column_kernel(x, factors, out.numpy().reshape(-1), strides)

    def transposed(
        self, x: np.ndarray, factors: np.ndarray, out: Tensor, place: np.ndarray, source: int
    ) -> None:
        _transposed_kernel(x, factors, out.numpy()[0], place, source)

    def product(self, left: Tensor, right: Tensor, total: Tensor | None = None) -> Tensor:
        return torch.mm(left, right) if total is None else total.addmm_(left, right)
