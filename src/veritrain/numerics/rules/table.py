"""The table that maps an ATen operator to its rule under `exact` numerics.

A rule is a function with the operator's own signature. `Kind` says where the operator's bits come
from (docs/numerics.md has one chapter per kind). An operator that is not in the table has no rule and
is refused by name; nothing is passed through by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from veritrain.errors import UnsupportedOperatorError

aten: Any = torch.ops.aten


class Kind(Enum):
    """Where an operator's bits come from."""

    MOVEMENT = "movement"  # values are moved, compared or created, never computed
    IEEE = "IEEE"  # one correctly rounded basic operation per value
    CONTRACTION = "contraction"  # exact integer products and sums
    SUM = "sum"  # exact integer sum
    ELEMENTARY = "elementary"  # correctly rounded function
    COMPOSITE = "composite"  # a written definition in the kinds above
    RANDOM = "random"  # counter-based generator
    OPTIMISER = "optimiser"  # fused update in the kinds above


@dataclass(frozen=True)
class Rule:
    """How one operator is computed; `takes_stream` rules get the random stream first."""

    kind: Kind
    function: Callable[..., Any]
    takes_stream: bool = False


_RULES: dict[OpOverload, Rule] = {}
_AS_IS: dict[str, Kind] = {}


def rule(kind: Kind, *operators: OpOverload, takes_stream: bool = False) -> Callable[[Any], Any]:
    """Register the decorated function as the rule of `operators`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for operator in operators:
            _RULES[operator] = Rule(kind, function, takes_stream)
        return function

    return register


def as_is(kind: Kind, names: Iterable[str]) -> None:
    """Declare that PyTorch's own kernels of these operators already follow the definition."""
    for name in names:
        _AS_IS[name] = kind


def lookup(operator: OpOverload) -> Rule:
    """The rule of `operator`.

    An in-place operator without a rule of its own follows its functional twin and copies the result.

    Raises:
        UnsupportedOperatorError: there is no rule.
    """
    found = _RULES.get(operator)
    if found is not None:
        return found
    name = short_name(operator)
    if operator.namespace == "profiler":  # marks a region, computes nothing
        return Rule(Kind.MOVEMENT, operator)
    if operator.namespace in ("aten", "prim") and name in _AS_IS:
        return Rule(_AS_IS[name], _guarded(operator, _AS_IS[name]))
    if operator.namespace == "aten" and name.endswith("_") and not name.endswith("__"):
        return _in_place(operator, name.removesuffix("_"))
    raise UnsupportedOperatorError(
        f"operator {operator} has no rule under exact numerics; write this part of the model with "
        "covered operators (docs/numerics.md lists them) or choose numerics='native'"
    )


def short_name(operator: OpOverload) -> str:
    """The operator's name without namespace and overload: "add_" for aten::add_.Tensor."""
    return operator.name().partition("::")[2].partition(".")[0]


def covered() -> dict[str, Kind]:
    """Every covered operator by name: what the specification must describe."""
    names = {str(operator): rule.kind for operator, rule in _RULES.items()}
    return dict(sorted({**_AS_IS, **names}.items()))


def _in_place(operator: OpOverload, name: str) -> Rule:
    packet = getattr(aten, name, None)
    overload = operator.name().partition(".")[2] or "default"
    if packet is None or overload not in packet.overloads():
        raise UnsupportedOperatorError(f"operator {operator} has no rule under exact numerics")
    functional = lookup(getattr(packet, overload))
    if name in _AS_IS:
        return Rule(functional.kind, _guarded(operator, functional.kind))

    def function(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return target.copy_(functional.function(target, *args, **kwargs))

    return Rule(functional.kind, function)


def _guarded(operator: OpOverload, kind: Kind) -> Callable[..., Any]:
    """The operator itself; arithmetic only in types whose arithmetic is IEEE on every machine."""
    if kind is Kind.MOVEMENT:
        return operator

    def function(*args: Any, **kwargs: Any) -> Any:
        for value in args:
            if isinstance(value, Tensor) and value.dtype in _NARROW:
                raise UnsupportedOperatorError(
                    f"operator {operator} on {value.dtype}: exact numerics covers float32 arithmetic"
                )
        return operator(*args, **kwargs)

    return function


_NARROW = (torch.float16, torch.bfloat16, torch.complex64, torch.complex128)


def require_float32(operator: str, *tensors: Tensor | None) -> None:
    """Refuse other dtypes where a definition is for float32 alone.

    Raises:
        UnsupportedOperatorError: names operator and dtype.
    """
    for tensor in tensors:
        if tensor is not None and tensor.dtype != torch.float32:
            raise UnsupportedOperatorError(
                f"operator {operator} on {tensor.dtype}: exact numerics covers float32 only"
            )
