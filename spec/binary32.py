"""binary32 operations on arrays, each rounded once: exact fractions, then one rounding, half to
even.

The functions take float32 arrays, which broadcast, and Python numbers, which are rounded to
binary32 first. Infinities and NaN need no rounding and follow IEEE 754.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spec import elementary

Array = NDArray[Any]  # of float32
Operand = Array | np.float32 | float

_SMALLEST = -149  # the smallest subnormal number is 2**-149
_DIGITS = 24


def half_even(numerator: int, denominator: int) -> int:
    """The integer nearest to numerator / denominator (> 0); of two, the even one."""
    whole, rest = divmod(numerator, denominator)
    above = 2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1)
    return whole + above


def _rounded(value: Fraction) -> float:
    """The binary32 number nearest to a value that is not 0; a negative one that vanishes gives
    -0."""
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if _power_of_two(exponent) > size:
        exponent -= 1  # now 2**exponent <= size < 2**(exponent + 1)
    last = max(exponent - (_DIGITS - 1), _SMALLEST)  # exponent of the last binary digit kept
    scaled = size / _power_of_two(last)
    digits = half_even(scaled.numerator, scaled.denominator)
    too_large = digits * _power_of_two(last) >= 2**128
    # digits is at most 2**24: binary64 holds the result exactly
    result = math.inf if too_large else math.ldexp(float(digits), last)
    return result if value > 0 else -result


def _power_of_two(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def to_float32(value: Fraction) -> np.float32:
    """The nearest binary32 number, ties to even, with subnormals and overflow to infinity; 0 is
    +0."""
    return np.float32(_rounded(value) if value else 0.0)


def constant(value: float) -> np.float32:
    """A binary64 number rounded to binary32."""
    if value == 0 or not math.isfinite(value):
        return np.float32(value)
    return to_float32(Fraction(value))


def _negative(x: float) -> bool:
    return math.copysign(1.0, x) < 0


def _signed_zero(negative: bool) -> float:
    return -0.0 if negative else 0.0


def _add(x: float, y: float) -> float:
    if not (math.isfinite(x) and math.isfinite(y)):
        return x + y
    exact = Fraction(x) + Fraction(y)
    # opposite values give +0; only two negative zeros give -0
    return _rounded(exact) if exact else _signed_zero(_negative(x) and _negative(y))


def _sub(x: float, y: float) -> float:
    return _add(x, -y)


def _neg(x: float) -> float:
    return -x


def _mul(x: float, y: float) -> float:
    if not (math.isfinite(x) and math.isfinite(y)):
        return x * y
    exact = Fraction(x) * Fraction(y)
    return _rounded(exact) if exact else _signed_zero(_negative(x) != _negative(y))


def _div(x: float, y: float) -> float:
    negative = _negative(x) != _negative(y)
    if math.isnan(x) or math.isnan(y) or (x == 0 == y) or (math.isinf(x) and math.isinf(y)):
        return math.nan
    if y == 0 or math.isinf(x):
        return -math.inf if negative else math.inf
    if x == 0 or math.isinf(y):
        return _signed_zero(negative)
    return _rounded(Fraction(x) / Fraction(y))


def _elementwise(function: Callable[..., float], count: int) -> Callable[..., Array]:
    over_objects = np.frompyfunc(function, count, 1)

    def apply(*operands: Operand) -> Array:
        with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, as defined
            return np.asarray(over_objects(*(_as_array(x) for x in operands)), np.float32)

    return apply


def _as_array(x: Operand) -> Array:
    array = np.asarray(constant(x) if isinstance(x, (int, float)) else x)
    if array.dtype != np.float32:
        raise TypeError(f"expected float32, got {array.dtype}")
    return array


add = _elementwise(_add, 2)
sub = _elementwise(_sub, 2)
mul = _elementwise(_mul, 2)
div = _elementwise(_div, 2)
neg = _elementwise(_neg, 1)


def function(name: str, x: Operand) -> Array:
    """A correctly rounded elementary function (docs/numerics_elementary.md)."""

    def one(value: float) -> float:
        return elementary.rounded(name, value)

    return _elementwise(one, 1)(x)


def largest(values: Array, axis: int) -> Array:
    """The largest value along an axis, kept as an axis of one; NaN where there is one."""
    return np.max(values, axis, keepdims=True)  # numpy's maximum hands NaN on
