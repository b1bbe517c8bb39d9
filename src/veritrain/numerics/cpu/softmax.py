"""Fused CPU kernels of softmax and log-softmax, one pass over each row (docs/numerics.md,
"Softmax").

The largest exponential of a row is exactly 1, so that the scale of their sum is known beforehand
and each is added as soon as it is there. A row in which the fp64 kernels leave an exponential or
the logarithm undecided is left open by the kernel and computed again by the plain definition: about
one in a thousand rows of 50,000.

Every float32 operation outside of the elementary functions is rounded by itself: no contraction
here.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.cpu import elementary
from veritrain.numerics.cpu import elementary_kernels as kernels
from veritrain.numerics.cpu.exact_sums import (
    bare_jit,
    exact_sum,
    integer_sum,
    power_of_two,
    top_bits,
    total,
)
from veritrain.numerics.cpu.integers import jit, rows_of, sum_bits
from veritrain.numerics.platform.devices import on_cpu
from veritrain.numerics.platform.parallel import grain_of, run

_NOT_FINITE = np.int32(0x7F800000)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_ONE = np.int32(0x3F800000)
_UNDERFLOW = np.float32(-104.0)  # e^-104 < 2^-150 rounds to 0
_BLOCK = 2048  # entries; two such blocks stay in the first-level cache


@bare_jit
def _largest(row):
    """The largest value, NaN if there is one: by bits in the order of the values, which
    vectorises."""
    pattern = row.view(np.int32)
    top = np.int32(-0x80000000)
    for d in range(pattern.shape[0]):
        bits = pattern[d]
        top = max(top, np.int32(bits ^ ((bits >> np.int32(31)) & _MAGNITUDE)))
    if top_bits(row) > _NOT_FINITE:
        return np.float32(np.nan)
    return np.int32(top ^ ((top >> np.int32(31)) & _MAGNITUDE)).view(np.float32)


@bare_jit
def _exponentials(x, minus, arguments, out):
    """Bits of e^(x - minus) of at most a block; returns the number of undecided ones."""
    count = x.shape[0]
    underflow = False
    for i in range(count):
        value = x[i] - minus
        underflow |= value < _UNDERFLOW
        arguments[i] = np.float32(0.0) if value < _UNDERFLOW else value
    undecided = kernels.exp_loop(arguments, out, 0, count)
    if underflow:  # as in a masked row
        for i in range(count):
            out[i] = np.int32(0) if x[i] - minus < _UNDERFLOW else out[i]
    return undecided


@bare_jit
def _added(exponentials, bits):
    """Integer sum of numbers of which the largest is 1; below 0 where one is a NaN."""
    if top_bits(exponentials) > _ONE:
        return np.int64(-1)
    return integer_sum(exponentials, power_of_two(bits - 1))


@bare_jit
def _scaled(whole, bits, number):
    return np.float32(np.float64(whole) * power_of_two(1 - bits)) if number else np.float32(np.nan)


@jit
def _softmax_kernel(x_rd, bits, open_r, out_rd, start, stop):
    arguments = np.empty(_BLOCK, np.float32)
    _softmax_rows(x_rd, bits, arguments, open_r, out_rd, start, stop)


@bare_jit
def _softmax_rows(x_rd, bits, arguments, open_r, out_rd, start, stop):
    for r in range(start, stop):
        open_r[r] = _softmax_row(x_rd[r], bits, arguments, out_rd[r])


@bare_jit
def _softmax_row(row, bits, arguments, out):
    pattern = out.view(np.int32)
    top = _largest(row)
    undecided, whole, number = 0, np.int64(0), True
    for at in range(0, row.shape[0], _BLOCK):
        place = slice(at, at + _BLOCK)
        undecided += _exponentials(row[place], top, arguments, pattern[place])
        part = _added(out[place], bits)
        whole += part
        number &= part >= 0
    sums = _scaled(whole, bits, number)
    if undecided == 0:
        for d in range(out.shape[0]):
            out[d] = out[d] / sums
    return undecided > 0


@jit
def _log_softmax_kernel(x_rd, bits, open_r, out_rd, start, stop):
    arguments, powers = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    sums, logs = np.empty(1, np.float32), np.empty(1, np.float32)
    for r in range(start, stop):
        open_r[r] = _log_softmax_row(x_rd[r], bits, arguments, powers, sums, logs, out_rd[r])


@bare_jit
def _log_softmax_row(row, bits, arguments, powers, sums, logs, out):
    top = _largest(row)
    undecided, whole, number = 0, np.int64(0), True
    for at in range(0, row.shape[0], _BLOCK):
        part = row[at : at + _BLOCK]
        undecided += _exponentials(part, top, arguments, powers.view(np.int32))
        added = _added(powers[: part.shape[0]], bits)
        whole += added
        number &= added >= 0
    sums[0] = _scaled(whole, bits, number)
    undecided += kernels.log_loop(sums, logs.view(np.int32), 0, 1)
    log = logs[0]
    for d in range(out.shape[0]):
        out[d] = (row[d] - top) - log
    return undecided > 0


@jit
def _log_softmax_backward_kernel(grad_rd, y_rd, open_r, out_rd, start, stop):
    arguments, powers = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for r in range(start, stop):
        open_r[r] = _log_softmax_backward_row(grad_rd[r], y_rd[r], arguments, powers, out_rd[r])


@bare_jit
def _log_softmax_backward_row(grad, y, arguments, powers, out):
    sums = exact_sum(grad)
    undecided = 0
    for at in range(0, y.shape[0], _BLOCK):
        place = slice(at, at + _BLOCK)
        undecided += _exponentials(y[place], np.float32(0.0), arguments, powers.view(np.int32))
        part, target = grad[place], out[place]
        for d in range(target.shape[0]):
            target[d] = part[d] - powers[d] * sums
    return undecided > 0


@bare_jit
def _softmax_backward_kernel(grad_rd, y_rd, out_rd, start, stop):
    for r in range(start, stop):
        grad = grad_rd[r]
        y = y_rd[r]
        out = out_rd[r]
        for d in range(grad.shape[0]):
            out[d] = grad[d] * y[d]
        sums = exact_sum(out)
        for d in range(grad.shape[0]):
            out[d] = (grad[d] - sums) * y[d]


@on_cpu
def softmax(x_rd: Tensor) -> Tensor:
    """Softmax of each row of float32 x (R, D), contiguous, D >= 1."""

    def plain(x: Tensor) -> Tensor:
        powers = elementary.apply("exp", _shifted(x))
        return powers / total(powers, rows_of(powers)).view(-1, 1)

    return _by_rows(_softmax_kernel, plain, x_rd, sum_bits(x_rd.shape[1]))


@on_cpu
def log_softmax(x_rd: Tensor) -> Tensor:
    """The logarithm of each row's softmax; x as above."""

    def plain(x: Tensor) -> Tensor:
        shifted = _shifted(x)
        sums = total(elementary.apply("exp", shifted), rows_of(x))
        return shifted - elementary.apply("log", sums).view(-1, 1)

    return _by_rows(_log_softmax_kernel, plain, x_rd, sum_bits(x_rd.shape[1]))


@on_cpu
def log_softmax_backward(grad_rd: Tensor, y_rd: Tensor) -> Tensor:
    """dy - exp(y) * sum(dy) over rows."""

    def plain(grad: Tensor, y: Tensor) -> Tensor:
        return grad - elementary.apply("exp", y) * total(grad, rows_of(grad)).view(-1, 1)

    return _by_rows(_log_softmax_backward_kernel, plain, grad_rd, y_rd)


@on_cpu
def softmax_backward(grad_rd: Tensor, y_rd: Tensor) -> Tensor:
    """(dy - sum(dy * y)) * y over rows."""
    out = torch.empty(y_rd.shape, dtype=torch.float32)
    run(
        _softmax_backward_kernel, y_rd.shape[0], grad_rd.detach().numpy(), y_rd.detach().numpy(),
        out.numpy(), grain=grain_of(y_rd.shape[1]),
    )  # fmt: skip
    return out


def _shifted(x: Tensor) -> Tensor:
    return x - x.amax(1, keepdim=True)


def _by_rows(
    kernel: Callable[..., None], plain: Callable[..., Tensor], *args: Tensor | int
) -> Tensor:
    """Run `kernel` over the rows of the tensors, and `plain` over those rows that it leaves
    open."""
    tensors = [value.detach() for value in args if isinstance(value, Tensor)]
    others = [value for value in args if not isinstance(value, Tensor)]
    num_r, num_d = tensors[0].shape
    out = torch.empty((num_r, num_d), dtype=torch.float32)
    open_r = torch.empty(num_r, dtype=torch.bool)
    run(
        kernel, num_r, *[x.numpy() for x in tensors], *others, open_r.numpy(), out.numpy(),
        grain=grain_of(num_d),
    )  # fmt: skip
    rows = open_r.nonzero()[:, 0]
    if rows.numel():
        out[rows] = plain(*[x[rows] for x in tensors])
    return out
