"""Matrix products and convolutions on a device: the twins of `numerics.rules.contraction`.

Integers are float64; a product of integers is exact in any order while its sums stay within 2**53,
which the widths see to. A convolution is one product for each group of taps, of the weight's part
with the shifted image; the integer results are added. No unfolded copy of the whole image is made,
and no Winograd or Fourier algorithm can be chosen.

Shapes: image x (N, G, C, *S), weight w (G, O, C, *k), result y (N, G, O, *T).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from veritrain.numerics.device.integers import quantise, rescale, rescale_rows
from veritrain.numerics.integers import channels_of, contraction_bits

_INNER = 64  # channels times taps of one product at least: thinner ones waste the matrix units
_CHUNK = 1 << 26  # float64 values of shifted images at a time, half a GB


def product(a_pmk: Tensor, b_pkn: Tensor) -> Tensor:
    """Twin of `numerics.rules.contraction.product`."""
    (num_p, num_m, inner), num_n = a_pmk.shape, b_pkn.shape[2]
    if inner == 0:
        shape = (num_p, num_m, num_n)
        return torch.zeros(shape, dtype=torch.float32, device=a_pmk.device)
    bits = contraction_bits(inner)
    a, a_scale = quantise(a_pmk.contiguous(), (1, 1, num_p * num_m, inner), bits)
    b, b_scale = quantise(b_pkn.contiguous(), (num_p, inner, num_n, 1), bits)
    return rescale(torch.bmm(a, b), a_scale.view(num_p, num_m), b_scale)


@dataclass(frozen=True, kw_only=True)
class _Taps:
    """How the places of a convolution's kernel meet the image."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def groups(self, channels: int) -> Iterator[list[tuple[int, ...]]]:
        """All taps in order, so many at a time that a product's inner length is worth its while."""
        taps = list(itertools.product(*(range(k) for k in self.kernel)))
        size = max(1, -(-_INNER // max(channels, 1)))
        for start in range(0, len(taps), size):
            yield taps[start : start + size]

    def padded(self, size: tuple[int, ...], out: tuple[int, ...]) -> list[int]:
        """Sizes of a zero-padded image that holds every place a tap reaches from `out`."""
        return [
            max(n + 2 * p, (t - 1) * s + d * (k - 1) + 1)
            for n, t, k, s, p, d in zip(
                size, out, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        ]

    def shifted(self, image: Tensor, tap: tuple[int, ...], out: tuple[int, ...]) -> Tensor:
        """View (.., *out) of a padded image (.., *S): what `tap` sees from each output."""
        first = image.ndim - len(tap)
        for axis, (place, s, d, t) in enumerate(
            zip(tap, self.stride, self.dilation, out, strict=True), first
        ):
            start = place * d
            index = (*[slice(None)] * axis, slice(start, start + (t - 1) * s + 1, s))
            image = image[index]
        return image


def _chunks(num_n: int, values_per_sample: int) -> Iterator[slice]:
    size = max(1, _CHUNK // max(values_per_sample, 1))
    for start in range(0, num_n, size):
        yield slice(start, min(start + size, num_n))


def _pad(image: Tensor, padding: tuple[int, ...], sizes: list[int]) -> Tensor:
    """Zeros around the last axes: `padding` before, up to `sizes` in all."""
    widths: list[int] = []
    for size, before, whole in zip(
        reversed(image.shape[-len(sizes) :]), reversed(padding), reversed(sizes), strict=True
    ):
        widths += [before, whole - size - before]
    return F.pad(image, widths)


def _columns(
    image: Tensor, taps: _Taps, group: list[tuple[int, ...]], out: tuple[int, ...]
) -> Tensor:
    """(N, G, C * taps of the group, positions) of a padded image (N, G, C, *S)."""
    views = [taps.shifted(image, tap, out) for tap in group]
    return torch.stack(views, 3).flatten(4).flatten(2, 3)


def _part(w: Tensor, group: list[tuple[int, ...]]) -> Tensor:
    """(G, O, C * taps of the group): the weight at some taps."""
    return torch.stack([w[(..., *tap)] for tap in group], 3).flatten(2)


def forward(image: Tensor, w: Tensor, taps: _Taps, out: tuple[int, ...]) -> Tensor:
    """Integers of the convolution of integers: float64 (N, G, O, *out)."""
    num_n, num_g, num_c = image.shape[:3]
    sizes = taps.padded(tuple(image.shape[3:]), out)
    area = math.prod(out)
    y = torch.zeros((num_n, num_g, w.shape[1], area), dtype=torch.float64, device=image.device)
    for samples in _chunks(num_n, num_g * max(num_c, _INNER) * area):
        padded = _pad(image[samples], taps.padding, sizes)
        for group in taps.groups(num_c):
            y[samples] += torch.matmul(_part(w, group), _columns(padded, taps, group, out))
    return y.view(num_n, num_g, w.shape[1], *out)


def backward(grad: Tensor, w: Tensor, taps: _Taps, size: tuple[int, ...]) -> Tensor:
    """Integers of the gradient of the image: float64 (N, G, C, *size) from grad (N, G, O, *T)."""
    num_n, num_g = grad.shape[:2]
    num_c, out = w.shape[2], tuple(grad.shape[3:])
    sizes = taps.padded(size, out)
    image = torch.zeros((num_n, num_g, num_c, *sizes), dtype=torch.float64, device=grad.device)
    for samples in _chunks(num_n, num_g * num_c * math.prod(out)):
        rows = grad[samples].flatten(3)
        for tap in itertools.product(*(range(k) for k in taps.kernel)):
            part = torch.matmul(w[(..., *tap)].mT, rows)
            taps.shifted(image[samples], tap, out).add_(part.unflatten(3, out))
    for axis, (start, count) in enumerate(zip(taps.padding, size, strict=True), 3):
        image = image.narrow(axis, start, count)
    return image.contiguous()


def weight(grad: Tensor, image: Tensor, taps: _Taps) -> Tensor:
    """Integers of the gradient of the weight: float64 (G, O, C, *k)."""
    num_n, num_g, num_o = grad.shape[:3]
    num_c, out = image.shape[2], tuple(grad.shape[3:])
    sizes = taps.padded(tuple(image.shape[3:]), out)
    parts: list[Tensor] = []
    for group in taps.groups(num_c):
        shape = (num_g, num_o, num_c * len(group))
        part = torch.zeros(shape, dtype=torch.float64, device=grad.device)
        for samples in _chunks(num_n, num_g * num_c * len(group) * math.prod(out)):
            columns = _columns(_pad(image[samples], taps.padding, sizes), taps, group, out)
            rows = grad[samples].flatten(3).permute(1, 2, 0, 3).flatten(2)
            part = part + torch.bmm(rows, columns.permute(1, 0, 3, 2).flatten(1, 2))
        parts.append(part.unflatten(2, (num_c, len(group))))
    return torch.cat(parts, 3).unflatten(3, taps.kernel)


# The rules. `geometry` is (stride, padding, dilation, transposed, output_padding, groups).


def _taps_of(w: Tensor, geometry: Any) -> _Taps:
    stride, padding, dilation, *_ = geometry
    return _Taps(
        kernel=tuple(w.shape[2:]), stride=tuple(stride), padding=tuple(padding),
        dilation=tuple(dilation),
    )  # fmt: skip


def apply_weight(image: Tensor, w: Tensor, geometry: Any, *, over_inputs: bool) -> Tensor:
    """Twin of `numerics.rules.contraction._apply_weight`."""
    *_, transposed, output_padding, num_g = geometry
    num_n, outer, inner = image.shape[0], w.shape[0] // num_g, w.shape[1]
    count = math.prod(w.shape[2:])
    bits = contraction_bits(max((inner if over_inputs else outer) * count, 1))
    w_shape = (1, 1, num_g * outer, inner * count) if over_inputs else (num_g, outer, inner, count)
    x_shape = (1, 1, num_n * num_g, math.prod(image.shape[1:]) // num_g)
    w_q, w_scale = quantise(w.contiguous(), w_shape, bits)
    x_q, x_scale = quantise(image.contiguous(), x_shape, bits)
    taps = _taps_of(w, geometry)
    size = _result_size(image, taps, transposed, output_padding)
    run = backward if transposed else forward
    y = run(x_q.unflatten(1, (num_g, -1)), w_q.unflatten(0, (num_g, -1)), taps, size).flatten(1, 2)
    scale = x_scale.view(num_n, num_g, 1) * w_scale.view(1, num_g, -1)
    return rescale_rows(_rows(y, scale), scale.reshape(-1)).view(y.shape)


def _rows(integers: Tensor, scale: Tensor) -> Tensor:
    """One row for each scale, also where there are none."""
    return integers.reshape(scale.numel(), integers.numel() // max(scale.numel(), 1))


def _result_size(
    image: Tensor, taps: _Taps, transposed: bool, output_padding: list[int]
) -> tuple[int, ...]:
    sizes: list[int] = []
    for n, k, s, p, d, extra in zip(
        image.shape[2:], taps.kernel, taps.stride, taps.padding, taps.dilation, output_padding,
        strict=True,
    ):  # fmt: skip
        reach = d * (k - 1) + 1
        sizes.append(
            (n - 1) * s - 2 * p + reach + extra if transposed else (n + 2 * p - reach) // s + 1
        )
    return tuple(sizes)


def weight_gradient(grad: Tensor, x: Tensor, w: Tensor, geometry: Any) -> Tensor:
    """Twin of `numerics.rules.contraction._weight_gradient`."""
    transposed, num_g = geometry[3], geometry[5]
    bits = contraction_bits(max(x.shape[0] * math.prod((x if transposed else grad).shape[2:]), 1))
    grad_q, grad_scale = quantise(grad.contiguous(), channels_of(grad), bits)
    x_q, x_scale = quantise(x.contiguous(), channels_of(x), bits)
    # a transposed convolution unfolds its gradient where a forward one unfolds its image
    rows, image = (x_q, grad_q) if transposed else (grad_q, x_q)
    outer, inner = (x_scale, grad_scale) if transposed else (grad_scale, x_scale)
    taps = _taps_of(w, geometry)
    integers = weight(rows.unflatten(1, (num_g, -1)), image.unflatten(1, (num_g, -1)), taps)
    scale = outer.view(num_g, -1, 1) * inner.view(num_g, 1, -1)
    return rescale_rows(_rows(integers, scale), scale.reshape(-1)).view(w.shape)
