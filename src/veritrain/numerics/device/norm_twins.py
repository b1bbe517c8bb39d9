"""Normalisation in torch operations: the twins of `cpu.norms`.

Every line is one float32 operation per value, every sum an exact one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from veritrain.numerics.cpu import norms
from veritrain.numerics.cpu.integers import Slices, rows_of
from veritrain.numerics.device.elementary_twins import sqrt
from veritrain.numerics.device.sum_twins import total
from veritrain.numerics.platform.devices import twin_of


def divide(x: Tensor, count: int) -> Tensor:
    """x / float32(count). By a tensor: division by a Python number multiplies by its reciprocal
    on CUDA."""
    return x / torch.full((), count, dtype=torch.float32, device=x.device)


def _over(statistic: Tensor) -> Tensor:
    """(P, C) or (C,) over the axes (P, A, C, B)."""
    return statistic[..., None, :, None]


def _xhat(x: Tensor, shape: Slices, mean: Tensor, rstd: Tensor) -> Tensor:
    return (x.detach().view(shape) - _over(mean)) * _over(rstd)


@twin_of(norms.moments)
def moments(x: Tensor, shape: Slices) -> tuple[Tensor, Tensor]:
    mean = divide(total(x, shape), shape[1] * shape[3])
    deviation = x.detach().view(shape) - _over(mean)
    return mean, total(deviation * deviation, shape)


@twin_of(norms.normalise)
def normalise(
    x: Tensor, shape: Slices, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    xhat = _xhat(x, shape, mean, rstd)
    return (xhat * _over(weight.detach()) + _over(bias.detach())).view(x.shape)


@twin_of(norms.normalise_rows)
def normalise_rows(
    x_rd: Tensor, eps: float, weight_gd: Tensor, bias_gd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    mean, square = (part[0] for part in moments(x_rd, rows_of(x_rd)))
    rstd = torch.reciprocal(sqrt(divide(square, x_rd.shape[1]) + eps))
    xhat = (x_rd.detach() - mean[:, None]) * rstd[:, None]
    grouped = xhat.view(-1, *weight_gd.shape)
    return (grouped * weight_gd.detach() + bias_gd.detach()).view(x_rd.shape), mean, rstd


@twin_of(norms.rows_backward)
def rows_backward(
    grad_rd: Tensor, x_rd: Tensor, mean_r: Tensor, rstd_r: Tensor, weight_gd: Tensor
) -> Tensor:
    weighted = grad_rd.detach().view(-1, *weight_gd.shape) * weight_gd.detach()
    mean, rstd = mean_r[None], rstd_r[None]
    return normalise_backward(weighted.view(x_rd.shape), x_rd, rows_of(x_rd), mean, rstd, rstd)[0]


@twin_of(norms.column_sums)
def column_sums(
    grad_rd: Tensor, x_rd: Tensor, mean_r: Tensor, rstd_r: Tensor
) -> tuple[Tensor, Tensor]:
    columns = 1, x_rd.shape[0], x_rd.shape[1], 1
    products = grad_rd.detach() * ((x_rd.detach() - mean_r[:, None]) * rstd_r[:, None])
    return total(grad_rd, columns)[0], total(products, columns)[0]


@twin_of(norms.channel_sums)
def channel_sums(
    grad: Tensor, x: Tensor, shape: Slices, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    _, num_a, num_c, num_b = shape
    each = (num_a, num_c, num_b)
    xhat = (x.detach().view(each) - mean[:, :, None]) * rstd[:, :, None]
    products = grad.detach().view(each) * xhat
    return total(grad, shape)[0], total(products, shape)[0]


@twin_of(norms.normalise_backward)
def normalise_backward(
    grad: Tensor, x: Tensor, shape: Slices, mean: Tensor, rstd: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    count = shape[1] * shape[3]
    g = grad.detach().view(shape)
    xhat = _xhat(x, shape, mean, rstd)
    sums, dot = total(grad, shape), total(g * xhat, shape)
    centred = g - _over(divide(sums, count))
    dx = _over(factor) * (centred - xhat * _over(divide(dot, count)))
    return dx.view(x.shape), sums, dot
