"""Quick values of elementary functions: fp64 numbers of 38 bits, which decide all but one rounding
to fp32 in eight thousand (docs/numerics_elementary.md).

Contract: a function X_quick, or X_near in a smaller range, returns a number within a relative error
of `QUICK` of the real result, and whether that decides its fp32 rounding; outside the range that is
common in a network it never does. The polynomials are shorter than those of the intervals, the
arguments reduced in one step, and quotients start from fp32 ones.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from veritrain.numerics.cpu.elementary_constants import (
    INV_SQRT_2_PI,
    LN2,
    LOG2_E,
    MAGIC,
    NEAR_GELU_GRAD,
    NEAR_GELU_GRAD_POLY,
    NEAR_GELU_POLY,
    ONE_BITS,
    QUICK,
    QUICK_ARTANH_POLY,
    QUICK_EXP_POLY,
    QUICK_EXPM1_POLY,
    QUICK_LOG_POLY,
    QUICK_TAIL_POLY,
    QUICK_UNITS,
    SQRT_8_OVER_PI,
    SQRT_HALF_BITS32,
    TANH_CUBIC,
)
from veritrain.numerics.cpu.elementary_intervals import (
    bits32,
    bits64,
    float32,
    float64,
    horner,
    jit,
    tanh_argument,
)

Quick: TypeAlias = tuple[float, bool]


@jit
def _usual(x: float, limit: float) -> Any:
    """Whether an fp32 x is zero or 2^-100 <= |x| <= limit."""
    return (x == 0.0) | ((abs(x) >= np.float32(2.0**-100)) & (abs(x) <= np.float32(limit)))


@jit
def _decided(y: float) -> bool:
    """Whether no midpoint of fp32 numbers is within y's error; for |y| >= 2^-126, or zero.

    A midpoint has the low 29 bits 2^28. Rounding the error up to a power of two, 2^15 units in the
    last place, makes the test one sum and one mask.
    """
    return (bits64(y) + (QUICK_UNITS - (1 << 28))) & ((1 << 29) - 2 * QUICK_UNITS) != 0


@jit
def _separates(y: float, error: float) -> Any:
    """Whether y - error and y + error round to one fp32 number."""
    return np.float32(y - error) == np.float32(y + error)


@jit
def _quick_exp_parts(x: float) -> tuple[float, float]:
    """(bits to add for 2^k, r) with x = k ln(2) + r, for |x| <= 100."""
    shifted = x * LOG2_E + MAGIC
    return bits64(shifted) << 52, x - (shifted - MAGIC) * LN2


@jit
def quick_exp(x: float) -> float:
    power, r = _quick_exp_parts(x)
    return float64(bits64(horner(QUICK_EXP_POLY, r)) + power)


@jit
def quick_expm1(x: float) -> float:
    power, r = _quick_exp_parts(x)
    scale = float64(power + ONE_BITS)
    return (scale - 1.0) + scale * (r * horner(QUICK_EXPM1_POLY, r))


@jit
def _quotient(a: float, b: float, guess: float) -> float:
    """a / b by one step of Newton's method from an fp32 `guess` of 1 / b."""
    start = np.float64(guess)
    y = a * start
    return y + start * (a - b * y)


@jit
def _over(a: float, b: float) -> float:
    """a / b for 1 <= |b| < 2^126."""
    return _quotient(a, b, np.float32(1.0) / np.float32(b))


@jit
def _quick_tail(size: float, square: float) -> tuple[float, float]:
    """e^(-x^2 / 2) and P(-|x|) for an fp32 |x| <= 8 and its square."""
    wide = np.float64(size) + 4.0
    u = _quotient(4.0, wide, np.float32(1.0) / (size + np.float32(4.0)))
    e = quick_exp(-0.5 * square)
    return e, e * (u * horner(QUICK_TAIL_POLY, u))


@jit
def exp_quick(x: float) -> Quick:
    y = quick_exp(np.float64(x))
    return y, _decided(y) & _usual(x, 87.0)


@jit
def expm1_quick(x: float) -> Quick:
    y = quick_expm1(np.float64(x))
    return (np.float64(x) if x == 0.0 else y), _decided(y) & _usual(x, 87.0)


@jit
def tanh_quick(x: float) -> Quick:
    e = quick_expm1(np.float64(x) + np.float64(x))
    y = _over(e, e + 2.0)
    return (np.float64(x) if x == 0.0 else y), _decided(y) & _usual(x, 40.0)


@jit
def sigmoid_quick(x: float) -> Quick:
    y = _over(1.0, 1.0 + quick_exp(-np.float64(x)))
    return y, _decided(y) & _usual(x, 80.0)


@jit
def silu_quick(x: float) -> Quick:
    y = _over(np.float64(x), 1.0 + quick_exp(-np.float64(x)))
    return (np.float64(x) if x == 0.0 else y), _decided(y) & _usual(x, 80.0)


@jit
def gelu_quick(x: float) -> Quick:
    wide = np.float64(x)
    _, tail = _quick_tail(abs(x), wide * wide)
    y = wide * (tail if x < 0.0 else 1.0 - tail)
    return y, _decided(y) & _usual(x, 8.0)


@jit
def gelu_near(x: float) -> Quick:
    wide = np.float64(x)
    p = 0.5 + wide * horner(NEAR_GELU_POLY, wide * wide * (2.0 / 12.25) - 1.0)
    return wide * p, _decided(wide * p) & _usual(x, 3.5)


@jit
def gelu_grad_near(x: float) -> Quick:
    wide = np.float64(x)
    bend = wide * horner(NEAR_GELU_GRAD_POLY, wide * wide * (2.0 / 12.25) - 1.0)
    y = 0.5 + bend
    return y, _separates(y, NEAR_GELU_GRAD) & _usual(x, 3.5)


@jit
def gelu_tanh_quick(x: float) -> Quick:
    wide = np.float64(x)
    y = _over(wide, 1.0 + quick_exp(-tanh_argument(wide)))
    return (wide if x == 0.0 else y), _decided(y) & _usual(x, 9.0)


@jit
def softplus_quick(x: float) -> Quick:
    e = quick_exp(-abs(np.float64(x)))
    s = _over(e, e + 2.0)  # log(1 + e) = 2 artanh(s)
    y = (np.float64(x) if x > 0.0 else 0.0) + s * horner(QUICK_ARTANH_POLY, s * s)
    return y, _decided(y) & _usual(x, 80.0)


@jit
def silu_grad_quick(x: float) -> Quick:
    wide = np.float64(x)
    e = quick_exp(-wide)
    s = _over(1.0, 1.0 + e)
    bend = wide * s * (s * e)
    y = s + bend
    return y, _separates(y, (s + abs(bend)) * QUICK) & _usual(x, 40.0)


@jit
def gelu_grad_quick(x: float) -> Quick:
    wide = np.float64(x)
    e, tail = _quick_tail(abs(x), wide * wide)
    cumulative = tail if x < 0.0 else 1.0 - tail
    bend = wide * e * INV_SQRT_2_PI
    y = cumulative + bend
    return y, _separates(y, (cumulative + abs(bend)) * QUICK) & _usual(x, 8.0)


@jit
def gelu_tanh_grad_quick(x: float) -> Quick:
    wide = np.float64(x)
    e = quick_exp(-tanh_argument(wide))
    s = _over(1.0, 1.0 + e)
    slope = SQRT_8_OVER_PI * (1.0 + 3.0 * TANH_CUBIC * (wide * wide))
    bend = wide * slope * s * (s * e)
    y = s + bend
    return y, _separates(y, (s + abs(bend)) * QUICK) & _usual(x, 7.0)


@jit
def log_quick(x: float) -> Quick:
    bits = bits32(x)
    exponent = np.int32(bits - np.int32(SQRT_HALF_BITS32)) >> np.int32(23)
    m = float32(np.int32(bits - np.int32(exponent << np.int32(23))))  # in [sqrt(1/2), sqrt(2))
    k, wide = np.float64(exponent), np.float64(m)
    s = _quotient(wide - 1.0, wide + 1.0, np.float32(1.0) / (m + np.float32(1.0)))
    square = s * s
    y = k * LN2 + (2.0 * s + s * square * horner(QUICK_LOG_POLY, square))
    return y, _decided(y) & (x >= np.float32(2.0**-126)) & (x < np.float32(np.inf))


@jit
def rsqrt_quick(x: float) -> Quick:
    start = np.float64(np.float32(1.0) / np.sqrt(x))
    y = start + start * (0.5 - (0.5 * np.float64(x)) * start * start)
    return y, _decided(y) & (x >= np.float32(2.0**-126)) & (x < np.float32(np.inf))
