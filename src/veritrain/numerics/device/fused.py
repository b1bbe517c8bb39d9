"""The hot twins as Triton kernels: one pass over memory where torch operations take ten or forty.

Same bits as the twins in torch operations, which are the oracle (tests/numerics/test_fused.py runs
both through Triton's interpreter, and reads the machine code for a GPU that need not be there).
Fusion into multiply-add is off, float32 divisions are `div_rn` and square roots are float64, since
Triton's own are approximate. Integer sums meet by atomic addition: no order.

Needs Triton, which comes with PyTorch's CUDA builds; without it `serves` is false.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownArgumentType=false
from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from veritrain.numerics.cpu.integers import Slices

_INSTALLED = importlib.util.find_spec("triton") is not None
_BLOCK = 1024
_ROWS, _COLUMNS = 32, 32  # a program's part of an axis that is added up, and of the slices
_OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}


def serves(place: torch.device) -> bool:
    """Whether the kernels here can run there: on a GPU, with Triton installed."""
    return _INSTALLED and place.type == "cuda"


def _kernels() -> Any:
    from veritrain.numerics.device import triton_kernels  # loads Triton

    return triton_kernels


def scaled(x: Tensor, shape: Slices, factor: Tensor) -> Tensor:
    """Integers of `x`, float64 in its shape: each value times its slice's factor (P, C), rounded
    half to even; 0 where the factor is 0."""
    _, num_a, num_c, num_b = shape
    q = torch.empty(x.shape, dtype=torch.float64, device=x.device)
    _launch(_kernels().scaled, x.numel(), x.detach(), factor.contiguous(), q, num_a, num_c, num_b)
    return q


def added(x: Tensor, shape: Slices, factor: Tensor) -> Tensor:
    """Sum of each slice's integers: int64 (P, C)."""
    num_p, num_a, num_c, num_b = shape
    totals = torch.zeros((num_p, num_c), dtype=torch.int64, device=x.device)
    if not x.numel():
        return totals
    arguments = (x.detach(), factor.contiguous(), totals, num_a, num_c)
    if num_b == 1 and num_a > 1:  # a program adds along A, for neighbouring slices
        grid = (num_p * -(-num_a // _ROWS) * -(-num_c // _COLUMNS),)
        _kernels().added_columns[grid](*arguments, ROWS=_ROWS, COLUMNS=_COLUMNS, **_OPTIONS)
    else:  # along B
        block = min(_BLOCK, 1 << (num_b - 1).bit_length())
        grid = (num_p * num_a * num_c * -(-num_b // block),)
        _kernels().added_rows[grid](*arguments, num_b, BLOCK=block, **_OPTIONS)
    return totals


def rescale(c: Tensor, row_scale: Tensor, column_scale: Tensor) -> Tensor:
    """Twin of `integers.rescale`."""
    _, num_m, num_n = c.shape
    out = torch.empty(c.shape, dtype=torch.float32, device=c.device)
    scales = row_scale.contiguous(), column_scale.contiguous()
    _launch(_kernels().rescale, c.numel(), c.contiguous(), *scales, out, num_m, num_n)
    return out


def uniform24(key: int, count: int, device: torch.device) -> Tensor:
    """Twin of `philox.uniform24` for `count` entries in one row."""
    out = torch.empty(count, dtype=torch.float32, device=device)
    if count:
        blocks = -(-count // 4)
        _kernels().uniform24[(-(-blocks // _BLOCK),)](key, out, count, BLOCK=_BLOCK, **_OPTIONS)
    return out


def elementwise(
    function: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor],
    scalars: Sequence[float],
    count: int,
) -> list[Tensor]:
    """The first `count` results of a function of float32 tensors of one shape and float32 scalars.

    `function` is hashable: it has one kernel.
    """
    inputs = [tensor.detach().contiguous() for tensor in tensors]
    outputs = [torch.empty_like(inputs[0]) for _ in range(count)]
    kernel = elementwise_kernel(function, len(inputs), len(scalars), count)
    _launch(kernel, inputs[0].numel(), *inputs, *outputs, *scalars)
    return outputs


@cache
def elementwise_kernel(
    function: Callable[..., tuple[Tensor, ...]], tensors: int, scalars: int, count: int
) -> Any:
    """The kernel of such a function."""
    from veritrain.numerics.device import triton_source

    return triton_source.elementwise(function, tensors, scalars, count)


def elementary_bits(
    name: str, function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor
) -> tuple[Tensor, int]:
    """Bits of the function's results, int32 in the shape of `x`, UNDECIDED where its bound does not
    decide, and how many these are."""
    bits = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    undecided = torch.zeros((), dtype=torch.int64, device=x.device)
    _launch(elementary_kernel(name, function), x.numel(), x, bits, undecided)
    return bits, int(undecided)


@cache
def elementary_kernel(name: str, function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Any:
    """The kernel of a function that gives intervals, derived from its torch operations."""
    from veritrain.numerics.device import triton_source

    return triton_source.kernel(name, function)


def _launch(kernel: Any, count: int, *arguments: Any) -> None:
    if count:
        kernel[(-(-count // _BLOCK),)](*arguments, count, BLOCK=_BLOCK, **_OPTIONS)
