"""Results that PyTorch leaves open (docs/numerics.md, chapter of that name), and `linspace`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from spec.binary32 import Array, constant

Indices = NDArray[np.int64]


def _positive_zeros(x: Array) -> Array:
    return np.where(x == 0, np.float32(0), x)


def maximum(x: Array, y: Array) -> Array:
    """The larger; NaN where either is; zeros are +0."""
    return _positive_zeros(np.maximum(x, y))


def minimum(x: Array, y: Array) -> Array:
    """The smaller; NaN where either is; zeros are +0."""
    return _positive_zeros(np.minimum(x, y))


def amax(x: Array, axis: int) -> Array:
    """The largest along an axis; zeros are +0."""
    return _positive_zeros(np.max(x, axis))


def amin(x: Array, axis: int) -> Array:
    """The smallest along an axis; zeros are +0."""
    return _positive_zeros(np.min(x, axis))


def clamp(x: Array, low: float, high: float) -> Array:
    """x between two numbers; an x that equals a bound stays, with its sign; so does NaN."""
    below, above = constant(low), constant(high)
    return np.where(x < below, below, np.where(x > above, above, x))


def relu(x: Array) -> Array:
    """0 below 0, else x: -0 stays."""
    return np.where(x < 0, np.float32(0), x)


def sign(x: Array) -> Array:
    """1, -1, and +0 for zeros and NaN."""
    return (x > 0).astype(np.float32) - (x < 0).astype(np.float32)


def sort(x: Array, descending: bool) -> tuple[Array, Indices]:
    """A row sorted; equal values keep their order, NaN is the largest."""

    def key(index: int) -> tuple[bool, float]:
        value = float(x[index])
        return (math.isnan(value), 0.0 if math.isnan(value) else value)

    # Python's sort keeps the order of equal values, with `reverse` too
    order = np.array(sorted(range(x.size), key=key, reverse=descending), np.int64)
    return x[order], order


def topk(x: Array, k: int, largest: bool) -> tuple[Array, Indices]:
    """The first k of the sorted row."""
    values, order = sort(x, largest)
    return values[:k], order[:k]


def argmax(x: Array) -> Indices:
    """Index of the first of the largest values of a row; the first NaN where there is one."""
    return sort(x, descending=True)[1][0]


def put_last(x: Array, index: Indices, values: Array) -> Array:
    """A row into which values are written one after the other: the last one stays."""
    out = x.copy()
    for place, value in zip(index, values, strict=True):
        out[place] = value
    return out


def hardtanh_backward(grad: Array, x: Array, low: float, high: float) -> Array:
    """g strictly inside, 0 elsewhere and at NaN."""
    inside = (x > constant(low)) & (x < constant(high))
    return np.where(inside, grad, np.float32(0))


def linspace(start: float, end: float, steps: int) -> Array:
    """From the start in the lower half, from the end above; binary64, then rounded."""
    step = (end - start) / (steps - 1) if steps > 1 else 0.0
    values = [
        i * step + start if i < steps / 2 else end - (steps - 1 - i) * step for i in range(steps)
    ]
    return np.array([constant(value) for value in values], np.float32)
