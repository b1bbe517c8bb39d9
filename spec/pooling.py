"""Pooling in two dimensions (docs/numerics.md). x is (planes, H, W)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from spec.binary32 import Array, div
from spec.contraction import Geometry
from spec.sums import accumulate, sum_over

Pair = Sequence[int]
Links = Iterator[tuple[tuple[int, ...], ...]]


def _windows(size: Pair, kernel: Pair, stride: Pair) -> tuple[list[int], Links]:
    """Size of the result, and every (window, tap, position in the padded plane)."""
    lie = Geometry(stride=stride, padding=[0, 0], dilation=[1, 1])
    rows = lie.rows_size(size, kernel)
    return rows, lie.links(size, kernel, rows)


def average(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """The sum of each window, zeros of the padding included, over the number of its places."""
    margins = [(0, 0), *((p, p) for p in padding)]
    padded = np.pad(x, margins)
    rows, links = _windows(padded.shape[1:], kernel, stride)
    gathered = np.zeros((x.shape[0], *rows, *kernel), np.float32)
    for t, k, s in links:
        gathered[(slice(None), *t, *k)] = padded[(slice(None), *s)]
    return div(sum_over(gathered, [3, 4]), float(prod(kernel)))


def average_backward(grad: Array, size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """Each window gives g / places to each of its places, those in the padding too."""
    padded = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    shares = div(grad, float(prod(kernel)))
    planes = grad.shape[0]
    values: list[Array] = []
    places: list[int] = []
    for t, _, s in _windows(padded, kernel, stride)[1]:
        values.append(shares[(slice(None), *t)])
        places.append(s[0] * padded[1] + s[1])
    rows = np.array(values, np.float32).reshape(-1, planes)
    sums = _received(rows, places, prod(padded), kernel, stride)
    inner = [slice(p, p + n) for p, n in zip(padding, size, strict=True)]
    return sums.T.reshape(planes, *padded)[(slice(None), *inner)]


def max_backward(grad: Array, size: Pair, indices: Array, kernel: Pair, stride: Pair) -> Array:
    """Each window's gradient goes to the place in H * W that `indices`, shaped as `grad`, names."""
    planes, area = grad.shape[0], prod(size)
    own = indices.reshape(planes, -1) + np.arange(planes)[:, None] * area
    rows = grad.reshape(-1, 1)
    places = [int(place) for place in own.ravel()]
    return _received(rows, places, planes * area, kernel, stride).reshape(planes, *size)


def _received(rows: Array, places: Sequence[int], count: int, kernel: Pair, stride: Pair) -> Array:
    """What each place receives: its one value where windows cannot overlap, else an exact sum."""
    if any(step < width for step, width in zip(stride, kernel, strict=True)):
        return accumulate(rows, np.array(places, np.int64), count)
    out = np.zeros((count, rows.shape[1]), np.float32)
    out[list(places)] = rows
    return out
