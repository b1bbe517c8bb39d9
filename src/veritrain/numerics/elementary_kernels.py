"""Elementary functions in fp64 with error bounds, fused with the rounding test of Ziv's strategy.

Contract: a kernel writes, for each fp32 entry, the bits of the correctly rounded fp32 result, or
`UNDECIDED` where its bound does not decide, and returns the number of undecided entries. Only IEEE
basic operations are used, in loops that LLVM vectorises. Every bound holds whether or not products
and sums are contracted into fused multiply-adds, so that contraction is allowed; no other
liberty with floating-point arithmetic is.

Usual entries never come to intervals: a *quick value* of 38 bits decides all but one in eight
thousand (docs/numerics_elementary.md).

Each accurate function returns an interval [low, high] that holds the real result. Where both ends round to
the same fp32 number, so does the real result (Ziv 1991; Muller et al., Handbook of Floating-Point
Arithmetic). Far out, where a function is flat in fp32, its argument is clamped: there the interval
has the rounding of the real result without holding it. Tests hold the bounds against mpmath from
both sides.

Coefficients: interpolation at Chebyshev nodes, computed with 160 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from veritrain.runtime.kernels import kernel

Interval: TypeAlias = tuple[float, float]
Quick: TypeAlias = tuple[float, bool]
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
# Of the quick values; one in eight thousand is left open.
QUICK = 2.0**-38
_NEAR_GELU_GRAD = 2.0**-48  # absolute
_QUICK_UNITS = 1 << 15  # the same in units of the last place, of which a number has at most 2^53


_jit = kernel(
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


_horner: Callable[[tuple[float, ...], float], float] = intrinsic(_unrolled_horner)  # type: ignore[assignment]
_bits64 = _bitcast(types.float64, types.int64)
_float64 = _bitcast(types.int64, types.float64)
_bits32 = _bitcast(types.float32, types.int32)
_float32 = _bitcast(types.int32, types.float32)

# Adding and subtracting this rounds |t| < 2^51 to an integer, which then is in the sum's low bits.
_MAGIC = 1.5 * 2.0**52
_MAGIC_BITS = 0x4338000000000000
_ONE_BITS = 0x3FF0000000000000
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
_SQRT_HALF_BITS32 = 0x3F3504F3

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

# e^r and (e^r - 1) / r on |r| <= ln(2) / 2
_QUICK_EXP_POLY = (
    1.0,
    0.9999999999797852,
    0.49999999999797934,
    0.16666666891045911,
    0.04166666689095713,
    0.008333266097922691,
    0.0013888821677603455,
    0.00019915866941726544,
    2.487616403756168e-05,
)
_QUICK_EXPM1_POLY = (
    1.0,
    0.49999999999797934,
    0.16666666666648303,
    0.04166666689095713,
    0.008333333353717168,
    0.0013888821677603455,
    0.0001984120875696787,
    2.487616403756168e-05,
    2.7625102018960324e-06,
)
# e^(t^2) erfc(t) / (2 u) with t = |x| / sqrt(2), in u = 4 / (|x| + 4) for |x| <= 8
_QUICK_TAIL_POLY = (
    0.0997387528116096,
    0.09965407009365082,
    0.09445198270650698,
    0.07436898103274728,
    0.09488637753578047,
    -0.061160625753665564,
    0.2748650962687307,
    -0.4335085941544864,
    0.5512540312587617,
    -0.4876875153927212,
    0.25884978410581144,
    -0.07493697690174166,
    0.009224636389515456,
)
# (P(x) - 1/2) / x and (gelu'(x) - 1/2) / x in 2 x^2 / 3.5^2 - 1 for |x| <= 3.5
_NEAR_GELU_POLY = (
    0.1993377798639279,
    -0.0903395005571385,
    0.05346899793765289,
    -0.02997425356200475,
    0.015062175128468849,
    -0.006717213363443999,
    0.00266683653797256,
    -0.0009492067563140493,
    0.00030527249356101903,
    -8.938351499188997e-05,
    2.3992216578961023e-05,
    -5.940383085645029e-06,
    1.3641968812136448e-06,
    -2.9200485105423974e-07,
    5.852669551441019e-08,
    -1.1020218679864919e-08,
    1.943539880564615e-09,
    -3.26901188599876e-10,
    5.843248799332134e-11,
    -8.771657787330506e-12,
)
_NEAR_GELU_GRAD_POLY = (
    0.2179965586135787,
    -0.14748201047794432,
    0.14096846625390388,
    -0.1192966274681627,
    0.08344961764980682,
    -0.04860452190802664,
    0.02404681694816905,
    -0.010302948183668644,
    0.0038860015866517376,
    -0.0013078260627454675,
    0.00039714042273541285,
    -0.00010982821267928226,
    2.7876836572930594e-05,
    -6.537806725954766e-06,
    1.4253591558910745e-06,
    -2.9004910908559107e-07,
    5.4872271723167316e-08,
    -9.878229993626826e-09,
    1.9091042510308892e-09,
    -3.0362275404337183e-10,
)
# (log((1 + s) / (1 - s)) - 2 s) / s^3 in s^2 for |s| <= 3 - sqrt(8)
_QUICK_LOG_POLY = (
    0.666666666673751,
    0.399999987973327,
    0.2857175453691257,
    0.2219140076694057,
    0.19362654945422295,
)
# log((1 + s) / (1 - s)) / s in s^2 for |s| <= 1/3
_QUICK_ARTANH_POLY = (
    1.9999999999998737,
    0.6666666668119934,
    0.39999997264242493,
    0.28571624027501186,
    0.22215400180111994,
    0.1831004363876266,
    0.1407075932464363,
    0.20068155694850642,
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


# Quick values. Each returns an fp64 number within a relative error of `QUICK` of the function, and
# whether that decides its fp32 rounding; outside the range that is common in a network, never. The
# polynomials are shorter, the arguments reduced in one step, and quotients start from fp32 ones.


@_jit
def _usual(x: float, limit: float) -> Any:
    """Whether an fp32 x is zero or 2^-100 <= |x| <= limit."""
    return (x == 0.0) | ((abs(x) >= np.float32(2.0**-100)) & (abs(x) <= np.float32(limit)))


@_jit
def _decided(y: float) -> bool:
    """Whether no midpoint of fp32 numbers is within y's error; for |y| >= 2^-126, or zero.

    A midpoint has the low 29 bits 2^28. Rounding the error up to a power of two, 2^15 units in the
    last place, makes the test one sum and one mask.
    """
    return (_bits64(y) + (_QUICK_UNITS - (1 << 28))) & ((1 << 29) - 2 * _QUICK_UNITS) != 0


@_jit
def _separates(y: float, error: float) -> Any:
    """Whether y - error and y + error round to one fp32 number."""
    return np.float32(y - error) == np.float32(y + error)


@_jit
def _quick_exp_parts(x: float) -> tuple[float, float]:
    """(bits to add for 2^k, r) with x = k ln(2) + r, for |x| <= 100."""
    shifted = x * _LOG2_E + _MAGIC
    return _bits64(shifted) << 52, x - (shifted - _MAGIC) * _LN2


@_jit
def quick_exp(x: float) -> float:
    power, r = _quick_exp_parts(x)
    return _float64(_bits64(_horner(_QUICK_EXP_POLY, r)) + power)


@_jit
def quick_expm1(x: float) -> float:
    power, r = _quick_exp_parts(x)
    scale = _float64(power + _ONE_BITS)
    return (scale - 1.0) + scale * (r * _horner(_QUICK_EXPM1_POLY, r))


@_jit
def _quotient(a: float, b: float, guess: float) -> float:
    """a / b by one step of Newton's method from an fp32 `guess` of 1 / b."""
    start = np.float64(guess)
    y = a * start
    return y + start * (a - b * y)


@_jit
def _over(a: float, b: float) -> float:
    """a / b for 1 <= |b| < 2^126."""
    return _quotient(a, b, np.float32(1.0) / np.float32(b))


@_jit
def _quick_tail(size: float, square: float) -> tuple[float, float]:
    """e^(-x^2 / 2) and P(-|x|) for an fp32 |x| <= 8 and its square."""
    wide = np.float64(size) + 4.0
    u = _quotient(4.0, wide, np.float32(1.0) / (size + np.float32(4.0)))
    e = quick_exp(-0.5 * square)
    return e, e * (u * _horner(_QUICK_TAIL_POLY, u))


@_jit
def _quick_exp(x: float) -> Quick:
    y = quick_exp(np.float64(x))
    return y, _decided(y) & _usual(x, 87.0)


@_jit
def _quick_expm1(x: float) -> Quick:
    y = quick_expm1(np.float64(x))
    return (np.float64(x) if x == 0.0 else y), _decided(y) & _usual(x, 87.0)


@_jit
def _quick_tanh(x: float) -> Quick:
    e = quick_expm1(np.float64(x) + np.float64(x))
    y = _over(e, e + 2.0)
    return (np.float64(x) if x == 0.0 else y), _decided(y) & _usual(x, 40.0)


@_jit
def _quick_sigmoid(x: float) -> Quick:
    y = _over(1.0, 1.0 + quick_exp(-np.float64(x)))
    return y, _decided(y) & _usual(x, 80.0)


@_jit
def _quick_silu(x: float) -> Quick:
    y = _over(np.float64(x), 1.0 + quick_exp(-np.float64(x)))
    return (np.float64(x) if x == 0.0 else y), _decided(y) & _usual(x, 80.0)


@_jit
def _quick_gelu(x: float) -> Quick:
    wide = np.float64(x)
    _, tail = _quick_tail(abs(x), wide * wide)
    y = wide * (tail if x < 0.0 else 1.0 - tail)
    return y, _decided(y) & _usual(x, 8.0)


@_jit
def _near_gelu(x: float) -> Quick:
    wide = np.float64(x)
    p = 0.5 + wide * _horner(_NEAR_GELU_POLY, wide * wide * (2.0 / 12.25) - 1.0)
    return wide * p, _decided(wide * p) & _usual(x, 3.5)


@_jit
def _near_gelu_grad(x: float) -> Quick:
    wide = np.float64(x)
    bend = wide * _horner(_NEAR_GELU_GRAD_POLY, wide * wide * (2.0 / 12.25) - 1.0)
    y = 0.5 + bend
    return y, _separates(y, _NEAR_GELU_GRAD) & _usual(x, 3.5)


@_jit
def _quick_gelu_tanh(x: float) -> Quick:
    wide = np.float64(x)
    y = _over(wide, 1.0 + quick_exp(-_tanh_argument(wide)))
    return (wide if x == 0.0 else y), _decided(y) & _usual(x, 9.0)


@_jit
def _quick_softplus(x: float) -> Quick:
    e = quick_exp(-abs(np.float64(x)))
    s = _over(e, e + 2.0)  # log(1 + e) = 2 artanh(s)
    y = (np.float64(x) if x > 0.0 else 0.0) + s * _horner(_QUICK_ARTANH_POLY, s * s)
    return y, _decided(y) & _usual(x, 80.0)


@_jit
def _quick_silu_grad(x: float) -> Quick:
    wide = np.float64(x)
    e = quick_exp(-wide)
    s = _over(1.0, 1.0 + e)
    bend = wide * s * (s * e)
    y = s + bend
    return y, _separates(y, (s + abs(bend)) * QUICK) & _usual(x, 40.0)


@_jit
def _quick_gelu_grad(x: float) -> Quick:
    wide = np.float64(x)
    e, tail = _quick_tail(abs(x), wide * wide)
    cumulative = tail if x < 0.0 else 1.0 - tail
    bend = wide * e * _INV_SQRT_2_PI
    y = cumulative + bend
    return y, _separates(y, (cumulative + abs(bend)) * QUICK) & _usual(x, 8.0)


@_jit
def _quick_gelu_tanh_grad(x: float) -> Quick:
    wide = np.float64(x)
    e = quick_exp(-_tanh_argument(wide))
    s = _over(1.0, 1.0 + e)
    slope = _SQRT_8_OVER_PI * (1.0 + 3.0 * _TANH_CUBIC * (wide * wide))
    bend = wide * slope * s * (s * e)
    y = s + bend
    return y, _separates(y, (s + abs(bend)) * QUICK) & _usual(x, 7.0)


@_jit
def _quick_log(x: float) -> Quick:
    bits = _bits32(x)
    exponent = np.int32(bits - np.int32(_SQRT_HALF_BITS32)) >> np.int32(23)
    m = _float32(np.int32(bits - np.int32(exponent << np.int32(23))))  # in [sqrt(1/2), sqrt(2))
    k, wide = np.float64(exponent), np.float64(m)
    s = _quotient(wide - 1.0, wide + 1.0, np.float32(1.0) / (m + np.float32(1.0)))
    square = s * s
    y = k * _LN2 + (2.0 * s + s * square * _horner(_QUICK_LOG_POLY, square))
    return y, _decided(y) & (x >= np.float32(2.0**-126)) & (x < np.float32(np.inf))


@_jit
def _quick_rsqrt(x: float) -> Quick:
    start = np.float64(np.float32(1.0) / np.sqrt(x))
    y = start + start * (0.5 - (0.5 * np.float64(x)) * start * start)
    return y, _decided(y) & (x >= np.float32(2.0**-126)) & (x < np.float32(np.inf))


# Loops, in chunks: where a quick value leaves an entry open, its whole chunk is done again with
# intervals. Each function is spelled out, as a kernel with a name of its own.
# Indices are unsigned: LLVM does not vectorise one that may be negative. Slices would do, but making
# them in every chunk costs reference counts.

CHUNK = np.uint64(64)  # with 2^-13 of the entries open, 0.8 percent of the chunks are done twice


@_jit
def _round(interval: Interval) -> Any:
    """The fp32 bits that both ends round to, if they do."""
    low, high = np.float32(interval[0]), np.float32(interval[1])
    failed = np.int32(NAN) if low != low else np.int32(UNDECIDED)
    return _bits32(low) if low == high else failed


@_jit
def by_interval(interval: Any, x: Inputs, factor: Any, out: Outputs, start: int, stop: int) -> int:
    """Entries [start, stop) with the accurate function; returns the number of undecided ones.

    With a factor, results are times it, rounded again, but for the undecided ones.
    """
    undecided = 0
    for i in range(np.uint64(start), np.uint64(stop)):
        bits = _round(interval(np.float64(x[i])))
        undecided += bits == np.int32(UNDECIDED)
        if factor is not None and bits != np.int32(UNDECIDED):
            bits = _bits32(np.float32(_float32(bits) * factor[i]))
        out[i] = bits
    return undecided


@_jit
def _all_decided(quick: Any, x: Inputs, factor: Any, out: Outputs, at: int) -> bool:
    """The same for the `CHUNK` entries from `at` on with a quick function; tells whether it decides."""
    open_ = False
    for i in range(CHUNK):
        y, decided = quick(x[at + i])
        value = np.float32(y)
        if factor is not None:
            value = value * factor[at + i]
        out[at + i] = _bits32(value)
        open_ |= not decided
    return not open_


@_jit
def _by_chunks(
    near: Any,
    quick: Any,
    interval: Any,
    x: Inputs,
    factor: Any,
    out: Outputs,
    start: int,
    stop: int,
) -> int:
    """`near`, if there is one, is quicker than `quick` in a smaller range."""
    undecided, at, end = 0, np.uint64(start), np.uint64(stop)
    while at + CHUNK <= end:
        decided = False
        if near is not None:
            decided = _all_decided(near, x, factor, out, at)
        if not decided and not _all_decided(quick, x, factor, out, at):
            undecided += by_interval(interval, x, factor, out, at, at + CHUNK)
        at += CHUNK
    return undecided + by_interval(interval, x, factor, out, at, end)


@kernel()
def undecided_places(out: Outputs) -> NDArray[np.int64]:
    """Where `out` is `UNDECIDED`. Most chunks have none, which is seen 64 entries at a time."""
    places = [0 for _ in range(0)]  # so numba learns the type
    for start in range(0, out.size, 64):
        part = out[start : start + 64]
        count = 0
        for i in range(part.size):
            count += part[i] == np.int32(UNDECIDED)
        if count:
            for i in range(part.size):
                if part[i] == np.int32(UNDECIDED):
                    places.append(start + i)
    return np.array(places)


@_jit
def exp_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, _quick_exp, _exp, x, None, out, start, stop)


@_jit
def expm1_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, _quick_expm1, _expm1, x, None, out, start, stop)


@_jit
def tanh_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, _quick_tanh, _tanh, x, None, out, start, stop)


@_jit
def sigmoid_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, _quick_sigmoid, _sigmoid, x, None, out, start, stop)


@_jit
def silu_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, _quick_silu, _silu, x, None, out, start, stop)


@_jit
def erf_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(_erf, x, None, out, start, stop)


@_jit
def erfinv_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(_erfinv, x, None, out, start, stop)


@_jit
def gelu_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(_near_gelu, _quick_gelu, _gelu, x, None, out, start, stop)


@_jit
def gelu_tanh_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, _quick_gelu_tanh, _gelu_tanh, x, None, out, start, stop)


@_jit
def softplus_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, _quick_softplus, _softplus, x, None, out, start, stop)


@_jit
def silu_grad_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, _quick_silu_grad, _silu_grad, x, None, out, start, stop)


@_jit
def gelu_grad_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(_near_gelu_grad, _quick_gelu_grad, _gelu_grad, x, None, out, start, stop)


@_jit
def gelu_tanh_grad_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, _quick_gelu_tanh_grad, _gelu_tanh_grad, x, None, out, start, stop)


@_jit
def log_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, _quick_log, _log, x, None, out, start, stop)


@_jit
def log1p_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(_log1p, x, None, out, start, stop)


@_jit
def sin_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(_sin, x, None, out, start, stop)


@_jit
def cos_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(_cos, x, None, out, start, stop)


@_jit
def sin_two_pi_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(_sin_two_pi, x, None, out, start, stop)


@_jit
def cos_two_pi_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(_cos_two_pi, x, None, out, start, stop)


@_jit
def sqrt_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(_sqrt, x, None, out, start, stop)


@_jit
def rsqrt_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, _quick_rsqrt, _rsqrt, x, None, out, start, stop)


@_jit
def power_loop(x: Inputs, y: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, y, out, undecided = x[start:stop], y[start:stop], out[start:stop], 0
    for i in range(x.size):
        bits = _round(_power(np.float64(x[i]), np.float64(y[i])))
        undecided += bits == np.int32(UNDECIDED)
        out[i] = bits
    return undecided


@_jit
def silu_grad_times_loop(x: Inputs, factor: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, _quick_silu_grad, _silu_grad, x, factor, out, start, stop)


@_jit
def gelu_grad_times_loop(x: Inputs, factor: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(_near_gelu_grad, _quick_gelu_grad, _gelu_grad, x, factor, out, start, stop)


@_jit
def gelu_tanh_grad_times_loop(
    x: Inputs, factor: Inputs, out: Outputs, start: int, stop: int
) -> int:
    return _by_chunks(None, _quick_gelu_tanh_grad, _gelu_tanh_grad, x, factor, out, start, stop)
