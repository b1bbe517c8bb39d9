"""Sums: scaled integers added in any order (docs/numerics.md, "Sum")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.cpu import elementary, exact_sums, integers
from veritrain.numerics.rules.table import Kind, aten, cast, require_float32, rule


def reduce_sum(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False) -> Tensor:
    """Exact sum of a float32 tensor over `dims` (all if None or empty), rounded once."""
    kept_shape, layout, source = _layout(x, dims)
    result = exact_sums.total(source, layout).view(kept_shape)
    if keepdim:
        reduced = _normal_dims(x, dims)
        return result.view([1 if d in reduced else size for d, size in enumerate(x.shape)])
    return result


def _normal_dims(x: Tensor, dims: Sequence[int] | None) -> set[int]:
    if not dims:
        return set(range(x.ndim))
    rank = max(x.ndim, 1)  # a single number may be reduced over its axis 0
    for d in dims:
        if not -rank <= d < rank:
            raise IndexError(f"dimension {d} is outside [{-rank}, {rank - 1}]")
    return {d % rank for d in dims} & set(range(x.ndim))


def _layout(
    x: Tensor, dims: Sequence[int] | None
) -> tuple[list[int], tuple[int, int, int, int], Tensor]:
    """Kept shape, axes (P, A, C, B) and contiguous tensor with the reduced axes at A and B."""
    reduced = _normal_dims(x, dims)
    kept = [d for d in range(x.ndim) if d not in reduced]
    kept_shape = [x.shape[d] for d in kept]
    if reduced and kept and x.is_contiguous():
        runs = _runs(x, reduced)
        if runs is not None:
            return kept_shape, runs, x
    x = x.permute([*kept, *sorted(reduced)]).contiguous()
    count = math.prod(kept_shape)
    return kept_shape, (1, 1, count, x.numel() // count if count else 0), x


def _runs(x: Tensor, reduced: set[int]) -> tuple[int, int, int, int] | None:
    """(P, A, C, B) if kept and reduced axes alternate at most so: kept, reduced, kept, reduced."""
    sizes = [1, 1, 1, 1]
    place = 0
    for d, size in enumerate(x.shape):
        if (d in reduced) != (place % 2 == 1):
            place += 1
        if place > 3:
            return None
        sizes[place] *= size
    if place < 2:  # (P, A): no kept axis after the reduced one; the slices are rows
        return 1, 1, sizes[0], sizes[1]
    return sizes[0], sizes[1], sizes[2], sizes[3]


@rule(Kind.SUM, aten.sum.default)
def _sum(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return _sum_dims(x, None, dtype=dtype)


@rule(Kind.SUM, aten.sum.dim_IntList)
def _sum_dims(
    x: Tensor, dims: list[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    if not x.is_floating_point() and (dtype is None or not dtype.is_floating_point):
        return torch.ops.aten.sum.dim_IntList(x, dims, keepdim, dtype=dtype)
    x = x.to(dtype) if dtype is not None else x
    require_float32("sum", x)
    return reduce_sum(x, dims, keepdim)


@rule(Kind.SUM, aten.mean.default)
def _mean(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return _mean_dims(x, None, dtype=dtype)


@rule(Kind.SUM, aten.mean.dim)
def _mean_dims(
    x: Tensor, dims: list[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    x = x.to(dtype) if dtype is not None else x
    require_float32("mean", x)
    count = math.prod(x.shape[d] for d in _normal_dims(x, dims))
    return reduce_sum(x, dims, keepdim) / count


@rule(Kind.COMPOSITE, aten.var.correction)
def _var(
    x: Tensor,
    dims: list[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Tensor:
    require_float32("var", x)
    deviation = x - _mean_dims(x, dims, True)
    count = math.prod(x.shape[d] for d in _normal_dims(x, dims))
    divisor = max(0.0, count - (1.0 if correction is None else correction))
    return reduce_sum(deviation * deviation, dims, keepdim) / divisor


@rule(Kind.COMPOSITE, aten.std.correction)
def _std(
    x: Tensor,
    dims: list[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Tensor:
    return elementary.apply("sqrt", _var(x, dims, correction=correction, keepdim=keepdim))


def _register_with_mean(operator: Any, function: Any) -> None:
    @rule(Kind.COMPOSITE, operator)
    def _(
        x: Tensor,
        dims: list[int] | None = None,
        *,
        correction: float | None = None,
        keepdim: bool = False,
    ) -> tuple[Tensor, Tensor]:
        spread = function(x, dims, correction=correction, keepdim=keepdim)
        return spread, _mean_dims(x, dims, keepdim)


_register_with_mean(aten.var_mean.correction, _var)
_register_with_mean(aten.std_mean.correction, _std)


@rule(Kind.COMPOSITE, aten.logsumexp.default)
def _logsumexp(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
    """log(sum(exp(x - m))) + m with m the largest value, or 0 where that is infinite."""
    require_float32("logsumexp", x)
    top = x.amax(dims, keepdim=True)
    top = torch.where(top.abs() == math.inf, 0.0, top)
    sums = reduce_sum(elementary.apply("exp", x - top), dims, keepdim)
    return elementary.apply("log", sums) + top.view(sums.shape)


@rule(Kind.COMPOSITE, aten.linalg_vector_norm.default)
def vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: list[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    x = x.to(dtype) if dtype is not None else x
    require_float32("linalg_vector_norm", x)
    dims = sorted(_normal_dims(x, dim))
    if ord == 2:
        whole = len(dims) == x.ndim and not keepdim and x.is_contiguous()
        squares = (
            exact_sums.sum_of_squares(x) if whole else _sum_of_magnitudes(x * x, dims, keepdim)
        )
        return elementary.apply("sqrt", squares)
    if ord == 1:
        return _sum_of_magnitudes(x.abs(), dims, keepdim)
    if ord == math.inf:
        return x.abs().amax(dims, keepdim)
    raise UnsupportedOperatorError(f"linalg_vector_norm of order {ord}: exact has 1, 2 and inf")


def _sum_of_magnitudes(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    """The sum of values that are not below zero: infinite where one of them is, as none cancels
    it."""
    found = reduce_sum(x, dims, keepdim)
    if not bool(found.isnan().any()):
        return found
    return torch.where(found.isnan(), x.amax(dims, keepdim), found)


@rule(Kind.COMPOSITE, aten.norm.ScalarOpt_dim, aten.norm.Scalar)
def _norm(
    x: Tensor, p: float | None = 2, dim: list[int] | None = None, keepdim: bool = False
) -> Tensor:
    return vector_norm(x, 2 if p is None else p, dim, keepdim)


# Running sums and products.


@rule(Kind.SUM, aten.cumsum.default)
def _cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Every prefix of the slice's integers, summed exactly and rounded once."""
    x = cast(x, dtype)
    if not x.is_floating_point():
        return torch.cumsum(x, dim)
    require_float32("cumsum", x)
    if not x.numel():
        return x.clone()
    rows = x.reshape(1) if not x.ndim else x.movedim(dim, -1)
    flat = rows.contiguous().view(-1, rows.shape[-1])
    q, scale = integers.quantise(flat, integers.rows_of(flat), integers.sum_bits(flat.shape[1]))
    result = (torch.cumsum(q, 1) * scale.view(-1, 1) + 0.0).float().view(rows.shape)
    return result.movedim(-1, dim).contiguous() if x.ndim else result.view(())


def running_products(x: Tensor, dim: int) -> Tensor:
    """Products from left to right, each rounded to float32: numpy's accumulate is defined so."""
    values = x.detach().movedim(dim, 0).contiguous().to("cpu").numpy()
    with np.errstate(all="ignore"):
        products = np.multiply.accumulate(values, axis=0)
    return torch.from_numpy(products).to(x.device).movedim(0, dim).contiguous()


@rule(Kind.COMPOSITE, aten.cumprod.default)
def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    x = cast(x, dtype)
    if not x.is_floating_point():
        return torch.cumprod(x, dim)
    require_float32("cumprod", x)
    return running_products(x, dim) if x.ndim else x.clone()


@rule(Kind.COMPOSITE, aten.prod.dim_int)
def _prod_dim(
    x: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    x = cast(x, dtype)
    if not x.is_floating_point():
        return torch.prod(x, dim, keepdim)
    products = _cumprod(x, dim)
    if not x.ndim:
        return products
    one = list(x.shape)
    one[dim] = 1
    last = products.narrow(dim, -1, 1) if x.shape[dim] else x.new_ones(one)
    return last.clone() if keepdim else last.squeeze(dim).clone()


@rule(Kind.COMPOSITE, aten.prod.default)
def _prod(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return _prod_dim(x.reshape(-1), 0, dtype=dtype)


# Operators that add into places chosen by an index.


def scatter_rows(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Exact sum of `values` (N, D) by row index (N,): float32 (num_rows, D)."""
    return exact_sums.accumulate(values.contiguous(), rows.contiguous(), num_rows)


@rule(Kind.SUM, aten.index_add.default)
def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    if not x.is_floating_point():
        return torch.ops.aten.index_add(x, dim, index, source, alpha=alpha)
    require_float32("index_add", x, source)
    source = source if alpha == 1 else source * alpha
    if not x.ndim:
        return _index_add(x[None], 0, index.reshape(-1), source.reshape(-1))[0]
    shape = x.movedim(dim, 0).shape
    rows = source.movedim(dim, 0).reshape(index.numel(), math.prod(shape[1:]))
    added = scatter_rows(rows, index.reshape(-1).long(), shape[0])
    return x + added.view(shape).movedim(0, dim)


@rule(Kind.SUM, aten.scatter_add.default)
def _scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    if not x.is_floating_point():
        return torch.ops.aten.scatter_add(x, dim, index, source)
    require_float32("scatter_add", x, source)
    if not x.ndim:
        return _scatter_add(x[None], 0, index.reshape(-1), source.reshape(-1))[0]
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= x.shape[dim]):
        raise IndexError(f"scatter_add: index outside [0, {x.shape[dim]})")
    window = source[tuple(slice(0, size) for size in index.shape)]
    places = _flat_places(x, dim, index)
    added = scatter_rows(window.reshape(-1, 1), places.reshape(-1), x.numel())
    return x + added.view(x.shape)


@rule(Kind.COMPOSITE, aten.scatter_reduce.two)
def _scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    plain = torch.ops.aten.scatter_reduce.two
    if not x.is_floating_point():
        return plain(x, dim, index, source, reduce, include_self=include_self)
    require_float32("scatter_reduce", x, source)
    if reduce == "prod":
        raise UnsupportedOperatorError(
            "scatter_reduce with prod has no exact rule: float32 products have an order; multiply"
            " by prod along an axis, or add logarithms"
        )
    ones = torch.ones(index.shape, dtype=torch.int64)
    counts = torch.zeros(x.shape, dtype=torch.int64).scatter_add(dim, index, ones)
    if reduce in ("amax", "amin"):  # no order, but for which zero a zero is
        extremes = plain(x, dim, index, source, reduce, include_self=include_self)
        return torch.where((counts > 0) & (extremes == 0), 0.0, extremes)
    total = _scatter_add(x if include_self else torch.where(counts > 0, 0.0, x), dim, index, source)
    return total / (counts + include_self).clamp_min(1).float() if reduce == "mean" else total


def _flat_places(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Position in flattened `x` that each element of `index` names along `dim`."""
    strides = torch.empty(x.shape, device="meta").stride()
    places = index * strides[dim]
    for d in range(x.ndim):
        if d != dim % x.ndim:
            shape = [-1 if e == d else 1 for e in range(x.ndim)]
            places = places + (torch.arange(index.shape[d]) * strides[d]).view(shape)
    return places


@rule(Kind.SUM, aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(
    x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    if accumulate and not x.is_floating_point():
        return torch.ops.aten.index_put(x, indices, values, accumulate)
    repeats = any(index is not None and index.dtype != torch.bool for index in indices)
    if not accumulate and (values.numel() <= 1 or not repeats):
        return torch.ops.aten.index_put(x, indices, values, accumulate)
    places = torch.arange(x.numel()).view(x.shape)[_as_index(indices)]
    values = values.expand(places.shape)
    if not accumulate:  # one value after the other: PyTorch leaves open which of several stays
        return x.reshape(-1).scatter(0, places.reshape(-1), values.reshape(-1)).view(x.shape)
    require_float32("index_put", x, values)
    added = scatter_rows(values.reshape(-1, 1), places.reshape(-1), x.numel())
    return x + added.view(x.shape)


def _as_index(indices: list[Tensor | None]) -> tuple[Any, ...]:
    return tuple(slice(None) if index is None else index for index in indices)


@rule(Kind.MOVEMENT, aten.index_copy.default)
def _index_copy(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Of several rows for one place the last stays; PyTorch leaves it open."""
    index = index.reshape(-1)
    order = torch.arange(index.numel())
    size = x.shape[dim] if x.ndim else 1
    last = torch.zeros(size, dtype=torch.int64).scatter(0, index.long(), order)
    kept = last[index] == order
    if not bool(kept.all()):
        index, source = index[kept], source.index_select(dim, order[kept])
    return torch.ops.aten.index_copy(x, dim, index, source)


@rule(Kind.SUM, aten.bincount.default)
def _bincount(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    if weights is None:
        return torch.bincount(x, minlength=minlength)
    require_float32("bincount", weights)
    size = max(minlength, int(x.max()) + 1 if x.numel() else 0)
    return scatter_rows(weights.reshape(-1, 1), x.long(), size).view(-1)


@rule(Kind.COMPOSITE, aten.histc.default)
def _histc(x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """Values per bin; those outside are left out, the last bin has both of its ends."""
    require_float32("histc", x)
    if min == max:
        raise UnsupportedOperatorError("histc without bounds has no exact rule: give min and max")
    inside = x[(x >= min) & (x <= max)]
    place = ((inside - min) * bins / (max - min)).long().clamp_max(bins - 1)
    return torch.bincount(place, minlength=bins).float()
