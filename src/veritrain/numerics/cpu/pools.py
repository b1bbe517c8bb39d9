"""Fused CPU kernels of pooling over planes (P, H, W): exact window sums and exact sums of
gradients.

Definitions (docs/numerics.md, "Windows"): window i of an axis starts at i * stride - padding. The
sum of a window is a slice by itself; what is added into places that windows share is one slice
together.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.cpu.exact_sums import (
    bare_jit,
    largest_magnitude,
    magnitude,
    power_of_two,
    rounded,
    scaled_bits,
    total,
)
from veritrain.numerics.cpu.integers import ROUNDING_BITS, exponent, jit, sum_bits
from veritrain.numerics.platform.parallel import grain_of, run


@bare_jit
def _span(i, size, stride, padding, extent):
    """The places of window `i` that are in the plane."""
    first = i * stride - padding
    return max(first, 0), min(first + size, extent)


@bare_jit
def _sums_kernel(x_phw, size, stride, padding, bits, out_phw, start, stop):
    num_h, num_w = x_phw.shape[1:]
    for p in range(start, stop):
        for i in range(out_phw.shape[1]):
            rows = _span(i, size[0], stride[0], padding[0], num_h)
            for j in range(out_phw.shape[2]):
                columns = _span(j, size[1], stride[1], padding[1], num_w)
                out_phw[p, i, j] = _window_sum(x_phw[p], rows, columns, bits)


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
    totals = np.empty(out_phw.shape[1:], np.int64)
    for p in range(start, stop):
        totals[:] = 0
        _spread(shares_phw[p], size, stride, padding, power_of_two(bits - exponent(top)), totals)
        _round_plane(totals, top, bits, out_phw[p])


@bare_jit
def _spread(shares_hw, size, stride, padding, factor, totals_hw):
    """Add each share to all places of its window."""
    num_h, num_w = totals_hw.shape
    for i in range(shares_hw.shape[0]):
        rows = _span(i, size[0], stride[0], padding[0], num_h)
        for j in range(shares_hw.shape[1]):
            columns = _span(j, size[1], stride[1], padding[1], num_w)
            share = scaled_bits(shares_hw[i, j], factor) - ROUNDING_BITS
            for h in range(rows[0], rows[1]):
                for w in range(columns[0], columns[1]):
                    totals_hw[h, w] += share


@bare_jit
def _copy_kernel(shares_phw, size, stride, padding, out_phw, start, stop):
    """Give each share to all places of its window, which no other window holds."""
    num_h, num_w = out_phw.shape[1:]
    for p in range(start, stop):
        for i in range(shares_phw.shape[1]):
            rows = _span(i, size[0], stride[0], padding[0], num_h)
            for j in range(shares_phw.shape[2]):
                columns = _span(j, size[1], stride[1], padding[1], num_w)
                for h in range(rows[0], rows[1]):
                    for w in range(columns[0], columns[1]):
                        out_phw[p, h, w] = shares_phw[p, i, j]


@bare_jit
def _round_plane(totals_hw, top, bits, out_hw):
    for h in range(out_hw.shape[0]):
        source, target = totals_hw[h], out_hw[h]
        for w in range(target.shape[0]):
            target[w] = rounded(top, source[w], bits)


@jit
def _scatter_kernel(values_pn, places_pn, bits, top, out_pa, start, stop):
    totals = np.empty((1, out_pa.shape[1]), np.int64)
    for p in range(start, stop):
        totals[:] = 0
        _scatter(values_pn[p], places_pn[p], power_of_two(bits - exponent(top)), totals[0])
        _round_plane(totals, top, bits, out_pa[p : p + 1])


@bare_jit
def _scatter(values, places, factor, totals):
    for n in range(values.shape[0]):
        totals[places[n]] += scaled_bits(values[n], factor) - ROUNDING_BITS


Pair = tuple[int, int]


def window_sums(x_phw: Tensor, outputs: Pair, size: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Sums over windows of planes, float32 (P, *outputs).

    Args:
        x_phw: float32, contiguous. outputs: number of windows; they may overhang, at both ends.
    """
    num_p, *extent = x_phw.shape
    if tuple(extent) == size and outputs == (1, 1) and padding == (0, 0):  # the plane
        return total(x_phw, (1, 1, num_p, math.prod(extent))).view(num_p, 1, 1)
    out = torch.empty((num_p, *outputs), dtype=torch.float32)
    run(
        _sums_kernel, num_p, x_phw.detach().numpy(), size, stride, padding,
        sum_bits(math.prod(size)), out.numpy(), grain=grain_of(math.prod(extent)),
    )  # fmt: skip
    return out


def spread(shares_phw: Tensor, extent: Pair, size: Pair, stride: Pair, padding: Pair) -> Tensor:
    """What each place of planes receives from the share of each window: float32 (P, *extent).

    Args:
        shares_phw: float32, contiguous, one for each window, at least one.
    """
    window = size, stride, padding
    shares, grain = shares_phw.detach().numpy(), grain_of(math.prod(extent))
    shape = shares_phw.shape[0], *extent
    if all(step >= width for step, width in zip(stride, size, strict=True)):
        out = torch.zeros(shape, dtype=torch.float32)
        run(_copy_kernel, shape[0], shares, *window, out.numpy(), grain=grain)
        return out
    out = torch.empty(shape, dtype=torch.float32)
    bits = sum_bits(math.prod(shares_phw.shape[1:]) * math.prod(size))
    top = largest_magnitude(shares_phw)
    run(_spread_kernel, shape[0], shares, *window, bits, top, out.numpy(), grain=grain)
    return out


def scatter(values_pn: Tensor, places_pn: Tensor, area: int) -> Tensor:
    """Add values (P, N) to the places (P, N) of zero planes, all as one slice: float32 (P, area).

    Args:
        values_pn: float32, contiguous, at least one value. places_pn: int64, contiguous.

    Raises:
        IndexError: a place outside [0, area).
    """
    if int(places_pn.min()) < 0 or int(places_pn.max()) >= area:
        raise IndexError(f"place outside [0, {area})")
    out = torch.empty((values_pn.shape[0], area), dtype=torch.float32)
    top = largest_magnitude(values_pn)
    run(
        _scatter_kernel, out.shape[0], values_pn.detach().numpy(), places_pn.numpy(),
        sum_bits(values_pn.numel()), top, out.numpy(), grain=grain_of(area),
    )  # fmt: skip
    return out
