"""Elementwise operators of more than one rounding: split into basic operations, or correctly
rounded.

A fused multiply-add is one rounding where its parts are two, and only some machines fuse; so what
PyTorch fuses is written here as separate operations, each rounded to float32, in the order given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.cpu import elementary
from veritrain.numerics.rules.table import Kind, aten, require_float32, rule, times_


@rule(Kind.IEEE, aten.add.Tensor, aten.add.Scalar)
def _add(x: Any, y: Any, alpha: float = 1) -> Tensor:
    return torch.add(x, y if alpha == 1 else torch.mul(y, alpha))


@rule(Kind.IEEE, aten.sub.Tensor, aten.sub.Scalar)
def _sub(x: Any, y: Any, alpha: float = 1) -> Tensor:
    return torch.sub(x, y if alpha == 1 else torch.mul(y, alpha))


@rule(Kind.IEEE, aten.add_.Tensor, aten.add_.Scalar)
def _add_(x: Tensor, y: Any, alpha: float = 1) -> Tensor:
    return x.add_(y if alpha == 1 else torch.mul(y, alpha))


@rule(Kind.IEEE, aten.sub_.Tensor, aten.sub_.Scalar)
def _sub_(x: Tensor, y: Any, alpha: float = 1) -> Tensor:
    return x.sub_(y if alpha == 1 else torch.mul(y, alpha))


@rule(Kind.IEEE, aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(x: Tensor, y: Any, alpha: float = 1) -> Tensor:
    return torch.rsub(x if alpha == 1 else torch.mul(x, alpha), y)


@rule(Kind.IEEE, aten.copysign.Tensor, aten.copysign.Scalar)
def _copysign(x: Tensor, sign: Any) -> Tensor:
    """A NaN gives +: which sign it has depends on the processor."""
    if isinstance(sign, Tensor):
        return torch.copysign(x, torch.where(sign.isnan(), 1, sign))
    return torch.copysign(x, 1 if math.isnan(sign) else sign)


@rule(Kind.COMPOSITE, aten.addcmul.default)
def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    product = a * b
    return x + (product if value == 1 else product * value)


@rule(Kind.COMPOSITE, aten.addcdiv.default)
def _addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    quotient = a / b
    return x + (quotient if value == 1 else quotient * value)


@rule(Kind.COMPOSITE, aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(start: Tensor, end: Tensor, weight: Any) -> Tensor:
    return start + (end - start) * weight


@rule(Kind.COMPOSITE, aten.square.default)
def _square(x: Tensor) -> Tensor:
    return x * x


_POWERS: dict[float, Callable[[Tensor], Tensor]] = {
    0.0: torch.ones_like,
    1.0: torch.clone,
    1.5: lambda x: x * elementary.apply("sqrt", x),
    2.0: _square,
    3.0: lambda x: x * x * x,
    4.0: lambda x: _square(_square(x)),
    0.5: lambda x: elementary.apply("sqrt", x),
    -0.5: lambda x: elementary.apply("rsqrt", x),
    -1.0: torch.reciprocal,
    -1.5: lambda x: torch.reciprocal(x * elementary.apply("sqrt", x)),
    -2.0: lambda x: torch.reciprocal(x * x),
    -3.0: lambda x: torch.reciprocal(x * x * x),
}


@rule(Kind.COMPOSITE, aten.pow.Tensor_Scalar)
def _pow(x: Tensor, exponent: float) -> Tensor:
    if not x.is_floating_point() and isinstance(exponent, int):
        return torch.pow(x, exponent)
    require_float32("pow", x)
    if float(exponent) not in _POWERS:
        return elementary.power(x, torch.full((), exponent, dtype=torch.float32))
    return _POWERS[float(exponent)](x)


@rule(Kind.COMPOSITE, aten.pow_.Scalar)
def _pow_(x: Tensor, exponent: float) -> Tensor:
    return x.copy_(_pow(x, exponent))


@rule(Kind.ELEMENTARY, aten.pow.Tensor_Tensor)
def _pow_tensors(x: Tensor, exponent: Tensor) -> Tensor:
    if not x.is_floating_point() and not exponent.is_floating_point():
        return torch.pow(x, exponent)
    dtype = torch.result_type(x, exponent)
    x, exponent = x.to(dtype), exponent.to(dtype)
    require_float32("pow", x, exponent)
    return elementary.power(x, exponent)


@rule(Kind.ELEMENTARY, aten.pow.Scalar)
def _pow_of_scalar(base: float, exponent: Tensor) -> Tensor:
    if not exponent.is_floating_point() and isinstance(base, int):
        return torch.pow(base, exponent)
    if torch.is_grad_enabled() and exponent.requires_grad:  # its gradient has std::log(base)
        raise UnsupportedOperatorError(
            "the gradient of pow(number, tensor) takes the number's logarithm from the C library, "
            "which differs between machines; write torch.pow(torch.full_like(x, number), x)"
        )
    return _pow_tensors(torch.full((), base, dtype=torch.float32), exponent)


@rule(Kind.ELEMENTARY, aten.exp2.default)
def _exp2(x: Tensor) -> Tensor:
    require_float32("exp2", x)
    return elementary.power(torch.full((), 2.0, dtype=torch.float32), x)


@rule(Kind.IEEE, aten.div.Tensor_mode, aten.div.Scalar_mode)
def _div(x: Tensor, y: Any, *, rounding_mode: str | None) -> Tensor:
    floats = x.is_floating_point() or isinstance(y, float)
    floats = floats or (isinstance(y, Tensor) and y.is_floating_point())
    if not floats:
        return torch.div(x, y, rounding_mode=rounding_mode)
    if rounding_mode == "floor":  # goes through fmod
        raise UnsupportedOperatorError(
            "operator aten.div with rounding_mode='floor' of floating-point values has no exact"
            " rule: write (x / y).floor()"
        )
    quotient = torch.div(x, y)
    return torch.trunc(quotient) if rounding_mode == "trunc" else quotient


def _register_elementary(name: str, operator: Any) -> None:
    @rule(Kind.ELEMENTARY, operator)
    def _(x: Tensor) -> Tensor:
        require_float32(name, x)
        return elementary.apply(name, x)


for _name in (
    "exp", "log", "log1p", "expm1", "tanh", "erf", "erfinv", "sigmoid", "silu", "sin", "cos",
    "sqrt", "rsqrt",
):  # fmt: skip
    _register_elementary(_name, getattr(aten, _name).default)


_ONE = torch.ones((), dtype=torch.float32)


@rule(Kind.COMPOSITE, aten.tanh_backward.default)
def _tanh_backward(grad: Tensor, y: Tensor) -> Tensor:
    slope = y * y
    return times_(torch.sub(_ONE, slope, out=slope), grad)


@rule(Kind.COMPOSITE, aten.sigmoid_backward.default)
def _sigmoid_backward(grad: Tensor, y: Tensor) -> Tensor:
    return times_((1 - y).mul_(y), grad)


@rule(Kind.ELEMENTARY, aten.silu_backward.default)
def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    require_float32("silu_backward", grad, x)
    return elementary.apply_times("silu_grad", x, grad)


@rule(Kind.ELEMENTARY, aten.gelu.default)
def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    require_float32("gelu", x)
    return elementary.apply("gelu" if approximate == "none" else "gelu_tanh", x)


@rule(Kind.ELEMENTARY, aten.gelu_backward.default)
def _gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    require_float32("gelu_backward", grad, x)
    name = "gelu_grad" if approximate == "none" else "gelu_tanh_grad"
    return elementary.apply_times(name, x, grad)


@rule(Kind.COMPOSITE, aten.arange.start_step)
def _arange(start: float, end: float, step: float = 1, **options: Any) -> Tensor:
    result = torch.ops.aten.arange.start_step(start, end, step, **options)
    if not result.is_floating_point():
        return result
    if result.dtype not in (torch.float32, torch.float64):
        raise UnsupportedOperatorError(f"arange of {result.dtype} has no exact rule")
    count = torch.arange(result.numel(), dtype=torch.float64)
    return ((count * step) + start).to(result.dtype)


@rule(Kind.COMPOSITE, aten.arange.default)
def _arange_end(end: float, **options: Any) -> Tensor:
    return _arange(0, end, 1, **options)


@rule(Kind.COMPOSITE, aten.arange.start)
def _arange_start(start: float, end: float, **options: Any) -> Tensor:
    return _arange(start, end, 1, **options)


@rule(Kind.COMPOSITE, aten.linspace.default)
def _linspace(start: float, end: float, steps: int, **options: Any) -> Tensor:
    """In binary64: from the start in the lower half, from the end in the upper one; then a cast."""
    dtype = options.get("dtype") or torch.get_default_dtype()
    if dtype not in (torch.float32, torch.float64):
        raise UnsupportedOperatorError(f"linspace of {dtype} has no exact rule")
    step = (end - start) / (steps - 1) if steps > 1 else 0.0
    count = torch.arange(steps, dtype=torch.float64)
    rising, falling = count * step + start, end - (steps - 1 - count) * step
    return torch.where(count < steps / 2, rising, falling).to(dtype)


def _register_integer_only(operator: Any) -> None:
    @rule(Kind.MOVEMENT, operator)
    def _(x: Tensor, y: Any) -> Tensor:
        operands = [value for value in (x, y) if isinstance(value, Tensor)]
        if any(value.is_floating_point() for value in operands) or isinstance(y, float):
            raise UnsupportedOperatorError(f"{operator} of floating-point values has no exact rule")
        return operator(x, y)


for _operator in (
    aten.floor_divide.default, aten.floor_divide.Scalar, aten.remainder.Scalar,
    aten.remainder.Tensor, aten.fmod.Scalar, aten.fmod.Tensor,
):  # fmt: skip
    _register_integer_only(_operator)


@rule(Kind.COMPOSITE, aten.logit.default)
def _logit(x: Tensor, eps: float | None = None) -> Tensor:
    require_float32("logit", x)
    x = x if eps is None else x.clamp(eps, 1 - eps)
    return elementary.apply("log", x / (1 - x))


@rule(Kind.COMPOSITE, aten.logit_backward.default)
def _logit_backward(grad: Tensor, x: Tensor, eps: float | None = None) -> Tensor:
    require_float32("logit_backward", grad, x)
    low, high, outside = (0.0, 1.0, math.nan) if eps is None else (eps, 1 - eps, 0.0)
    return torch.where((x < low) | (x > high), outside, grad / (x * (1 - x)))
