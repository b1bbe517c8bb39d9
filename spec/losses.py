"""Losses (docs/numerics.md, "Losses"). `reduction` is "none", "mean" or "sum"."""

from __future__ import annotations

import numpy as np

from spec.binary32 import Array, add, constant, div, function, mul, neg, sub
from spec.order import sign
from spec.sums import exact_sum

_ZERO = np.float32(0)


def _reduced(losses: Array, reduction: str) -> Array:
    if reduction == "none":
        return losses
    summed = np.asarray(exact_sum(losses))
    return div(summed, float(losses.size)) if reduction == "mean" else summed


def _each(grad: Array, count: int, reduction: str) -> Array:
    return div(grad, float(count)) if reduction == "mean" else grad


def mse(x: Array, t: Array, reduction: str) -> Array:
    """(x - t) * (x - t)."""
    d = sub(x, t)
    return _reduced(mul(d, d), reduction)


def mse_backward(grad: Array, x: Array, t: Array, reduction: str) -> Array:
    """(g / n) * ((x - t) * 2)."""
    return mul(_each(grad, x.size, reduction), mul(sub(x, t), 2.0))


def smooth_l1(x: Array, t: Array, reduction: str, beta: float) -> Array:
    """(z * z) * 0.5 / beta below beta, else z - 0.5 * beta, with z = |x - t|."""
    z = np.abs(sub(x, t))
    near = div(mul(mul(z, z), 0.5), beta) if beta > 0 else z
    return _reduced(np.where(z < constant(beta), near, sub(z, 0.5 * beta)), reduction)


def smooth_l1_backward(grad: Array, x: Array, t: Array, reduction: str, beta: float) -> Array:
    """g * (d / beta), else g * sign(d)."""
    d = sub(x, t)
    near = div(d, beta) if beta > 0 else d
    slope = np.where(np.abs(d) < constant(beta), near, sign(d))
    return mul(_each(grad, x.size, reduction), slope)


def huber(x: Array, t: Array, reduction: str, delta: float) -> Array:
    """(z * z) * 0.5 up to delta, else (z - 0.5 * delta) * delta, with z = |x - t|."""
    z = np.abs(sub(x, t))
    far = mul(sub(z, 0.5 * delta), delta)
    return _reduced(np.where(z <= constant(delta), mul(mul(z, z), 0.5), far), reduction)


def huber_backward(grad: Array, x: Array, t: Array, reduction: str, delta: float) -> Array:
    """g * d, else g * (sign(d) * delta)."""
    d = sub(x, t)
    slope = np.where(np.abs(d) <= constant(delta), d, mul(sign(d), delta))
    return mul(_each(grad, x.size, reduction), slope)


def binary_cross_entropy_with_logits(
    x: Array, t: Array, weight: Array | None, pos_weight: Array | None, reduction: str
) -> Array:
    """(1 - t) * x + softplus(-x) * ((pos_weight - 1) * t + 1), times the weight."""
    second = function("softplus", neg(x))
    if pos_weight is not None:
        second = mul(second, add(mul(sub(pos_weight, 1.0), t), 1.0))
    losses = add(mul(sub(1.0, t), x), second)
    return _reduced(losses if weight is None else mul(losses, weight), reduction)


def nll(
    x: Array, classes: Array, weight: Array | None, reduction: str, ignore_index: int
) -> tuple[Array, Array]:
    """The loss of x (N, C, *S) with classes (N, *S), and the sum of the weights (0 for "none")."""
    weights = _weights(classes, weight, ignore_index)
    losses = np.zeros(classes.shape, np.float32)
    for place in _kept(weights):
        score = x[(place[0], int(classes[place]), *place[1:])]
        losses[place] = neg(mul(score, weights[place]))
    if reduction == "none":
        return losses, np.asarray(_ZERO)
    total = np.asarray(exact_sum(weights))
    summed = np.asarray(exact_sum(losses))
    return (div(summed, total) if reduction == "mean" else summed), total


def nll_backward(
    grad: Array, x: Array, classes: Array, weight: Array | None, reduction: str, ignore_index: int
) -> Array:
    """-(weight * g) at each position's class, +0 elsewhere; g / sum of the weights for "mean"."""
    weights = _weights(classes, weight, ignore_index)
    each = div(grad, exact_sum(weights)) if reduction == "mean" else grad
    each = np.broadcast_to(each, classes.shape)
    dx = np.zeros(x.shape, np.float32)
    for place in _kept(weights):
        dx[(place[0], int(classes[place]), *place[1:])] = neg(mul(weights[place], each[place]))
    return dx


def _weights(classes: Array, weight: Array | None, ignore_index: int) -> Array:
    """The weight of each position's class; 0 where it is ignored."""

    def of(index: int) -> float:
        if index == ignore_index:
            return 0.0
        return 1.0 if weight is None else float(weight[index])

    return np.array([of(int(i)) for i in classes.ravel()], np.float32).reshape(classes.shape)


def _kept(weights: Array) -> list[tuple[int, ...]]:
    return [place for place in np.ndindex(*weights.shape) if weights[place] != 0]


def xlogy(x: Array, y: Array) -> Array:
    """x * log(y), 0 where x is 0 and y a number."""
    return np.where((x == 0) & ~np.isnan(y), _ZERO, mul(x, function("log", y)))
