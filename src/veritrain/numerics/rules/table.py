"""The table that maps an ATen operator to its rule under `exact` numerics.

A rule is a function with the operator's own signature. `Kind` says where the operator's bits come
from (docs/numerics.md has one chapter per kind). An operator that is not in the table has no rule
and is refused by name; nothing is passed through by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)

from veritrain.errors import NumericsError, UnsupportedOperatorError

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
    REFUSED = "refused"  # an overload of a covered operator that has no definition


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

    An in-place operator, or one that writes into `out`, without a rule of its own follows its
    functional twin and copies the result.

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
        return _as_is_rule(operator, _AS_IS[name])
    if operator.namespace == "aten" and name.endswith("_") and not name.endswith("__"):
        return _in_place(operator, name.removesuffix("_"))
    if operator.namespace == "aten" and any(a.is_out for a in _arguments(operator)):
        return _into_out(operator, name)
    raise _no_rule(operator)


def _arguments(operator: OpOverload) -> list[torch.Argument]:
    return operator._schema.arguments  # pyright: ignore[reportPrivateUsage]


def short_name(operator: OpOverload) -> str:
    """The operator's name without namespace and overload: "add_" for aten::add_.Tensor."""
    return operator.name().partition("::")[2].partition(".")[0]


def covered() -> dict[str, Kind]:
    """Every covered operator by name: what the specification must describe."""
    names = {str(operator): rule.kind for operator, rule in _RULES.items()}
    kinds = {**_AS_IS, **names}
    return {name: kind for name, kind in sorted(kinds.items()) if kind is not Kind.REFUSED}


def _as_is_rule(operator: OpOverload, kind: Kind) -> Rule:
    """The operator itself; where it writes into `out` and its functional twin has a rule, that
    rule."""
    if any(argument.is_out for argument in _arguments(operator)):
        twin = _functional_twin(operator, short_name(operator))
        if twin is None or twin in _RULES:
            return _into_out(operator, short_name(operator))
    return Rule(kind, operator)


def _in_place(operator: OpOverload, name: str) -> Rule:
    packet = getattr(aten, name, None)
    overload = operator.name().partition(".")[2] or "default"
    if packet is None or overload not in packet.overloads():
        raise _no_rule(operator)
    functional = lookup(getattr(packet, overload))
    if isinstance(functional.function, OpOverload):  # as it is
        return Rule(functional.kind, operator)

    def function(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _write(target, functional.function(target, *args, **kwargs))

    return Rule(functional.kind, function)


def _into_out(operator: OpOverload, name: str) -> Rule:
    twin = _functional_twin(operator, name)
    functional = lookup(twin) if twin is not None else None
    if functional is None or functional.takes_stream:
        raise _no_rule(operator)
    names = [argument.name for argument in _arguments(operator) if argument.is_out]

    def function(*args: Any, **kwargs: Any) -> Any:
        outs = [kwargs.pop(name) for name in names]
        results = functional.function(*args, **kwargs)
        results = results if isinstance(results, (list, tuple)) else [results]
        for out, result in zip(outs, results, strict=True):
            _write(out.resize_(result.shape) if out.shape != result.shape else out, result)
        return outs[0] if len(outs) == 1 else tuple(outs)

    return Rule(functional.kind, function)


def _functional_twin(operator: OpOverload, name: str) -> OpOverload | None:
    """The overload that takes the same arguments but for `out`."""
    inputs = [(a.name, str(a.type)) for a in _arguments(operator) if not a.is_out]
    packet = getattr(aten, name)
    for overload in packet.overloads():
        twin = getattr(packet, overload)
        if [(a.name, str(a.type)) for a in _arguments(twin)] == inputs:
            return twin
    return None


def _write(target: Tensor, result: Tensor) -> Tensor:
    """Copy as PyTorch's in-place operators do: never to a lesser kind of number.

    Raises:
        TypeError: a float result for an integer tensor, an integer one for a bool.
    """
    if not torch.can_cast(result.dtype, target.dtype):
        raise TypeError(f"result type {result.dtype} cannot be cast to {target.dtype}")
    return target.copy_(result)


def random_operator(operator: OpOverload) -> OpOverload | None:
    """The random operator that this one is where its keys come from a generator, or that it is
    itself; None for operators that draw nothing or have no rule."""
    name = short_name(operator)
    overload = operator.name().partition(".")[2]
    packet = getattr(aten, name, None)
    if operator.namespace == "aten" and overload.endswith("generator"):
        operator = getattr(
            packet, overload.removesuffix("generator").rstrip("_") or "default", operator
        )
    try:
        return operator if lookup(operator).takes_stream else None
    except UnsupportedOperatorError:
        return None


def _no_rule(operator: OpOverload) -> UnsupportedOperatorError:
    remedy = "write this part of the model with covered operators (docs/operators.md lists them)"
    if "generator" in (argument.name for argument in _arguments(operator)):
        remedy = "draw from torch.rand, randn, randint, randperm or bernoulli instead"
    return UnsupportedOperatorError(
        f"operator {operator} has no rule under exact numerics; {remedy} or choose"
        " numerics='native'"
    )


def refuse(*operators: OpOverload, because: str) -> None:
    """Refuse overloads of operators that are otherwise covered."""
    for operator in operators:

        def function(*args: Any, operator: OpOverload = operator, **kwargs: Any) -> Any:
            raise UnsupportedOperatorError(f"operator {operator} has no exact rule: {because}")

        _RULES[operator] = Rule(Kind.REFUSED, function)


def result_shape(operator: OpOverload, x: Tensor, *arguments: object) -> torch.Size:
    """Shape of operator(x, ...) by PyTorch's own function of shapes, which raises where they do not
    fit."""
    with _disable_current_modes():
        return operator(torch.empty(x.shape, device="meta"), *arguments).shape


def require_float32(operator: str, *tensors: Tensor | None) -> None:
    """Refuse other dtypes where a definition is for float32 alone.

    Raises:
        UnsupportedOperatorError: names operator and dtype.
    """
    for tensor in tensors:
        if tensor is not None and tensor.dtype != torch.float32:
            raise UnsupportedOperatorError(
                f"operator {operator} on {tensor.dtype}: exact numerics covers float32 only; "
                "use .float() first"
            )


def times_(x: Tensor, y: Tensor) -> Tensor:
    """x * y, in the memory of `x` where it holds that: `vmap` hands over shapes that are yet to be
    broadcast."""
    return x.mul_(y) if x.shape == y.shape else x * y


def cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`x` as `dtype`, or as it is.

    Raises:
        NumericsError: see `require_range`.
    """
    require_range(x, dtype)
    return x if dtype is None else x.to(dtype)


def require_range(x: Tensor, dtype: torch.dtype | None) -> None:
    """Refuse floats that an integer type does not hold.

    Raises:
        NumericsError: a value beyond the type, or NaN.
    """
    if dtype in (None, torch.bool) or dtype.is_floating_point or dtype.is_complex:
        return
    if not x.is_floating_point() or not x.numel():
        return
    values = x.detach().float() if x.element_size() == 1 else x.detach()  # float8 has no kernel
    low, high = (float(bound) for bound in values.aminmax())
    info = torch.iinfo(dtype)
    if not (info.min - 1 < low and high < info.max + 1):
        raise NumericsError(
            f"cast of {x.dtype} to {dtype}: values in [{low}, {high}] do not fit, and what becomes"
            " of them depends on the processor; clamp first"
        )
