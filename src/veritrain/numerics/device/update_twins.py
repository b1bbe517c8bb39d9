"""Optimiser updates in torch operations: the twins of `cpu.updates`.

An update is a function of tensors and float32 scalars to new tensors; `fused` makes one kernel of
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.cpu import updates
from veritrain.numerics.cpu.updates import AdamFlags, AdamNumbers, SgdFlags, SgdNumbers
from veritrain.numerics.device import fused
from veritrain.numerics.device.elementary_twins import sqrt
from veritrain.numerics.platform.devices import twin_of


@dataclass(frozen=True)
class Adam:
    """New (param, mean, square, largest); `largest` is of use with `amsgrad` only."""

    amsgrad: bool
    decoupled: bool
    maximize: bool

    def __call__(
        self, param: Tensor, grad: Tensor, mean: Tensor, square: Tensor, largest: Tensor,
        decay: Tensor, keep: Tensor, one_minus_beta1: Tensor, beta2: Tensor,
        one_minus_beta2: Tensor, root2: Tensor, eps: Tensor, minus_step: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """One step."""
        g = -grad if self.maximize else grad
        value = param * keep if self.decoupled else param
        g = g if self.decoupled else g + value * decay
        mean = mean + (g - mean) * one_minus_beta1
        square = square * beta2 + (g * g) * one_minus_beta2
        largest = torch.where(square > largest, square, largest) if self.amsgrad else square
        denominator = sqrt(largest) / root2 + eps
        return value + (mean / denominator) * minus_step, mean, square, largest


@dataclass(frozen=True)
class Sgd:
    """New (param, buffer); `buffer` is of use with momentum only."""

    has_momentum: bool
    first: bool
    nesterov: bool
    maximize: bool
    has_decay: bool

    def __call__(
        self, param: Tensor, grad: Tensor, buffer: Tensor, decay: Tensor, momentum: Tensor,
        undamped: Tensor, minus_lr: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """One step."""
        g = -grad if self.maximize else grad
        if self.has_decay:
            g = g + param * decay
        if self.has_momentum:
            buffer = g if self.first else buffer * momentum + g * undamped
            g = g + buffer * momentum if self.nesterov else buffer
        return param + g * minus_lr, buffer


@twin_of(updates.adam)
def adam(
    param: Tensor, grad: Tensor, mean: Tensor, square: Tensor, largest: Tensor,
    flags: AdamFlags, numbers: AdamNumbers,
) -> None:  # fmt: skip
    targets = (param, mean, square, largest) if flags.amsgrad else (param, mean, square)
    _run(Adam(*flags), (param, grad, mean, square, largest), numbers, targets)


@twin_of(updates.sgd)
def sgd(param: Tensor, grad: Tensor, buffer: Tensor, flags: SgdFlags, numbers: SgdNumbers) -> None:
    targets = (param, buffer) if flags.has_momentum else (param,)
    _run(Sgd(*flags, has_decay=numbers.decay != 0), (param, grad, buffer), numbers, targets)


def _run(
    rule: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor],
    numbers: Sequence[np.float32],
    targets: Sequence[Tensor],
) -> None:
    """Write the first results of `rule` into `targets`."""
    device = tensors[0].device
    scalars = [float(number) for number in numbers]  # held exactly
    if fused.serves(device):
        results = fused.elementwise(rule, tensors, scalars, len(targets))
    else:
        # tensors, since a division by a Python number multiplies by its reciprocal on CUDA
        full = [torch.full((), s, dtype=torch.float32, device=device) for s in scalars]
        results = rule(*(tensor.detach() for tensor in tensors), *full)
    for target, result in zip(targets, results, strict=False):
        target.copy_(result)
