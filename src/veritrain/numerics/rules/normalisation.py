"""Batch, layer and group norm, softmax and log-softmax (docs/numerics.md, "Normalisation")."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from veritrain.numerics.cpu import elementary, norms, softmax
from veritrain.numerics.cpu.integers import channels_of
from veritrain.numerics.rules.sums import reduce_sum, vector_norm
from veritrain.numerics.rules.table import Kind, aten, require_float32, rule


def _rstd(variance: Tensor, eps: float) -> Tensor:
    return torch.reciprocal(elementary.apply("sqrt", variance + eps))


def _or_ones(weight: Tensor | None, count: int) -> Tensor:
    return torch.ones(count, dtype=torch.float32) if weight is None else weight


def _or_zeros(bias: Tensor | None, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.float32) if bias is None else bias


# Batch norm: one slice per channel of x (N, C, *S).


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise; in training also move the running statistics. Returns (y, mean, rstd)."""
    require_float32("batch_norm", x, weight, bias, running_mean, running_var)
    x = x.contiguous()
    shape = channels_of(x)
    count = shape[1] * shape[3]
    channels = x.shape[1]
    if training or running_mean is None or running_var is None:
        mean_pc, square_pc = norms.moments(x, shape)
        mean, square = mean_pc[0], square_pc[0]
        rstd = _rstd(square / count, eps)
        if running_mean is not None:
            running_mean.copy_(running_mean * (1 - momentum) + mean * momentum)
        if running_var is not None:
            unbiased = square / max(count - 1, 1)
            running_var.copy_(running_var * (1 - momentum) + unbiased * momentum)
    else:
        mean, rstd = running_mean, _rstd(running_var, eps)
    y = norms.normalise(
        x, shape, mean[None], rstd[None], _or_ones(weight, channels), _or_zeros(bias, channels)
    )
    return y, mean, rstd


@rule(Kind.COMPOSITE, aten.native_batch_norm.default, aten._native_batch_norm_legit.default)
def _native_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = _batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)
    return (
        (y, mean, rstd)
        if training
        else (y, torch.empty(0, dtype=torch.float32), torch.empty(0, dtype=torch.float32))
    )


@rule(Kind.COMPOSITE, aten._native_batch_norm_legit.no_stats)
def _native_batch_norm_no_stats(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _batch_norm(x, weight, bias, None, None, training, momentum, eps)


@rule(Kind.COMPOSITE, aten.native_batch_norm_backward.default)
def _native_batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_rstd: Tensor | None,
    training: bool,
    eps: float,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    require_float32("batch_norm_backward", grad, x, weight)
    grad, x = grad.contiguous(), x.contiguous()
    shape = channels_of(x)
    scale = _or_ones(weight, x.shape[1]).detach()
    if training:
        if save_mean is None or save_rstd is None:
            raise ValueError("batch norm in training needs its saved statistics")
        factor = (save_rstd * scale)[None]
        dx, total_grad, dot = norms.normalise_backward(
            grad, x, shape, save_mean[None], save_rstd[None], factor
        )
        dweight, dbias = dot[0], total_grad[0]
    else:
        if running_mean is None or running_var is None:
            raise ValueError("batch norm in evaluation needs running statistics")
        rstd = _rstd(running_var, eps)
        dx = grad * (rstd * scale).view(1, -1, *[1] * (x.ndim - 2))
        each = (x.shape[0], x.shape[1])
        dbias, dweight = norms.channel_sums(
            grad, x, shape, running_mean.expand(each), rstd.expand(each)
        )
    return (
        dx if output_mask[0] else None,
        dweight if output_mask[1] else None,
        dbias if output_mask[2] else None,
    )


# Layer norm: one slice per row of x (rows, D).


@rule(Kind.COMPOSITE, aten.native_layer_norm.default)
def _native_layer_norm(
    x: Tensor, normalized_shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    require_float32("layer_norm", x, weight, bias)
    width = math.prod(normalized_shape)
    y, mean, rstd = norms.normalise_rows(
        _as_rows(x, normalized_shape), eps,
        _flat(_or_ones(weight, width))[None], _flat(_or_zeros(bias, width))[None],
    )  # fmt: skip
    stat_shape = [*x.shape[: x.ndim - len(normalized_shape)], *[1] * len(normalized_shape)]
    return y.view(x.shape), mean.view(stat_shape), rstd.view(stat_shape)


@rule(Kind.COMPOSITE, aten.native_layer_norm_backward.default)
def _native_layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: list[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    require_float32("layer_norm_backward", grad, x, weight)
    width = math.prod(normalized_shape)
    rows, grad_rows = _as_rows(x, normalized_shape), _as_rows(grad, normalized_shape)
    mean, rstd = mean.reshape(-1), rstd.reshape(-1)
    dx = None
    if output_mask[0]:
        weights = _flat(_or_ones(weight, width))[None]
        dx = norms.rows_backward(grad_rows, rows, mean, rstd, weights).view(x.shape)
    dweight = dbias = None
    if output_mask[1] or output_mask[2]:
        dbias, dweight = norms.column_sums(grad_rows, rows, mean, rstd)
        dbias, dweight = dbias.view(normalized_shape), dweight.view(normalized_shape)
    return dx, dweight if output_mask[1] else None, dbias if output_mask[2] else None


def _as_rows(x: Tensor, normalized_shape: list[int]) -> Tensor:
    """One row for each index of the axes that are not normalised, also where it is empty."""
    rows = math.prod(x.shape[: x.ndim - len(normalized_shape)])
    return x.contiguous().view(rows, math.prod(normalized_shape))


def _flat(x: Tensor) -> Tensor:
    return x.detach().reshape(-1).contiguous()


# Group norm: one slice per (sample, group); the weight is per channel.


@rule(Kind.COMPOSITE, aten.native_group_norm.default)
def _native_group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_n: int,
    num_c: int,
    area: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    require_float32("group_norm", x, weight, bias)
    rows = x.contiguous().view(num_n * groups, num_c // groups * area)
    weights, biases = _or_ones(weight, num_c), _or_zeros(bias, num_c)
    y, mean, rstd = norms.normalise_rows(
        rows, eps, _spread(weights, groups, area), _spread(biases, groups, area)
    )
    return y.view(x.shape), mean.view(num_n, groups), rstd.view(num_n, groups)


@rule(Kind.COMPOSITE, aten.native_group_norm_backward.default)
def _native_group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    num_n: int,
    num_c: int,
    area: int,
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    require_float32("group_norm_backward", grad, x, weight)
    grad, x = grad.contiguous(), x.contiguous()
    mean, rstd = mean.contiguous(), rstd.contiguous()
    dx = dweight = dbias = None
    if output_mask[0]:
        per_group = num_n * groups, num_c // groups * area
        dx = norms.rows_backward(
            grad.view(per_group), x.view(per_group), mean.view(-1), rstd.view(-1),
            _spread(_or_ones(weight, num_c), groups, area),
        ).view(x.shape)  # fmt: skip
    if output_mask[1] or output_mask[2]:
        each = num_c // groups
        dbias, dweight = norms.channel_sums(
            grad, x, (1, num_n, num_c, area),
            mean.repeat_interleave(each, 1), rstd.repeat_interleave(each, 1),
        )  # fmt: skip
    return dx, dweight if output_mask[1] else None, dbias if output_mask[2] else None


def _spread(weight: Tensor, groups: int, area: int) -> Tensor:
    """The weight of each value of a slice: (groups, channels per group * area)."""
    return weight.detach().repeat_interleave(area).view(groups, -1)


# Weight norm: w = g * v / |v|, one slice for each index of `dim`, the first axis or the last.


def _other_dims(v: Tensor, dim: int) -> list[int]:
    return [d for d in range(v.ndim) if d != dim % v.ndim]


@rule(Kind.COMPOSITE, aten._weight_norm_interface.default)
def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    require_float32("weight_norm", v, g)
    lengths = vector_norm(v, 2, _other_dims(v, dim), keepdim=True)
    return v * (g / lengths), lengths


@rule(Kind.COMPOSITE, aten._weight_norm_interface_backward.default)
def _weight_norm_backward(
    grad: Tensor, v: Tensor, g: Tensor, lengths: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    require_float32("weight_norm_backward", grad, v, g)
    dots = reduce_sum(grad * v, _other_dims(v, dim), keepdim=True)
    grad_v = (g / lengths) * (grad - v * (dots / (lengths * lengths)))
    return grad_v, dots / lengths


# Softmax over one axis, brought to the last place.


def _rows(x: Tensor, dim: int) -> Tensor:
    moved = x.movedim(dim, -1) if x.ndim else x.view(1)
    return moved.contiguous().view(-1, max(moved.shape[-1], 1))


def _unrows(rows: Tensor, like: Tensor, dim: int) -> Tensor:
    if not like.ndim:
        return rows.view(())
    return rows.view(like.movedim(dim, -1).shape).movedim(-1, dim).contiguous()


@rule(Kind.COMPOSITE, aten._softmax.default)
def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    require_float32("softmax", x)
    if not x.numel():
        return torch.empty_like(x)
    return _unrows(softmax.softmax(_rows(x, dim)), x, dim)


@rule(Kind.COMPOSITE, aten._safe_softmax.default)
def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax where a row of nothing but -inf (all masked) gives zeros."""
    x = x if dtype is None else x.to(dtype)
    if not x.numel():
        return torch.empty_like(x)
    return torch.where(x.amax(dim, keepdim=True) == -math.inf, 0.0, _softmax(x, dim, False))


@rule(Kind.COMPOSITE, aten._log_softmax.default)
def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    require_float32("log_softmax", x)
    if not x.numel():
        return torch.empty_like(x)
    return _unrows(softmax.log_softmax(_rows(x, dim)), x, dim)


@rule(Kind.COMPOSITE, aten._softmax_backward_data.default)
def _softmax_backward(grad: Tensor, y: Tensor, dim: int, input_dtype: Any) -> Tensor:
    require_float32("softmax_backward", grad, y)
    if not y.numel():
        return torch.empty_like(y)
    return _unrows(softmax.softmax_backward(_rows(grad, dim), _rows(y, dim)), y, dim)


@rule(Kind.COMPOSITE, aten._log_softmax_backward_data.default)
def _log_softmax_backward(grad: Tensor, y: Tensor, dim: int, input_dtype: Any) -> Tensor:
    require_float32("log_softmax_backward", grad, y)
    if not y.numel():
        return torch.empty_like(y)
    return _unrows(softmax.log_softmax_backward(_rows(grad, dim), _rows(y, dim)), y, dim)
