"""Matrix products and convolutions (docs/numerics.md, "Contraction").

Shapes: image x (N, I, *S), weight w (R, I/G, *k), rows y (N, R, *T), for a convolution that maps
images to rows. A transposed convolution maps rows to images with the same weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product as every
from math import prod
from typing import Any

import numpy as np

from spec.binary32 import Array, add, mul
from spec.sums import ceil_log2, rescaled, scaled, sum_over

Width = Callable[[int], int]  # inner length to bits of each operand


def contraction_bits(inner: int) -> int:
    """The full grade: min(22, floor((53 - ceil(log2 K)) / 2))."""
    return min(22, (53 - ceil_log2(inner)) // 2)


def narrow_bits(inner: int) -> int:
    """The 14-bit grade: min(14, floor((53 - ceil(log2 K)) / 2))."""
    return min(14, contraction_bits(inner))


def product(a: Array, b: Array, width: Width = contraction_bits) -> Array:
    """Matrix product (M, K) x (K, N): scales per row of `a` and per column of `b`."""
    num_m, num_k = a.shape
    num_n = b.shape[1]
    out = np.zeros((num_m, num_n), np.float32)
    if num_k == 0:
        return out
    left, left_scale = scaled(a, (0,), width(num_k))
    right, right_scale = scaled(b, (1,), width(num_k))
    for m in range(num_m):
        for n in range(num_n):
            out[m, n] = rescaled(_dot(left[m], right[:, n]), left_scale[m], right_scale[n])
    return out


def _dot(row: Array, column: Array) -> int:
    return sum(x * y for x, y in zip(row, column, strict=True))


def add_scaled(base: Array, result: Array, beta: float, alpha: float) -> Array:
    """beta * base + alpha * result; factors 1 and a base times 0 are left out."""
    if alpha != 1:
        result = mul(result, alpha)
    if beta == 0:
        return result
    return add(base if beta == 1 else mul(base, beta), result)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How the windows of a convolution lie, one number for each axis."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int = 1
    transposed: bool = False
    output_padding: Sequence[int] = ()

    def rows_size(self, image: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Size of the rows that an image of this size gives."""
        axes = zip(image, kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(s + 2 * p - d * (k - 1) - 1) // step + 1 for s, k, step, p, d in axes]

    def image_size(self, rows: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Size of the image that a transposed convolution makes of rows of this size."""
        extra = self.output_padding or [0] * len(kernel)
        axes = zip(rows, kernel, self.stride, self.padding, self.dilation, extra, strict=True)
        return [(t - 1) * step - 2 * p + d * (k - 1) + 1 + e for t, k, step, p, d, e in axes]

    def links(
        self, image: Sequence[int], kernel: Sequence[int], rows: Sequence[int]
    ) -> Iterator[tuple[tuple[int, ...], ...]]:
        """Every (position in rows, tap, position in image) that a window joins."""
        for t in every(*map(range, rows)):
            for tap in every(*map(range, kernel)):
                axes = zip(t, tap, self.stride, self.padding, self.dilation, strict=True)
                s = tuple(i * step - p + k * d for i, k, step, p, d in axes)
                if all(0 <= i < size for i, size in zip(s, image, strict=True)):
                    yield t, tap, s


def convolution(x: Array, w: Array, stride: int, padding: int, groups: int) -> Array:
    """The convolution that treats all axes alike."""
    axes = x.ndim - 2
    geometry = Geometry(
        stride=[stride] * axes, padding=[padding] * axes, dilation=[1] * axes, groups=groups
    )
    return convolve(x, w, None, geometry)


def convolve(
    x: Array, w: Array, bias: Array | None, geometry: Geometry, width: Width = contraction_bits
) -> Array:
    """The convolution, or the transposed one, of x with w; the bias is one value per output
    channel."""
    if geometry.transposed:
        size = geometry.image_size(x.shape[2:], w.shape[2:])
        y = to_image(x, w, size, geometry, width)
    else:
        y = to_rows(x, w, geometry.rows_size(x.shape[2:], w.shape[2:]), geometry, width)
    return y if bias is None else add(y, bias.reshape(-1, *[1] * (y.ndim - 2)))


def convolve_backward(
    grad: Array, x: Array, w: Array, geometry: Geometry, width: Width = contraction_bits
) -> tuple[Array, Array, Array]:
    """The gradients for x, for w and for the bias."""
    if geometry.transposed:
        dx = to_rows(grad, w, x.shape[2:], geometry, width)
        dw = weight_gradient(x, grad, w.shape, geometry, width)
    else:
        dx = to_image(grad, w, x.shape[2:], geometry, width)
        dw = weight_gradient(grad, x, w.shape, geometry, width)
    return dx, dw, sum_over(grad, [0, *range(2, grad.ndim)])


def to_rows(image: Array, w: Array, size: Sequence[int], geometry: Geometry, width: Width) -> Array:
    """rows[n, r, t] = sum over channels and taps of image * w; one slice of w per row channel."""
    bits = width(prod(w.shape[1:]))
    pixels, pixel_scale = scaled(_grouped(image, geometry.groups), (0, 1), bits)
    taps, tap_scale = scaled(w, (0,), bits)
    totals = np.zeros((image.shape[0], w.shape[0], *size), object)
    per_group = w.shape[0] // geometry.groups
    for t, k, s in geometry.links(image.shape[2:], w.shape[2:], size):
        for n, r in np.ndindex(*totals.shape[:2]):
            group = r // per_group
            totals[(n, r, *t)] += _dot(pixels[(n, group, slice(None), *s)], taps[(r, ..., *k)])
    return _rescale(totals, lambda n, r: (pixel_scale[n, r // per_group], tap_scale[r]))


def to_image(rows: Array, w: Array, size: Sequence[int], geometry: Geometry, width: Width) -> Array:
    """image[n, i, s] = sum over rows and taps of rows * w; a slice of w per (group, image
    channel)."""
    groups, per_group = geometry.groups, w.shape[1]
    bits = width(w.shape[0] // groups * prod(w.shape[2:]))
    values, value_scale = scaled(_grouped(rows, groups), (0, 1), bits)
    by_group = w.reshape(groups, -1, *w.shape[1:])
    taps, tap_scale = scaled(by_group, (0, 2), bits)
    totals = np.zeros((rows.shape[0], groups * per_group, *size), object)
    for t, k, s in geometry.links(size, w.shape[2:], rows.shape[2:]):
        for n, i in np.ndindex(*totals.shape[:2]):
            group, own = divmod(i, per_group)
            totals[(n, i, *s)] += _dot(
                values[(n, group, slice(None), *t)], taps[(group, slice(None), own, *k)]
            )
    return _rescale(
        totals, lambda n, i: (value_scale[n, i // per_group], tap_scale[divmod(i, per_group)])
    )


def weight_gradient(
    rows: Array, image: Array, shape: Sequence[int], geometry: Geometry, width: Width
) -> Array:
    """dw[r, i, k] = sum over samples and positions of rows * image; a slice per channel of each."""
    inner = rows.shape[0] * prod(rows.shape[2:])
    if inner == 0:
        return np.zeros(shape, np.float32)
    values, value_scale = scaled(rows, (1,), width(inner))
    pixels, pixel_scale = scaled(image, (1,), width(inner))
    totals = np.zeros(shape, object)
    per_group = shape[0] // geometry.groups

    def channel(r: int, i: int) -> int:
        return r // per_group * shape[1] + i

    for t, k, s in geometry.links(image.shape[2:], shape[2:], rows.shape[2:]):
        for r, i in np.ndindex(*totals.shape[:2]):
            totals[(r, i, *k)] += _dot(
                values[(slice(None), r, *t)], pixels[(slice(None), channel(r, i), *s)]
            )
    return _rescale(totals, lambda r, i: (value_scale[r], pixel_scale[channel(r, i)]))


def _grouped(x: Array, groups: int) -> Array:
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def _rescale(totals: Array, scales: Callable[[int, int], tuple[Any, Any]]) -> Array:
    """Integer totals times the scales of their first two indices, each rounded once."""
    out = np.zeros(totals.shape, np.float32)
    for index in np.ndindex(*totals.shape):
        out[index] = rescaled(totals[index], *scales(index[0], index[1]))
    return out
