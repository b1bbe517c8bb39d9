"""Softmax in torch operations: the twins of `numerics.softmax`."""

from __future__ import annotations

from torch import Tensor

from veritrain.numerics.device.elementary import apply
from veritrain.numerics.device.sums import total
from veritrain.numerics.integers import rows_of


def softmax(x_rd: Tensor) -> Tensor:
    """Twin of `numerics.softmax.softmax`."""
    powers = apply("exp", _shifted(x_rd.detach()))
    return powers / _row_sums(powers)


def log_softmax(x_rd: Tensor) -> Tensor:
    """Twin of `numerics.softmax.log_softmax`."""
    shifted = _shifted(x_rd.detach())
    return shifted - apply("log", _row_sums(apply("exp", shifted)))


def log_softmax_backward(grad_rd: Tensor, y_rd: Tensor) -> Tensor:
    """Twin of `numerics.softmax.log_softmax_backward`."""
    grad = grad_rd.detach()
    return grad - apply("exp", y_rd) * _row_sums(grad)


def softmax_backward(grad_rd: Tensor, y_rd: Tensor) -> Tensor:
    """Twin of `numerics.softmax.softmax_backward`."""
    grad, y = grad_rd.detach(), y_rd.detach()
    return (grad - _row_sums(grad * y)) * y


def _shifted(x_rd: Tensor) -> Tensor:
    return x_rd - x_rd.amax(1, keepdim=True)


def _row_sums(x_rd: Tensor) -> Tensor:
    return total(x_rd, rows_of(x_rd)).view(-1, 1)
