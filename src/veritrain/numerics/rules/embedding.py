"""Embedding tables and bags of embeddings (docs/numerics.md, "Embeddings").

Rows are selected by index; what several positions add to one row or one bag is summed exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.rules.sums import reduce_sum, scatter_rows, vector_norm
from veritrain.numerics.rules.table import Kind, aten, require_float32, rule

_SUM, _MEAN, _MAX = 0, 1, 2  # PyTorch's codes of a bag's mode


@rule(Kind.SUM, aten.embedding_dense_backward.default)
def _embedding_backward(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    require_float32("embedding_dense_backward", grad)
    rows = indices.reshape(-1).long()
    values = grad.reshape(rows.numel(), grad.shape[-1])
    if scale_grad_by_freq:
        values = values / torch.bincount(rows)[rows].float().unsqueeze(1)
    return _table_gradient(values, rows, num_weights, padding_idx)


def _table_gradient(values: Tensor, rows: Tensor, num_weights: int, padding_idx: int) -> Tensor:
    """Sum of `values` (N, D) by row (N,), those of the padding row left out."""
    if padding_idx >= 0:
        kept = rows != padding_idx
        rows, values = rows[kept], values[kept]
    return scatter_rows(values, rows, num_weights)


@rule(Kind.COMPOSITE, aten.embedding_renorm_.default)
def _embedding_renorm_(
    weight: Tensor, indices: Tensor, max_norm: float, norm_type: float
) -> Tensor:
    """Shorten each named row that is longer than `max_norm`."""
    require_float32("embedding_renorm_", weight)
    rows = indices.reshape(-1).long().unique()
    values = weight[rows]
    lengths = vector_norm(values, norm_type, [1], keepdim=True)
    bound = torch.full((), max_norm, dtype=torch.float32)  # a number would be divided in two steps
    shorter = values * (bound / (lengths + 1e-7))
    weight[rows] = torch.where(lengths > max_norm, shorter, values)
    return weight


@rule(Kind.SUM, aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Result (B, D), the bag of each position, the positions that each bag counts, places of
    maxima."""
    require_float32("embedding_bag", weight, per_sample_weights)
    if include_last_offset and int(offsets[-1]) != indices.numel():
        raise IndexError(f"embedding_bag: the last offset must be {indices.numel()}")
    starts = offsets[:-1] if include_last_offset else offsets
    bags = _bag_of_each(starts.long(), indices.numel())
    num_bags = starts.numel()
    rows = indices.long()
    if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= weight.shape[0]):
        raise IndexError(f"embedding_bag: index outside [0, {weight.shape[0]})")
    kept = rows != padding_idx
    sizes = torch.bincount(bags[kept], minlength=num_bags)
    if mode == _MAX:
        result, places = _bag_maxima(weight, rows[kept], bags[kept], num_bags)
        return result, bags, sizes, places
    values = weight[rows[kept]]
    if per_sample_weights is not None:
        values = values * per_sample_weights[kept].unsqueeze(1)
    result = scatter_rows(values, bags[kept], num_bags)
    if mode == _MEAN:
        result = result / sizes.clamp(min=1).float().unsqueeze(1)
    return result, bags, sizes, sizes.clone()


def _bag_of_each(starts: Tensor, count: int) -> Tensor:
    """The bag of each of `count` positions; of bags that start together the last one has them.

    Raises:
        IndexError: the starts do not ascend from 0.
    """
    inside = not count or (starts.numel() and int(starts[0]) == 0 and int(starts[-1]) <= count)
    if not inside or bool((starts.diff() < 0).any()):
        raise IndexError(f"embedding_bag: offsets must ascend from 0 to at most {count}")
    return torch.searchsorted(starts, torch.arange(count), right=True) - 1


def _bag_maxima(weight: Tensor, rows: Tensor, bags: Tensor, num_bags: int) -> tuple[Tensor, Tensor]:
    """Largest value of each bag and column, 0 in an empty bag, and the first row that has it."""
    shape = (num_bags, weight.shape[1])
    places = bags.unsqueeze(1).expand(-1, weight.shape[1])
    values = weight[rows]
    top = torch.full(shape, -math.inf, dtype=torch.float32).scatter_reduce(
        0, places, values, "amax"
    )
    position = torch.arange(rows.numel()).unsqueeze(1)
    missed = torch.where(values == top.gather(0, places), position, rows.numel())
    first = torch.full(shape, rows.numel()).scatter_reduce(0, places, missed, "amin")
    filled = first < rows.numel()
    chosen = torch.where(filled, torch.cat([rows, rows.new_zeros(1)])[first], -1)
    # a NaN equals nothing, so that a bag that holds one has no first place
    return torch.where(filled | top.isnan(), top + 0.0, 0.0), chosen


@rule(Kind.SUM, aten._embedding_bag_backward.default)
def _embedding_bag_backward(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    offset2bag: Tensor,
    bag_size: Tensor,
    maximum_indices: Tensor,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Tensor | None,
    padding_idx: int = -1,
) -> Tensor:
    require_float32("embedding_bag_backward", grad)
    if sparse or scale_grad_by_freq:  # PyTorch's own kernel divides by counts of other rows
        raise UnsupportedOperatorError(
            "embedding_bag with sparse or scale_grad_by_freq has no exact rule; F.embedding with "
            "scale_grad_by_freq, and a sum, has"
        )
    if mode == _MAX:
        return _maxima_gradient(grad, maximum_indices, num_weights)
    values = grad[offset2bag]
    if mode == _MEAN:
        values = values / bag_size[offset2bag].clamp(min=1).float().unsqueeze(1)
    if per_sample_weights is not None:
        values = values * per_sample_weights.unsqueeze(1)
    return _table_gradient(values, indices.long(), num_weights, padding_idx)


def _maxima_gradient(grad: Tensor, places: Tensor, num_weights: int) -> Tensor:
    width = grad.shape[1]
    filled = places >= 0
    flat = (places * width + torch.arange(width))[filled]
    added = scatter_rows(grad[filled].unsqueeze(1), flat, num_weights * width)
    return added.view(num_weights, width)


@rule(Kind.SUM, aten._embedding_bag_per_sample_weights_backward.default)
def _per_sample_weights_backward(
    grad: Tensor,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    offset2bag: Tensor,
    mode: int,
    padding_idx: int = -1,
) -> Tensor:
    """The dot product of each position's row with its bag's gradient."""
    require_float32("embedding_bag_per_sample_weights_backward", grad, weight)
    rows = indices.long()
    dots = reduce_sum(grad[offset2bag] * weight[rows], [1])
    return torch.where(rows == padding_idx, 0.0, dots)
