"""Correctly rounded elementary functions by multiprecision arithmetic: slow and plain.

Contract: `rounded_bits(name, x)` is the fp32 number nearest to the real function of the fp32 number
x, ties to even, as bits; special inputs follow the table at the end. It decides the entries that
the fp64 kernels leave undecided and is their oracle in tests.

Method: evaluate with p = 96, 192, 384, ... bits; a bound on the error gives an interval; stop when
both of its ends round to the same number. The functions are irrational but at points where the
value is an fp32 number itself, so that no value is a tie and the loop ends.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from mpmath.ctx_mp import MPContext  # pyright: ignore[reportMissingTypeStubs]

from veritrain.errors import NumericsError, UsageError

Real: TypeAlias = Any  # mpmath's real number, which has no type stubs
Terms: TypeAlias = tuple[Real, ...]  # their sum is the value; each is right to p - _GUARD_BITS bits

NAN = 0x7FC00000
_SIGN = 0x80000000
_INFINITY = 0x7F800000

_FIRST_BITS = 96
_LAST_BITS = 8192  # the hardest inputs, tiny ones next to ties, need below 700
_GUARD_BITS = 24
_FLAT = 250  # beyond +-250 every function that grows or decays exponentially is flat in fp32


class _Local(threading.local):
    """mpmath's context holds the working precision, so that every thread needs its own."""

    def __init__(self) -> None:
        self.context: Any = MPContext()


_local = _Local()


@dataclass(frozen=True, kw_only=True)
class Function:
    """A real function and its values where the formula does not reach."""

    terms: Callable[[Any, Real], Terms]
    minus_infinity: float
    plus_infinity: float
    keeps_zero: bool = False  # f(+0) = +0 and f(-0) = -0
    pole: float | None = None  # f is -infinity here and NaN below
    odd_zeros: bool = False  # an exact zero has the sign of x, otherwise it is +0


def bits_of(x: float) -> int:
    """Bits of the fp32 number x; any NaN gives the canonical one."""
    return NAN if math.isnan(x) else int.from_bytes(struct.pack("<f", x), "little")


def float_of(bits: int) -> float:
    """The fp32 number with these bits."""
    return struct.unpack("<f", bits.to_bytes(4, "little"))[0]  # type: ignore[no-any-return]


def rounded_bits(name: str, x: float) -> int:
    """Bits of the fp32 number nearest to the function `name` of x, an fp32 number.

    Raises:
        UsageError: no function of this name.
        NumericsError: the value could not be told from a tie with 8192 bits.
    """
    function = FUNCTIONS.get(name)
    if function is None:
        raise UsageError(f"elementary function: expected one of {sorted(FUNCTIONS)}, got {name!r}")
    special = _special(name, function, x)
    return _decided(name, function, x) if special is None else bits_of(special)


def power_bits(x: float, y: float) -> int:
    """Bits of the fp32 number nearest to x to the power y, both fp32 numbers.

    Special values are those of IEEE 754-2019 section 9.2.1, `pow`.
    """
    odd = y % 2 == 1 if math.isfinite(y) else False
    sign = _SIGN if odd and math.copysign(1, x) < 0 and not math.isnan(x) else 0
    special = _special_power(abs(x), y)
    if x < 0 and math.isfinite(x) and math.isfinite(y) and y != int(y):
        special = math.nan
    if x == 1 or y == 0:
        special = 1.0
    if special is not None:
        return bits_of(special) | sign
    exact = _exact_power(abs(x), y)
    if exact is not None:
        return _nearest(exact) | sign
    function = Function(
        terms=lambda c, size: (_exp(c, y * c.log(size)),), minus_infinity=_NAN, plus_infinity=_NAN
    )
    return _decided(f"power {y!r} of ", function, abs(x)) | sign


def _special_power(size: float, y: float) -> float | None:
    """The power of a magnitude where it is 0, infinite or undefined by a limit."""
    if math.isnan(size) or math.isnan(y):
        return math.nan
    if size == 1:
        return 1.0
    if size == 0 or math.isinf(size) or math.isinf(y):
        return math.inf if (size > 1) == (y > 0) else 0.0
    return None


def _exact_power(size: float, y: float) -> Real | None:
    """The power if it is a binary fraction of at most 64 bits, as ties and fp32 numbers are."""
    fraction, exponent = math.frexp(size)
    mantissa, exponent = int(fraction * 2**24), exponent - 24
    zeros = (mantissa & -mantissa).bit_length() - 1
    mantissa, exponent = mantissa >> zeros, exponent + zeros  # size = mantissa 2^exponent
    while y != int(y):  # an odd number over a power of two: only squares have such powers
        root = math.isqrt(mantissa)
        if root * root != mantissa or exponent % 2:
            return None
        mantissa, exponent, y = root, exponent // 2, y * 2
    if mantissa > 1 and not 0 <= y * (mantissa.bit_length() - 1) <= 64:
        return None
    if abs(exponent * y) > 2**20:  # far beyond the range: the interval decides
        return None
    return _local.context.mpf((mantissa ** int(y) if mantissa > 1 else 1, int(exponent * y)))


def _decided(name: str, function: Function, x: float) -> int:
    """Ziv's loop."""
    precision = _FIRST_BITS
    while precision <= _LAST_BITS:
        low, high = _interval(function, x, precision)
        if low == high:
            return low
        precision *= 2
    raise NumericsError(f"{name}({x!r}) could not be rounded with {_LAST_BITS} bits")


def _special(name: str, function: Function, x: float) -> float | None:
    if math.isnan(x):
        return math.nan
    if x == 0 and name == "rsqrt":  # IEEE 754-2019 section 9.2: rSqrt(-0) is -infinity
        return math.copysign(math.inf, x)
    if x == 0 and function.keeps_zero:
        return x
    if name == "erfinv" and abs(x) == 1:
        return x * math.inf
    if name == "erfinv" and abs(x) > 1:
        return math.nan
    if function.pole is not None and x <= function.pole:
        return -math.inf if x == function.pole else math.nan
    if math.isinf(x):
        return function.plus_infinity if x > 0 else function.minus_infinity
    return None


def _interval(function: Function, x: float, precision: int) -> tuple[int, int]:
    context = _local.context
    with context.workprec(precision):
        terms = function.terms(context, context.mpf(x))
        if not any(terms):
            bits = _SIGN if function.odd_zeros and x < 0 else 0
            return bits, bits
        value = context.fsum(terms)
        error = context.ldexp(context.fsum(terms, absolute=True), _GUARD_BITS - precision)
        return _nearest(value - error), _nearest(value + error)


def _nearest(value: Real) -> int:
    """Bits of the fp32 number nearest to an mpmath number, ties to even."""
    negative, mantissa, exponent, length = value._mpf_
    sign = _SIGN if negative else 0
    mantissa = int(mantissa)
    if mantissa == 0:
        return 0
    if exponent + length > 128:
        return sign | _INFINITY
    quantum = max(exponent + length - 24, -149)
    shift = quantum - exponent
    if shift <= 0:
        count = mantissa << -shift
    elif shift > length + 1:
        count = 0
    else:
        count, rest = divmod(mantissa, 1 << shift)
        half = 1 << (shift - 1)
        count += rest > half or (rest == half and count & 1)
    return sign | (count + ((quantum + 149) << 23))  # a carry moves on to the next exponent


# The functions. `c` is the mpmath context, `x` an exact fp32 number.


def _clamp(x: Real) -> Real:
    return min(max(x, -_FLAT), _FLAT)


def _exp(c: Any, x: Real) -> Real:
    return c.exp(_clamp(x))


def _sigmoid(c: Any, x: Real) -> Real:
    return 1 / (1 + _exp(c, -x))


def _normal_cdf(c: Any, x: Real) -> Real:
    return c.erfc(-_clamp(x) / c.sqrt(2)) / 2


def _tanh_argument(c: Any, x: Real) -> Real:
    return 2 * c.sqrt(2 / c.pi) * (x + c.mpf(44715) / 10**6 * x**3)


def _erfinv(c: Any, x: Real) -> Terms:
    """mpmath's root, taken only where erf on both sides of it proves the digits that count."""
    y = c.erfinv(x)
    with c.extraprec(c.prec):
        width = abs(y) * c.ldexp(1, _GUARD_BITS - c.prec // 2)
        if not c.erf(y - width) < x < c.erf(y + width):
            raise NumericsError(f"erfinv({x}) could not be computed")
    return (y,)


def _silu_grad(c: Any, x: Real) -> Terms:
    x = _clamp(x)
    s = _sigmoid(c, x)
    return s, x * s * _sigmoid(c, -x)


def _gelu_grad(c: Any, x: Real) -> Terms:
    x = _clamp(x)
    return _normal_cdf(c, x), x * _exp(c, -(x**2) / 2) / c.sqrt(2 * c.pi)


def _gelu_tanh_grad(c: Any, x: Real) -> Terms:
    x = _clamp(x)
    argument = _tanh_argument(c, x)
    s = _sigmoid(c, argument)
    slope = 2 * c.sqrt(2 / c.pi) * (1 + c.mpf(3 * 44715) / 10**6 * x**2)
    return s, x * slope * s * _sigmoid(c, -argument)


def _softplus(c: Any, x: Real) -> Terms:
    return max(x, 0), c.log1p(_exp(c, -abs(x)))


_INF, _NAN = math.inf, math.nan

# pyright: reportUnknownLambdaType=false
FUNCTIONS: dict[str, Function] = {
    "exp": Function(terms=lambda c, x: (_exp(c, x),), minus_infinity=0.0, plus_infinity=_INF),
    "expm1": Function(
        terms=lambda c, x: (c.expm1(_clamp(x)),),
        minus_infinity=-1.0,
        plus_infinity=_INF,
        keeps_zero=True,
    ),
    "tanh": Function(
        terms=lambda c, x: (c.tanh(_clamp(x)),),
        minus_infinity=-1.0,
        plus_infinity=1.0,
        keeps_zero=True,
    ),
    "sigmoid": Function(
        terms=lambda c, x: (_sigmoid(c, x),), minus_infinity=0.0, plus_infinity=1.0
    ),
    "silu": Function(
        terms=lambda c, x: (x * _sigmoid(c, x),),
        minus_infinity=-0.0,
        plus_infinity=_INF,
        keeps_zero=True,
    ),
    "erf": Function(
        terms=lambda c, x: (c.erf(_clamp(x)),),
        minus_infinity=-1.0,
        plus_infinity=1.0,
        keeps_zero=True,
    ),
    "erfinv": Function(terms=_erfinv, minus_infinity=_NAN, plus_infinity=_NAN, keeps_zero=True),
    "gelu": Function(
        terms=lambda c, x: (x * _normal_cdf(c, x),),
        minus_infinity=-0.0,
        plus_infinity=_INF,
        keeps_zero=True,
    ),
    "gelu_tanh": Function(
        terms=lambda c, x: (x * _sigmoid(c, _tanh_argument(c, x)),),
        minus_infinity=-0.0,
        plus_infinity=_INF,
        keeps_zero=True,
    ),
    "softplus": Function(terms=_softplus, minus_infinity=0.0, plus_infinity=_INF),
    "silu_grad": Function(terms=_silu_grad, minus_infinity=-0.0, plus_infinity=1.0),
    "gelu_grad": Function(terms=_gelu_grad, minus_infinity=-0.0, plus_infinity=1.0),
    "gelu_tanh_grad": Function(terms=_gelu_tanh_grad, minus_infinity=-0.0, plus_infinity=1.0),
    "log": Function(
        terms=lambda c, x: (c.log(x),), minus_infinity=_NAN, plus_infinity=_INF, pole=0.0
    ),
    "log1p": Function(
        terms=lambda c, x: (c.log1p(x),),
        minus_infinity=_NAN,
        plus_infinity=_INF,
        keeps_zero=True,
        pole=-1.0,
    ),
    "sin": Function(
        terms=lambda c, x: (c.sin(x),), minus_infinity=_NAN, plus_infinity=_NAN, keeps_zero=True
    ),
    "cos": Function(terms=lambda c, x: (c.cos(x),), minus_infinity=_NAN, plus_infinity=_NAN),
    "sin_two_pi": Function(
        terms=lambda c, x: (c.sinpi(2 * x),),
        minus_infinity=_NAN,
        plus_infinity=_NAN,
        keeps_zero=True,
        odd_zeros=True,
    ),
    "cos_two_pi": Function(
        terms=lambda c, x: (c.cospi(2 * x),), minus_infinity=_NAN, plus_infinity=_NAN
    ),
    "sqrt": Function(
        terms=lambda c, x: (c.sqrt(x),),
        minus_infinity=_NAN,
        plus_infinity=_INF,
        keeps_zero=True,
        pole=0.0,
    ),
    "rsqrt": Function(
        terms=lambda c, x: (1 / c.sqrt(x),), minus_infinity=_NAN, plus_infinity=0.0, pole=0.0
    ),
}
