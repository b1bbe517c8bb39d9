"""Batch, layer and group norm, softmax (docs/numerics.md, "Normalisation").

`axes` are those that share one mean; weight and bias broadcast to x.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spec.binary32 import Array, add, constant, div, function, largest, mul, sub
from spec.sums import count_over, mean, sum_over

Axes = Sequence[int]


def moments(x: Array, axes: Axes) -> tuple[Array, Array]:
    """Mean and sum of squared deviations, with axes of one in place of `axes`."""
    average = mean(x, axes, keepdims=True)
    deviation = sub(x, average)
    return average, sum_over(mul(deviation, deviation), axes, keepdims=True)


def reciprocal_deviation(variance: Array, eps: float) -> Array:
    """1 / sqrt(var + eps)."""
    return div(1.0, function("sqrt", add(variance, eps)))


def statistics(x: Array, axes: Axes, eps: float) -> tuple[Array, Array]:
    """mean and rstd."""
    average, squares = moments(x, axes)
    return average, reciprocal_deviation(div(squares, float(count_over(x, axes))), eps)


def apply(
    x: Array, average: Array, rstd: Array, weight: Array | float = 1.0, bias: Array | float = 0.0
) -> Array:
    """((x - mean) * rstd) * w + b."""
    return add(mul(mul(sub(x, average), rstd), weight), bias)


def normalise(
    x: Array, axes: Axes, eps: float, weight: Array | float = 1.0, bias: Array | float = 0.0
) -> Array:
    """y of any of the norms."""
    return apply(x, *statistics(x, axes, eps), weight, bias)


def input_gradient(
    g: Array, x: Array, axes: Axes, eps: float, weight: Array | None = None
) -> Array:
    """dx = f * ((g - sum(g) / n) - xhat * (sum(g * xhat) / n)).

    f is rstd, times `weight` where there is one: batch norm, where a slice has one weight and g is
    dy. In layer and group norm g is dy * w.
    """
    average, rstd = statistics(x, axes, eps)
    xhat = mul(sub(x, average), rstd)
    mean_grad = mean(g, axes, keepdims=True)
    mean_dot = mean(mul(g, xhat), axes, keepdims=True)
    factor = rstd if weight is None else mul(rstd, weight)
    return mul(factor, sub(sub(g, mean_grad), mul(xhat, mean_dot)))


def parameter_gradients(
    dy: Array, x: Array, average: Array, rstd: Array, axes: Axes
) -> tuple[Array, Array]:
    """dw = sum(dy * xhat), db = sum(dy) over `axes`, those along which a weight does not vary."""
    return sum_over(mul(dy, mul(sub(x, average), rstd)), axes), sum_over(dy, axes)


def moved_statistics(
    x: Array, axes: Axes, running_mean: Array, running_var: Array, momentum: float
) -> tuple[Array, Array]:
    """The running statistics after one step of training."""
    average, squares = moments(x, axes)
    unbiased = div(squares, float(max(count_over(x, axes) - 1, 1)))
    return (
        _moved(running_mean, average.reshape(-1), momentum),
        _moved(running_var, unbiased.reshape(-1), momentum),
    )


def _moved(running: Array, value: Array, momentum: float) -> Array:
    return add(mul(running, constant(1 - momentum)), mul(value, momentum))


def softmax(x: Array, axis: int) -> Array:
    """exp(x - m) / sum(exp(x - m))."""
    powers = function("exp", sub(x, largest(x, axis)))
    return div(powers, sum_over(powers, [axis], keepdims=True))


def safe_softmax(x: Array, axis: int) -> Array:
    """Softmax where a row of only -inf gives zeros."""
    return np.where(largest(x, axis) == -np.inf, np.float32(0), softmax(x, axis))


def softmax_backward(dy: Array, y: Array, axis: int) -> Array:
    """(dy - sum(dy * y)) * y."""
    return mul(sub(dy, sum_over(mul(dy, y), [axis], keepdims=True)), y)


def log_softmax(x: Array, axis: int) -> Array:
    """(x - m) - log(sum(exp(x - m)))."""
    shifted = sub(x, largest(x, axis))
    return sub(shifted, function("log", sum_over(function("exp", shifted), [axis], keepdims=True)))


def log_softmax_backward(dy: Array, y: Array, axis: int) -> Array:
    """dy - exp(y) * sum(dy)."""
    return sub(dy, mul(function("exp", y), sum_over(dy, [axis], keepdims=True)))


def logsumexp(x: Array, axis: int) -> Array:
    """log(sum(exp(x - m))) + m, with m = 0 where the largest is infinite."""
    top = largest(x, axis)
    top = np.where(np.isinf(top), np.float32(0), top)
    sums = sum_over(function("exp", sub(x, top)), [axis])
    return add(function("log", sums), top.squeeze(axis))
