"""The kernels of fused optimiser updates: SGD and Adam, one float32 operation after another as
written.

`rules.optimisers` says where their numbers come from.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from veritrain.numerics.cpu.integers import jit
from veritrain.numerics.platform.devices import on_cpu
from veritrain.numerics.platform.parallel import run

_GRAIN = 1 << 15  # values per thread


class AdamFlags(NamedTuple):
    """Which Adam it is, in the order in which the kernel takes it."""

    amsgrad: bool
    decoupled: bool
    maximize: bool


class AdamNumbers(NamedTuple):
    """The scalars of one step, in the order in which the kernel takes them."""

    decay: np.float32  # the L2 factor (coupled)
    keep: np.float32  # 1 - lr * decay (decoupled)
    one_minus_beta1: np.float32
    beta2: np.float32
    one_minus_beta2: np.float32
    root2: np.float32  # of 1 - beta2**t
    eps: np.float32
    minus_step: np.float32


class SgdFlags(NamedTuple):
    """Which SGD it is, in the order in which the kernel takes it."""

    has_momentum: bool
    first: bool
    nesterov: bool
    maximize: bool


class SgdNumbers(NamedTuple):
    """The scalars of one step, in the order in which the kernel takes them."""

    decay: np.float32
    momentum: np.float32
    undamped: np.float32  # 1 - dampening
    minus_lr: np.float32


@on_cpu
def adam(
    param: Tensor, grad: Tensor, mean: Tensor, square: Tensor, largest: Tensor,
    flags: AdamFlags, numbers: AdamNumbers,
) -> None:  # fmt: skip
    """Update the tensors of one shape in place, but for `grad`; `largest` with `amsgrad` only."""
    _run(_adam_kernel, (param, grad, mean, square, largest), grad, *flags, *numbers)


@on_cpu
def sgd(param: Tensor, grad: Tensor, buffer: Tensor, flags: SgdFlags, numbers: SgdNumbers) -> None:
    """Update the tensors of one shape in place, but for `grad`; `buffer` with momentum only."""
    _run(_sgd_kernel, (param, grad, buffer), grad, *flags, *numbers)


def _run(
    kernel: Callable[..., None], tensors: tuple[Tensor, ...], grad: Tensor, *scalars: object
) -> None:
    # one dense copy of each, also where a tensor stands for two
    dense = {id(tensor): tensor.detach().contiguous() for tensor in tensors}
    flat = [dense[id(tensor)].view(-1).numpy() for tensor in tensors]
    run(kernel, flat[0].shape[0], *flat, *scalars, grain=_GRAIN)
    for tensor in tensors:
        if tensor is not grad and not tensor.is_contiguous():
            tensor.copy_(dense[id(tensor)])


@jit
def _adam_kernel(
    param, grad, mean, square, largest, amsgrad, decoupled, maximize, decay, keep, one_minus_beta1,
    beta2, one_minus_beta2, root2, eps, minus_step, start, stop,
):  # fmt: skip
    p, g_in = param[start:stop], grad[start:stop]
    m, v, top = mean[start:stop], square[start:stop], largest[start:stop]
    for i in range(p.shape[0]):
        g = -g_in[i] if maximize else g_in[i]
        value = p[i]
        if decoupled:
            value = value * keep
        else:
            g = g + value * decay
        m[i] = m[i] + (g - m[i]) * one_minus_beta1
        v[i] = v[i] * beta2 + (g * g) * one_minus_beta2
        second = v[i]
        if amsgrad:
            top[i] = max(top[i], second)
            second = top[i]
        denominator = np.sqrt(second) / root2 + eps
        p[i] = value + (m[i] / denominator) * minus_step


@jit
def _sgd_kernel(
    param, grad, buffer, has_momentum, first, nesterov, maximize, decay, momentum, undamped,
    minus_lr,
    start, stop,
):  # fmt: skip
    p, g_in, buf = param[start:stop], grad[start:stop], buffer[start:stop]
    for i in range(p.shape[0]):
        g = -g_in[i] if maximize else g_in[i]
        if decay != np.float32(0.0):
            g = g + p[i] * decay
        if has_momentum:
            buf[i] = g if first else buf[i] * momentum + g * undamped
            g = g + buf[i] * momentum if nesterov else buf[i]
        p[i] = p[i] + g * minus_lr
