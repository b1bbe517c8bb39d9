"""Correctly rounded elementary functions on fp32 tensors.

Contract: `apply(name, x)` rounds the real function of every entry to the nearest fp32 number, ties
to even. That is a definition, not an algorithm: the result is the same on every machine. Ziv's
strategy makes it cheap: an fp64 kernel decides nearly all entries by its error bound
(`elementary_kernels`), multiprecision arithmetic the rest (`multiprecision`).

The processor must be in its usual floating-point mode: rounding to nearest, subnormals kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from veritrain.errors import UsageError
from veritrain.numerics.cpu import elementary_kernels as kernels
from veritrain.numerics.cpu import multiprecision
from veritrain.numerics.platform import parallel
from veritrain.numerics.platform.devices import on_cpu

_GRAIN = 8_192  # entries, about 15 microseconds of work

FUNCTIONS: dict[str, Callable[..., int]] = {
    "exp": kernels.exp_loop,
    "expm1": kernels.expm1_loop,
    "tanh": kernels.tanh_loop,
    "sigmoid": kernels.sigmoid_loop,
    "silu": kernels.silu_loop,
    "silu_grad": kernels.silu_grad_loop,
    "erf": kernels.erf_loop,
    "erfinv": kernels.erfinv_loop,
    "gelu": kernels.gelu_loop,
    "gelu_grad": kernels.gelu_grad_loop,
    "gelu_tanh": kernels.gelu_tanh_loop,
    "gelu_tanh_grad": kernels.gelu_tanh_grad_loop,
    "softplus": kernels.softplus_loop,
    "log": kernels.log_loop,
    "log1p": kernels.log1p_loop,
    "sin": kernels.sin_loop,
    "cos": kernels.cos_loop,
    "sin_two_pi": kernels.sin_two_pi_loop,
    "cos_two_pi": kernels.cos_two_pi_loop,
    "sqrt": kernels.sqrt_loop,
    "rsqrt": kernels.rsqrt_loop,
}

# f(x) * factor, the product rounded by itself
_PRODUCTS: dict[str, Callable[..., int]] = {
    "silu_grad": kernels.silu_grad_times_loop,
    "gelu_grad": kernels.gelu_grad_times_loop,
    "gelu_tanh_grad": kernels.gelu_tanh_grad_times_loop,
}


@on_cpu
def apply(name: str, x: torch.Tensor) -> torch.Tensor:
    """Apply the function `name` to an fp32 tensor of any shape and strides.

    Returns a new contiguous fp32 tensor of the same shape. NaNs in it are all 0x7fc00000.

    Raises:
        UsageError: no function of this name, or another dtype.
    """
    kernel = FUNCTIONS.get(name)
    if kernel is None:
        raise UsageError(f"elementary function: expected one of {sorted(FUNCTIONS)}, got {name!r}")
    inputs = _flat(name, x)
    bits = torch.empty(x.shape, dtype=torch.int32)
    outputs: NDArray[np.int32] = bits.view(-1).numpy()
    if any(parallel.run(kernel, inputs.size, inputs, outputs, grain=_GRAIN)):
        decide_rest(name, inputs, outputs)
    return bits.view(torch.float32)


@on_cpu
def apply_times(name: str, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`apply(name, x) * factor` in one pass; a derivative by name, two tensors of one shape.

    Raises:
        UsageError: another dtype, or unlike shapes.
    """
    if x.shape != factor.shape:
        raise UsageError(f"{name}: expected one shape, got {x.shape} and {factor.shape}")
    inputs, factors = _flat(name, x), _flat(name, factor)
    bits = torch.empty(x.shape, dtype=torch.int32)
    outputs: NDArray[np.int32] = bits.view(-1).numpy()
    kernel = _PRODUCTS[name]
    if any(parallel.run(kernel, inputs.size, inputs, factors, outputs, grain=_GRAIN)):
        undecided = decide_rest(name, inputs, outputs)
        outputs.view(np.float32)[undecided] *= factors[undecided]
    return bits.view(torch.float32)


@on_cpu
def power(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x to the power y, entry by entry: correctly rounded, special values as in IEEE 754's `pow`.

    Args:
        x, y: fp32 tensors of shapes that broadcast.

    Raises:
        UsageError: another dtype.
    """
    x, y = torch.broadcast_tensors(x, y)
    bases, exponents = _flat("power", x), _flat("power", y)
    bits = torch.empty(x.shape, dtype=torch.int32)
    outputs: NDArray[np.int32] = bits.view(-1).numpy()
    if any(parallel.run(kernels.power_loop, bases.size, bases, exponents, outputs, grain=_GRAIN)):
        undecided = kernels.undecided_places(outputs)
        pairs = zip(bases[undecided].tolist(), exponents[undecided].tolist(), strict=True)
        values = [multiprecision.power_bits(*pair) for pair in pairs]
        outputs[undecided] = np.array(values, dtype=np.uint32).view(np.int32)
    return bits.view(torch.float32)


def _flat(name: str, x: torch.Tensor) -> NDArray[np.float32]:
    if x.dtype != torch.float32:
        raise UsageError(f"{name}: expected a float32 tensor, got {x.dtype}")
    return x.detach().contiguous().view(-1).numpy()


def decide_rest(
    name: str, inputs: NDArray[np.float32], outputs: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Replace undecided entries and tell which they were; equal inputs are computed once."""
    undecided = kernels.undecided_places(outputs)
    distinct, where = np.unique(inputs[undecided].view(np.uint32), return_inverse=True)
    values = [
        multiprecision.rounded_bits(name, multiprecision.float_of(int(bits))) for bits in distinct
    ]
    outputs[undecided] = np.array(values, dtype=np.uint32).view(np.int32)[where]
    return undecided
