"""Scaled integers and sums (docs/numerics.md, "Scaled integers" and "Sum")."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from spec.binary32 import Array, add, div, function, half_even, mul, sub, to_float32
from spec.order import Indices


def slice_exponent(values: Array) -> int:
    """E with 2**(E-1) <= largest magnitude < 2**E; at least -125."""
    top = max((abs(Fraction(float(v))) for v in values.ravel()), default=Fraction(0))
    exponent = -125
    while Fraction(2) ** exponent <= top:
        exponent += 1
    return exponent


def integers(values: Array, bits: int) -> tuple[list[int], Fraction]:
    """The scaled integers of one slice of finite values, and the scale that takes them back."""
    shift = bits - slice_exponent(values)
    ratios = (float(v).as_integer_ratio() for v in values.ravel())
    up, down = 2 ** max(shift, 0), 2 ** max(-shift, 0)
    return [half_even(p * up, q * down) for p, q in ratios], Fraction(2) ** -shift


def scaled(x: Array, keep: Sequence[int], bits: int) -> tuple[Array, Array]:
    """Integers of every slice; one slice for each index of the axes `keep`.

    Returns:
        Python integers in the shape of `x`, and the slices' scales in the shape of the axes `keep`:
        fractions, or None where the slice holds an infinity or a NaN.
    """
    kept = [x.shape[axis] for axis in keep]
    whole = np.zeros(x.shape, object)
    scale = np.empty(kept, object)
    for index in np.ndindex(*kept):
        place: list[int | slice] = [slice(None)] * x.ndim
        for axis, i in zip(keep, index, strict=True):
            place[axis] = i
        part = x[tuple(place)]
        if np.isfinite(part).all():
            numbers, scale[index] = integers(part, bits)
            whole[tuple(place)] = np.array(numbers, object).reshape(part.shape)
    return whole, scale


def rescaled(total: Any, *scales: Any) -> np.float32:
    """The integer `total` times the scales of `scaled`, rounded once; NaN where a scale is None."""
    value = Fraction(total)
    for scale in scales:
        if scale is None:
            return np.float32(np.nan)
        value *= scale
    return to_float32(value)


def sum_bits(count: int) -> int:
    """min(51, 53 - ceil(log2 n))."""
    return min(51, 53 - ceil_log2(count))


def ceil_log2(n: int) -> int:
    """The smallest k with 2**k >= n."""
    result = 0
    while 2**result < n:
        result += 1
    return result


def exact_sum(values: Array) -> np.float32:
    """Sum of one slice; of none, +0."""
    if values.size == 0:
        return np.float32(0.0)
    if not np.isfinite(values).all():
        return np.float32(np.nan)
    whole, scale = integers(values, sum_bits(values.size))
    return to_float32(sum(whole) * scale)


def sum_over(x: Array, axes: Sequence[int], keepdims: bool = False) -> Array:
    """Sum over `axes`: one slice for each index of the other axes."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    moved = x.transpose([*kept, *axes])
    sums = np.zeros([x.shape[axis] for axis in kept], np.float32)
    for index in np.ndindex(*sums.shape):
        sums[index] = exact_sum(moved[index])
    return np.expand_dims(sums, tuple(axes)) if keepdims else sums


def count_over(x: Array, axes: Sequence[int]) -> int:
    """How many values a sum over `axes` adds."""
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return count


def mean(x: Array, axes: Sequence[int], keepdims: bool = False) -> Array:
    """sum / n."""
    return div(sum_over(x, axes, keepdims), float(count_over(x, axes)))


def variance(x: Array, axes: Sequence[int], correction: float = 1) -> Array:
    """sum(d * d) / max(0, n - correction) with d = x - mean."""
    deviation = sub(x, mean(x, axes, keepdims=True))
    squares = sum_over(mul(deviation, deviation), axes)
    return div(squares, max(0.0, float(count_over(x, axes) - correction)))


def deviation(x: Array, axes: Sequence[int], correction: float = 1) -> Array:
    """sqrt(var)."""
    return function("sqrt", variance(x, axes, correction))


def vector_norm(x: Array, axes: Sequence[int], order: float = 2) -> Array:
    """Order 2: sqrt(sum(x * x)). Order 1: sum(|x|). The sum is infinite where a term is, NaN where
    one is."""
    terms = mul(x, x) if order == 2 else np.abs(x)
    found = sum_over(terms, axes)
    largest = terms.max(tuple(axes), initial=0)
    found = np.where(np.isfinite(largest), found, largest)
    return function("sqrt", found) if order == 2 else found


def scatter_reduce(
    x: Array, index: Indices, source: Array, dim: int, reduce: str, include_self: bool
) -> Array:
    """Reduce the values of `source` into the places of x that `index` names along an axis."""
    places = [(*at[:dim], int(index[at]), *at[dim + 1 :]) for at in np.ndindex(*index.shape)]
    values = [source[at] for at in np.ndindex(*index.shape)]
    named = {
        place: [v for p, v in zip(places, values, strict=True) if p == place] for place in places
    }
    out = x.copy()
    if reduce in ("amax", "amin"):
        pick = np.max if reduce == "amax" else np.min
        for place, found in named.items():
            extreme = pick(np.array([*found, *[x[place]] * include_self], np.float32))
            out[place] = np.float32(0) if extreme == 0 else extreme
        return out
    if not include_self:
        for place in named:
            out[place] = np.float32(0)
    rows = np.array([np.ravel_multi_index(place, x.shape) for place in places], int)
    column = np.array(values, np.float32).reshape(-1, 1)
    total = add(out, accumulate(column, rows, x.size).reshape(x.shape))
    if reduce == "sum":
        return total
    for place in np.ndindex(*x.shape):
        count = len(named.get(place, [])) + include_self
        total[place] = div(total[place], float(max(count, 1)))
    return total


def accumulate(values: Array, rows: Array, num_rows: int) -> Array:
    """The sums of `values` (N, D) by row index (N,): (num_rows, D). All of `values` is one
    slice."""
    count, width = values.shape
    out = np.zeros((num_rows, width), np.float32)
    if count == 0:
        return out
    whole, scale = scaled(values, (), sum_bits(count))
    for row in range(num_rows):
        for column in range(width):
            out[row, column] = rescaled(sum(whole[rows == row, column]), scale[()])
    return out
