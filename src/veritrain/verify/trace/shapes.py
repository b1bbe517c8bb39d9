"""What a call would take and make, found without memory for it: entries are hostile, and a referee is small.

PyTorch computes shapes on tensors without memory (the device "meta") for most operators. Those without are
known here by name; others are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload

from veritrain.errors import InconclusiveError
from veritrain.verify.trace import calls

MOST_BYTES = (
    1 << 29
)  # of operands as they are viewed, elements that share memory counted each; of results
MOST_WORK = 1 << 36  # products of numbers, or elements looked at
_META = torch.device("meta")
# Without a meta kernel. What they make is no longer than what they get, but for what `_by_value` counts.
_KNOWN = {
    "_assert_async", "_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_grouped_mm", "_local_scalar_dense",
    "_pack_padded_sequence", "_unique2", "bincount", "masked_select", "nonzero", "repeat_interleave",
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
    given = {name: _bare(value) for name, value in named.items()}
    if any(argument.name == "device" for argument in _schema(func).arguments):
        given["device"] = _META
    try:
        return list(calls.tensors_in(func(*_bare(list(args)), **given)))
    except Exception as error:  # whatever PyTorch says to nonsense, or where it has no kernel
        if _name(func) in _KNOWN:
            return None
        raise InconclusiveError(f"{func}: what it makes is not known before: {error}") from None


def require_affordable(func: OpOverload, args: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Check before an operator is computed that a small machine can do it. `args` may be without memory.

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
    """Roughly, and no less: the contraction's products, or windows, or one step for each element."""
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
