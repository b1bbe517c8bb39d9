"""Operators of several float32 operations, and activations (docs/numerics.md, "Operators",
"Activations")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spec.binary32 import Array, Operand, add, constant, div, function, mul, neg, sub

_ZERO = np.float32(0)


def add_alpha(x: Array, y: Array, alpha: float) -> Array:
    """x + y * alpha."""
    return add(x, mul(y, alpha))


def sub_alpha(x: Array, y: Array, alpha: float) -> Array:
    """x - y * alpha."""
    return sub(x, mul(y, alpha))


def addcmul(x: Array, a: Array, b: Array, value: float) -> Array:
    """x + (a * b) * value."""
    return add(x, mul(mul(a, b), value))


def addcdiv(x: Array, a: Array, b: Array, value: float) -> Array:
    """x + (a / b) * value."""
    return add(x, mul(div(a, b), value))


def lerp(start: Array, end: Array, weight: Operand) -> Array:
    """s + (e - s) * w."""
    return add(start, mul(sub(end, start), weight))


def _root(x: Array) -> Array:
    return function("sqrt", x)


def _square(x: Array) -> Array:
    return mul(x, x)


_POWERS: dict[float, Callable[[Array], Array]] = {
    0: np.ones_like,
    1: np.copy,
    2: _square,
    3: lambda x: mul(_square(x), x),
    4: lambda x: _square(_square(x)),
    0.5: _root,
    1.5: lambda x: mul(x, _root(x)),
    -0.5: lambda x: function("rsqrt", x),
    -1: lambda x: div(1.0, x),
    -1.5: lambda x: div(1.0, mul(x, _root(x))),
    -2: lambda x: div(1.0, _square(x)),
    -3: lambda x: div(1.0, mul(_square(x), x)),
}


def power(x: Array, exponent: float) -> Array:
    """x to one of the listed powers."""
    return _POWERS[exponent](x)


def div_trunc(x: Array, y: Array) -> Array:
    """The rounded quotient without its fraction."""
    return np.trunc(div(x, y))


def tanh_backward(grad: Array, y: Array) -> Array:
    """g * (1 - y * y)."""
    return mul(grad, sub(1.0, mul(y, y)))


def sigmoid_backward(grad: Array, y: Array) -> Array:
    """g * ((1 - y) * y)."""
    return mul(grad, mul(sub(1.0, y), y))


def softplus(x: Array, beta: float, threshold: float) -> Array:
    """x where z > threshold, else softplus(z) / beta, with z = x * beta."""
    z = mul(x, beta)
    return np.where(z > constant(threshold), x, div(function("softplus", z), beta))


def softplus_backward(grad: Array, x: Array, beta: float, threshold: float) -> Array:
    """g, else g * sigmoid(z)."""
    z = mul(x, beta)
    return np.where(z > constant(threshold), grad, mul(grad, function("sigmoid", z)))


def log_sigmoid(x: Array) -> Array:
    """-softplus(-x)."""
    return neg(function("softplus", neg(x)))


def log_sigmoid_backward(grad: Array, x: Array) -> Array:
    """g * sigmoid(-x)."""
    return mul(grad, function("sigmoid", neg(x)))


def elu(x: Array, alpha: float, scale: float, input_scale: float) -> Array:
    """x * scale where x > 0, else expm1(x * input_scale) * (alpha * scale)."""
    below = mul(function("expm1", mul(x, input_scale)), alpha * scale)
    return np.where(x > 0, mul(x, scale), below)


def elu_backward(
    grad: Array, alpha: float, scale: float, input_scale: float, is_result: bool, x: Array
) -> Array:
    """g * scale, else g * (exp(x * input_scale) * (alpha * scale * input_scale)).

    Where `is_result`, x is the forward pass's result: (g * input_scale) * (x + alpha * scale).
    """
    if is_result:
        below = mul(mul(grad, input_scale), add(x, alpha * scale))
    else:
        slope = mul(function("exp", mul(x, input_scale)), alpha * scale * input_scale)
        below = mul(grad, slope)
    return np.where(x > 0, mul(grad, scale), below)


def _clamped(x: Array) -> Array:
    """clamp(x + 3, 0, 6)."""
    return np.clip(add(x, 3.0), _ZERO, np.float32(6))


def hardswish(x: Array) -> Array:
    """x * clamp(x + 3, 0, 6) / 6."""
    return div(mul(x, _clamped(x)), 6.0)


def hardswish_backward(grad: Array, x: Array) -> Array:
    """0 up to -3, g from 3 on, else g * (x / 3 + 0.5)."""
    inner = np.where(x < 3, mul(grad, add(div(x, 3.0), 0.5)), grad)
    return np.where(x <= -3, _ZERO, inner)


def hardsigmoid(x: Array) -> Array:
    """clamp(x + 3, 0, 6) / 6."""
    return div(_clamped(x), 6.0)


def hardsigmoid_backward(grad: Array, x: Array) -> Array:
    """g / 6 strictly inside, else 0."""
    return np.where((x > -3) & (x < 3), div(grad, 6.0), _ZERO)


def prelu(x: Array, weight: Array) -> Array:
    """x, else w * x."""
    return np.where(x > 0, x, mul(weight, x))


def prelu_backward(grad: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """g, else w * g; for w: 0, else x * g."""
    return np.where(x > 0, grad, mul(weight, grad)), np.where(x > 0, _ZERO, mul(x, grad))


def glu(x: Array) -> Array:
    """a * sigmoid(b), with a and b the halves of the last axis."""
    a, b = np.split(x, 2, -1)
    return mul(a, function("sigmoid", b))


def glu_backward(grad: Array, x: Array) -> Array:
    """g * s and (g * a) * ((1 - s) * s)."""
    a, b = np.split(x, 2, -1)
    s = function("sigmoid", b)
    return np.concatenate([mul(grad, s), mul(mul(grad, a), mul(sub(1.0, s), s))], -1)
