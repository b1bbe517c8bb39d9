"""Correctly rounded elementary functions in torch operations: the twin of `cpu.elementary`.

The float64 cores, their polynomials and their error bounds are those of `elementary_intervals`, one
operation per line of it, never fused: the bounds hold either way. Entries that a bound does not
decide are computed by `cpu.multiprecision` on the CPU. So a result does not depend on which core
computed it.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from veritrain.errors import UsageError
from veritrain.numerics.cpu import elementary, multiprecision
from veritrain.numerics.cpu import elementary_constants as k
from veritrain.numerics.device import fused
from veritrain.numerics.platform.devices import elsewhere, twin_of

Interval: TypeAlias = tuple[Tensor, Tensor]

_where = torch.where


@twin_of(elementary.apply)
def apply(name: str, x: Tensor) -> Tensor:
    function = FUNCTIONS.get(name)
    if function is None:
        raise UsageError(f"elementary function: expected one of {sorted(FUNCTIONS)}, got {name!r}")
    if x.dtype != torch.float32:
        raise UsageError(f"{name}: expected a float32 tensor, got {x.dtype}")
    x = x.detach().contiguous()
    if fused.serves(x.device):
        bits, count = fused.elementary_bits(name, function, x)
    else:
        bits, count = rounded_bits(*function(x.double()))
    if count:
        undecided = (bits.view(-1) == k.UNDECIDED).nonzero().view(-1)
        inputs = x.view(-1)[undecided].view(torch.int32).cpu().tolist()
        decided = [_decide(name, pattern) for pattern in inputs]
        exact = torch.tensor(decided, dtype=torch.int32, device="cpu")
        bits.view(-1)[undecided] = exact.to(x.device)
    return bits.view(torch.float32)


@twin_of(elementary.apply_times)
def apply_times(name: str, x: Tensor, factor: Tensor) -> Tensor:
    return apply(name, x) * factor.detach()


@twin_of(elementary.power)
def power(x: Tensor, y: Tensor) -> Tensor:
    """Too seldom used to be written once more: computed on the CPU and moved."""
    place = x.device if elsewhere(x) else y.device
    with torch.device("cpu"):
        found = elementary.power(x.detach().to("cpu"), y.detach().to("cpu"))
    return found.to(place)


def rounded_bits(low: Tensor, high: Tensor) -> tuple[Tensor, int]:
    """Bits of what both ends of an interval round to, UNDECIDED where they differ; how many do."""
    low, high = low.float(), high.float()
    number = low == low
    undecided = number & (low != high)
    bits = _where(undecided, k.UNDECIDED, _where(number, low.view(torch.int32), k.NAN))
    return bits, int(undecided.sum())


def _decide(name: str, pattern: int) -> int:
    """Bits of the result for the bits of an input, both as signed integers."""
    bits = multiprecision.rounded_bits(name, multiprecision.float_of(pattern % (1 << 32)))
    return bits - (1 << 32) if bits >> 31 else bits


# Cores, on float64 tensors; see `elementary_intervals` for ranges and sources.


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    *rest, last = coefficients
    value = torch.full_like(x, last)
    for coefficient in reversed(rest):
        value = value * x + coefficient
    return value


def _clamp(x: Tensor, limit: float) -> Tensor:
    x = _where(x > limit, limit, x)
    return _where(x < -limit, -limit, x)


def _relative(y: Tensor, bound: float) -> Interval:
    return y * (1.0 - bound), y * (1.0 + bound)


def _absolute(y: Tensor, bound: Tensor) -> Interval:
    return y - bound, y + bound


def _reciprocal(x: Tensor) -> Tensor:
    return torch.ones_like(x) / x


def _exp_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    shifted = x * k.LOG2_E + k.MAGIC
    n = shifted - k.MAGIC
    r = (x - n * k.LN2_HIGH) - n * k.LN2_LOW
    scale = ((shifted.view(torch.int64) << 52) + k.ONE_BITS).view(torch.float64)
    return scale, r + r * r * _horner(k.EXP_POLY, r)


def _exp(x: Tensor) -> Tensor:
    scale, tail = _exp_parts(x)
    return scale + scale * tail


def _expm1(x: Tensor) -> Tensor:
    scale, tail = _exp_parts(x)
    return (scale - 1.0) + scale * tail


def _sigmoid(x: Tensor) -> Tensor:
    return _reciprocal(_exp(-x) + 1.0)


def _erfcx(t: Tensor) -> Tensor:
    u = torch.full_like(t, 3.5) / (t + 3.5)
    return u * _horner(k.ERFCX_POLY, u + u - 1.0)


def _erf(x: Tensor) -> Tensor:
    square, size = x * x, x.abs()
    near = x * _horner(k.ERF_POLY, square)
    far = 1.0 - _exp(-square) * _erfcx(size)
    return _where(size < 0.125, near, _where(x < 0.0, -far, far))


def _nearer_erfinv(y: Tensor, size: Tensor) -> Tensor:
    square = y * y
    tail = _exp(-square)
    far = (1.0 - size) - tail * _erfcx(y)
    near = y * _horner(k.ERF_POLY, square) - size
    step = _where(y < 0.125, near, far) * k.SQRT_PI_OVER_2 / tail
    return y - step / (y * step + 1.0)


def _erfinv(x: Tensor) -> Tensor:
    size = x.abs()
    half_log = _log((1.0 - size) * (size + 1.0)) * 0.5
    shift = half_log + k.TWO_OVER_PI / k.WINITZKI
    y = torch.sqrt(torch.sqrt(shift * shift - half_log * (2.0 / k.WINITZKI)) - shift)
    y = _nearer_erfinv(_nearer_erfinv(y, size), size)
    return _where(size <= 2.0**-6, x * _horner(k.ERFINV_POLY, x * x), _where(x < 0.0, -y, y))


def _log(x: Tensor) -> Tensor:
    bits = x.view(torch.int64)
    exponent = (bits - k.SQRT_HALF_BITS) >> 52
    n = exponent.double()
    m = (bits - (exponent << 52)).view(torch.float64)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    return n * k.LN2_HIGH + (2.0 * s + (s * square * _horner(k.LOG_POLY, square) + n * k.LN2_LOW))


def _log1p(x: Tensor) -> Tensor:
    u = x + 1.0
    return _log(u) + (x - (u - 1.0)) / u


def _sin_quadrant(r: Tensor, quadrant: Tensor) -> Tensor:
    square = r * r
    sine = r * (square * _horner(k.SIN_POLY, square) + 1.0)
    cosine = 1.0 - square * 0.5 + square * square * _horner(k.COS_POLY, square)
    value = _where((quadrant & 1) != 0, cosine, sine)
    return _where((quadrant & 2) != 0, -value, value)


def _inside(x: Tensor, interval: Interval) -> Interval:
    """The interval up to 2^20; beyond, one that decides nothing; NaN for an infinity."""
    inside, invalid = x.abs() <= k.SINE_LIMIT, x - x
    return _where(inside, interval[0], invalid - 1.0), _where(inside, interval[1], invalid + 1.0)


def _sine(x: Tensor, turn: int) -> Interval:
    shifted = x * k.TWO_OVER_PI + k.MAGIC
    n = shifted - k.MAGIC
    r = ((x - n * k.HALF_PI_1) - n * k.HALF_PI_2) - n * k.HALF_PI_3
    y = _sin_quadrant(r, shifted.view(torch.int64) + turn)
    return _inside(x, _relative(y, k.SINE))


def _sine_turns(x: Tensor, turn: int) -> Interval:
    shifted = x * 4.0 + k.MAGIC
    r = (x - (shifted - k.MAGIC) * 0.25) * k.TWO_PI
    y = _sin_quadrant(r, shifted.view(torch.int64) + turn)
    zero = torch.zeros_like(x) if turn == 1 else x * 0.0
    return _inside(x, _relative(_where(y == 0.0, zero, y), k.SINE))


def _tanh_argument(x: Tensor) -> Tensor:
    return (x + (x * x * x) * k.TANH_CUBIC) * k.SQRT_8_OVER_PI


def _erfc_half(x: Tensor) -> tuple[Tensor, Tensor]:
    """e^(-x^2 / 2), and the normal distribution's tail beyond |x|."""
    e = _exp((x * x) * -0.5)
    return e, e * 0.5 * _erfcx(x.abs() * k.SQRT_HALF)


# Intervals of each function.


def _exp_interval(x: Tensor) -> Interval:
    return _relative(_exp(_clamp(x, k.EXP_LIMIT)), k.EXP)


def _expm1_interval(x: Tensor) -> Interval:
    return _relative(_where(x == 0.0, x, _expm1(_clamp(x, k.EXP_LIMIT))), k.EXPM1)


def _tanh_interval(x: Tensor) -> Interval:
    e = _expm1(_clamp(x + x, k.EXP_LIMIT))
    return _relative(_where(x == 0.0, x, e / (e + 2.0)), k.TANH)


def _sigmoid_interval(x: Tensor) -> Interval:
    return _relative(_sigmoid(_clamp(x, k.EXP_LIMIT)), k.SIGMOID)


def _silu_interval(x: Tensor) -> Interval:
    x = _where(x < -k.EXP_LIMIT, -k.EXP_LIMIT, x)
    return _relative(x * _sigmoid(_clamp(x, k.EXP_LIMIT)), k.SIGMOID)


def _erf_interval(x: Tensor) -> Interval:
    return _relative(_erf(_clamp(x, k.ERF_LIMIT)), k.ERF)


def _erfinv_interval(x: Tensor) -> Interval:
    size = x.abs()
    y = _erfinv(_where(size >= 1.0, 0.0, x))
    y = _where(size == 1.0, x * math.inf, y)
    return _relative(_where(size <= 1.0, y, math.nan), k.ERFINV)


def _gelu_interval(x: Tensor) -> Interval:
    x = _where(x < -k.GELU_LIMIT, -k.GELU_LIMIT, x)
    _, tail = _erfc_half(_clamp(x, k.GELU_LIMIT))
    return _relative(x * _where(x < 0.0, tail, 1.0 - tail), k.GELU)


def _gelu_tanh_interval(x: Tensor) -> Interval:
    x = _where(x < -k.GELU_LIMIT, -k.GELU_LIMIT, x)
    argument = _clamp(_tanh_argument(x), k.EXP_LIMIT)
    bound = (argument.abs() + 1.0) * k.GELU_TANH
    y = x * _sigmoid(argument)
    return y * (1.0 - bound), y * (bound + 1.0)


def _softplus_interval(x: Tensor) -> Interval:
    tail = _log1p(_exp(-_clamp(x, k.EXP_LIMIT).abs()))
    return _relative(_where(x > 0.0, x, 0.0) + tail, k.SOFTPLUS)


def _silu_grad_interval(x: Tensor) -> Interval:
    x = _clamp(x, k.EXP_LIMIT)
    e = _exp(-x)
    s = _reciprocal(e + 1.0)
    bend = x * s * (s * e)
    return _absolute(s + bend, (s + bend.abs()) * k.SILU_GRAD)


def _gelu_grad_interval(x: Tensor) -> Interval:
    x = _clamp(x, k.GELU_LIMIT)
    e, tail = _erfc_half(x)
    cumulative = _where(x < 0.0, tail, 1.0 - tail)
    bend = x * e * k.INV_SQRT_2_PI
    return _absolute(cumulative + bend, (cumulative + bend.abs()) * k.GELU_GRAD)


def _gelu_tanh_grad_interval(x: Tensor) -> Interval:
    x = _clamp(x, k.GELU_LIMIT)
    argument = _clamp(_tanh_argument(x), k.EXP_LIMIT)
    e = _exp(-argument)
    s = _reciprocal(e + 1.0)
    slope = ((x * x) * (3.0 * k.TANH_CUBIC) + 1.0) * k.SQRT_8_OVER_PI
    bend = x * slope * s * (s * e)
    bound = (s + bend.abs()) * (argument.abs() + 1.0) * k.GELU_TANH_GRAD
    return _absolute(s + bend, bound)


def _log_interval(x: Tensor) -> Interval:
    y = _where(x == math.inf, x, _log(x))
    y = _where(x == 0.0, -math.inf, y)
    return _relative(_where(x >= 0.0, y, math.nan), k.LOG)


def _log1p_interval(x: Tensor) -> Interval:
    y = _where(x.abs() < 2.0**-29, x * (1.0 - x * 0.5), _log1p(x))
    y = _where(x == math.inf, x, y)
    y = _where(x == -1.0, -math.inf, y)
    return _relative(_where(x >= -1.0, y, math.nan), k.LOG1P)


def sqrt(x: Tensor) -> Tensor:
    """Correctly rounded square root of float32 values: float64's is within 2^-51 of the real root,
    which is nowhere that near to the middle of two float32 numbers unless it is one of them."""
    return torch.sqrt(x.double()).float()


def _sqrt_interval(x: Tensor) -> Interval:
    y = torch.sqrt(x)
    return y, y


def _rsqrt_interval(x: Tensor) -> Interval:
    return _relative(_reciprocal(torch.sqrt(x)), k.RSQRT)


FUNCTIONS: dict[str, Callable[[Tensor], Interval]] = {
    "exp": _exp_interval,
    "expm1": _expm1_interval,
    "tanh": _tanh_interval,
    "sigmoid": _sigmoid_interval,
    "silu": _silu_interval,
    "silu_grad": _silu_grad_interval,
    "erf": _erf_interval,
    "erfinv": _erfinv_interval,
    "gelu": _gelu_interval,
    "gelu_grad": _gelu_grad_interval,
    "gelu_tanh": _gelu_tanh_interval,
    "gelu_tanh_grad": _gelu_tanh_grad_interval,
    "softplus": _softplus_interval,
    "log": _log_interval,
    "log1p": _log1p_interval,
    "sin": lambda x: _sine(x, 0),
    "cos": lambda x: _sine(x, 1),
    "sin_two_pi": lambda x: _sine_turns(x, 0),
    "cos_two_pi": lambda x: _sine_turns(x, 1),
    "sqrt": _sqrt_interval,
    "rsqrt": _rsqrt_interval,
}
