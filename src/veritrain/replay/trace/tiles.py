"""Tiles: for a range of an operator's result, the parts of its operands that decide it.

Under `exact` numerics an element of a result does not depend on how many others are computed with
it. So the same operator on parts of its operands gives that part of its result, and a referee needs
no more than these: some rows and columns of a product, one sample and some filters of a
convolution. The operator's definition alone (docs/numerics.md, "Contraction", "Sum") says which
parts. Operators without a family in this module are computed whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from veritrain.encoding import CHUNK_BYTES
from veritrain.errors import InconclusiveError
from veritrain.replay.trace import calls
from veritrain.replay.trace.calls import TracedCall
from veritrain.replay.trace.cells import CellView
from veritrain.replay.trace.entry_bodies import OperatorBody

Box = tuple[slice, ...]  # one slice for each axis
_ALL = slice(None)
_MOST_GROUPS = 1 << 14  # digests in one list
_MOST_ELEMENTS = 1 << 24  # of a part; finding their chunks takes 24 bytes for each


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part of a tensor operand; `needed` is false where its shape alone matters."""

    view: CellView
    box: Box
    needed: bool = True

    def ranges(self) -> list[tuple[int, int]]:
        """The byte ranges of its cell, in whole chunks.

        Raises:
            InconclusiveError: it has too many elements to open.
        """
        if math.prod(self.shape) > _MOST_ELEMENTS:
            raise InconclusiveError(f"{math.prod(self.shape)} elements are too many to open")
        offsets = np.asarray(self.view.offset, np.int64)
        axes = zip(self.view.shape, self.view.strides, self.box, strict=True)
        for size, stride, part in axes:
            offsets = np.add.outer(offsets, np.arange(*part.indices(size), dtype=np.int64) * stride)
        width = self.view.dtype.itemsize
        chunks = np.unique(offsets * width // CHUNK_BYTES)  # no element lies in two
        if not chunks.size:
            return []
        breaks = np.flatnonzero(np.diff(chunks) > 1)
        first = chunks[np.concatenate(([0], breaks + 1))]
        last = chunks[np.concatenate((breaks, [chunks.size - 1]))]
        return [
            (int(a) * CHUNK_BYTES, (int(b) + 1) * CHUNK_BYTES)
            for a, b in zip(first, last, strict=True)
        ]

    @property
    def shape(self) -> list[int]:
        """How many elements it has along each axis."""
        axes = zip(self.view.shape, self.box, strict=True)
        return [len(range(*part.indices(size))) for size, part in axes]

    def bare(self) -> Tensor:
        """Its shape, without memory."""
        return torch.empty(self.shape, dtype=self.view.dtype, device="meta")

    def of(self, storages: Mapping[int, torch.UntypedStorage]) -> Tensor:
        """The part, in memory of its own."""
        if not self.needed:
            return torch.zeros(self.shape, dtype=self.view.dtype)
        return self.view.tensor(storages[self.view.cell])[self.box].clone(
            memory_format=torch.contiguous_format
        )


def clipped(ranges: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Ranges of whole chunks, up to the end of a cell of `size` bytes."""
    return [(start, min(stop, size)) for start, stop in ranges]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How to compute bytes [start, stop) of a written cell."""

    cell: int
    start: int
    stop: int
    args: list[Any]  # with parts for tensors
    place: int  # of the tensor among the results, or among all tensors of the arguments
    is_result: bool
    inside: Box  # what of the computed tensor is wanted
    skip: int  # elements of that before `start`

    @property
    def parts(self) -> list[Part]:
        """The parts of operands."""
        return [part for part in _parts_in(self.args) if part.needed]

    def ranges(self) -> dict[int, list[tuple[int, int]]]:
        """The byte ranges of each cell that are needed."""
        found: dict[int, list[tuple[int, int]]] = {}
        for part in self.parts:
            found.setdefault(part.view.cell, []).extend(part.ranges())
        return found

    def arguments(self, storages: Mapping[int, torch.UntypedStorage]) -> list[Any]:
        """The operator's arguments, with parts of tensors."""
        return cast("list[Any]", _filled(self.args, lambda part: part.of(storages)))

    def bare_arguments(self) -> list[Any]:
        """The same without memory."""
        return cast("list[Any]", _filled(self.args, Part.bare))

    def content(self, results: Any, args: list[Any]) -> bytes:
        """The bytes, after the operator ran on the parts."""
        found = [results] if isinstance(results, Tensor) else results
        tensors = found if self.is_result else list(calls.tensors_in(args))
        wanted = tensors[self.place][self.inside].contiguous()
        data = wanted.reshape(-1).view(torch.uint8).numpy().tobytes()
        return data[self.skip :][: self.stop - self.start]


def has_parts(call: TracedCall) -> bool:
    """Whether parts of this call's operands decide parts of its results."""
    return call.short_name in _FAMILIES


def group_chunks(size: int) -> int:
    """How many chunks of a written cell of `size` bytes make a group: a power of two."""
    chunks = -(-size // CHUNK_BYTES)
    return 1 << max(0, math.ceil(math.log2(max(1, chunks / _MOST_GROUPS))))


def tile(body: OperatorBody, cell: int, start: int, stop: int) -> Tile | None:
    """The parts that decide bytes [start, stop) of a written cell; None where the operator has no
    parts."""
    family = _FAMILIES.get(body.call.short_name)
    sizes = {} if body.effects is None else {w.cell: w.size for w in body.effects.writes}
    named = any(any(calls.views_in(value)) for value in body.call.named.values())
    if family is None or body.effects is None or named or cell not in sizes:
        return None
    found = body.effects.results
    results = list(found) if isinstance(found, tuple) else [found]
    args = [calls.filled(value, _as_it_is) for value in body.call.arguments]
    own = [view for value in body.call.arguments for view in calls.views_in(value)]
    for is_result, views in ((True, results), (False, own)):
        for place, view in enumerate(views):
            if isinstance(view, CellView) and view.cell == cell and view.fills(sizes[cell]):
                return _tile(family, view, args, (start, stop), place, is_result)
    return None


Family = Callable[[list[Any], Box, CellView, int], "tuple[list[Any], Box] | None"]


def _tile(
    family: Family,
    view: CellView,
    args: list[Any],
    span: tuple[int, int],
    place: int,
    is_result: bool,
) -> Tile | None:
    start, stop = span
    width = view.dtype.itemsize
    box, before = _covering(view.shape, start // width, -(-stop // width))
    found = family(args, box, view, place if is_result else -1)
    if found is None:
        return None
    parts, wider = found
    whole = [slice(*part.indices(n)[:2]) for part, n in zip(wider, view.shape, strict=True)]
    inside = tuple(
        slice(part.start - around.start, part.stop - around.start)
        for part, around in zip(box, whole, strict=True)
    )
    return Tile(
        cell=view.cell, start=start, stop=stop, args=parts, place=place, is_result=is_result,
        inside=inside, skip=start - before * width,
    )  # fmt: skip


def _covering(shape: Sequence[int], start: int, stop: int) -> tuple[Box, int]:
    """The smallest box of consecutive elements that covers [start, stop), and its first element."""
    box: list[slice] = []
    first, inner = 0, math.prod(shape)
    for size in shape:
        inner //= max(1, size)
        low, high = start // inner, (stop - 1) // inner
        box.append(slice(low, high + 1))
        first += low * inner
        if low != high:
            break
        start, stop = start - low * inner, stop - low * inner
    box += [slice(0, size) for size in shape[len(box) :]]
    return tuple(box), first


def _filled(value: Any, make: Callable[[Part], Tensor]) -> Any:
    if isinstance(value, Part):
        return make(value)
    if isinstance(value, list):
        return [_filled(item, make) for item in cast("list[Any]", value)]
    return value


def _broadcast(view: CellView, box: Box) -> Part:
    """The part of an operand that is broadcast to the result."""
    own = box[len(box) - len(view.shape) :] if view.shape else ()
    parts = [slice(0, 1) if size == 1 else part for size, part in zip(view.shape, own, strict=True)]
    return Part(view=view, box=tuple(parts))


def _mapped(value: Any, function: Callable[[CellView], Part]) -> Any:
    if isinstance(value, CellView):
        return function(value)
    if isinstance(value, list):
        return [_mapped(item, function) for item in cast("list[Any]", value)]
    return value


def _pointwise(args: list[Any], box: Box, out: CellView, _: int) -> tuple[list[Any], Box]:
    return _mapped(args, lambda view: _broadcast(view, box)), box


def _fused(args: list[Any], box: Box, out: CellView, _: int) -> tuple[list[Any], Box]:
    """Updates of one parameter; counters are single numbers."""

    def part(view: CellView) -> Part:
        return Part(view=view, box=box if view.shape == out.shape else (_ALL,) * len(view.shape))

    return _mapped(args, part), box


def _matmul(args: list[Any], box: Box, out: CellView, _: int) -> tuple[list[Any], Box]:
    """`mm` and `bmm`: rows of one and columns of the other."""
    left, right = args[:2]
    batch, row, column = box[:-2], box[-2], box[-1]
    rows_of = Part(view=left, box=(*batch, row, _ALL))
    columns_of = Part(view=right, box=(*batch, _ALL, column))
    return [rows_of, columns_of, *args[2:]], box


def _addmm(args: list[Any], box: Box, out: CellView, _: int) -> tuple[list[Any], Box]:
    return [_broadcast(args[0], box), *_matmul(args[1:], box, out, 0)[0]], box


def _convolution(args: list[Any], box: Box, out: CellView, _: int) -> tuple[list[Any], Box] | None:
    """A sample and some filters."""
    x, weight, bias, *rest = args
    if rest[3] or rest[5] != 1:  # transposed, groups
        return None
    samples, filters = box[:2]
    some = None if bias is None else Part(view=bias, box=(filters,))
    parts = [_rows(x, samples), _rows(weight, filters), some, *rest]
    return parts, (samples, filters, *(_ALL,) * (len(box) - 2))


def _convolution_backward(
    args: list[Any], box: Box, out: CellView, place: int
) -> tuple[list[Any], Box] | None:
    grad, x, weight, _, *rest = args
    if rest[3] or rest[5] != 1 or len(box) < 2:
        return None
    first, second = box[:2]
    mask = [number == place for number in range(3)]
    wider = (first, second, *(_ALL,) * (len(box) - 2))
    if place == 0:  # a sample's channels: from its gradient, and these columns of the filters
        shape_only = Part(view=x, box=wider, needed=False)
        parts = [_rows(grad, first), shape_only, _columns(weight, second)]
    elif place == 1:  # some filters' channels: from these channels of all samples
        shape_only = Part(view=weight, box=wider, needed=False)
        parts = [_columns(grad, first), _columns(x, second), shape_only]
    else:
        return None
    return [*parts, None, *rest[:-1], mask], wider


def _batch_norm(
    args: list[Any], box: Box, out: CellView, place: int
) -> tuple[list[Any], Box] | None:
    """Some channels of all samples; forward and backward."""
    channels = box[:2][-1]

    def part(view: CellView) -> Part:
        return (
            Part(view=view, box=(channels,)) if len(view.shape) == 1 else _columns(view, channels)
        )

    wider = (channels,) if len(box) == 1 else (_ALL, channels, *(_ALL,) * (len(box) - 2))
    return _mapped(args, part), wider


def _last_axis(args: list[Any], box: Box, out: CellView, _: int) -> tuple[list[Any], Box] | None:
    """Softmax and its gradient over the last axis: whole rows."""
    dim = next(value for value in args if isinstance(value, int))
    if dim not in (-1, len(out.shape) - 1):
        return None
    wider = (*box[:-1], _ALL)
    return _mapped(args, lambda view: Part(view=view, box=wider)), wider


def _layer_norm(args: list[Any], box: Box, out: CellView, place: int) -> tuple[list[Any], Box]:
    x, shape, *rest = args
    leading = len(x.shape) - len(shape)
    wider = (*box[:leading], *(_ALL,) * len(shape))
    whole = _mapped(rest, lambda view: Part(view=view, box=(_ALL,) * len(view.shape)))
    return [Part(view=x, box=wider), shape, *whole], wider


def _rows(view: CellView, part: slice) -> Part:
    return Part(view=view, box=(part, *(_ALL,) * (len(view.shape) - 1)))


def _columns(view: CellView, part: slice) -> Part:
    return Part(view=view, box=(_ALL, part, *(_ALL,) * (len(view.shape) - 2)))


def _as_it_is(view: CellView) -> CellView:
    return view


def _parts_in(value: Any) -> list[Part]:
    if isinstance(value, list):
        return [found for item in cast("list[Any]", value) for found in _parts_in(item)]
    return [value] if isinstance(value, Part) else []


_POINTWISE = """
    abs add add_ addcdiv addcdiv_ addcmul addcmul_ clamp clamp_ clamp_max clamp_min clone copy_
    cos div div_ elu elu_backward eq erf exp fill_ ge gelu gelu_backward gt hardswish hardtanh
    le leaky_relu leaky_relu_backward lerp lerp_ log logical_not lt masked_fill masked_fill_
    maximum minimum mul mul_ ne neg ones_like pow reciprocal relu relu_ rsqrt sigmoid
    sigmoid_backward sign silu silu_backward sin sqrt sqrt_ sub sub_ tanh tanh_backward
    threshold_backward where zero_ zeros_like
""".split()
_OTHERS: dict[str, Family] = {
    "mm": _matmul, "bmm": _matmul, "addmm": _addmm, "convolution": _convolution,
    "convolution_backward": _convolution_backward, "native_batch_norm": _batch_norm,
    "native_batch_norm_backward": _batch_norm, "_softmax": _last_axis, "_log_softmax": _last_axis,
    "_safe_softmax": _last_axis, "_softmax_backward_data": _last_axis,
    "_log_softmax_backward_data": _last_axis, "native_layer_norm": _layer_norm,
    "_fused_adamw_": _fused,
    "_fused_adam_": _fused, "_fused_sgd_": _fused,
}  # fmt: skip
_FAMILIES: dict[str, Family] = {**dict.fromkeys(_POINTWISE, _pointwise), **_OTHERS}
