"""Operators whose result PyTorch leaves open, or whose kernels decide it by position: one answer
here.

Of +0 and -0 the larger, or the smaller, depends on where vector registers begin and end; which of
several equal values is sorted first depends on the algorithm; new memory holds anything; a float
beyond an integer type's range becomes what the processor makes of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from veritrain.errors import NumericsError, UnsupportedOperatorError
from veritrain.numerics.rules.table import Kind, aten, require_range, rule

# Extrema: a zero is +0.


def _positive_zero(x: Tensor) -> Tensor:
    return x.add_(0.0) if x.is_floating_point() else x


def _register_extremum(operator: Any) -> None:
    @rule(Kind.MOVEMENT, operator)
    def _(*args: Any, **kwargs: Any) -> Any:
        result = operator(*args, **kwargs)
        if isinstance(result, Tensor):
            return _positive_zero(result)
        return tuple(_positive_zero(part) for part in result)


for _operator in (
    aten.maximum.default, aten.minimum.default, aten.fmax.default, aten.fmin.default,
    aten.clamp.Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor,
    aten.amax.default, aten.amin.default, aten.aminmax.default, aten.max.default, aten.min.default,
    aten.max.other, aten.min.other,
):  # fmt: skip
    _register_extremum(_operator)


@rule(Kind.MOVEMENT, aten.hardtanh_backward.default)
def _hardtanh_backward(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """Strictly inside; PyTorch's kernels disagree about NaN."""
    return torch.where((x > low) & (x < high), grad, 0.0)


# Sorting: equal values keep their order, NaN is the largest.


@rule(Kind.MOVEMENT, aten.sort.default)
def _sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    values, indices = torch.sort(x, stable=True, dim=dim, descending=descending)
    return values, indices


@rule(Kind.MOVEMENT, aten.sort.stable)
def _sort_stable(
    x: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    return _sort(x, dim, descending)


@rule(Kind.MOVEMENT, aten.argsort.default, aten.argsort.stable)
def _argsort(x: Tensor, dim: int = -1, descending: bool = False, **_: Any) -> Tensor:
    return _sort(x, dim, descending)[1]


@rule(Kind.MOVEMENT, aten.topk.default)
def _topk(
    x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Tensor, Tensor]:  # fmt: skip
    size = x.shape[dim] if x.ndim else 1
    if not 0 <= k <= size:
        raise IndexError(f"topk: k must be in [0, {size}], got {k}")
    values, indices = _sort(x, dim, largest)
    if not x.ndim:
        return (values, indices) if k else (values.new_empty(0), indices.new_empty(0))
    return values.narrow(dim, 0, k).contiguous(), indices.narrow(dim, 0, k).contiguous()


@rule(Kind.MOVEMENT, aten._unique2.default)
def _unique(
    x: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Always sorted. Of floats it would be open which zero and which NaN stays."""
    if x.is_floating_point():
        raise UnsupportedOperatorError("unique of floating-point values has no exact rule")
    return torch.ops.aten._unique2(x, True, return_inverse, return_counts)


# New memory holds zeros.


def _register_new(operator: Any) -> None:
    @rule(Kind.MOVEMENT, operator)
    def _(*args: Any, **kwargs: Any) -> Tensor:
        return operator(*args, **kwargs).zero_()


for _operator in (
    aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default,
    aten.empty_permuted.default, aten.new_empty.default, aten.new_empty_strided.default,
):  # fmt: skip
    _register_new(_operator)


@rule(Kind.MOVEMENT, aten._efficientzerotensor.default)
def _zeros_of_forward_mode(size: list[int], **options: Any) -> Tensor:
    """Tangents that are zeros: plain ones, that operators compute with as with any others."""
    return torch.zeros(size, **options)


@rule(Kind.MOVEMENT, aten.resize_.default)
def _resize_(x: Tensor, size: list[int], **options: Any) -> Tensor:
    kept = x.numel()
    x = torch.ops.aten.resize_(x, size, **options)
    if x.numel() > kept:
        x.as_strided((x.numel() - kept,), (1,), x.storage_offset() + kept).zero_()
    return x


# Casts to integers.


@rule(Kind.MOVEMENT, aten.view.dtype)
def _view_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype != x.dtype and x.is_floating_point() and bool(x.detach().isnan().any()):
        raise NumericsError(
            f"view of {x.dtype} as {dtype}: a value is NaN, whose bits depend on the processor;"
            " replace it first, by nan_to_num for example"
        )
    return x.view(dtype)


@rule(Kind.MOVEMENT, aten._to_copy.default)
def _to_copy(x: Tensor, *, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    require_range(x, dtype)
    return torch.ops.aten._to_copy(x, dtype=dtype, **options)


@rule(Kind.MOVEMENT, aten.copy_.default)
def _copy_(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    require_range(source, x.dtype)
    return x.copy_(source)


@rule(Kind.MOVEMENT, aten.fill_.Tensor)
def _fill_(x: Tensor, value: Tensor) -> Tensor:
    require_range(value, x.dtype)
    return x.fill_(value)


@rule(Kind.MOVEMENT, aten.fill.Tensor)
def _fill(x: Tensor, value: Tensor) -> Tensor:
    require_range(value, x.dtype)
    return torch.ops.aten.fill(x, value)
