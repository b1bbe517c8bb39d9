"""Activations made of several operations (docs/numerics.md, "Activations").

Those that are one correctly rounded function (exp, tanh, gelu, ...) are in `pointwise`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from veritrain.numerics.cpu import elementary
from veritrain.numerics.rules.table import Kind, aten, require_float32, rule, times_


@rule(Kind.COMPOSITE, aten.softplus.default)
def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    require_float32("softplus", x)
    scaled = x if beta == 1 else x * beta
    result = elementary.apply("softplus", scaled)
    return torch.where(scaled > threshold, x, result if beta == 1 else result / beta)


@rule(Kind.COMPOSITE, aten.softplus_backward.default)
def _softplus_backward(grad: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    require_float32("softplus_backward", grad, x)
    scaled = x if beta == 1 else x * beta
    slope = elementary.apply("sigmoid", scaled)
    return torch.where(scaled > threshold, grad, times_(slope, grad))


@rule(Kind.COMPOSITE, aten.log_sigmoid_forward.default)
def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    require_float32("log_sigmoid", x)
    return -elementary.apply("softplus", -x), torch.zeros(0)


@rule(Kind.COMPOSITE, aten.log_sigmoid_backward.default)
def _log_sigmoid_backward(grad: Tensor, x: Tensor, buffer: Tensor) -> Tensor:
    require_float32("log_sigmoid_backward", grad, x)
    return grad * elementary.apply("sigmoid", -x)


@rule(Kind.COMPOSITE, aten.elu.default)
def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    require_float32("elu", x)
    negative = elementary.apply("expm1", x * input_scale) * (alpha * scale)
    return torch.where(x > 0, x * scale, negative)


@rule(Kind.COMPOSITE, aten.celu.default)
def _celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return _elu(x, alpha, 1.0, 1.0 / alpha)


@rule(Kind.COMPOSITE, aten.elu_backward.default)
def _elu_backward(
    grad: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor
) -> Tensor:
    """`x` is the result of the forward pass where `is_result`, else its input."""
    require_float32("elu_backward", grad, x)
    if is_result:
        negative = (grad * input_scale) * (x + alpha * scale)
    else:
        slope = elementary.apply("exp", x * input_scale) * (alpha * scale * input_scale)
        negative = grad * slope
    return torch.where(x > 0, grad * scale, negative)


@rule(Kind.COMPOSITE, aten.hardswish.default)
def _hardswish(x: Tensor) -> Tensor:
    require_float32("hardswish", x)
    return x * (x + 3).clamp(0, 6) / 6


@rule(Kind.COMPOSITE, aten.hardswish_backward.default)
def _hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    require_float32("hardswish_backward", grad, x)
    inner = torch.where(x < 3, grad * (x / 3 + 0.5), grad)
    return torch.where(x <= -3, 0.0, inner)


@rule(Kind.COMPOSITE, aten.hardsigmoid.default)
def _hardsigmoid(x: Tensor) -> Tensor:
    require_float32("hardsigmoid", x)
    return (x + 3).clamp(0, 6) / 6


@rule(Kind.COMPOSITE, aten.hardsigmoid_backward.default)
def _hardsigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    require_float32("hardsigmoid_backward", grad, x)
    return torch.where((x > -3) & (x < 3), grad / 6, 0.0)


@rule(Kind.COMPOSITE, aten.glu.default)
def _glu(x: Tensor, dim: int = -1) -> Tensor:
    require_float32("glu", x)
    values, gates = x.chunk(2, dim)
    return values * elementary.apply("sigmoid", gates)


@rule(Kind.COMPOSITE, aten.glu_backward.default)
def _glu_backward(grad: Tensor, x: Tensor, dim: int) -> Tensor:
    require_float32("glu_backward", grad, x)
    values, gates = x.chunk(2, dim)
    open_ = elementary.apply("sigmoid", gates)
    return torch.cat([grad * open_, (grad * values) * ((1 - open_) * open_)], dim)


@rule(Kind.IEEE, aten._prelu_kernel.default)
def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    return torch.where(x > 0, x, weight * x)


@rule(Kind.IEEE, aten._prelu_kernel_backward.default)
def _prelu_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(x > 0, grad, weight * grad), torch.where(x > 0, 0.0, x * grad)


@rule(Kind.COMPOSITE, aten.mish.default)
def _mish(x: Tensor) -> Tensor:
    require_float32("mish", x)
    return x * _mish_gate(x)


@rule(Kind.COMPOSITE, aten.mish_backward.default)
def _mish_backward(grad: Tensor, x: Tensor) -> Tensor:
    require_float32("mish_backward", grad, x)
    gate = _mish_gate(x)
    return grad * (gate + (x * elementary.apply("sigmoid", x)) * (1 - gate * gate))


def _mish_gate(x: Tensor) -> Tensor:
    return elementary.apply("tanh", elementary.apply("softplus", x))


@rule(Kind.COMPOSITE, aten.logaddexp.default)
def _logaddexp(x: Tensor, y: Tensor) -> Tensor:
    """log(e^x + e^y); equal infinities stay."""
    require_float32("logaddexp", x, y)
    summed = torch.maximum(x, y) + elementary.apply("softplus", -(x - y).abs())
    return torch.where((x == y) & x.isinf(), x, summed)
