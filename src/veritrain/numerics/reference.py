"""The definitions of `exact` numerics, written to be read: slow, plain, obviously right.

Sums and products are Python integers and fractions; each IEEE operation is one numpy float32 operation.
The fused kernels are tested equal to these functions bit for bit; nothing in production calls them.
Shapes are numpy arrays of float32 unless said otherwise.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # of float32

_F32 = np.float32


def round_half_even(value: Fraction) -> int:
    """The nearest integer; of two, the even one."""
    return round(value)  # Python rounds fractions half to even


def to_float32(value: Fraction) -> np.float32:
    """The nearest binary32 number, ties to even, with subnormals and overflow to infinity."""
    if value == 0:
        return _F32(0.0)
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1  # now 2**exponent <= magnitude < 2**(exponent + 1)
    step = Fraction(2) ** (max(exponent, -126) - 23)
    rounded = round_half_even(magnitude / step) * step
    if rounded >= Fraction(2) ** 128:
        return _F32(np.inf if value > 0 else -np.inf)
    result = _F32(float(rounded))
    return result if value > 0 else -result


def slice_exponent(values: Array) -> int:
    """E with 2**(E-1) <= largest magnitude < 2**E; at least -125."""
    top = max((abs(Fraction(float(v))) for v in values.ravel()), default=Fraction(0))
    exponent = -125
    while Fraction(2) ** exponent <= top:
        exponent += 1
    return exponent


def integers(values: Array, bits: int) -> tuple[list[int], Fraction]:
    """The scaled integers of one slice, and the scale that takes them back."""
    scale = Fraction(2) ** (slice_exponent(values) - bits)
    return [round_half_even(Fraction(float(v)) / scale) for v in values.ravel()], scale


def contraction_bits(inner: int) -> int:
    """floor((53 - ceil(log2 K)) / 2), at most 22."""
    return min(22, (53 - _ceil_log2(inner)) // 2)


def sum_bits(count: int) -> int:
    """min(51, 53 - ceil(log2 n))."""
    return min(51, 53 - _ceil_log2(count))


def _ceil_log2(n: int) -> int:
    result = 0
    while 2**result < n:
        result += 1
    return result


def exact_sum(values: Array) -> np.float32:
    """Sum of one slice."""
    if values.size == 0:
        return _F32(0.0)
    if not np.isfinite(values).all():
        return _F32(np.nan)
    whole, scale = integers(values, sum_bits(values.size))
    return to_float32(sum(whole) * scale)


def product(a: Array, b: Array) -> Array:
    """Matrix product (M, K) x (K, N): scales per row of `a` and per column of `b`."""
    num_m, num_k = a.shape
    num_n = b.shape[1]
    out = np.zeros((num_m, num_n), _F32)
    if num_k == 0:
        return out
    bits = contraction_bits(num_k)
    for m in range(num_m):
        for n in range(num_n):
            out[m, n] = _dot(a[m], b[:, n], bits)
    return out


def _dot(row: Array, column: Array, bits: int) -> np.float32:
    if not (np.isfinite(row).all() and np.isfinite(column).all()):
        return _F32(np.nan)
    left, left_scale = integers(row, bits)
    right, right_scale = integers(column, bits)
    total = sum(x * y for x, y in zip(left, right, strict=True))
    return to_float32(total * left_scale * right_scale)


def convolution(x: Array, w: Array, stride: int, padding: int, groups: int) -> Array:
    """2-D convolution: x (N, C, H, W), w (O, C/G, kh, kw); scales per (sample, group) and per output."""
    num_n, _, height, width = x.shape
    num_o, per_group, kh, kw = w.shape
    bits = contraction_bits(per_group * kh * kw)
    out_h = (height + 2 * padding - kh) // stride + 1
    out_w = (width + 2 * padding - kw) // stride + 1
    out = np.zeros((num_n, num_o, out_h, out_w), _F32)
    for n in range(num_n):
        for o in range(num_o):
            group = o // (num_o // groups)
            image = x[n, group * per_group : (group + 1) * per_group]
            if not (np.isfinite(image).all() and np.isfinite(w[o]).all()):
                out[n, o] = np.nan
                continue
            pixels, x_scale = integers(image, bits)
            taps, w_scale = integers(w[o], bits)
            padded = np.zeros((per_group, height + 2 * padding, width + 2 * padding), object)
            padded[:, padding : padding + height, padding : padding + width] = np.array(
                pixels, object
            ).reshape(image.shape)
            kernel = np.array(taps, object).reshape(w[o].shape)
            for i in range(out_h):
                for j in range(out_w):
                    top, left = i * stride, j * stride
                    window = padded[:, top : top + kh, left : left + kw]
                    total = int((window * kernel).sum())
                    out[n, o, i, j] = to_float32(total * x_scale * w_scale)
    return out


def moments(values: Array) -> tuple[np.float32, np.float32]:
    """Mean and sum of squared deviations of one slice."""
    mean = exact_sum(values) / _F32(values.size)
    deviation = values - mean
    return mean, exact_sum(deviation * deviation)


def reciprocal_deviation(square: np.float32, count: int, eps: float) -> np.float32:
    """1 / sqrt(square / count + eps)."""
    return _F32(1.0) / np.sqrt(square / _F32(count) + _F32(eps))


def normalise(values: Array, weight: Array, bias: Array, eps: float) -> Array:
    """One slice, normalised: ((x - mean) * rstd) * w + b; `weight`, `bias` broadcast to `values`."""
    mean, square = moments(values)
    rstd = reciprocal_deviation(square, values.size, eps)
    return ((values - mean) * rstd) * weight + bias


def normalise_backward(
    grad: Array, values: Array, eps: float, weight: np.float32 | None = None
) -> Array:
    """dx of one slice. `weight` is the slice's one weight (batch norm); where the weight varies
    within a slice, `grad` already holds it."""
    mean, square = moments(values)
    rstd = reciprocal_deviation(square, values.size, eps)
    xhat = (values - mean) * rstd
    count = _F32(values.size)
    mean_grad = exact_sum(grad) / count
    mean_dot = exact_sum(grad * xhat) / count
    factor = rstd if weight is None else rstd * weight
    return factor * ((grad - mean_grad) - xhat * mean_dot)


def adam_step(
    param: Array, grad: Array, mean: Array, square: Array, *, lr: float, beta1: float, beta2: float,
    eps: float, weight_decay: float, decoupled: bool, root2: float, step_size: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """New (param, mean, square); `root2` = sqrt(1 - beta2**t), `step_size` = lr / (1 - beta1**t)."""
    if decoupled:
        param = param * _F32(1 - lr * weight_decay)
    else:
        grad = grad + param * _F32(weight_decay)
    mean = mean + (grad - mean) * _F32(1 - beta1)
    square = square * _F32(beta2) + (grad * grad) * _F32(1 - beta2)
    denominator = np.sqrt(square) / _F32(root2) + _F32(eps)
    return param + (mean / denominator) * _F32(-step_size), mean, square


def sgd_step(
    param: Array, grad: Array, buffer: Array | None, *, lr: float, momentum: float, dampening: float,
    weight_decay: float, nesterov: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """New (param, buffer); `buffer` None means the first step, which copies the gradient."""
    if weight_decay != 0:
        grad = grad + param * _F32(weight_decay)
    if momentum == 0:
        return param + grad * _F32(-lr), grad
    if buffer is None:
        buffer = grad
    else:
        buffer = buffer * _F32(momentum) + grad * _F32(1 - dampening)
    grad = grad + buffer * _F32(momentum) if nesterov else buffer
    return param + grad * _F32(-lr), buffer
