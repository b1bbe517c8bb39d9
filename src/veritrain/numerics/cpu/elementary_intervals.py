"""Elementary functions in fp64 with error bounds: intervals that hold the real results.

Contract: a function X_interval returns [low, high] that holds the real result for an fp32 number.
Where both ends round to the same fp32 number, so does the real result (Ziv 1991; Muller et al.,
Handbook of Floating-Point Arithmetic). Far out, where a function is flat in fp32, its argument is
clamped: there the interval has the rounding of the real result without holding it. Tests hold the
bounds against mpmath from both sides.

Only IEEE basic operations are used. Every bound holds whether or not products and sums are
contracted into fused multiply-adds, so that contraction is allowed; no other liberty with
floating-point arithmetic is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from veritrain.numerics.cpu.elementary_constants import (
    COS_POLY,
    ERF,
    ERF_LIMIT,
    ERF_POLY,
    ERFCX_POLY,
    ERFINV,
    ERFINV_POLY,
    EXP,
    EXP_LIMIT,
    EXP_POLY,
    EXPM1,
    GELU,
    GELU_GRAD,
    GELU_LIMIT,
    GELU_TANH,
    GELU_TANH_GRAD,
    HALF_PI_1,
    HALF_PI_2,
    HALF_PI_3,
    INV_SQRT_2_PI,
    LN2_HIGH,
    LN2_LOW,
    LOG,
    LOG1P,
    LOG2_E,
    LOG_POLY,
    MAGIC,
    ONE_BITS,
    POWER,
    RSQRT,
    SIGMOID,
    SILU_GRAD,
    SIN_POLY,
    SINE,
    SINE_LIMIT,
    SOFTPLUS,
    SQRT_8_OVER_PI,
    SQRT_HALF,
    SQRT_HALF_BITS,
    SQRT_PI_OVER_2,
    TANH,
    TANH_CUBIC,
    TWO_OVER_PI,
    TWO_PI,
    WINITZKI,
)
from veritrain.runtime.kernels import kernel

Interval: TypeAlias = tuple[float, float]

jit = kernel(
    forceinline=True,
    fastmath={"contract"},
    _nrt=False,  # nothing is allocated: no reference counts
)


def _bitcast(source: Any, target: Any) -> Any:
    def declare(_context: Any, _argument: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return intrinsic(declare)


def _unrolled_horner(_context: Any, coefficients: Any, x: Any) -> Any:
    """Horner's rule without an inner loop, which would keep LLVM from vectorising the outer one."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        *rest, value = cgutils.unpack_tuple(builder, arguments[0])
        for coefficient in reversed(rest):
            product = builder.fmul(value, arguments[1], flags=("contract",))
            value = builder.fadd(product, coefficient, flags=("contract",))
        return value

    return types.float64(coefficients, x), generate


horner: Callable[[tuple[float, ...], float], float] = intrinsic(_unrolled_horner)  # type: ignore[assignment]
bits64 = _bitcast(types.float64, types.int64)
float64 = _bitcast(types.int64, types.float64)
bits32 = _bitcast(types.float32, types.int32)
float32 = _bitcast(types.int32, types.float32)


# Cores


@jit
def _clamp(x: float, limit: float) -> float:
    """Bring x into [-limit, limit]; a NaN stays."""
    x = limit if x > limit else x
    return -limit if x < -limit else x


@jit
def _relative(y: float, bound: float) -> Interval:
    return y * (1.0 - bound), y * (1.0 + bound)


@jit
def _absolute(y: float, bound: float) -> Interval:
    return y - bound, y + bound


@jit
def _exp_parts(x: float) -> tuple[float, float]:
    """(2^k, e^r - 1) with x = k ln(2) + r, for |x| <= 700."""
    shifted = x * LOG2_E + MAGIC
    k = shifted - MAGIC
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    scale = float64((bits64(shifted) << 52) + ONE_BITS)  # the magic's own bits are shifted out
    return scale, r + r * r * horner(EXP_POLY, r)


@jit
def exp(x: float) -> float:
    scale, tail = _exp_parts(x)
    return scale + scale * tail


@jit
def expm1(x: float) -> float:
    """Relative bound everywhere: for |x| < ln(2) / 2 the scale is 1 and the first term 0."""
    scale, tail = _exp_parts(x)
    return (scale - 1.0) + scale * tail


@jit
def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + exp(-x))


@jit
def erfcx(t: float) -> float:
    """e^(t^2) erfc(t) for 0 <= t <= 10.7."""
    u = 3.5 / (t + 3.5)
    return u * horner(ERFCX_POLY, u + u - 1.0)


@jit
def erf(x: float) -> float:
    """For |x| <= 4; x has at most 26 bits, so that x^2 is exact."""
    square = x * x
    near = x * horner(ERF_POLY, square)
    size = abs(x)
    far = 1.0 - exp(-square) * erfcx(size)
    far = -far if x < 0.0 else far
    return near if size < 0.125 else far


@jit
def log(x: float) -> float:
    """For a positive normal fp64 number."""
    shifted = bits64(x) - SQRT_HALF_BITS
    k = float(shifted >> 52)
    m = float64(bits64(x) - ((shifted >> 52) << 52))  # in [sqrt(1/2), sqrt(2))
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    return k * LN2_HIGH + (2.0 * s + (s * square * horner(LOG_POLY, square) + k * LN2_LOW))


@jit
def log1p(x: float) -> float:
    """For x > -1: the logarithm of the rounded 1 + x and a first-order correction."""
    u = 1.0 + x
    return log(u) + (x - (u - 1.0)) / u


@jit
def _nearer_erfinv(y: float, size: float) -> float:
    """Halley's step for erf(y) = size; with erfc, so that sizes near 1 lose nothing."""
    tail = exp(-(y * y))
    far = (1.0 - size) - tail * erfcx(y)
    residual = y * horner(ERF_POLY, y * y) - size if y < 0.125 else far
    step = SQRT_PI_OVER_2 * residual / tail
    return y - step / (1.0 + y * step)


@jit
def erfinv(x: float) -> float:
    """For |x| < 1, an fp32 number: 1 - |x| is exact where it matters."""
    size = abs(x)
    square = x * x
    half_log = 0.5 * log((1.0 - size) * (1.0 + size))
    shift = TWO_OVER_PI / WINITZKI + half_log
    y = np.sqrt(np.sqrt(shift * shift - 2.0 * half_log / WINITZKI) - shift)
    y = _nearer_erfinv(_nearer_erfinv(y, size), size)
    y = -y if x < 0.0 else y
    return x * horner(ERFINV_POLY, square) if size <= 2.0**-6 else y


@jit
def sin_quadrant(r: float, quadrant: int) -> float:
    """sin(r + quadrant pi / 2) for |r| <= pi / 4."""
    square = r * r
    sine = r * (1.0 + square * horner(SIN_POLY, square))
    cosine = 1.0 - square * 0.5 + square * square * horner(COS_POLY, square)
    value = cosine if quadrant & 1 else sine
    return -value if quadrant & 2 else value


@jit
def _sine(x: float, turn: int) -> Interval:
    """sin(x + turn pi / 2); undecided from 2^20 on."""
    shifted = x * TWO_OVER_PI + MAGIC
    k = shifted - MAGIC
    r = ((x - k * HALF_PI_1) - k * HALF_PI_2) - k * HALF_PI_3
    low, high = _relative(sin_quadrant(r, bits64(shifted) + turn), SINE)
    inside = abs(x) <= SINE_LIMIT
    invalid = x - x  # NaN for an infinity
    return (low if inside else invalid - 1.0), (high if inside else invalid + 1.0)


@jit
def _sine_turns(x: float, turn: int) -> Interval:
    """sin(2 pi x + turn pi / 2); undecided from 2^20 on. The reduction is exact."""
    shifted = x * 4.0 + MAGIC
    r = (x - (shifted - MAGIC) * 0.25) * TWO_PI
    y = sin_quadrant(r, bits64(shifted) + turn)
    zero = 0.0 if turn == 1 else 0.0 * x  # IEEE 754-2019 9.2: cosPi(n + 1/2) is +0, sinPi(-n) -0
    low, high = _relative(zero if y == 0.0 else y, SINE)
    inside = abs(x) <= SINE_LIMIT
    invalid = x - x
    return (low if inside else invalid - 1.0), (high if inside else invalid + 1.0)


@jit
def tanh_argument(x: float) -> float:
    """2 sqrt(2 / pi) (x + 0.044715 x^3), so that (1 + tanh(half of it)) / 2 is its sigmoid."""
    return SQRT_8_OVER_PI * (x + TANH_CUBIC * (x * x * x))


# Intervals of each function, from fp64 copies of fp32 numbers


@jit
def exp_interval(x: float) -> Interval:
    return _relative(exp(_clamp(x, EXP_LIMIT)), EXP)


@jit
def expm1_interval(x: float) -> Interval:
    y = expm1(_clamp(x, EXP_LIMIT))
    return _relative(x if x == 0.0 else y, EXPM1)  # a zero keeps its sign


@jit
def tanh_interval(x: float) -> Interval:
    e = expm1(_clamp(x + x, EXP_LIMIT))
    return _relative(x if x == 0.0 else e / (e + 2.0), TANH)


@jit
def sigmoid_interval(x: float) -> Interval:
    return _relative(sigmoid(_clamp(x, EXP_LIMIT)), SIGMOID)


@jit
def silu_interval(x: float) -> Interval:
    x = -EXP_LIMIT if x < -EXP_LIMIT else x
    return _relative(x * sigmoid(_clamp(x, EXP_LIMIT)), SIGMOID)


@jit
def erf_interval(x: float) -> Interval:
    return _relative(erf(_clamp(x, ERF_LIMIT)), ERF)


@jit
def erfinv_interval(x: float) -> Interval:
    y = erfinv(0.0 if abs(x) >= 1.0 else x)
    y = x * np.inf if abs(x) == 1.0 else y
    return _relative(y if abs(x) <= 1.0 else np.nan, ERFINV)


@jit
def gelu_interval(x: float) -> Interval:
    x = -GELU_LIMIT if x < -GELU_LIMIT else x
    t = _clamp(x, GELU_LIMIT)
    tail = 0.5 * exp(-0.5 * (t * t)) * erfcx(abs(t) * SQRT_HALF)
    return _relative(x * (tail if x < 0.0 else 1.0 - tail), GELU)


@jit
def gelu_tanh_interval(x: float) -> Interval:
    x = -GELU_LIMIT if x < -GELU_LIMIT else x
    argument = _clamp(tanh_argument(x), EXP_LIMIT)  # its relative error is absolute in the result
    return _relative(x * sigmoid(argument), (1.0 + abs(argument)) * GELU_TANH)


@jit
def softplus_interval(x: float) -> Interval:
    tail = log1p(exp(-abs(_clamp(x, EXP_LIMIT))))
    return _relative((x if x > 0.0 else 0.0) + tail, SOFTPLUS)


@jit
def silu_grad_interval(x: float) -> Interval:
    x = _clamp(x, EXP_LIMIT)
    e = exp(-x)
    s = 1.0 / (1.0 + e)
    bend = x * s * (s * e)  # s e = 1 - s without cancellation
    return _absolute(s + bend, (s + abs(bend)) * SILU_GRAD)


@jit
def gelu_grad_interval(x: float) -> Interval:
    x = _clamp(x, GELU_LIMIT)
    e = exp(-0.5 * (x * x))
    tail = 0.5 * e * erfcx(abs(x) * SQRT_HALF)
    cumulative = tail if x < 0.0 else 1.0 - tail
    bend = x * e * INV_SQRT_2_PI
    return _absolute(cumulative + bend, (cumulative + abs(bend)) * GELU_GRAD)


@jit
def gelu_tanh_grad_interval(x: float) -> Interval:
    x = _clamp(x, GELU_LIMIT)
    argument = _clamp(tanh_argument(x), EXP_LIMIT)
    e = exp(-argument)
    s = 1.0 / (1.0 + e)
    slope = SQRT_8_OVER_PI * (1.0 + 3.0 * TANH_CUBIC * (x * x))
    bend = x * slope * s * (s * e)
    return _absolute(s + bend, (s + abs(bend)) * (1.0 + abs(argument)) * GELU_TANH_GRAD)


@jit
def log_interval(x: float) -> Interval:
    y = log(x)
    y = x if x == np.inf else y
    y = -np.inf if x == 0.0 else y
    return _relative(y if x >= 0.0 else np.nan, LOG)


@jit
def log1p_interval(x: float) -> Interval:
    y = x * (1.0 - 0.5 * x) if abs(x) < 2.0**-29 else log1p(x)
    y = x if x == np.inf else y
    y = -np.inf if x == -1.0 else y
    return _relative(y if x >= -1.0 else np.nan, LOG1P)


@jit
def sin_interval(x: float) -> Interval:
    return _sine(x, 0)


@jit
def cos_interval(x: float) -> Interval:
    return _sine(x, 1)


@jit
def sin_two_pi_interval(x: float) -> Interval:
    return _sine_turns(x, 0)


@jit
def cos_two_pi_interval(x: float) -> Interval:
    return _sine_turns(x, 1)


@jit
def sqrt_interval(x: float) -> Interval:
    """fp64 has more than twice the bits of fp32: rounding its root once more rounds correctly."""
    y = np.sqrt(x)
    return y, y


@jit
def rsqrt_interval(x: float) -> Interval:
    return _relative(1.0 / np.sqrt(x), RSQRT)


@jit
def power_interval(x: float, y: float) -> Interval:
    """x to the power y; infinities and NaNs are left undecided."""
    whole = np.floor(y) == y
    odd = whole and np.floor(y * 0.5) * 2.0 != y
    size = abs(x)
    w = _clamp(y * log(size), EXP_LIMIT)
    low, high = _relative(exp(w), (1.0 + abs(w)) * POWER)
    if size == 0.0:
        limit = 0.0 if y > 0.0 else np.inf
        low = high = 1.0 if y == 0.0 else limit
    if x < 0.0 and not whole:
        low = high = np.nan
    if not (size < np.inf and abs(y) < np.inf):
        low, high = 0.0, 1.0
    negative = odd and np.copysign(1.0, x) < 0.0
    return (-high, -low) if negative else (low, high)
