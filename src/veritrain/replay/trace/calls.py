"""What an operator's call looks like in a trace: its name, its arguments, and where its tensors lie.

Values of tensors are not part of it, so whoever has the job's code can say what call comes next without
computing anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload

from veritrain.encoding import Value
from veritrain.errors import NumericsError
from veritrain.numerics.keys import generators
from veritrain.replay.trace.cells import View

# They change what a tensor looks like, and no memory.
_SHAPE_ONLY = {
    "detach_", "squeeze_", "t_", "transpose_", "unsqueeze_", "swapaxes_", "swapdims_", "as_strided_",
}  # fmt: skip
# The running statistics are written, though the schema does not say so.
_UNANNOUNCED = {"native_batch_norm": ("running_mean", "running_var")}

SETTLE = "settle"  # no operator of PyTorch's

ToValue = Callable[[Tensor], Value]


def is_view(func: OpOverload) -> bool:
    """Whether the operator computes nothing, and only looks at memory in another way: traces leave it out."""
    schema = func._schema  # pyright: ignore[reportPrivateUsage]
    if func.namespace == "profiler" or func.overloadpacket.__name__ in _SHAPE_ONLY:
        return True
    aliases = [result.alias_info for result in schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def pieces(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The calls that a call is made of: fused updates of lists of tensors, one for each parameter."""
    if not func.overloadpacket.__name__.startswith("_fused_") or not isinstance(args[0], list):
        yield args, kwargs
        return
    for i in range(len(args[0])):
        yield (
            tuple([value[i]] if isinstance(value, list) and value else value for value in args),
            kwargs,
        )


def written_tensors(
    func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]
) -> Iterator[Tensor]:
    """The tensors among the arguments that the operator writes to."""
    schema = func._schema  # pyright: ignore[reportPrivateUsage]
    also = _UNANNOUNCED.get(func.overloadpacket.__name__, ())
    for position, argument in enumerate(schema.arguments):
        info = argument.alias_info
        if (info is not None and info.is_write) or argument.name in also:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from tensors_in(value)


def returned_argument(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The argument that the operator writes to and returns; None where its result is another tensor."""
    schema = func._schema  # pyright: ignore[reportPrivateUsage]
    info = schema.returns[0].alias_info if len(schema.returns) == 1 else None
    if info is None or not info.is_write:
        return None
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.before_set == info.before_set:
            return args[position] if position < len(args) else kwargs[argument.name]
    return None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and maps, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in cast("Sequence[Any]", value):
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in cast("dict[Any, Any]", value).values():
            yield from tensors_in(item)


def described(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], to_view: ToValue
) -> dict[str, Value]:
    """The call without its results: `operator`, `draw`, `arguments` and `named`."""
    return {
        "operator": str(func),
        "draw": generators.state(),
        "arguments": [plain(value, to_view) for value in args],
        "named": {name: plain(value, to_view) for name, value in sorted(kwargs.items())},
    }


def settling(tensor: Tensor, to_view: ToValue) -> dict[str, Value]:
    """The call that rounds a tensor of the state to the numbers of the numerics, after a step."""
    return {
        "operator": SETTLE,
        "draw": generators.state(),
        "arguments": [plain(tensor, to_view)],
        "named": {},
    }


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Results with `function` applied to each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        items = [mapped(item, function) for item in cast("Sequence[Any]", value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def plain(value: Any, to_view: ToValue) -> Value:
    """An argument or result as a value.

    Raises:
        NumericsError: it has no form in a trace.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Tensor):
        return {"view": to_view(value)}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return {"float": "nan"} if math.isnan(value) else float(value)
    if isinstance(value, (list, tuple)):
        return [plain(item, to_view) for item in cast("Sequence[Any]", value)]
    for kind in (torch.dtype, torch.device, torch.layout, torch.memory_format):
        if isinstance(value, kind):
            return {kind.__name__: str(value)}
    raise NumericsError(f"a trace cannot hold an argument of type {type(value).__name__}")


def unplain(value: Value, to_tensor: Callable[[View], Tensor]) -> Any:
    """What `plain` wrote.

    Raises:
        ValueError: it is not of that form.
    """
    if isinstance(value, list):
        return [unplain(item, to_tensor) for item in value]
    if isinstance(value, bytes):
        raise ValueError("not an argument of an operator")
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("not an argument of an operator")
    ((tag, content),) = value.items()
    if tag == "view":
        return to_tensor(View.from_value(content))
    if tag == "float" and content == "nan":
        return math.nan
    known = _NAMES.get((tag, content if isinstance(content, str) else ""))
    if known is None:
        raise ValueError("not an argument of an operator")
    return known


_NAMES: dict[tuple[str, str], Any] = {
    (type(value).__name__, str(value)): value
    for value in (
        *(v for v in vars(torch).values() if isinstance(v, (torch.dtype, torch.layout, torch.memory_format))),
        torch.device("cpu"),
    )
}  # fmt: skip
