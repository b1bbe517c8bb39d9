"""Fused optimiser updates: the one canonical sequence of SGD, Adam and AdamW.

Every operation is one float32 IEEE operation in the order written; scalars are computed in binary64
from the hyper-parameters and rounded to float32 where they meet a tensor (docs/numerics.md,
"Optimisers"). The update equals, bit for bit, PyTorch's unfused loop under the other rules, but for
beta**t: Python's `**` goes through the C library's `pow`, which differs between machines, so the power
is a product by binary exponentiation here.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.device import elsewhere
from veritrain.numerics.device import optimisers as device
from veritrain.numerics.integers import jit
from veritrain.numerics.parallel import run
from veritrain.numerics.rules.table import Kind, aten, require_float32, rule

_GRAIN = 1 << 15  # values per thread


@jit
def _adam_kernel(
    param, grad, mean, square, largest, amsgrad, decoupled, maximize, decay, keep, one_minus_beta1,
    beta2, one_minus_beta2, root2, eps, minus_step, start, stop,
):  # fmt: skip
    """`decay` is the L2 factor (coupled); `keep` is 1 - lr * decay (decoupled)."""
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
    param, grad, buffer, has_momentum, first, nesterov, maximize, decay, momentum, undamped, minus_lr,
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


def _update(
    kernel: Callable[..., None], tensors: Sequence[Tensor], grad: Tensor, scalars: Sequence[Any]
) -> None:
    """Run `kernel` over the flattened tensors, in place; `grad`, one of them, is only read.

    Raises:
        ValueError: they have different shapes, as a state that someone else wrote may say.
    """
    require_float32("fused optimiser", *tensors)
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ValueError("fused optimiser: expected tensors of one shape")
    if elsewhere(grad):
        flags = [value for value in scalars if isinstance(value, bool)]
        numbers = [float(value) for value in scalars[len(flags) :]]  # float32 ones, held exactly
        twin = device.adam if kernel is _adam_kernel else device.sgd
        twin(tensors, flags, numbers)
        return
    # one dense copy of each, also where a tensor stands for two
    dense = {id(tensor): tensor.detach().contiguous() for tensor in tensors}
    flat = [dense[id(tensor)].view(-1).numpy() for tensor in tensors]
    run(kernel, flat[0].shape[0], *flat, *scalars, grain=_GRAIN)
    for tensor in tensors:
        if tensor is not grad and not tensor.is_contiguous():
            tensor.copy_(dense[id(tensor)])


def power(base: float, exponent: int) -> float:
    """base**exponent by binary exponentiation: binary64 products in one fixed order."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def _refuse_scaling(grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    if grad_scale is not None or found_inf is not None:
        raise UnsupportedOperatorError(
            "fused optimiser with gradient scaling has no exact rule: float32 needs no GradScaler"
        )


def _adam(decoupled: bool) -> Callable[..., None]:
    def update(
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
        *,
        lr: float | Tensor,
        beta1: float,
        beta2: float,
        weight_decay: float,
        eps: float,
        amsgrad: bool,
        maximize: bool,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        _refuse_scaling(grad_scale, found_inf)
        rate = float(lr)
        f32 = np.float32
        largest = max_exp_avg_sqs if amsgrad else exp_avg_sqs
        groups = zip(params, grads, exp_avgs, exp_avg_sqs, largest, state_steps, strict=True)
        for *tensors, step in groups:
            count = int(step)
            root2 = math.sqrt(1 - power(beta2, count))
            step_size = rate / (1 - power(beta1, count))
            scalars: list[Any] = [
                amsgrad, decoupled, maximize, f32(weight_decay), f32(1 - rate * weight_decay),
                f32(1 - beta1), f32(beta2), f32(1 - beta2), f32(root2), f32(eps), f32(-step_size),
            ]  # fmt: skip
            _update(_adam_kernel, tensors, tensors[1], scalars)

    return update


rule(Kind.OPTIMISER, aten._fused_adam_.default, aten._fused_adam_.tensor_lr)(_adam(decoupled=False))
rule(Kind.OPTIMISER, aten._fused_adamw_.default, aten._fused_adamw_.tensor_lr)(
    _adam(decoupled=True)
)


@rule(Kind.OPTIMISER, aten._fused_sgd_.default, aten._fused_sgd_.tensor_lr)
def _sgd(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    weight_decay: float,
    momentum: float,
    lr: float | Tensor,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    is_first_step: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    _refuse_scaling(grad_scale, found_inf)
    f32 = np.float32
    buffers = momentum_buffers or grads  # without momentum the buffer is not touched
    scalars: list[Any] = [
        momentum != 0, is_first_step, nesterov, maximize, f32(weight_decay), f32(momentum),
        f32(1 - dampening), f32(-float(lr)),
    ]  # fmt: skip
    for tensors in zip(params, grads, buffers, strict=True):
        _update(_sgd_kernel, tensors, tensors[1], scalars)
