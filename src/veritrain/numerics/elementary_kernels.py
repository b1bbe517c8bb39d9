"""Elementary functions in fp64 with error bounds, fused with the rounding test of Ziv's strategy.

Contract: a kernel writes, for each fp32 entry, the bits of the correctly rounded fp32 result, or
`UNDECIDED` where its bound does not decide, and returns the number of undecided entries. Only IEEE
basic operations are used, in loops that LLVM vectorises. Every bound holds whether or not products
and sums are contracted into fused multiply-adds, so that contraction is allowed; no other
liberty with floating-point arithmetic is.

Each function returns an interval [low, high] that holds the real result. Where both ends round to
the same fp32 number, so does the real result (Ziv 1991; Muller et al., Handbook of Floating-Point
Arithmetic). Far out, where a function is flat in fp32, its argument is clamped: there the interval
has the rounding of the real result without holding it. Tests hold the bounds against mpmath from
both sides.

One file, because numba's on-disk cache notices changes in the file of the kernel only.
Coefficients: interpolation at Chebyshev nodes, computed with 160 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numba  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Interval: TypeAlias = tuple[float, float]
Inputs: TypeAlias = NDArray[np.float32]
Outputs: TypeAlias = NDArray[np.int32]

NAN = 0x7FC00000  # the one NaN that a result can be
UNDECIDED = 0x7FC00001  # never a result: another NaN

# Relative error bounds: interpolation error plus rounding errors, with room to spare. A bound of
# 2^-47 leaves about one entry in five million undecided.
EXP = 2.0**-48
EXPM1 = 2.0**-47
TANH = 2.0**-47
SIGMOID = 2.0**-48
ERF = 2.0**-45  # 1 - erfc(x) loses three bits at x = 1/8
ERFINV = 2.0**-46  # so does the residual of its steps
GELU = 2.0**-47
GELU_TANH = 2.0**-49  # times 1 + |argument of the exponential|
SOFTPLUS = 2.0**-48
LOG = 2.0**-48
LOG1P = 2.0**-48
SINE = 2.0**-48
RSQRT = 2.0**-51
POWER = 2.0**-48  # times 1 + |argument of the exponential|
# The derivatives have zeros: bounds relative to the sum of their terms' magnitudes.
SILU_GRAD = 2.0**-48
GELU_GRAD = 2.0**-47
GELU_TANH_GRAD = 2.0**-49  # times 1 + |argument of the exponential|


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    compiler = numba.njit(
        nogil=True, cache=True, error_model="numpy", forceinline=True, fastmath={"contract"}
    )
    return compiler(function)  # type: ignore[no-any-return]


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


_horner: Callable[[tuple[float, ...], float], float] = intrinsic(_unrolled_horner)  # type: ignore[assignment]
_bits64 = _bitcast(types.float64, types.int64)
_float64 = _bitcast(types.int64, types.float64)
_bits32 = _bitcast(types.float32, types.int32)

# Adding and subtracting this rounds |t| < 2^51 to an integer, which then is in the sum's low bits.
_MAGIC = 1.5 * 2.0**52
_MAGIC_BITS = 0x4338000000000000
_ONE_BITS = 0x3FF0000000000000
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.6931471805592082  # 40 bits: k * _LN2_HIGH is exact for |k| < 2^13
_LN2_LOW = 7.371002565167799e-13
_LN2 = 0.6931471805599453
_TWO_OVER_PI = 0.6366197723675814
_TWO_PI = 6.283185307179586
# pi / 2 in parts of 33 bits: k times either of the first two is exact for |k| <= 2^20
_HALF_PI_1 = 1.5707963267341256
_HALF_PI_2 = 6.077100506303966e-11
_HALF_PI_3 = 2.0222662487959506e-21
_SQRT_HALF = 0.7071067811865476
_SQRT_8_OVER_PI = 1.5957691216057308
_INV_SQRT_2_PI = 0.3989422804014327
_TANH_CUBIC = 0.044715
_SQRT_PI_OVER_2 = 0.886226925452758
_WINITZKI = 0.147  # of his elementary approximation of erf, right to 0.2 percent

_EXP_LIMIT = 128.0  # e^128 > max fp32, e^-128 rounds to 0
_GELU_LIMIT = 15.0  # x Phi(x) and its derivative round to -0 below -15
_ERF_LIMIT = 4.0  # erf(4) rounds to 1
_SINE_LIMIT = 2.0**20

# (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2
_EXP_POLY = (
    0.5,
    0.1666666666664829,
    0.04166666666665136,
    0.008333333353729397,
    0.0013888888905881542,
    0.00019841208732536384,
    2.4801536388690766e-05,
    2.762511557828763e-06,
    2.761380686153829e-07,
)
# e^(t^2) erfc(t) (t + 3.5) / 3.5 in v = 7 / (t + 3.5) - 1 for 0 <= t <= 10.7
_ERFCX_POLY = (
    0.310587311217789,
    0.2679427784477435,
    0.19831818475262236,
    0.12435886477656494,
    0.0644967490490413,
    0.026376773312573296,
    0.007576748403580719,
    0.0009077289258542788,
    -0.0003729572768742465,
    -0.00020415463527395525,
    -1.2022843787248852e-05,
    2.138031442134297e-05,
    5.334156227863044e-06,
    -2.1140916167493623e-06,
    -9.508441202353693e-07,
    2.7981596320576214e-07,
    1.0354899685248695e-07,
    -3.7029706803943984e-08,
)
# erf(x) / x in x^2 for |x| <= 1/8
_ERF_POLY = (
    1.128379167095511,
    -0.37612638902688883,
    0.11283791417524316,
    -0.026865716264635218,
    0.0051907049796429214,
)
# erfinv(x) / x in x^2, the Taylor series: for |x| <= 2^-6
_ERFINV_POLY = (
    0.886226925452758,
    0.23201366653465447,
    0.12755617530559793,
    0.08655212924154753,
)
# (log((1 + s) / (1 - s)) - 2 s) / s^3 in s^2 for |s| <= 3 - sqrt(8)
_LOG_POLY = (
    0.6666666666666206,
    0.4000000001126354,
    0.2857142412022083,
    0.22222864249374918,
    0.18140107756610346,
    0.1662311658428347,
)
# (sin(r) - r) / r^3 and (cos(r) - 1 + r^2 / 2) / r^4 in r^2 for |r| <= pi / 4
_SIN_POLY = (
    -0.16666666666666666,
    0.008333333333330925,
    -0.00019841269836722418,
    2.755731608381636e-06,
    -2.5051127944014188e-08,
    1.5917848524808262e-10,
)
_COS_POLY = (
    0.04166666666666466,
    -0.0013888888887264425,
    2.4801585198441217e-05,
    -2.755636590225902e-07,
    2.070024946756277e-09,
)


# Cores


@_jit
def _clamp(x: float, limit: float) -> float:
    """Bring x into [-limit, limit]; a NaN stays."""
    x = limit if x > limit else x
    return -limit if x < -limit else x


@_jit
def _relative(y: float, bound: float) -> Interval:
    return y * (1.0 - bound), y * (1.0 + bound)


@_jit
def _absolute(y: float, bound: float) -> Interval:
    return y - bound, y + bound


@_jit
def _exp_parts(x: float) -> tuple[float, float]:
    """(2^k, e^r - 1) with x = k ln(2) + r, for |x| <= 700."""
    shifted = x * _LOG2_E + _MAGIC
    k = shifted - _MAGIC
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    scale = _float64((_bits64(shifted) << 52) + _ONE_BITS)  # the magic's own bits are shifted out
    return scale, r + r * r * _horner(_EXP_POLY, r)


@_jit
def exp(x: float) -> float:
    scale, tail = _exp_parts(x)
    return scale + scale * tail


@_jit
def expm1(x: float) -> float:
    """Relative bound everywhere: for |x| < ln(2) / 2 the scale is 1 and the first term 0."""
    scale, tail = _exp_parts(x)
    return (scale - 1.0) + scale * tail


@_jit
def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + exp(-x))


@_jit
def erfcx(t: float) -> float:
    """e^(t^2) erfc(t) for 0 <= t <= 10.7."""
    u = 3.5 / (t + 3.5)
    return u * _horner(_ERFCX_POLY, u + u - 1.0)


@_jit
def erf(x: float) -> float:
    """For |x| <= 4; x has at most 26 bits, so that x^2 is exact."""
    square = x * x
    near = x * _horner(_ERF_POLY, square)
    size = abs(x)
    far = 1.0 - exp(-square) * erfcx(size)
    far = -far if x < 0.0 else far
    return near if size < 0.125 else far


@_jit
def log(x: float) -> float:
    """For a positive normal fp64 number."""
    shifted = _bits64(x) - _SQRT_HALF_BITS
    k = float(shifted >> 52)
    m = _float64(_bits64(x) - ((shifted >> 52) << 52))  # in [sqrt(1/2), sqrt(2))
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    return k * _LN2_HIGH + (2.0 * s + (s * square * _horner(_LOG_POLY, square) + k * _LN2_LOW))


@_jit
def log1p(x: float) -> float:
    """For x > -1: the logarithm of the rounded 1 + x and a first-order correction."""
    u = 1.0 + x
    return log(u) + (x - (u - 1.0)) / u


@_jit
def _nearer_erfinv(y: float, size: float) -> float:
    """Halley's step for erf(y) = size; with erfc, so that sizes near 1 lose nothing."""
    tail = exp(-(y * y))
    far = (1.0 - size) - tail * erfcx(y)
    residual = y * _horner(_ERF_POLY, y * y) - size if y < 0.125 else far
    step = _SQRT_PI_OVER_2 * residual / tail
    return y - step / (1.0 + y * step)


@_jit
def erfinv(x: float) -> float:
    """For |x| < 1, an fp32 number: 1 - |x| is exact where it matters."""
    size = abs(x)
    square = x * x
    half_log = 0.5 * log((1.0 - size) * (1.0 + size))
    shift = _TWO_OVER_PI / _WINITZKI + half_log
    y = np.sqrt(np.sqrt(shift * shift - 2.0 * half_log / _WINITZKI) - shift)
    y = _nearer_erfinv(_nearer_erfinv(y, size), size)
    y = -y if x < 0.0 else y
    return x * _horner(_ERFINV_POLY, square) if size <= 2.0**-6 else y


@_jit
def sin_quadrant(r: float, quadrant: int) -> float:
    """sin(r + quadrant pi / 2) for |r| <= pi / 4."""
    square = r * r
    sine = r * (1.0 + square * _horner(_SIN_POLY, square))
    cosine = 1.0 - square * 0.5 + square * square * _horner(_COS_POLY, square)
    value = cosine if quadrant & 1 else sine
    return -value if quadrant & 2 else value


@_jit
def _sine(x: float, turn: int) -> Interval:
    """sin(x + turn pi / 2); undecided from 2^20 on."""
    shifted = x * _TWO_OVER_PI + _MAGIC
    k = shifted - _MAGIC
    r = ((x - k * _HALF_PI_1) - k * _HALF_PI_2) - k * _HALF_PI_3
    low, high = _relative(sin_quadrant(r, _bits64(shifted) + turn), SINE)
    inside = abs(x) <= _SINE_LIMIT
    invalid = x - x  # NaN for an infinity
    return (low if inside else invalid - 1.0), (high if inside else invalid + 1.0)


@_jit
def _sine_turns(x: float, turn: int) -> Interval:
    """sin(2 pi x + turn pi / 2); undecided from 2^20 on. The reduction is exact."""
    shifted = x * 4.0 + _MAGIC
    r = (x - (shifted - _MAGIC) * 0.25) * _TWO_PI
    y = sin_quadrant(r, _bits64(shifted) + turn)
    zero = 0.0 if turn == 1 else 0.0 * x  # IEEE 754-2019 9.2: cosPi(n + 1/2) is +0, sinPi(-n) -0
    low, high = _relative(zero if y == 0.0 else y, SINE)
    inside = abs(x) <= _SINE_LIMIT
    invalid = x - x
    return (low if inside else invalid - 1.0), (high if inside else invalid + 1.0)


@_jit
def _tanh_argument(x: float) -> float:
    """2 sqrt(2 / pi) (x + 0.044715 x^3), so that (1 + tanh(half of it)) / 2 is its sigmoid."""
    return _SQRT_8_OVER_PI * (x + _TANH_CUBIC * (x * x * x))


# Intervals of each function, from fp64 copies of fp32 numbers


@_jit
def _exp(x: float) -> Interval:
    return _relative(exp(_clamp(x, _EXP_LIMIT)), EXP)


@_jit
def _expm1(x: float) -> Interval:
    y = expm1(_clamp(x, _EXP_LIMIT))
    return _relative(x if x == 0.0 else y, EXPM1)  # a zero keeps its sign


@_jit
def _tanh(x: float) -> Interval:
    e = expm1(_clamp(x + x, _EXP_LIMIT))
    return _relative(x if x == 0.0 else e / (e + 2.0), TANH)


@_jit
def _sigmoid(x: float) -> Interval:
    return _relative(sigmoid(_clamp(x, _EXP_LIMIT)), SIGMOID)


@_jit
def _silu(x: float) -> Interval:
    x = -_EXP_LIMIT if x < -_EXP_LIMIT else x
    return _relative(x * sigmoid(_clamp(x, _EXP_LIMIT)), SIGMOID)


@_jit
def _erf(x: float) -> Interval:
    return _relative(erf(_clamp(x, _ERF_LIMIT)), ERF)


@_jit
def _erfinv(x: float) -> Interval:
    y = erfinv(0.0 if abs(x) >= 1.0 else x)
    y = x * np.inf if abs(x) == 1.0 else y
    return _relative(y if abs(x) <= 1.0 else np.nan, ERFINV)


@_jit
def _gelu(x: float) -> Interval:
    x = -_GELU_LIMIT if x < -_GELU_LIMIT else x
    t = _clamp(x, _GELU_LIMIT)
    tail = 0.5 * exp(-0.5 * (t * t)) * erfcx(abs(t) * _SQRT_HALF)
    return _relative(x * (tail if x < 0.0 else 1.0 - tail), GELU)


@_jit
def _gelu_tanh(x: float) -> Interval:
    x = -_GELU_LIMIT if x < -_GELU_LIMIT else x
    argument = _clamp(_tanh_argument(x), _EXP_LIMIT)  # its relative error is absolute in the result
    return _relative(x * sigmoid(argument), (1.0 + abs(argument)) * GELU_TANH)


@_jit
def _softplus(x: float) -> Interval:
    tail = log1p(exp(-abs(_clamp(x, _EXP_LIMIT))))
    return _relative((x if x > 0.0 else 0.0) + tail, SOFTPLUS)


@_jit
def _silu_grad(x: float) -> Interval:
    x = _clamp(x, _EXP_LIMIT)
    e = exp(-x)
    s = 1.0 / (1.0 + e)
    bend = x * s * (s * e)  # s e = 1 - s without cancellation
    return _absolute(s + bend, (s + abs(bend)) * SILU_GRAD)


@_jit
def _gelu_grad(x: float) -> Interval:
    x = _clamp(x, _GELU_LIMIT)
    e = exp(-0.5 * (x * x))
    tail = 0.5 * e * erfcx(abs(x) * _SQRT_HALF)
    cumulative = tail if x < 0.0 else 1.0 - tail
    bend = x * e * _INV_SQRT_2_PI
    return _absolute(cumulative + bend, (cumulative + abs(bend)) * GELU_GRAD)


@_jit
def _gelu_tanh_grad(x: float) -> Interval:
    x = _clamp(x, _GELU_LIMIT)
    argument = _clamp(_tanh_argument(x), _EXP_LIMIT)
    e = exp(-argument)
    s = 1.0 / (1.0 + e)
    slope = _SQRT_8_OVER_PI * (1.0 + 3.0 * _TANH_CUBIC * (x * x))
    bend = x * slope * s * (s * e)
    return _absolute(s + bend, (s + abs(bend)) * (1.0 + abs(argument)) * GELU_TANH_GRAD)


@_jit
def _log(x: float) -> Interval:
    y = log(x)
    y = x if x == np.inf else y
    y = -np.inf if x == 0.0 else y
    return _relative(y if x >= 0.0 else np.nan, LOG)


@_jit
def _log1p(x: float) -> Interval:
    y = x * (1.0 - 0.5 * x) if abs(x) < 2.0**-29 else log1p(x)
    y = x if x == np.inf else y
    y = -np.inf if x == -1.0 else y
    return _relative(y if x >= -1.0 else np.nan, LOG1P)


@_jit
def _sin(x: float) -> Interval:
    return _sine(x, 0)


@_jit
def _cos(x: float) -> Interval:
    return _sine(x, 1)


@_jit
def _sin_two_pi(x: float) -> Interval:
    return _sine_turns(x, 0)


@_jit
def _cos_two_pi(x: float) -> Interval:
    return _sine_turns(x, 1)


@_jit
def _sqrt(x: float) -> Interval:
    """fp64 has more than twice the bits of fp32: rounding its root once more rounds correctly."""
    y = np.sqrt(x)
    return y, y


@_jit
def _rsqrt(x: float) -> Interval:
    return _relative(1.0 / np.sqrt(x), RSQRT)


@_jit
def _power(x: float, y: float) -> Interval:
    """x to the power y; infinities and NaNs are left undecided."""
    whole = np.floor(y) == y
    odd = whole and np.floor(y * 0.5) * 2.0 != y
    size = abs(x)
    w = _clamp(y * log(size), _EXP_LIMIT)
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


# Loops. They are alike, but each must be spelled out: numba's cache on disk knows no closures.
# Slices first: LLVM does not vectorise an index that may be negative.


@_jit
def _store(out: Outputs, i: int, interval: Interval) -> bool:
    """Round both ends to fp32; tell whether they differ."""
    low, high = np.float32(interval[0]), np.float32(interval[1])
    failed = np.int32(NAN) if low != low else np.int32(UNDECIDED)
    bits = _bits32(low) if low == high else failed
    out[i] = bits
    return bits == np.int32(UNDECIDED)


@_jit
def exp_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _exp(np.float64(x[i])))
    return undecided


@_jit
def expm1_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _expm1(np.float64(x[i])))
    return undecided


@_jit
def tanh_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _tanh(np.float64(x[i])))
    return undecided


@_jit
def sigmoid_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _sigmoid(np.float64(x[i])))
    return undecided


@_jit
def silu_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _silu(np.float64(x[i])))
    return undecided


@_jit
def erf_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _erf(np.float64(x[i])))
    return undecided


@_jit
def erfinv_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _erfinv(np.float64(x[i])))
    return undecided


@_jit
def gelu_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _gelu(np.float64(x[i])))
    return undecided


@_jit
def gelu_tanh_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _gelu_tanh(np.float64(x[i])))
    return undecided


@_jit
def softplus_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _softplus(np.float64(x[i])))
    return undecided


@_jit
def silu_grad_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _silu_grad(np.float64(x[i])))
    return undecided


@_jit
def gelu_grad_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _gelu_grad(np.float64(x[i])))
    return undecided


@_jit
def gelu_tanh_grad_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _gelu_tanh_grad(np.float64(x[i])))
    return undecided


@_jit
def log_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _log(np.float64(x[i])))
    return undecided


@_jit
def log1p_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _log1p(np.float64(x[i])))
    return undecided


@_jit
def sin_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _sin(np.float64(x[i])))
    return undecided


@_jit
def cos_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _cos(np.float64(x[i])))
    return undecided


@_jit
def sin_two_pi_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _sin_two_pi(np.float64(x[i])))
    return undecided


@_jit
def cos_two_pi_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _cos_two_pi(np.float64(x[i])))
    return undecided


@_jit
def sqrt_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _sqrt(np.float64(x[i])))
    return undecided


@_jit
def rsqrt_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, out, undecided = x[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _rsqrt(np.float64(x[i])))
    return undecided


@_jit
def power_loop(x: Inputs, y: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, y, out, undecided = x[start:stop], y[start:stop], out[start:stop], 0
    for i in range(x.size):
        undecided += _store(out, i, _power(np.float64(x[i]), np.float64(y[i])))
    return undecided
