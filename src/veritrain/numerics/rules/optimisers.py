"""Fused optimiser updates: the one canonical sequence of SGD, Adam and AdamW.

Every operation is one float32 IEEE operation in the order written; scalars are computed in binary64
from the hyper-parameters and rounded to float32 where they meet a tensor (docs/numerics.md,
"Optimisers"). The update equals, bit for bit, PyTorch's unfused loop under the other rules, but for
beta**t: Python's `**` goes through the C library's `pow`, which differs between machines, so the
power is a product by binary exponentiation here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.cpu import updates
from veritrain.numerics.cpu.updates import AdamFlags, AdamNumbers, SgdFlags, SgdNumbers
from veritrain.numerics.rules.table import Kind, aten, require_float32, rule


def _require_one_shape(tensors: Sequence[Tensor]) -> None:
    """
    Raises:
        UnsupportedOperatorError: another dtype than float32.
        ValueError: different shapes, as a state that someone else wrote may say.
    """
    require_float32("fused optimiser", *tensors)
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ValueError("fused optimiser: expected tensors of one shape")


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
        for param, grad, mean, square, top, step in groups:
            count = int(step)
            root2 = math.sqrt(1 - power(beta2, count))
            step_size = rate / (1 - power(beta1, count))
            numbers = AdamNumbers(
                decay=f32(weight_decay),
                keep=f32(1 - rate * weight_decay),
                one_minus_beta1=f32(1 - beta1),
                beta2=f32(beta2),
                one_minus_beta2=f32(1 - beta2),
                root2=f32(root2),
                eps=f32(eps),
                minus_step=f32(-step_size),
            )
            tensors = (param, grad, mean, square, top)
            _require_one_shape(tensors)
            updates.adam(*tensors, AdamFlags(amsgrad, decoupled, maximize), numbers)

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
    flags = SgdFlags(momentum != 0, is_first_step, nesterov, maximize)
    numbers = SgdNumbers(
        decay=f32(weight_decay),
        momentum=f32(momentum),
        undamped=f32(1 - dampening),
        minus_lr=f32(-float(lr)),
    )
    for tensors in zip(params, grads, buffers, strict=True):
        _require_one_shape(tensors)
        updates.sgd(*tensors, flags, numbers)
