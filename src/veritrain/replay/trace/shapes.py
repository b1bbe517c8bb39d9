"""Shapes: what a call would take and make, found without memory for it. Entries are hostile, and a
referee is small.

PyTorch computes shapes on tensors without memory (the device "meta") for most operators. Operators
for which it cannot are named in this module, or refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload

from veritrain.encoding import Value
from veritrain.errors import InconclusiveError
from veritrain.replay.trace import calls
from veritrain.replay.trace.calls import Argument
from veritrain.replay.trace.cells import CellView, tight
from veritrain.replay.trace.entry_bodies import Effects, OperatorBody

# Of operands as they are viewed, elements that share memory counted each; of results.
MOST_BYTES = 1 << 29
MOST_WORK = 1 << 35  # products of numbers, or elements looked at
_META = torch.device("meta")
_UNKNOWN = object()  # what a call makes
# Without a meta kernel. What they make is no longer than what they get, but for what `_by_value`
# counts.
_KNOWN = {
    "_assert_async", "_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_grouped_mm",
    "_local_scalar_dense", "_pack_padded_sequence", "_unique2", "bincount", "masked_select",
    "nonzero", "repeat_interleave",
}  # fmt: skip
_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "_grouped_mm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
_BY_VALUE = {"bincount": Tensor.amax, "repeat_interleave": Tensor.sum}


def results_of(
    func: OpOverload, args: Sequence[Any], named: Mapping[str, Any]
) -> list[Tensor] | None:
    """The results as tensors without memory; None where PyTorch cannot tell without computing.

    Raises:
        InconclusiveError: nobody can tell.
    """
    bare_named = {name: _bare(value) for name, value in named.items()}
    found = _made(func, _bare(list(args)), bare_named)
    return None if found is _UNKNOWN else list(calls.tensors_in(found))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How results lie, and cells and sizes of all that is written."""

    results: Argument
    writes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, effects: Effects) -> Layout:
        """The layout that an entry claims."""
        writes = tuple((write.cell, write.size) for write in effects.writes)
        return cls(results=effects.results, writes=writes)

    def to_value(self) -> Value:
        """The layout as an entry writes it."""
        return [calls.argument_value(self.results), [[*write] for write in self.writes]]


def layout_of(func: OpOverload, body: OperatorBody) -> Layout | None:
    """The layout that an operator gives to its results; None where nobody can tell.

    Raises:
        InconclusiveError: the entry's call has no meaning.
    """
    views: dict[int, CellView] = {}  # of tensors without memory, by identity
    sizes = body.operands.sizes()

    def bare(found: CellView) -> Tensor:
        if found.cell not in sizes:
            raise InconclusiveError("an argument in a cell that is not read")
        made = torch.empty_strided(found.shape, found.strides, dtype=found.dtype, device=_META)
        laid_out = CellView.of(made, found.cell)
        views[id(made)] = replace(laid_out, offset=found.offset)
        return made

    args, named = body.call.with_tensors(bare)
    found = _made(func, args, named)
    if found is _UNKNOWN:
        return None
    results = calls.mapped(found, lambda x: x if id(x) in views else tight(x))
    written = {views[id(x)].cell for x in calls.written_tensors(func, args, named)}
    cell = body.operands.cells
    for tensor in calls.tensors_in(results):
        if id(tensor) not in views:
            views[id(tensor)] = CellView.of(tensor, cell)
            sizes[cell] = tensor.nbytes
            written.add(cell)
            cell += 1
    writes = tuple((number, sizes[number]) for number in sorted(written))
    return Layout(results=calls.described(results, lambda x: views[id(x)]), writes=writes)


def _made(func: OpOverload, args: list[Any], named: dict[str, Any]) -> Any:
    """What a call on tensors without memory comes to, or `_UNKNOWN`.

    Raises:
        InconclusiveError: nobody can tell.
    """
    given = dict(named)
    if any(argument.name == "device" for argument in _schema(func).arguments):
        given["device"] = _META
    try:
        return func(*args, **given)
    except Exception as error:  # whatever PyTorch says to nonsense, or where it has no kernel
        if _name(func) in _KNOWN:
            return _UNKNOWN
        raise InconclusiveError(f"{func}: what it makes is not known before: {error}") from None


def require_affordable(func: OpOverload, args: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Check before an operator is computed that a small machine can do it. `args` may be without
    memory.

    Raises:
        InconclusiveError: it takes too much memory or time, or nobody can tell.
    """
    operands = list(calls.tensors_in([list(args), dict(named)]))
    _require(func, "bytes of operands", sum(x.nbytes for x in operands), MOST_BYTES)
    _require(func, "values counted by an operand", _by_value(func, args), MOST_BYTES // 8)
    results = results_of(func, args, named) or []
    _require(func, "bytes of results", sum(x.nbytes for x in results), MOST_BYTES)
    _require(func, "steps", _work(func, args, named, operands, results), MOST_WORK)


def _work(
    func: OpOverload,
    args: Sequence[Any],
    named: Mapping[str, Any],
    operands: Sequence[Tensor],
    results: Sequence[Tensor],
) -> int:
    """Roughly, and no less: the contraction's products, or windows, or one step for each
    element."""
    name, given = _name(func), _by_name(func, args, named)
    elements = sum(x.numel() for x in (*operands, *results))
    if name in _PRODUCTS:
        left, right = (args[place] for place in _PRODUCTS[name])
        return max(elements, left.numel() * right.shape[-1])
    if "convolution" in name:
        return max(elements, _windows(given, results), _extent(given))
    if "kernel_size" in given:
        return elements * math.prod(given["kernel_size"])
    if name == "linalg_qr":
        return elements * max(args[0].shape)
    return elements


def _windows(given: Mapping[str, Any], results: Sequence[Tensor]) -> int:
    """Products of a convolution, three times those for its gradients."""
    x, weight, grad = given["input"], given["weight"], given.get("grad_output")
    window = math.prod(weight.shape[1:])
    if given["transposed"]:
        return 3 * x.numel() * window
    if grad is not None:
        return 3 * grad.numel() * window
    return results[0].numel() * window


def _extent(given: Mapping[str, Any]) -> int:
    """Elements of a convolution's input with its padding and its gaps."""
    x, weight = given["input"], given["weight"]
    strides = given["stride"] if given["transposed"] or "grad_output" in given else [1]
    axes = zip(x.shape[2:], weight.shape[2:], strict=True)
    sizes = [
        size * _at(strides, i) + 2 * _at(given["padding"], i) + kernel * _at(given["dilation"], i)
        for i, (size, kernel) in enumerate(axes)
    ]
    return int(x.shape[0]) * max(*x.shape[1:2], *weight.shape[:2]) * math.prod(sizes)


def _at(values: Sequence[int], place: int) -> int:
    return values[place] if place < len(values) else values[-1]


def _by_value(func: OpOverload, args: Sequence[Any]) -> int:
    """How long the result is by what the first operand holds."""
    count = _BY_VALUE.get(_name(func))
    first = next(calls.tensors_in(list(args)), None)
    if count is None or first is None or not first.numel() or first.is_meta:
        return 0
    return int(count(first.detach().double().clamp(min=0))) + sum(_integers(args))


def _integers(args: Sequence[Any]) -> Iterator[int]:
    return (value for value in args if type(value) is int and value > 0)


def _by_name(func: OpOverload, args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in _schema(func).arguments]
    return {**dict(zip(names, args, strict=False)), **named}


def _bare(value: Any) -> Any:
    """The same without memory."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=_META)
    if isinstance(value, (list, tuple)):
        return [_bare(item) for item in cast("Sequence[Any]", value)]
    return value


def _require(func: OpOverload, what: str, count: int, most: int) -> None:
    if count > most:
        raise InconclusiveError(f"{func}: {count} {what} are too many to compute again")


def _name(func: OpOverload) -> str:
    return func.overloadpacket.__name__


def _schema(func: OpOverload) -> Any:
    return func._schema  # pyright: ignore[reportPrivateUsage]
