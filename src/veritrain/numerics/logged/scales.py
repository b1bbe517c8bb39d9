"""Scales of results from their operands: the same on every machine.

A largest magnitude has no order. A norm is summed in binary64 in one fixed order, so that it is the
same everywhere, and not because it would be exact.

Whatever meets an infinity or a NaN is not finite and has nothing to be rounded; scales are those of
the rest.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from veritrain.numerics.cpu.exact_sums import bare_jit
from veritrain.numerics.cpu.integers import Slices, channels_of, jit, rows_of
from veritrain.numerics.platform.parallel import grain_of, run

_MAGNITUDE = np.int32(0x7FFFFFFF)
_NOT_FINITE = np.int32(0x7F800000)
_LANES = 8  # partial sums of a row: value i goes to lane i % 8


@jit
def _rows_kernel(x_pacb, squares, start, stop):
    """Sums of squares of the slices [start, stop), whose values lie together."""
    num_c = x_pacb.shape[2]
    lanes = np.empty(_LANES, np.float64)
    for s in range(start, stop):
        p = s // num_c
        c = s - p * num_c
        lanes[:] = 0.0
        for a in range(x_pacb.shape[1]):
            row = x_pacb[p, a, c]
            whole = row.shape[0] // _LANES
            for i in range(whole):
                part = row[i * _LANES : (i + 1) * _LANES]
                for lane in range(_LANES):
                    lanes[lane] += np.float64(part[lane]) * np.float64(part[lane])
            for i in range(whole * _LANES, row.shape[0]):
                lanes[i - whole * _LANES] += np.float64(row[i]) * np.float64(row[i])
        total = 0.0
        for lane in range(_LANES):
            total += lanes[lane]
        squares[s] = total


@jit
def _columns_kernel(x_pac, width, squares, start, stop):
    """The same of columns, in blocks of `width`: memory is read in order."""
    num_c = x_pac.shape[2]
    blocks = (num_c + width - 1) // width
    for block in range(start, stop):
        p = block // blocks
        low = (block - p * blocks) * width
        high = min(low + width, num_c)
        totals = squares[p * num_c + low : p * num_c + high]
        totals[:] = 0.0
        for a in range(x_pac.shape[1]):
            row = x_pac[p, a, low:high]
            for i in range(row.shape[0]):
                totals[i] += np.float64(row[i]) * np.float64(row[i])


_COLUMNS = 512  # whose totals stay in the first-level cache


def norms(x: Tensor, shape: Slices) -> np.ndarray:
    """The 2-norms of the slices of a tensor that is seen as `shape` = (P, A, C, B), float64, p
    first.

    One slice is x[p, :, c, :], as in `integers`.
    """
    num_p, num_a, num_c, num_b = shape
    values = x.detach().contiguous().numpy().reshape(shape)
    squares = np.empty(num_p * num_c)
    if num_b == 1 and num_a > 1:
        count, grain = num_p * -(-num_c // _COLUMNS), grain_of(num_a * _COLUMNS)
        run(_columns_kernel, count, values[..., 0], _COLUMNS, squares, grain=grain)
    else:
        run(_rows_kernel, squares.size, values, squares, grain=grain_of(num_a * num_b))
    return np.sqrt(squares)


def largest_norm(x: Tensor, shape: Slices) -> float:
    """The largest of `norms` that is finite; 0 if none is."""
    return finite_top(norms(x, shape)) if x.numel() else 0.0


def finite_top(values: np.ndarray) -> float:
    """The largest of the values that are finite, at least 0."""
    return float(np.max(values, initial=0.0, where=np.isfinite(values)))


@bare_jit
def _largest_kernel(patterns, start, stop):
    """The largest magnitude bits of a finite number: integer order is magnitude order."""
    top = np.int32(0)
    part = patterns[start:stop]
    for i in range(part.shape[0]):
        magnitude = np.int32(part[i] & _MAGNITUDE)
        top = max(top, magnitude if magnitude < _NOT_FINITE else np.int32(0))
    return top


def largest(x: Tensor) -> float:
    """The largest magnitude of a float32 tensor's finite entries; 0 if there are none."""
    patterns = x.detach().contiguous().numpy().reshape(-1).view(np.int32)
    tops = run(_largest_kernel, patterns.size, patterns)
    return float(np.int32(max(tops)).view(np.float32))


def norm_along(x: Tensor, axis: int) -> float:
    """The largest 2-norm of the vectors along one of the last two axes of a tensor."""
    if not x.is_contiguous() and x.mT.is_contiguous():
        x, axis = x.mT, {-1: -2, -2: -1}[axis]
    if axis == -1:
        return largest_norm(x, rows_of(x.reshape(-1, x.shape[-1])))
    return largest_norm(x, (math.prod(x.shape[:-2]), x.shape[-2], x.shape[-1], 1))


def norm_of_channels(x: Tensor) -> float:
    """Of the vectors over the channels of (N, C, *S), one for each sample and position."""
    return largest_norm(x, (x.shape[0], x.shape[1], math.prod(x.shape[2:]), 1))


def norm_of_positions(x: Tensor) -> float:
    """Of the vectors over samples and positions of (N, C, *S), one for each channel."""
    return largest_norm(x, channels_of(x))
