"""Softmax in torch operations: the twins of `cpu.softmax`."""

from __future__ import annotations

from torch import Tensor

from veritrain.numerics.cpu import softmax as on_cpu
from veritrain.numerics.cpu.integers import rows_of
from veritrain.numerics.device.elementary_twins import apply
from veritrain.numerics.device.sum_twins import total
from veritrain.numerics.platform.devices import twin_of


@twin_of(on_cpu.softmax)
def softmax(x_rd: Tensor) -> Tensor:
    powers = apply("exp", _shifted(x_rd.detach()))
    return powers / _row_sums(powers)


@twin_of(on_cpu.log_softmax)
def log_softmax(x_rd: Tensor) -> Tensor:
    shifted = _shifted(x_rd.detach())
    return shifted - apply("log", _row_sums(apply("exp", shifted)))


@twin_of(on_cpu.log_softmax_backward)
def log_softmax_backward(grad_rd: Tensor, y_rd: Tensor) -> Tensor:
    grad = grad_rd.detach()
    return grad - apply("exp", y_rd) * _row_sums(grad)


@twin_of(on_cpu.softmax_backward)
def softmax_backward(grad_rd: Tensor, y_rd: Tensor) -> Tensor:
    grad, y = grad_rd.detach(), y_rd.detach()
    return (grad - _row_sums(grad * y)) * y


def _shifted(x_rd: Tensor) -> Tensor:
    return x_rd - x_rd.amax(1, keepdim=True)


def _row_sums(x_rd: Tensor) -> Tensor:
    return total(x_rd, rows_of(x_rd)).view(-1, 1)
