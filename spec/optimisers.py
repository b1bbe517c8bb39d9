"""SGD, Adam and AdamW (docs/numerics.md, "Optimisers"). `step` counts from 1."""

from __future__ import annotations

import math

import numpy as np

from spec.binary32 import Array, add, div, function, mul, neg, sub


def power(base: float, exponent: int) -> float:
    """base**exponent in binary64: square for each bit from the lowest, multiply where it is set."""
    result = 1.0
    for bit in reversed(f"{exponent:b}"):
        if bit == "1":
            result = result * base
        base = base * base
    return result


def sgd(
    param: Array, grad: Array, buffer: Array | None, *, lr: float, momentum: float,
    dampening: float, weight_decay: float, nesterov: bool, maximize: bool = False,
) -> tuple[Array, Array | None]:  # fmt: skip
    """New (param, buffer); `buffer` None means the first step, or no momentum."""
    if maximize:
        grad = neg(grad)
    if weight_decay != 0:
        grad = add(grad, mul(param, weight_decay))
    if momentum != 0:
        if buffer is None:
            buffer = grad
        else:
            buffer = add(mul(buffer, momentum), mul(grad, 1 - dampening))
        grad = add(grad, mul(buffer, momentum)) if nesterov else buffer
    return add(param, mul(grad, -lr)), buffer


def adam(
    param: Array, grad: Array, mean: Array, square: Array, largest: Array | None = None, *,
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    decoupled: bool, maximize: bool = False,
) -> tuple[Array, Array, Array, Array | None]:  # fmt: skip
    """New (param, mean, square, largest); `decoupled` is AdamW, `largest` an array for amsgrad."""
    if maximize:
        grad = neg(grad)
    if decoupled:
        param = mul(param, 1 - lr * weight_decay)
    else:
        grad = add(grad, mul(param, weight_decay))
    mean = add(mean, mul(sub(grad, mean), 1 - beta1))
    square = add(mul(square, beta2), mul(mul(grad, grad), 1 - beta2))
    second = square
    if largest is not None:
        second = largest = np.where(square > largest, square, largest)
    root = div(function("sqrt", second), math.sqrt(1 - power(beta2, step)))
    quotient = div(mean, add(root, eps))
    step_size = lr / (1 - power(beta1, step))
    return add(param, mul(quotient, -step_size)), mean, square, largest
