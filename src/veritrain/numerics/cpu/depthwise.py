"""Exact convolutions with one channel per group, directly: a matrix product would have a single
column.

The integers and results are those of `convolution`, which gathers the same patches. Every image
plane is convolved row by row: for each tap, a stretch of the padded plane times one weight is
added.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import numpy as np

from veritrain.numerics.cpu.integers import ROUNDING, jit


@jit
def _fill(values, factor, place, plane):
    for i in range(values.shape[0]):
        plane[place[i]] = (np.float64(values[i]) * factor + ROUNDING) - ROUNDING


@jit
def convolve_kernel(
    x, factor, w_ct, place, places, base, step, offsets, position, scale, out, start, stop
):
    """Planes [start, stop) of N * C: out[p, position] = sum over taps of w * plane.

    Args:
        x: float32 (N * C, P). factor, scale: float64 (N * C,). w_ct: float64 (C, taps), integers.
        place, places: of the padded plane. base: (rows, width) flat places of patches, `step`
            apart.
        position: (rows, width) places in out: float32 (N * C, result).
    """
    channels = w_ct.shape[0]
    width = base.shape[1]
    plane = np.zeros(places, np.float64)
    total = np.empty(width, np.float64)
    for s in range(start, stop):
        _fill(x[s], factor[s], place, plane)
        weights = w_ct[s % channels]
        for row in range(base.shape[0]):
            total[:] = 0.0
            for t in range(offsets.shape[0]):
                weight = weights[t]
                first = base[row, 0] + offsets[t]
                source = plane[first : first + (width - 1) * step + 1]
                if step == 1:
                    for j in range(width):
                        total[j] += weight * source[j]
                else:
                    for j in range(width):
                        total[j] += weight * source[j * step]
            target = out[s]
            for j in range(width):
                target[position[row, j]] = np.float32(total[j] * scale[s] + 0.0)


@jit
def weight_kernel(
    grad, grad_factor, x, factor, place, places, base, step, offsets, scale, out, start, stop
):
    """Channels [start, stop): out[c, tap] = sum over samples and positions of grad * plane.

    Args:
        grad: float32 (N, C, rows * width). x: float32 (N, C, P). grad_factor, factor: float64 (C,).
        scale: float64 (C,), of the products. out: float32 (C, taps). The rest as `convolve_kernel`.
    """
    rows, width = base.shape
    plane = np.zeros(places, np.float64)
    line = np.empty(width, np.float64)
    total = np.empty((offsets.shape[0], width), np.float64)
    for c in range(start, stop):
        total[:] = 0.0
        for n in range(x.shape[0]):
            _fill(x[n, c], factor[c], place, plane)
            for row in range(rows):
                values = grad[n, c, row * width : (row + 1) * width]
                for j in range(width):
                    line[j] = (np.float64(values[j]) * grad_factor[c] + ROUNDING) - ROUNDING
                for t in range(offsets.shape[0]):
                    first = base[row, 0] + offsets[t]
                    source = plane[first : first + (width - 1) * step + 1]
                    sums = total[t]
                    if step == 1:
                        for j in range(width):
                            sums[j] += line[j] * source[j]
                    else:
                        for j in range(width):
                            sums[j] += line[j] * source[j * step]
        for t in range(offsets.shape[0]):
            integer = 0.0
            for j in range(width):
                integer += total[t, j]
            out[c, t] = np.float32(integer * scale[c] + 0.0)
