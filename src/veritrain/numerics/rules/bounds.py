"""`relu`, `hardtanh` and `clamp` with numbers as bounds: of the value and a bound that are equal,
the value stays.

Equal numbers with other bits are zeros alone. The vendors' kernels take a processor's own maximum
and minimum: those of ARM choose a zero by its sign, those of x86-64 keep the value's. So a bound of
zero is compared and selected; any other is left to the vendor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from veritrain.numerics.platform.devices import elsewhere
from veritrain.numerics.rules.table import Kind, aten, rule

_Bound: TypeAlias = float | None
_Bounds: TypeAlias = tuple[_Bound, _Bound]


def _bounded(x: Tensor, low: _Bound, high: _Bound) -> Tensor:
    """`x`, but `low` where it is less, then `high` where it is more; neither is NaN."""
    if low == 0:
        x = torch.threshold(x, -_tiniest(x.dtype), low)  # up to that: less than zero
    elif low is not None:
        x = torch.clamp_min(x, low)
    if high == 0:
        return torch.where(x > 0, high, x)
    return x if high is None else torch.clamp_max(x, high)


def _bound_(x: Tensor, low: _Bound, high: _Bound) -> Tensor:
    """`_bounded`, in place."""
    if low == 0:
        torch.threshold_(x, -_tiniest(x.dtype), low)
    elif low is not None:
        x.clamp_min_(low)
    if high == 0:
        return x.masked_fill_(x > 0, high)
    return x if high is None else x.clamp_max_(high)


def _tiniest(dtype: torch.dtype) -> float:
    """The smallest number above zero."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def _of_relu() -> _Bounds:
    return 0, None


def _of_hardtanh(min_val: float = -1, max_val: float = 1) -> _Bounds:
    return min_val, max_val


def _of_clamp(min: _Bound = None, max: _Bound = None) -> _Bounds:
    return min, max


def _of_clamp_max(max: float) -> _Bounds:
    return None, max


def _register(name: str, bounds_of: Callable[..., _Bounds]) -> None:
    operator, in_place = getattr(aten, name).default, getattr(aten, f"{name}_").default

    @rule(Kind.MOVEMENT, operator)
    def _(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        bounds = bounds_of(*args, **kwargs)
        if name.startswith("clamp") and not x.is_floating_point():
            x = _with_fractions(x, bounds)
        if _is_vendors(x, bounds):
            return operator(x, *args, **kwargs)
        return _bounded(x, *bounds)

    @rule(Kind.MOVEMENT, in_place)
    def _(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        bounds = bounds_of(*args, **kwargs)
        if _is_vendors(x, bounds):
            return in_place(x, *args, **kwargs)
        return _bound_(x, *bounds)


def _is_vendors(x: Tensor, bounds: _Bounds) -> bool:
    """Whether no zero can be lost. Integers have one; on a device `device.gate` compares and
    selects."""
    is_unordered = any(bound is not None and bound != bound for bound in bounds)
    return 0 not in bounds or is_unordered or elsewhere(x) or not x.is_floating_point()


def _with_fractions(x: Tensor, bounds: _Bounds) -> Tensor:
    """Integers that meet a fraction become floating-point numbers."""
    is_fraction = any(isinstance(bound, float) for bound in bounds)
    return x.to(torch.get_default_dtype()) if is_fraction else x


_register("relu", _of_relu)
_register("hardtanh", _of_hardtanh)
_register("clamp", _of_clamp)
_register("clamp_min", _of_clamp)
_register("clamp_max", _of_clamp_max)
