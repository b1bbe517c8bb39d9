"""Convolutions on a device: the twins of `cpu.convolution`.

A convolution is one product of integers for each group of taps, of the weight's part with the
shifted image; the integer results are added. No unfolded copy of the whole image is made, and no
Winograd or Fourier algorithm can be chosen.

Shapes: image x (N, G, C, *S), weight w (G, O, C, *k), result y (N, G, O, *T).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from veritrain.numerics.cpu import convolution
from veritrain.numerics.cpu.convolution import Sizes, Window
from veritrain.numerics.cpu.integers import channels_of
from veritrain.numerics.cpu.product_kernel import ProductKernel
from veritrain.numerics.device.integer_twins import quantise, rescale_rows
from veritrain.numerics.platform.devices import twin_of

_INNER = 64  # channels times taps of one product at least: thinner ones waste the matrix units
_CHUNK = 1 << 26  # float64 values of shifted images at a time, half a GB


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


def _forward(image: Tensor, w: Tensor, taps: _Taps, out: tuple[int, ...]) -> Tensor:
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


def _backward(grad: Tensor, w: Tensor, taps: _Taps, size: tuple[int, ...]) -> Tensor:
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


def _weight(grad: Tensor, image: Tensor, taps: _Taps) -> Tensor:
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


def _taps_of(window: Window) -> _Taps:
    return _Taps(
        kernel=window.kernel, stride=window.stride, padding=window.padding, dilation=window.dilation
    )


@twin_of(convolution.forward)
def forward(
    x: Tensor,
    w: Tensor,
    window: Window,
    groups: int,
    result: Sizes,
    bits: int,
    kernel: ProductKernel | None = None,
) -> Tensor:
    x_q, x_scale = _quantised_samples(x, groups, bits)
    w_q, w_scale = quantise(w.contiguous(), (1, 1, w.shape[0], w[0].numel()), bits)
    y = _forward(x_q, w_q.unflatten(0, (groups, -1)), _taps_of(window), result)
    return _scaled(y.flatten(1, 2), x_scale, w_scale)


@twin_of(convolution.input_gradient)
def input_gradient(
    grad: Tensor,
    w: Tensor,
    window: Window,
    groups: int,
    size: Sizes,
    bits: int,
    kernel: ProductKernel | None = None,
) -> Tensor:
    grad_q, grad_scale = _quantised_samples(grad, groups, bits)
    w_shape = groups, w.shape[0] // groups, w.shape[1], math.prod(w.shape[2:])
    w_q, w_scale = quantise(w.contiguous(), w_shape, bits)
    image = _backward(grad_q, w_q.unflatten(0, (groups, -1)), _taps_of(window), size)
    return _scaled(image.flatten(1, 2), grad_scale, w_scale)


def _quantised_samples(x: Tensor, groups: int, bits: int) -> tuple[Tensor, Tensor]:
    """Integers (N, G, C, *S) and scales (N, G), a slice for each sample and group."""
    num_n = x.shape[0]
    q, scale = quantise(
        x.contiguous(), (1, 1, num_n * groups, math.prod(x.shape[1:]) // groups), bits
    )
    return q.unflatten(1, (groups, -1)), scale.view(num_n, groups)


def _scaled(y: Tensor, sample_scale: Tensor, w_scale: Tensor) -> Tensor:
    """Integers (N, channels, *T) with the scales of their sample and group, and of their
    channel."""
    scale = sample_scale[:, :, None] * w_scale.view(1, sample_scale.shape[1], -1)
    return rescale_rows(y.reshape(scale.numel(), -1), scale.reshape(-1)).view(y.shape)


@twin_of(convolution.weight_gradient)
def weight_gradient(
    grad: Tensor,
    x: Tensor,
    window: Window,
    groups: int,
    bits: int,
    kernel: ProductKernel | None = None,
) -> Tensor:
    grad_q, grad_scale = quantise(grad.contiguous(), channels_of(grad), bits)
    x_q, x_scale = quantise(x.contiguous(), channels_of(x), bits)
    integers = _weight(
        grad_q.unflatten(1, (groups, -1)), x_q.unflatten(1, (groups, -1)), _taps_of(window)
    )
    scale = grad_scale.view(groups, -1, 1) * x_scale.view(groups, 1, -1)
    result = rescale_rows(integers.reshape(scale.numel(), -1), scale.reshape(-1))
    return result.view(grad.shape[1], x.shape[1] // groups, *window.kernel)
