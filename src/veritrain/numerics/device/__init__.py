"""`exact` numerics on tensors outside the CPU's memory: the same definitions, the same bits.

Each module here holds the twins of the module of the same name in `numerics`: same functions, same
signatures, same bits. They use operations whose result IEEE 754 or integer arithmetic fixes on any
device: single additions, multiplications, divisions and casts; integer sums; bit patterns; matrix
products of integers in float64. Each operation is a kernel of its own, so that nothing can be
contracted into a fused multiply-add. Where Triton is installed, `fused` has faster twins of the same
bits. `gate` admits nothing else on a device (docs/decisions/009-cuda.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def elsewhere(x: Tensor) -> bool:
    """Whether `x` is outside the CPU's memory."""
    return x.device.type != "cpu"


def on_the_cpu(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Compute `function` of tensors on the CPU and move the result to where one of them lies: for what is
    too seldom used to have a twin."""
    place = next(x.device for x in tensors if elsewhere(x))
    with torch.device("cpu"):
        result = function(*(x.detach().to("cpu") for x in tensors))
    return result.to(place)


def on_cpu(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Mark `function` as the one for tensors on the CPU; others go to its twin in `device`.

    The tensors among the positional arguments decide.
    """
    module, name = function.__module__.rpartition(".")[2], function.__name__

    @wraps(function)
    def choose(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if not any(isinstance(value, Tensor) and elsewhere(value) for value in args):
            return function(*args, **kwargs)
        twins = import_module(f"veritrain.numerics.device.{module}")
        return getattr(twins, name)(*args, **kwargs)

    return choose
