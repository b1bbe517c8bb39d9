"""Operators that write where they read: they read first.

Where an operand shares only some of its memory with the tensor written, PyTorch's kernels may read
what another thread has written already. So such an operand is read from a copy, made before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from veritrain.errors import UnsupportedOperatorError


class Written(NamedTuple):
    """An argument of an operator that is written to."""

    position: int
    name: str
    is_out: bool
    same_everywhere: bool  # the order of writing does not matter


# They write no values.
_SHAPE_ONLY = {
    "detach_", "record_stream", "resize_", "set_", "squeeze_", "t_", "transpose_", "unsqueeze_",
}  # fmt: skip
_ONE_VALUE = {"fill_", "zero_"}


@cache
def written(func: OpOverload) -> tuple[Written, ...]:
    """The tensors whose values `func` changes; lists of tensors are left out."""
    name = func.overloadpacket.__name__
    if name in _SHAPE_ONLY:
        return ()
    arguments = func._schema.arguments  # pyright: ignore[reportPrivateUsage]
    return tuple(
        Written(i, a.name, a.is_out, name in _ONE_VALUE)
        for i, a in enumerate(arguments)
        if a.alias_info is not None and a.alias_info.is_write and a.type.isSubtypeOf(_TENSOR)
    )


_TENSOR = torch._C.TensorType.get()  # pyright: ignore[reportPrivateUsage]


def read_before_writing(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, with copies of those that share memory with a tensor written to.

    Raises:
        UnsupportedOperatorError: a tensor written to holds one place of memory twice.
    """
    places = written(func)
    for place in places:
        target = args[place.position] if place.position < len(args) else kwargs.get(place.name)
        if not isinstance(target, Tensor):
            continue
        if not place.same_everywhere and overlaps_itself(target):
            raise UnsupportedOperatorError(
                f"operator {func} writes to a tensor that overlaps itself in memory (made by expand"
                " or unfold, perhaps); write to a .clone() of it"
            )
        if _shares((*args, *kwargs.values()), target):
            positions, names = {p.position for p in places}, {p.name for p in places}
            args = tuple(
                value if i in positions else _apart(value, target, place.is_out)
                for i, value in enumerate(args)
            )
            kwargs = {
                name: value if name in names else _apart(value, target, place.is_out)
                for name, value in kwargs.items()
            }
    return args, kwargs


def _shares(values: Sequence[Any], target: Tensor) -> bool:
    """Whether a tensor other than `target` has its storage."""
    for value in values:
        if isinstance(value, Tensor):
            if value is not target and torch._C._is_alias_of(value, target):  # pyright: ignore
                return True
        elif isinstance(value, (list, tuple)) and _shares(value, target):
            return True
    return False


def _apart(value: Any, target: Tensor, may_grow: bool) -> Any:
    """`value`, copied if it shares memory with `target` without being the very same view."""
    if isinstance(value, (list, tuple)):
        return [_apart(part, target, may_grow) for part in value]
    if not isinstance(value, Tensor) or not _shares([value], target):
        return value
    if _view(value) == _view(target):
        return value
    (low, high), (first, last) = _span(value), _span(target)
    # PyTorch gives an `out` of another shape the right one, in the same memory
    return value.clone() if may_grow or (low < last and first < high) else value


def _view(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses from the first to behind the last byte."""
    if not tensor.numel():
        return 0, 0
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (reach + 1) * tensor.element_size()


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether it may hold one place of memory twice."""
    if tensor.is_contiguous():
        return False
    reach = 0  # of the dimensions with smaller strides
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False
