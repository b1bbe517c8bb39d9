"""Normalisation and softmax in torch operations: the twins of `numerics.norms`.

Every line is one float32 operation per value, every sum an exact one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from veritrain.numerics.device.integers import total
from veritrain.numerics.integers import Slices, rows_of


def divide(x: Tensor, count: int) -> Tensor:
    """x / float32(count). By a tensor: division by a Python number multiplies by its reciprocal
    on CUDA."""
    return x / torch.full((), count, dtype=torch.float32, device=x.device)


def _over(statistic: Tensor) -> Tensor:
    """(P, C) or (C,) over the axes (P, A, C, B)."""
    return statistic[..., None, :, None]


def _xhat(x: Tensor, shape: Slices, mean: Tensor, rstd: Tensor) -> Tensor:
    return (x.detach().view(shape) - _over(mean)) * _over(rstd)


def moments(x: Tensor, shape: Slices) -> tuple[Tensor, Tensor]:
    """Twin of `numerics.norms.moments`."""
    mean = divide(total(x, shape), shape[1] * shape[3])
    deviation = x.detach().view(shape) - _over(mean)
    return mean, total(deviation * deviation, shape)


def normalise(
    x: Tensor, shape: Slices, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Twin of `numerics.norms.normalise`."""
    xhat = _xhat(x, shape, mean, rstd)
    return (xhat * _over(weight.detach()) + _over(bias.detach())).view(x.shape)


def normalise_rows(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Twin of `numerics.norms.normalise_rows`."""
    xhat = (x.detach() - mean[:, None]) * rstd[:, None]
    return xhat * weight.detach() + bias.detach()


def normalise_backward(
    grad: Tensor, x: Tensor, shape: Slices, mean: Tensor, rstd: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of `numerics.norms.normalise_backward`."""
    count = shape[1] * shape[3]
    g = grad.detach().view(shape)
    xhat = _xhat(x, shape, mean, rstd)
    sums, dot = total(grad, shape), total(g * xhat, shape)
    centred = g - _over(divide(sums, count))
    dx = _over(factor) * (centred - xhat * _over(divide(dot, count)))
    return dx.view(x.shape), sums, dot


def times_xhat(grad: Tensor, x: Tensor, shape: Slices, mean: Tensor, rstd: Tensor) -> Tensor:
    """Twin of `numerics.norms.times_xhat`."""
    return (grad.detach().view(shape) * _xhat(x, shape, mean, rstd)).view(x.shape)


def subtract_row_max(x_rd: Tensor) -> Tensor:
    """Twin of `numerics.norms.subtract_row_max`: of zeros of both signs the first counts."""
    x_rd = x_rd.detach()
    return x_rd - x_rd.gather(1, x_rd.argmax(1, keepdim=True))


def divide_by_row_sum_(x_rd: Tensor) -> Tensor:
    """Twin of `numerics.norms.divide_by_row_sum_`."""
    return x_rd.div_(total(x_rd, rows_of(x_rd)).view(-1, 1))


def softmax_backward(grad_rd: Tensor, y_rd: Tensor) -> Tensor:
    """Twin of `numerics.norms.softmax_backward`."""
    grad_rd, y_rd = grad_rd.detach(), y_rd.detach()
    dots = total(grad_rd * y_rd, rows_of(y_rd)).view(-1, 1)
    return (grad_rd - dots) * y_rd
