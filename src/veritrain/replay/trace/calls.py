"""Calls: what an operator is given and what it makes, without the values of tensors.

A call names its operator, its arguments, and where its tensors lie. So the reader of a job's code
can say which call comes next without computing anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch._ops import OpOverload

from veritrain.encoding import Value
from veritrain.errors import FieldError, NumericsError
from veritrain.numerics.keys import generators
from veritrain.replay.trace.cells import CellView

_Plain: TypeAlias = (
    bool
    | int
    | float
    | str
    | torch.dtype
    | torch.device
    | torch.layout
    | torch.memory_format
    | None
)
Argument: TypeAlias = "_Plain | CellView | tuple[Argument, ...]"
"""What a call takes or makes: tensors are views of cells, lists and tuples both are tuples."""

ToView = Callable[[Tensor], CellView]

# They change what a tensor looks like, and no memory.
_SHAPE_ONLY = {
    "detach_", "squeeze_", "t_", "transpose_", "unsqueeze_", "swapaxes_", "swapdims_",
    "as_strided_",
}  # fmt: skip
# The running statistics are written, though the schema does not say so.
_UNANNOUNCED = {"native_batch_norm": ("running_mean", "running_var")}

# The name, in entries, of the rounding of a state's tensor after a step: no operator of PyTorch's.
ROUNDING = "settle"


@dataclass(frozen=True, kw_only=True)
class TracedCall:
    """A call before its operator runs.

    Attributes:
        operator: its name with its overload, or `ROUNDING`.
        draw: what its random numbers follow from, see `generators.State`.
        arguments: by position.
        named: by name.
    """

    operator: str
    draw: generators.State
    arguments: tuple[Argument, ...]
    named: Mapping[str, Argument]

    @classmethod
    def of(
        cls, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], to_view: ToView
    ) -> TracedCall:
        """The call of an operator that runs next.

        Raises:
            NumericsError: an argument has no form in a trace.
        """
        return cls(
            operator=str(func),
            draw=generators.state(),
            arguments=tuple(described(value, to_view) for value in args),
            named={name: described(value, to_view) for name, value in sorted(kwargs.items())},
        )

    @classmethod
    def of_rounding(cls, tensor: Tensor, to_view: ToView) -> TracedCall:
        """The call that rounds a tensor of the state to the numbers of the numerics, after a
        step."""
        return cls(
            operator=ROUNDING, draw=generators.state(), arguments=(to_view(tensor),), named={}
        )

    def to_value(self) -> dict[str, Value]:
        """The fields that an entry has for it."""
        return {
            "operator": self.operator,
            "draw": self.draw,
            "arguments": [argument_value(value) for value in self.arguments],
            "named": {name: argument_value(value) for name, value in self.named.items()},
        }

    @property
    def short_name(self) -> str:
        """The operator's name without `aten` and overload."""
        return self.operator.removeprefix("aten.").partition(".")[0]

    def with_tensors(self, make: Callable[[CellView], Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments by position and by name, with what `make` gives in the place of each view."""
        args = [filled(value, make) for value in self.arguments]
        return args, {name: filled(value, make) for name, value in self.named.items()}


def is_view(func: OpOverload) -> bool:
    """Whether the operator computes nothing, and only looks at memory in another way: traces leave
    it out."""
    schema = func._schema  # pyright: ignore[reportPrivateUsage]
    if func.namespace == "profiler" or func.overloadpacket.__name__ in _SHAPE_ONLY:
        return True
    aliases = [result.alias_info for result in schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def pieces(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The calls that a call is made of: fused updates of lists of tensors, one for each
    parameter."""
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
    """The argument that the operator writes to and returns; None where its result is another
    tensor."""
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


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Results with `function` applied to each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        items = [mapped(item, function) for item in cast("Sequence[Any]", value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def described(value: Any, to_view: ToView) -> Argument:
    """What PyTorch takes or makes, without the values of tensors.

    Raises:
        NumericsError: it has no form in a trace.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Tensor):
        return to_view(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (list, tuple)):
        return tuple(described(item, to_view) for item in cast("Sequence[Any]", value))
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return value
    raise NumericsError(f"a trace cannot hold an argument of type {type(value).__name__}")


def filled(argument: Argument, make: Callable[[CellView], Any]) -> Any:
    """An argument as PyTorch takes it, with what `make` gives in the place of each view."""
    if isinstance(argument, CellView):
        return make(argument)
    if isinstance(argument, tuple):
        return [filled(item, make) for item in argument]
    return argument


def views_in(argument: Argument) -> Iterator[CellView]:
    """All views in an argument, in order."""
    if isinstance(argument, CellView):
        yield argument
    elif isinstance(argument, tuple):
        for item in argument:
            yield from views_in(item)


def argument_value(argument: Argument) -> Value:
    """The form that an argument has in an entry."""
    if isinstance(argument, CellView):
        return {"view": argument.to_value()}
    if isinstance(argument, tuple):
        return [argument_value(item) for item in argument]
    if isinstance(argument, float) and math.isnan(argument):
        return {"float": "nan"}
    if argument is None or isinstance(argument, (bool, int, float, str)):
        return argument
    return {type(argument).__name__: str(argument)}


def read_argument(value: Value) -> Argument:
    """Read what `argument_value` wrote; another party may have written it.

    Raises:
        FieldError: it is not of that form.
    """
    if isinstance(value, list):
        return tuple(read_argument(item) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict) and len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "view":
            return CellView.from_value(content)
        if tag == "float" and content == "nan":
            return math.nan
        known = _NAMED_VALUES.get((tag, content)) if isinstance(content, str) else None
        if known is not None:
            return known
    raise FieldError("not an argument of an operator")


_NAMED_VALUES: dict[tuple[str, str], Argument] = {
    (type(value).__name__, str(value)): value
    for value in (
        *(
            v
            for v in vars(torch).values()
            if isinstance(v, (torch.dtype, torch.layout, torch.memory_format))
        ),
        torch.device("cpu"),
    )
}
