"""Fused CPU kernels of batch, layer and group norm.

Definitions (docs/numerics.md, "Normalisation"); every operation is one float32 IEEE operation in
the order written, every sum is exact (`sums.exact_sum`), n = float32(number of values of the
slice):
    mean = sum(x) / n      d = x - mean      var = sum(d * d) / n      rstd = 1 / sqrt(var + eps)
    xhat = (x - mean) * rstd                 y = xhat * w + b
    backward: dx = f * ((g - sum(g) / n) - xhat * (sum(g * xhat) / n))
              with f = rstd, g = dy * w where the weight varies within a slice (layer, group norm)
              and  f = rstd * w, g = dy where it does not (batch norm)
A slice is what shares one mean. Those of layer and group norm are rows of a matrix, those of batch
norm channels; the axes (P, A, C, B) are those of `integers`.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.cpu.exact_sums import (
    bare_jit,
    exact_sum,
    magnitude,
    power_of_two,
    rounded,
    scaled_bits,
)
from veritrain.numerics.cpu.integers import ROUNDING_BITS, Slices, exponent, jit, sum_bits
from veritrain.numerics.platform.devices import on_cpu
from veritrain.numerics.platform.parallel import grain_of, run

_COLUMN_BLOCK = 512  # columns; their tops, factors and totals stay in the first-level cache

# Rows.


@bare_jit
def _moments(values, scratch):
    """Mean and sum of squared deviations; `scratch` may be the values themselves."""
    mean = exact_sum(values) / np.float32(values.shape[0])
    for i in range(values.shape[0]):
        deviation = values[i] - mean
        scratch[i] = deviation * deviation
    return mean, exact_sum(scratch)


@bare_jit
def _gradient_sums(grad, values, mean, rstd, scratch):
    """sum(g) and sum(g * xhat)."""
    for i in range(values.shape[0]):
        scratch[i] = grad[i] * ((values[i] - mean) * rstd)
    return exact_sum(grad), exact_sum(scratch)


@jit
def _rows_kernel(x_rd, eps, weight_gd, bias_gd, mean_r, rstd_r, out_rd, start, stop):
    scratch = np.empty(x_rd.shape[1], np.float32)
    _normalise_rows(
        x_rd, eps, weight_gd, bias_gd, scratch, mean_r, rstd_r, out_rd, start, stop
    )  # fmt: skip


@bare_jit
def _normalise_rows(x_rd, eps, weight_gd, bias_gd, scratch, mean_r, rstd_r, out_rd, start, stop):
    num_g, num_d = weight_gd.shape
    for r in range(start, stop):
        x, weight, bias, out = x_rd[r], weight_gd[r % num_g], bias_gd[r % num_g], out_rd[r]
        mean, square = _moments(x, scratch)
        rstd = np.float32(1.0) / np.sqrt(square / np.float32(num_d) + eps)
        mean_r[r], rstd_r[r] = mean, rstd
        for d in range(x.shape[0]):
            out[d] = ((x[d] - mean) * rstd) * weight[d] + bias[d]


@jit
def _rows_backward_kernel(grad_rd, x_rd, mean_r, rstd_r, weight_gd, dx_rd, start, stop):
    num_d = x_rd.shape[1]
    scratch, weighted = np.empty(num_d, np.float32), np.empty(num_d, np.float32)
    _rows_backward(
        grad_rd, x_rd, mean_r, rstd_r, weight_gd, scratch, weighted, dx_rd, start, stop
    )  # fmt: skip


@bare_jit
def _rows_backward(grad_rd, x_rd, mean_r, rstd_r, weight_gd, scratch, weighted, dx_rd, start, stop):
    num_g, num_d = weight_gd.shape
    for r in range(start, stop):
        grad, x, weight, dx = grad_rd[r], x_rd[r], weight_gd[r % num_g], dx_rd[r]
        mean, rstd = mean_r[r], rstd_r[r]
        for d in range(x.shape[0]):
            weighted[d] = grad[d] * weight[d]
        total, dot = _gradient_sums(weighted, x, mean, rstd, scratch)
        mean_grad, mean_dot = total / np.float32(num_d), dot / np.float32(num_d)
        for d in range(x.shape[0]):
            dx[d] = rstd * ((weighted[d] - mean_grad) - ((x[d] - mean) * rstd) * mean_dot)


# Channels.


@bare_jit
def _gather(x_pacb, p, c, out):
    """Copy slice (p, c) to a 1-D array."""
    num_b = x_pacb.shape[3]
    for a in range(x_pacb.shape[1]):
        row = x_pacb[p, a, c]
        target = out[a * num_b : a * num_b + num_b]
        for b in range(row.shape[0]):
            target[b] = row[b]


@jit
def _moments_kernel(x_pacb, mean_pc, square_pc, start, stop):
    num_c = x_pacb.shape[2]
    scratch = np.empty(x_pacb.shape[1] * x_pacb.shape[3], np.float32)
    for s in range(start, stop):
        p, c = s // num_c, s % num_c
        _gather(x_pacb, p, c, scratch)
        mean_pc[p, c], square_pc[p, c] = _moments(scratch, scratch)


@bare_jit
def _normalise_kernel(x_pacb, mean_pc, rstd_pc, weight_c, bias_c, out_pacb, start, stop):
    num_a, num_c = x_pacb.shape[1], x_pacb.shape[2]
    for s in range(start, stop):
        p, c = s // num_c, s % num_c
        mean, rstd, weight, bias = mean_pc[p, c], rstd_pc[p, c], weight_c[c], bias_c[c]
        for a in range(num_a):
            source = x_pacb[p, a, c]
            target = out_pacb[p, a, c]
            for b in range(source.shape[0]):
                target[b] = ((source[b] - mean) * rstd) * weight + bias


@jit
def _backward_kernel(
    g_pacb, x_pacb, mean_pc, rstd_pc, factor_pc, sum_pc, dot_pc, dx_pacb, start, stop
):
    """dx, sum(g) and sum(g * xhat) of each slice."""
    num_c = x_pacb.shape[2]
    count = x_pacb.shape[1] * x_pacb.shape[3]
    values, grad = np.empty(count, np.float32), np.empty(count, np.float32)
    for s in range(start, stop):
        p, c = s // num_c, s % num_c
        _gather(x_pacb, p, c, values)
        _gather(g_pacb, p, c, grad)
        mean, rstd = mean_pc[p, c], rstd_pc[p, c]
        sums = _gradient_sums(grad, values, mean, rstd, values)
        sum_pc[p, c], dot_pc[p, c] = sums
        _slice_backward(g_pacb, x_pacb, p, c, mean, rstd, factor_pc[p, c], sums, dx_pacb)


@bare_jit
def _slice_backward(g_pacb, x_pacb, p, c, mean, rstd, factor, sums, dx_pacb):
    num_a, num_b = x_pacb.shape[1], x_pacb.shape[3]
    count = np.float32(num_a * num_b)
    mean_grad, mean_dot = sums[0] / count, sums[1] / count
    for a in range(num_a):
        g = g_pacb[p, a, c]
        x = x_pacb[p, a, c]
        dx = dx_pacb[p, a, c]
        for b in range(g.shape[0]):
            dx[b] = factor * ((g[b] - mean_grad) - ((x[b] - mean) * rstd) * mean_dot)


@jit
def _channel_sums_kernel(g_pacb, x_pacb, mean_ac, rstd_ac, sum_c, dot_c, start, stop):
    _, num_a, _, num_b = x_pacb.shape
    scratch = np.empty(num_a * num_b, np.float32)
    for c in range(start, stop):
        _xhat_times(g_pacb[0], x_pacb[0], c, mean_ac, rstd_ac, scratch)
        dot_c[c] = exact_sum(scratch)
        _gather(g_pacb, 0, c, scratch)
        sum_c[c] = exact_sum(scratch)


@bare_jit
def _xhat_times(g_acb, x_acb, c, mean_ac, rstd_ac, out):
    num_b = x_acb.shape[2]
    for a in range(x_acb.shape[0]):
        g, x, target = g_acb[a, c], x_acb[a, c], out[a * num_b : a * num_b + num_b]
        mean, rstd = mean_ac[a, c], rstd_ac[a, c]
        for b in range(g.shape[0]):
            target[b] = g[b] * ((x[b] - mean) * rstd)


# Columns, for the gradients of a weight that varies along the rows.


@jit
def _column_sums_kernel(g_rd, x_rd, mean_r, rstd_r, bits, width, sum_d, dot_d, start, stop):
    tops = np.empty((2, width), np.int32)
    factors, totals = np.empty((2, width), np.float64), np.empty((2, width), np.int64)
    for block in range(start, stop):
        low = block * width
        high = min(low + width, x_rd.shape[1])
        _column_tops(g_rd, x_rd, mean_r, rstd_r, low, high, tops[0], tops[1])
        for k in range(2):
            for i in range(width):
                factors[k, i] = power_of_two(bits - exponent(tops[k, i]))
        totals[:] = 0
        _column_totals(
            g_rd, x_rd, mean_r, rstd_r, low, high, factors[0], factors[1], totals[0], totals[1]
        )  # fmt: skip
        offset = x_rd.shape[0] * ROUNDING_BITS
        for i in range(high - low):
            sum_d[low + i] = rounded(tops[0, i], totals[0, i] - offset, bits)
            dot_d[low + i] = rounded(tops[1, i], totals[1, i] - offset, bits)


@bare_jit
def _column_tops(g_rd, x_rd, mean_r, rstd_r, low, high, sum_tops, dot_tops):
    """Magnitude bits of the largest g and the largest g * xhat of each column."""
    sum_tops[:] = 0
    dot_tops[:] = 0
    for r in range(x_rd.shape[0]):
        g, x, mean, rstd = g_rd[r, low:high], x_rd[r, low:high], mean_r[r], rstd_r[r]
        for i in range(g.shape[0]):
            product = g[i] * ((x[i] - mean) * rstd)
            sum_tops[i] = max(sum_tops[i], magnitude(g[i]))
            dot_tops[i] = max(dot_tops[i], magnitude(product))


@bare_jit
def _column_totals(g_rd, x_rd, mean_r, rstd_r, low, high, by_sum, by_dot, sums, dots):
    for r in range(x_rd.shape[0]):
        g, x, mean, rstd = g_rd[r, low:high], x_rd[r, low:high], mean_r[r], rstd_r[r]
        for i in range(g.shape[0]):
            product = g[i] * ((x[i] - mean) * rstd)
            sums[i] += scaled_bits(g[i], by_sum[i])
            dots[i] += scaled_bits(product, by_dot[i])


@on_cpu
def normalise_rows(
    x_rd: Tensor, eps: float, weight_gd: Tensor, bias_gd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, rstd) of each row of x (R, D), contiguous; row r has the weights and biases r %
    G."""
    out = torch.empty(x_rd.shape, dtype=torch.float32)
    mean, rstd = torch.empty((2, x_rd.shape[0]), dtype=torch.float32)
    run(
        _rows_kernel, x_rd.shape[0], x_rd.detach().numpy(), np.float32(eps),
        weight_gd.detach().numpy(), bias_gd.detach().numpy(), mean.numpy(), rstd.numpy(),
        out.numpy(), grain=grain_of(x_rd.shape[1]),
    )  # fmt: skip
    return out, mean, rstd


@on_cpu
def rows_backward(
    grad_rd: Tensor, x_rd: Tensor, mean_r: Tensor, rstd_r: Tensor, weight_gd: Tensor
) -> Tensor:
    """dx of `normalise_rows` for g = grad * weight."""
    dx = torch.empty(x_rd.shape, dtype=torch.float32)
    run(
        _rows_backward_kernel, x_rd.shape[0], grad_rd.detach().numpy(), x_rd.detach().numpy(),
        mean_r.numpy(), rstd_r.numpy(), weight_gd.detach().numpy(), dx.numpy(),
        grain=grain_of(x_rd.shape[1]),
    )  # fmt: skip
    return dx


@on_cpu
def column_sums(
    grad_rd: Tensor, x_rd: Tensor, mean_r: Tensor, rstd_r: Tensor
) -> tuple[Tensor, Tensor]:
    """sum(g) and sum(g * xhat) of each column of (R, D)."""
    num_r, num_d = x_rd.shape
    total, dot = torch.zeros((2, num_d), dtype=torch.float32)
    if num_r:
        width = min(_COLUMN_BLOCK, num_d)
        run(
            _column_sums_kernel, -(-num_d // width), grad_rd.detach().numpy(),
            x_rd.detach().numpy(), mean_r.numpy(), rstd_r.numpy(), sum_bits(num_r), width,
            total.numpy(), dot.numpy(), grain=grain_of(num_r * width),
        )  # fmt: skip
    return total, dot


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
def channel_sums(
    grad: Tensor, x: Tensor, shape: Slices, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """sum(g) and sum(g * xhat) of each channel of (1, A, C, B), with mean and rstd (A, C)."""
    _, num_a, num_c, num_b = shape
    total, dot = torch.empty((2, num_c), dtype=torch.float32)
    run(
        _channel_sums_kernel, num_c, _view(grad, shape), _view(x, shape), mean.numpy(),
        rstd.numpy(), total.numpy(), dot.numpy(), grain=grain_of(num_a * num_b),
    )  # fmt: skip
    return total, dot


def _view(x: Tensor, shape: Slices) -> np.ndarray:
    return x.detach().numpy().reshape(shape)
