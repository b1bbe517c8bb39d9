"""Fused CPU kernels of pooling over planes (P, H, W): exact window sums and exact sums of gradients.

Definitions (docs/numerics.md, "Sum"): an average is the sum of its window, a slice by itself, divided by
the window's size. All gradients that are added into places are one slice together.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.integers import ROUNDING_BITS, exponent, jit, sum_bits
from veritrain.numerics.parallel import grain_of, run
from veritrain.numerics.sums import (
    bare_jit,
    largest_magnitude,
    magnitude,
    power_of_two,
    rounded,
    scaled_bits,
    total,
)


@bare_jit
def _average_kernel(x_phw, size, stride, padding, bits, out_phw, start, stop):
    num_h, num_w = x_phw.shape[1:]
    area = np.float32(size[0] * size[1])
    for p in range(start, stop):
        for i in range(out_phw.shape[1]):
            top = i * stride[0] - padding[0]
            rows = max(top, 0), min(top + size[0], num_h)
            for j in range(out_phw.shape[2]):
                left = j * stride[1] - padding[1]
                columns = max(left, 0), min(left + size[1], num_w)
                out_phw[p, i, j] = _window_sum(x_phw[p], rows, columns, bits) / area


@bare_jit
def _window_sum(x_hw, rows, columns, bits):
    top = np.int32(0)
    for h in range(rows[0], rows[1]):
        for w in range(columns[0], columns[1]):
            top = max(top, magnitude(x_hw[h, w]))
    factor = power_of_two(bits - exponent(top))
    total = np.int64(0)
    for h in range(rows[0], rows[1]):
        for w in range(columns[0], columns[1]):
            total += scaled_bits(x_hw[h, w], factor) - ROUNDING_BITS
    return rounded(top, total, bits)


@jit
def _spread_kernel(shares_phw, size, stride, padding, bits, top, out_phw, start, stop):
    num_h, num_w = out_phw.shape[1] + 2 * padding[0], out_phw.shape[2] + 2 * padding[1]
    totals = np.empty((num_h, num_w), np.int64)
    for p in range(start, stop):
        totals[:] = 0
        _spread(shares_phw[p], size, stride, power_of_two(bits - exponent(top)), totals)
        _round_plane(totals, padding, top, bits, out_phw[p])


@bare_jit
def _spread(shares_hw, size, stride, factor, totals_hw):
    """Add each share to all places of its window."""
    for i in range(shares_hw.shape[0]):
        for j in range(shares_hw.shape[1]):
            share = scaled_bits(shares_hw[i, j], factor) - ROUNDING_BITS
            for h in range(i * stride[0], i * stride[0] + size[0]):
                for w in range(j * stride[1], j * stride[1] + size[1]):
                    totals_hw[h, w] += share


@bare_jit
def _round_plane(totals_hw, padding, top, bits, out_hw):
    for h in range(out_hw.shape[0]):
        source, target = totals_hw[h + padding[0]], out_hw[h]
        for w in range(target.shape[0]):
            target[w] = rounded(top, source[w + padding[1]], bits)


@jit
def _scatter_kernel(values_pn, places_pn, bits, top, out_phw, start, stop):
    totals = np.empty(out_phw.shape[1:], np.int64)
    for p in range(start, stop):
        totals[:] = 0
        _scatter(values_pn[p], places_pn[p], power_of_two(bits - exponent(top)), totals)
        _round_plane(totals, (0, 0), top, bits, out_phw[p])


@bare_jit
def _scatter(values, places, factor, totals_hw):
    num_w = totals_hw.shape[1]
    for n in range(values.shape[0]):
        h = places[n] // num_w
        totals_hw[h, places[n] - h * num_w] += scaled_bits(values[n], factor) - ROUNDING_BITS


Pair = tuple[int, int]


def average(x_phw: Tensor, size: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Averages over windows of zero-padded planes; float32 (P, H, W), contiguous."""
    num_p, *extent = x_phw.shape
    if tuple(extent) == size and padding == (0, 0):  # one window: the plane
        sums = total(x_phw, (1, 1, num_p, math.prod(extent)))
        return sums.view(num_p, 1, 1) / math.prod(size)
    outputs = [
        (n + 2 * pad - k) // step + 1
        for n, k, step, pad in zip(extent, size, stride, padding, strict=True)
    ]
    out = torch.empty((num_p, *outputs), dtype=torch.float32)
    run(
        _average_kernel, num_p, x_phw.detach().numpy(), size, stride, padding,
        sum_bits(math.prod(size)), out.numpy(), grain=grain_of(math.prod(extent)),
    )  # fmt: skip
    return out


def spread(shares_phw: Tensor, extent: Pair, size: Pair, stride: Pair, padding: Pair) -> Tensor:
    """The gradient of `average` from each window's share, for planes of `extent` (H, W)."""
    out = torch.empty((shares_phw.shape[0], *extent), dtype=torch.float32)
    top = largest_magnitude(shares_phw)
    run(
        _spread_kernel, out.shape[0], shares_phw.detach().numpy(), size, stride, padding,
        sum_bits(max(1, shares_phw.numel() * math.prod(size))), top, out.numpy(),
        grain=grain_of(math.prod(extent)),
    )  # fmt: skip
    return out


def scatter(values_pn: Tensor, places_pn: Tensor, extent: Pair) -> Tensor:
    """Add values (P, N) to the places (P, N) of zero planes: float32 (P, *extent).

    Args:
        places_pn: int64, positions in a flattened plane, inside it.
    """
    out = torch.empty((values_pn.shape[0], *extent), dtype=torch.float32)
    top = largest_magnitude(values_pn)
    run(
        _scatter_kernel, out.shape[0], values_pn.detach().numpy(), places_pn.numpy(),
        sum_bits(max(1, values_pn.numel())), top, out.numpy(), grain=grain_of(math.prod(extent)),
    )  # fmt: skip
    return out
