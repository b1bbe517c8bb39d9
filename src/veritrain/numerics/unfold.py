"""Fast exact 2-D convolution without groups: unfold a few images at a time, multiply, fold back.

The integers, scales and results are those of `rules.contraction`, whose general path goes through
PyTorch's float64 convolution; this one is faster because quantising, unfolding and scaling back are
fused and stay in the cache. Since integer sums are exact, both give the same bits (tested).

Shapes: image x (N, C, H, W), weight w (O, C, kh, kw), result y (N, O, oh, ow). Columns are
(C*kh*kw, images * oh*ow) for the images of one chunk.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.integers import ROUNDING, jit
from veritrain.numerics.parallel import run_products

_CHUNK_BYTES = 1 << 20  # of unfolded columns: about a second-level cache


@dataclass(frozen=True, kw_only=True)
class Window:
    """Geometry of a 2-D convolution: (rows, columns) of each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def flat(self) -> tuple[int, ...]:
        """kh, kw, sh, sw, ph, pw, dh, dw."""
        return (*self.kernel, *self.stride, *self.padding, *self.dilation)


@jit
def _valid(size, out, offset, stride):
    """Outputs [low, high) whose input index j * stride + offset lies inside [0, size)."""
    low = 0 if offset >= 0 else (-offset + stride - 1) // stride
    high = 0 if offset >= size else (size - 1 - offset) // stride + 1
    return min(low, out), max(min(high, out), min(low, out))


_POINT = Window(kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1))


@jit
def _unfold_kernel(x, factor_nc, first, window, columns, oh, ow, start, stop):
    """Columns of channels [start, stop): scaled integers of x, zero outside the image."""
    kh, kw, sh, sw, ph, pw, dh, dw = window
    height, width = x.shape[2], x.shape[3]
    images = columns.shape[1] // (oh * ow)
    plane = np.zeros((height + 2 * ph, width + 2 * pw), np.float64)
    for c in range(start, stop):
        for i in range(images):
            factor = factor_nc[first + i, c]
            for y in range(height):
                source = x[first + i, c, y]
                target = plane[ph + y, pw : pw + width]
                for j in range(width):
                    target[j] = (np.float64(source[j]) * factor + ROUNDING) - ROUNDING
            for tap in range(kh * kw):
                ky, kx = tap // kw * dh, tap % kw * dw
                row = columns[c * kh * kw + tap, i * oh * ow : (i + 1) * oh * ow]
                for y in range(oh):
                    line = plane[y * sh + ky, kx:]
                    out = row[y * ow : (y + 1) * ow]
                    if sw == 1:
                        for j in range(ow):
                            out[j] = line[j]
                    else:
                        for j in range(ow):
                            out[j] = line[j * sw]


@jit
def _fold_kernel(columns, first, window, scale_nc, out, oh, ow, start, stop):
    """Add the columns of channels [start, stop) back into images and scale them to float32."""
    kh, kw, sh, sw, ph, pw, dh, dw = window
    height, width = out.shape[2], out.shape[3]
    images = columns.shape[1] // (oh * ow)
    plane = np.empty((height, width), np.float64)
    for c in range(start, stop):
        for i in range(images):
            plane[:] = 0.0
            for ky in range(kh):
                for kx in range(kw):
                    left, right = _valid(width, ow, kx * dw - pw, sw)
                    row = columns[(c * kh + ky) * kw + kx]
                    for y in range(oh):
                        iy = y * sh + ky * dh - ph
                        if iy < 0 or iy >= height:
                            continue
                        source = row[(i * oh + y) * ow + left : (i * oh + y) * ow + right]
                        target = plane[iy]
                        if sw == 1:
                            inside = target[left + kx * dw - pw : right + kx * dw - pw]
                            for j in range(source.shape[0]):
                                inside[j] += source[j]
                        else:
                            for j in range(source.shape[0]):
                                target[(left + j) * sw + kx * dw - pw] += source[j]
            scale = scale_nc[first + i, c]
            for y in range(height):
                line = plane[y]
                target32 = out[first + i, c, y]
                for j in range(width):
                    target32[j] = np.float32(line[j] * scale + 0.0)


@jit
def _rescale_kernel(product, first, scale_no, out, start, stop):
    """Outputs [start, stop) = (image, channel) of the chunk: scale back to float32."""
    num_o, area = out.shape[1], out.shape[2]
    for s in range(start, stop):
        i = s // num_o
        o = s - i * num_o
        source = product[o, i * area : (i + 1) * area]
        target = out[first + i, o]
        scale = scale_no[first + i, o]
        for p in range(area):
            target[p] = np.float32(source[p] * scale + 0.0)


@dataclass(frozen=True, kw_only=True)
class _Chunks:
    """Images a few at a time, so that their unfolded columns stay in the cache."""

    num_n: int
    size: int

    @classmethod
    def of(cls, num_n: int, column_bytes: int) -> _Chunks:
        return cls(num_n=num_n, size=max(1, _CHUNK_BYTES // max(column_bytes, 1)))

    @property
    def count(self) -> int:
        return -(-self.num_n // self.size)

    def images(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """[first, last) of the chunks start to stop."""
        for chunk in range(start, stop):
            yield chunk * self.size, min((chunk + 1) * self.size, self.num_n)


def forward(
    x: Tensor,
    factor_nc: Tensor,
    w_q: Tensor,
    scale_no: Tensor,
    window: Window,
    size: tuple[int, int],
) -> Tensor:
    """Convolve.

    Args:
        x: float32 (N, C, H, W), contiguous. factor_nc: float64 (N, C), to scaled integers.
        w_q: float64 (O, C*kh*kw), integers. scale_no: float64 (N, O), back from integers.
        size: (oh, ow).

    Returns:
        float32 (N, O, oh, ow).
    """
    area = size[0] * size[1]
    num_o, num_k = w_q.shape
    out = torch.empty((x.shape[0], num_o, *size), dtype=torch.float32)
    flat = out.numpy().reshape(x.shape[0], num_o, area)
    chunks = _Chunks.of(x.shape[0], num_k * area * 8)

    def work(start: int, stop: int) -> None:
        for first, last in chunks.images(start, stop):
            product = torch.mm(w_q, _unfold(x, factor_nc, first, last, window, size))
            _rescale_kernel(
                product.numpy(), first, scale_no.numpy(), flat, 0, (last - first) * num_o
            )

    run_products(work, chunks.count)
    return out


def input_gradient(
    grad: Tensor,
    factor_no: Tensor,
    w_q: Tensor,
    scale_nc: Tensor,
    window: Window,
    shape: torch.Size,
) -> Tensor:
    """Gradient of the image.

    Args:
        grad: float32 (N, O, oh, ow), contiguous. factor_no: float64 (N, O), to scaled integers.
        w_q: float64 (O, C*kh*kw), integers. scale_nc: float64 (N, C), back from integers.
        shape: (N, C, H, W) of the image.

    Returns:
        float32 `shape`.
    """
    size = (grad.shape[2], grad.shape[3])
    out = torch.empty(shape, dtype=torch.float32)
    chunks = _Chunks.of(shape[0], w_q.shape[1] * size[0] * size[1] * 8)

    def work(start: int, stop: int) -> None:
        for first, last in chunks.images(start, stop):
            integers = _unfold(grad, factor_no, first, last, _POINT, size)
            columns = torch.mm(w_q.t(), integers)
            _fold_kernel(
                columns.numpy(),
                first,
                window.flat,
                scale_nc.numpy(),
                out.numpy(),
                *size,
                0,
                shape[1],
            )

    run_products(work, chunks.count)
    return out


def weight_gradient(
    grad: Tensor, factor_no: Tensor, x: Tensor, factor_nc: Tensor, window: Window
) -> Tensor:
    """Gradient of the weight, as integers: float64 (O, C*kh*kw).

    The factors take `grad` and `x` to scaled integers, float64 (N, O) and (N, C), and do not depend
    on n.
    """
    size = (grad.shape[2], grad.shape[3])
    num_k = x.shape[1] * window.kernel[0] * window.kernel[1]
    chunks = _Chunks.of(x.shape[0], num_k * size[0] * size[1] * 8)

    def work(start: int, stop: int) -> Tensor:
        total = torch.zeros((grad.shape[1], num_k), dtype=torch.float64)
        for first, last in chunks.images(start, stop):
            columns = _unfold(x, factor_nc, first, last, window, size)
            total.addmm_(_unfold(grad, factor_no, first, last, _POINT, size), columns.t())
        return total

    parts = run_products(work, chunks.count)
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)  # integers: in any order


def _unfold(
    x: Tensor, factor_nc: Tensor, first: int, last: int, window: Window, size: tuple[int, int]
) -> Tensor:
    num_k = x.shape[1] * window.kernel[0] * window.kernel[1]
    columns = torch.empty((num_k, (last - first) * size[0] * size[1]), dtype=torch.float64)
    _unfold_kernel(
        x.detach().numpy(), factor_nc.numpy(), first, window.flat, columns.numpy(), *size, 0,
        x.shape[1],
    )  # fmt: skip
    return columns
