"""Optimiser updates in torch operations: the twins of the kernels in `numerics.rules.optimisers`.

Scalars are numpy float32 numbers; they meet a tensor as Python floats, which hold them exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from veritrain.numerics.device.elementary import sqrt


def update(kernel: str, tensors: Sequence[Tensor], scalars: Sequence[Any]) -> None:
    """Run the twin of the kernel of this name on the tensors, in place."""
    plain = [value if isinstance(value, bool) else float(value) for value in scalars]
    _KERNELS[kernel](*(tensor.detach() for tensor in tensors), *plain)


def _adam(
    param: Tensor, grad: Tensor, mean: Tensor, square: Tensor, largest: Tensor, amsgrad: bool,
    decoupled: bool, maximize: bool, decay: float, keep: float, one_minus_beta1: float,
    beta2: float, one_minus_beta2: float, root2: float, eps: float, minus_step: float,
) -> None:  # fmt: skip
    g = -grad if maximize else grad
    value = param * keep if decoupled else param
    g = g if decoupled else g + value * decay
    mean.copy_(mean + (g - mean) * one_minus_beta1)
    square.copy_(square * beta2 + (g * g) * one_minus_beta2)
    second = square
    if amsgrad:
        largest.copy_(torch.where(square > largest, square, largest))
        second = largest
    root = torch.full((), root2, dtype=torch.float32, device=param.device)
    denominator = sqrt(second) / root + eps
    param.copy_(value + (mean / denominator) * minus_step)


def _sgd(
    param: Tensor, grad: Tensor, buffer: Tensor, has_momentum: bool, first: bool, nesterov: bool,
    maximize: bool, decay: float, momentum: float, undamped: float, minus_lr: float,
) -> None:  # fmt: skip
    g = -grad if maximize else grad
    if decay != 0.0:
        g = g + param * decay
    if has_momentum:
        buffer.copy_(g if first else buffer * momentum + g * undamped)
        g = g + buffer * momentum if nesterov else buffer
    param.copy_(param + g * minus_lr)


_KERNELS: dict[str, Callable[..., None]] = {"_adam_kernel": _adam, "_sgd_kernel": _sgd}
