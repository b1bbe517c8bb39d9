"""Where a tensor lies decides what computes it: the CPU's kernel, or the twin of it for other
devices.

A kernel of the CPU is marked `on_cpu`; its twin is registered by `twin_of` (package `device`). So
kernels do not import their twins. The twins are there once `device` is imported, which is before a
step on a device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from veritrain.errors import UnsupportedOperatorError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

CPU = torch.device("cpu")

_twins: dict[Callable[..., Any], Callable[..., Any]] = {}


def elsewhere(value: Tensor | torch.device) -> bool:
    """Whether a tensor, or a place, is outside the CPU's memory."""
    return (value.device if isinstance(value, Tensor) else value).type != "cpu"


def on_cpu(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Mark `function` as the one for tensors on the CPU; for others its twin is called.

    The tensors and devices among the positional arguments decide.

    Raises (from the call):
        UnsupportedOperatorError: there is no twin.
    """

    @wraps(function)
    def choose(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if not any(isinstance(v, (Tensor, torch.device)) and elsewhere(v) for v in args):
            return function(*args, **kwargs)
        twin = _twins.get(choose)
        if twin is None:
            raise UnsupportedOperatorError(f"{function.__name__}: computed on the CPU alone")
        return twin(*args, **kwargs)

    return choose


def twin_of(
    kernel: Callable[Parameters, Result],
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Register the decorated function as the twin of `kernel`: same arguments, same bits."""

    def register(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        _twins[kernel] = function
        return function

    return register
