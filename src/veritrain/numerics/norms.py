"""Fused CPU kernels of batch, layer and group norm and of softmax.

Definitions (docs/numerics.md, "Normalisation"); every operation is one float32 IEEE operation in the
order written, every sum is exact (`integers.exact_sum`), n = float32(number of values of the slice):
    mean = sum(x) / n      d = x - mean      var = sum(d * d) / n      rstd = 1 / sqrt(var + eps)
    xhat = (x - mean) * rstd                 y = xhat * w + b
    backward: dx = f * ((g - sum(g) / n) - xhat * (sum(g * xhat) / n))
              with f = rstd, g = dy * w where the weight varies within a slice (layer, group norm)
              and  f = rstd * w, g = dy where it does not (batch norm)
A slice is what shares one mean; the axes (P, A, C, B) are those of `integers`.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.device import on_cpu
from veritrain.numerics.integers import Slices, exact_sum, jit
from veritrain.numerics.parallel import grain_of, run


@jit
def _gather(x_pacb, p, c, out):
    """Copy slice (p, c) to a 1-D array."""
    i = 0
    for a in range(x_pacb.shape[1]):
        row = x_pacb[p, a, c]
        target = out[i : i + row.shape[0]]
        for b in range(row.shape[0]):
            target[b] = row[b]
        i += row.shape[0]


@jit
def _moments_kernel(x_pacb, mean_pc, square_pc, start, stop):
    num_c = x_pacb.shape[2]
    count = x_pacb.shape[1] * x_pacb.shape[3]
    scratch = np.empty(count, np.float32)
    for s in range(start, stop):
        p = s // num_c
        c = s - p * num_c
        _gather(x_pacb, p, c, scratch)
        mean = exact_sum(scratch) / np.float32(count)
        for i in range(count):
            deviation = scratch[i] - mean
            scratch[i] = deviation * deviation
        mean_pc[p, c] = mean
        square_pc[p, c] = exact_sum(scratch)


@jit
def _normalise_kernel(x_pacb, mean_pc, rstd_pc, weight_c, bias_c, out_pacb, start, stop):
    num_a, num_c = x_pacb.shape[1], x_pacb.shape[2]
    for s in range(start, stop):
        p = s // num_c
        c = s - p * num_c
        mean = mean_pc[p, c]
        rstd = rstd_pc[p, c]
        weight = weight_c[c]
        bias = bias_c[c]
        for a in range(num_a):
            source = x_pacb[p, a, c]
            target = out_pacb[p, a, c]
            for b in range(source.shape[0]):
                target[b] = ((source[b] - mean) * rstd) * weight + bias


@jit
def _normalise_rows_kernel(x_rd, mean_r, rstd_r, weight_d, bias_d, out_rd, start, stop):
    for r in range(start, stop):
        source = x_rd[r]
        target = out_rd[r]
        for d in range(source.shape[0]):
            target[d] = ((source[d] - mean_r[r]) * rstd_r[r]) * weight_d[d] + bias_d[d]


@jit
def _backward_kernel(
    g_pacb, x_pacb, mean_pc, rstd_pc, factor_pc, sum_pc, dot_pc, dx_pacb, start, stop
):
    """dx, sum(g) and sum(g * xhat) of each slice."""
    num_a, num_c, num_b = x_pacb.shape[1], x_pacb.shape[2], x_pacb.shape[3]
    count = num_a * num_b
    scratch = np.empty(count, np.float32)
    grad = np.empty(count, np.float32)
    for s in range(start, stop):
        p = s // num_c
        c = s - p * num_c
        mean = mean_pc[p, c]
        rstd = rstd_pc[p, c]
        factor = factor_pc[p, c]
        _gather(x_pacb, p, c, scratch)
        _gather(g_pacb, p, c, grad)
        for i in range(count):
            scratch[i] = grad[i] * ((scratch[i] - mean) * rstd)
        sum_pc[p, c] = exact_sum(grad)
        dot_pc[p, c] = exact_sum(scratch)
        mean_grad = sum_pc[p, c] / np.float32(count)
        mean_dot = dot_pc[p, c] / np.float32(count)
        for a in range(num_a):
            g = g_pacb[p, a, c]
            x = x_pacb[p, a, c]
            dx = dx_pacb[p, a, c]
            for b in range(num_b):
                dx[b] = factor * ((g[b] - mean_grad) - ((x[b] - mean) * rstd) * mean_dot)


@jit
def _xhat_times_kernel(g_pacb, x_pacb, mean_pc, rstd_pc, out_pacb, start, stop):
    """g * xhat, for the weight's gradient."""
    num_a, num_c = x_pacb.shape[1], x_pacb.shape[2]
    for s in range(start, stop):
        p = s // num_c
        c = s - p * num_c
        mean = mean_pc[p, c]
        rstd = rstd_pc[p, c]
        for a in range(num_a):
            g = g_pacb[p, a, c]
            x = x_pacb[p, a, c]
            out = out_pacb[p, a, c]
            for b in range(g.shape[0]):
                out[b] = g[b] * ((x[b] - mean) * rstd)


@jit
def _row_max_kernel(x_rd, out_rd, start, stop):
    """x minus its row's maximum; a NaN in the row makes the whole row NaN."""
    for r in range(start, stop):
        row = x_rd[r]
        target = out_rd[r]
        top = row[0]
        unordered = False
        for d in range(row.shape[0]):
            top = row[d] if row[d] > top else top
            unordered |= row[d] != row[d]
        if unordered:
            top = np.float32(np.nan)
        for d in range(row.shape[0]):
            target[d] = row[d] - top


@jit
def _divide_by_sum_kernel(x_rd, start, stop):
    for r in range(start, stop):
        row = x_rd[r]
        total = exact_sum(row)
        for d in range(row.shape[0]):
            row[d] = row[d] / total


@jit
def _softmax_backward_kernel(grad_rd, y_rd, out_rd, start, stop):
    for r in range(start, stop):
        grad = grad_rd[r]
        y = y_rd[r]
        out = out_rd[r]
        for d in range(grad.shape[0]):
            out[d] = grad[d] * y[d]
        total = exact_sum(out)
        for d in range(grad.shape[0]):
            out[d] = (grad[d] - total) * y[d]


@on_cpu
def moments(x: Tensor, shape: Slices) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of each slice: float32 (P, C) each."""
    num_p, num_a, num_c, num_b = shape
    mean, square = torch.empty((2, num_p, num_c), dtype=torch.float32)
    run(
        _moments_kernel, num_p * num_c, _view(x, shape), mean.numpy(), square.numpy(),
        grain=grain_of(num_a * num_b),
    )  # fmt: skip
    return mean, square


@on_cpu
def normalise(
    x: Tensor, shape: Slices, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """((x - mean) * rstd) * weight + bias with mean, rstd (P, C) and weight, bias (C,)."""
    out = torch.empty(x.shape, dtype=torch.float32)
    run(
        _normalise_kernel, shape[0] * shape[2], _view(x, shape), mean.numpy(), rstd.numpy(),
        weight.detach().numpy(), bias.detach().numpy(), _view(out, shape),
        grain=grain_of(shape[1] * shape[3]),
    )  # fmt: skip
    return out


@on_cpu
def normalise_rows(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same for x (R, D) with mean, rstd (R,) and weight, bias (D,)."""
    out = torch.empty(x.shape, dtype=torch.float32)
    run(
        _normalise_rows_kernel, x.shape[0], x.detach().numpy(), mean.numpy(), rstd.numpy(),
        weight.detach().numpy(), bias.detach().numpy(), out.numpy(),
        grain=grain_of(x.shape[1]),
    )  # fmt: skip
    return out


@on_cpu
def normalise_backward(
    grad: Tensor, x: Tensor, shape: Slices, mean: Tensor, rstd: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, sum(g), sum(g * xhat)) for g = `grad`; mean, rstd, factor and the sums are (P, C)."""
    num_p, num_a, num_c, num_b = shape
    dx = torch.empty(x.shape, dtype=torch.float32)
    total, dot = torch.empty((2, num_p, num_c), dtype=torch.float32)
    run(
        _backward_kernel, num_p * num_c, _view(grad, shape), _view(x, shape), mean.numpy(),
        rstd.numpy(), factor.numpy(), total.numpy(), dot.numpy(), _view(dx, shape),
        grain=grain_of(num_a * num_b),
    )  # fmt: skip
    return dx, total, dot


@on_cpu
def times_xhat(grad: Tensor, x: Tensor, shape: Slices, mean: Tensor, rstd: Tensor) -> Tensor:
    """g * ((x - mean) * rstd), elementwise."""
    out = torch.empty(x.shape, dtype=torch.float32)
    run(
        _xhat_times_kernel, shape[0] * shape[2], _view(grad, shape), _view(x, shape),
        mean.numpy(), rstd.numpy(), _view(out, shape), grain=grain_of(shape[1] * shape[3]),
    )  # fmt: skip
    return out


@on_cpu
def subtract_row_max(x_rd: Tensor) -> Tensor:
    """x (R, D), D >= 1, minus the largest value of its row."""
    out = torch.empty(x_rd.shape, dtype=torch.float32)
    run(
        _row_max_kernel, x_rd.shape[0], x_rd.detach().numpy(), out.numpy(),
        grain=grain_of(x_rd.shape[1]),
    )  # fmt: skip
    return out


@on_cpu
def divide_by_row_sum_(x_rd: Tensor) -> Tensor:
    """x (R, D) over the exact sum of its row, in place."""
    run(_divide_by_sum_kernel, x_rd.shape[0], x_rd.numpy(), grain=grain_of(x_rd.shape[1]))
    return x_rd


@on_cpu
def softmax_backward(grad_rd: Tensor, y_rd: Tensor) -> Tensor:
    """(dy - sum(dy * y)) * y over rows."""
    out = torch.empty(y_rd.shape, dtype=torch.float32)
    run(
        _softmax_backward_kernel, y_rd.shape[0], grad_rd.detach().numpy(), y_rd.detach().numpy(),
        out.numpy(), grain=grain_of(y_rd.shape[1]),
    )  # fmt: skip
    return out


def _view(x: Tensor, shape: Slices) -> np.ndarray:
    return x.detach().numpy().reshape(shape)
