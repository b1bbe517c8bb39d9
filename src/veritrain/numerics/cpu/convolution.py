"""Exact convolutions of any rank: integers of patches times integers of weights.

A convolution is a product over patches. Images are quantised into padded planes, channels last; a
patch is gathered from them by copying, and a matrix product with the weights follows. The gradient
of the image is a convolution too: one for each phase of the stride, over the taps that reach it.
The gradient of the weight contracts the same patches over positions. Never a Winograd or Fourier
algorithm, whose intermediate values are not integers (docs/numerics.md, "Contraction").

Shapes: image x (N, G*C, *S), weight w (G*O, C, *k), result y (N, G*O, *T); G groups. Work goes by
spans (some images, or some positions of one image), each in one thread from quantising to scaling
back.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.cpu import products
from veritrain.numerics.cpu.depthwise import convolve_kernel, weight_kernel
from veritrain.numerics.cpu.gather import Gather, Sizes, Window, forward_gather, phases
from veritrain.numerics.cpu.integers import Slices, channels_of, jit, quantise, slice_scales
from veritrain.numerics.cpu.product_kernel import MAX_INNER, ProductKernel, Strides
from veritrain.numerics.platform.devices import on_cpu
from veritrain.numerics.platform.parallel import run, run_products

_SPAN_BYTES = 1 << 22  # of a span's patches and products: about a second-level cache
_LONGER = 4  # times that where each span adds to a whole weight gradient
_SPAN_POSITIONS = 128  # at least, so that a product is worth its call


@jit
def _gather_kernel(planes, base, first, runs, channels, out, step, plane_step):
    """Patch i of plane d goes to out[i * step + d * plane_step:]: taps, then channels."""
    num_d, places, _ = planes.shape
    flat = planes.reshape(-1)
    for d in range(num_d):
        for i in range(base.shape[0]):
            target = (first + i) * step + d * plane_step
            for r in range(runs.shape[0]):
                source = (d * places + base[i] + runs[r, 0]) * channels
                count = runs[r, 1] * channels
                values = flat[source : source + count]
                copies = out[target : target + count]
                for c in range(count):
                    copies[c] = values[c]
                target += count


@jit
def _rescale_kernel(total, scale_no, first, channel, position, out):
    """Scale products of some images back: total (O, images * positions), out (N, channels, P)."""
    num_o = total.shape[0]
    count = position.shape[0]
    consecutive = position[count - 1] - position[0] == count - 1
    for i in range(total.shape[1] // count):
        for o in range(num_o):
            source = total[o, i * count : (i + 1) * count]
            scale = scale_no[first + i, channel + o]
            target = out[first + i, channel + o]
            if consecutive:
                target = target[position[0] : position[0] + count]
                for p in range(count):
                    target[p] = np.float32(source[p] * scale + 0.0)
            else:
                for p in range(count):
                    target[position[p]] = np.float32(source[p] * scale + 0.0)


@dataclass(frozen=True)
class _Span:
    """Some images whole, or some positions of one image."""

    images: range
    positions: range

    @property
    def count(self) -> int:
        return len(self.images) * len(self.positions)


def _spans(num_n: int, num_t: int, position_bytes: int) -> list[_Span]:
    """Cut N images of T positions so that what a span takes stays within bounds.

    Where it can be, their number is a multiple of the threads', so that none waits for another.
    """
    limit = min(MAX_INNER, max(_SPAN_POSITIONS, _SPAN_BYTES // position_bytes))
    if num_t >= limit:
        cuts = list(itertools.pairwise(_cuts(num_t, -(-num_t // limit))))
        return [
            _Span(range(n, n + 1), range(low, high)) for n in range(num_n) for low, high in cuts
        ]
    threads = torch.get_num_threads()
    pieces = -(-num_n // (limit // num_t))
    pieces = min(num_n, -(-pieces // threads) * threads)
    return [
        _Span(range(low, high), range(num_t))
        for low, high in itertools.pairwise(_cuts(num_n, pieces))
    ]


def _cuts(size: int, pieces: int) -> list[int]:
    """Ends of about equal pieces of `range(size)`."""
    return [size * i // pieces for i in range(pieces + 1)]


@dataclass(frozen=True)
class _Images:
    """A float32 image batch with the factors that make integers of one group's channels."""

    values: np.ndarray  # flat
    channels: int  # of all groups
    size: int  # positions
    group: range  # its channels
    factor: np.ndarray  # float64 (N, channels)

    def source(self, image: int, position: int = 0) -> int:
        """Flat index of the group's first channel."""
        return (image * self.channels + self.group.start) * self.size + position

    def factors(self, image: int) -> np.ndarray:
        """Of the group's channels, (C,)."""
        return self.factor[image, self.group.start : self.group.stop]

    def planes(self, kernel: ProductKernel, images: range, gather: Gather) -> list[Tensor]:
        """Padded planes of some images, channels last."""
        found: list[Tensor] = []
        for image in images:
            shape = (kernel.planes, gather.places, len(self.group))
            make = torch.empty if gather.places == self.size else torch.zeros
            out = make(shape, dtype=kernel.dtype)
            source = self.source(image)
            kernel.transposed(self.values, self.factors(image), out, gather.place, source)
            found.append(out)
        return found

    def by_channel(self, kernel: ProductKernel, span: _Span, *, left: bool) -> Tensor:
        """Integers (C, planes * positions), for products over positions."""
        shape = (len(self.group), kernel.planes * span.count)
        return self._rows(kernel, span, shape, shape[1], span.count, left=left)

    def by_position(self, kernel: ProductKernel, span: _Span) -> Tensor:
        """Integers (planes * C, positions), a right operand for products over channels."""
        shape = (kernel.planes * len(self.group), span.count)
        return self._rows(kernel, span, shape, shape[1], shape[1] * len(self.group), left=False)

    def _rows(
        self,
        kernel: ProductKernel,
        span: _Span,
        shape: Sizes,
        step: int,
        plane_step: int,
        *,
        left: bool,
    ) -> Tensor:
        out = torch.empty(shape, dtype=kernel.dtype)
        width = len(span.positions)
        for i, image in enumerate(span.images):
            source = self.source(image, span.positions.start)
            strides = Strides(
                len(self.group), width, source, self.size, i * width, step, plane_step
            )
            kernel.by_row(self.values, self.factors(image), out, strides, left=left)
        return out


def _patches(
    kernel: ProductKernel, planes: list[Tensor], span: _Span, gather: Gather, *, by_patch: bool
) -> Tensor:
    """Patches of a span: (positions, planes * K) if `by_patch`, else (planes * positions, K)."""
    channels = planes[0].shape[2]
    num_k = len(gather.taps) * channels
    shape = (span.count, kernel.planes * num_k) if by_patch else (kernel.planes * span.count, num_k)
    step, plane_step = (kernel.planes * num_k, num_k) if by_patch else (num_k, span.count * num_k)
    out = torch.empty(shape, dtype=kernel.dtype)
    base = gather.base[span.positions.start : span.positions.stop]
    for i, plane in enumerate(planes):
        _gather_kernel(
            plane.numpy(), base, i * len(base), gather.runs, channels, out.numpy().reshape(-1),
            step,
            plane_step,
        )  # fmt: skip
    return out


def _weights(kernel: ProductKernel, w_rk: Tensor, factor: Tensor) -> Tensor:
    """Integers of (R, K) rows as a left operand."""
    num_r, num_k = w_rk.shape
    out = torch.empty((num_r, kernel.planes * num_k), dtype=kernel.dtype)
    strides = Strides(num_r, num_k, 0, num_k, 0, kernel.planes * num_k, num_k)
    kernel.by_row(w_rk.detach().numpy().reshape(-1), factor.numpy(), out, strides, left=True)
    return out


def _apply(
    kernel: ProductKernel,
    images: _Images,
    w_rk: Tensor,
    w_factor: Tensor,
    gather: Gather | None,
    finish: Callable[[np.ndarray, _Span], None],
    num_n: int,
) -> None:
    """Products of a group's weights with all its patches; `finish` takes each span's.

    Without a gather the weights apply to single positions.
    """
    num_k = w_rk.shape[1]
    left = _weights(kernel, w_rk, w_factor)
    num_t = len(gather.base) if gather else images.size
    patch_bytes = num_k * kernel.planes * kernel.dtype.itemsize
    spans = _spans(num_n, num_t, patch_bytes + w_rk.shape[0] * kernel.result_bytes)
    inner = [(low, min(low + MAX_INNER, num_k)) for low in range(0, num_k, MAX_INNER)]

    def work(start: int, stop: int) -> None:
        planes: list[Tensor] = []
        have = range(0)
        for span in spans[start:stop]:
            if gather is None:
                right = images.by_position(kernel, span)
            else:
                if have != span.images:
                    planes, have = images.planes(kernel, span.images, gather), span.images
                right = _patches(kernel, planes, span, gather, by_patch=True).t()
            pairs = (
                (_inner(left, kernel, low, high), _inner(right.t(), kernel, low, high).t())
                for low, high in inner
            )
            finish(kernel.sum_of_products(pairs).numpy(), span)

    run_products(work, len(spans))


def _inner(operand: Tensor, kernel: ProductKernel, low: int, high: int) -> Tensor:
    """A range of the contracted axis of each plane."""
    num_k = operand.shape[1] // kernel.planes
    if (low, high) == (0, num_k):
        return operand
    parts = operand.view(operand.shape[0], kernel.planes, num_k)[:, :, low:high]
    return parts.reshape(operand.shape[0], -1)


def _images(x: Tensor, groups: int, factor: Tensor) -> Iterator[_Images]:
    """One for each group; `factor` float64 (N or 1, G or G*C)."""
    num_n, channels = x.shape[:2]
    values = x.detach().numpy().reshape(-1)
    each = factor.repeat_interleave(channels // factor.shape[1], 1).expand(num_n, channels)
    each = each.contiguous().numpy()
    width = channels // groups
    for g in range(groups):
        group = range(g * width, (g + 1) * width)
        yield _Images(values, channels, math.prod(x.shape[2:]), group, each)


@on_cpu
def forward(
    x: Tensor,
    w: Tensor,
    window: Window,
    groups: int,
    result: Sizes,
    bits: int,
    kernel: ProductKernel | None = None,
) -> Tensor:
    """Convolve.

    Args:
        x: float32 (N, G*C, *S), contiguous. w: float32 (G*O, C, *k). result: T.
        bits: width of the integers, for K = C * taps. kernel: by default the faster one.

    Returns:
        float32 (N, G*O, *T).
    """
    num_n, outputs = x.shape[0], w.shape[0] // groups
    out = torch.empty((num_n, w.shape[0], *result), dtype=torch.float32)
    if _is_depthwise(w, groups) and kernel is None:
        gather = forward_gather(window, tuple(x.shape[2:]), result)
        _depthwise(x, w, bits, gather, window.stride[-1], out)
        return out
    kernel = kernel or products.choose(bits, w[0].numel(), out.numel() // groups)
    w_or = w.contiguous().view(groups, outputs, w.shape[1], -1)
    w_factor, w_scale = slice_scales(w_or, (1, 1, w.shape[0], w[0].numel()), bits)
    factor, scale = (
        part.view(num_n, groups) for part in slice_scales(x, _samples(x, groups), bits)
    )
    scale_no = scale.repeat_interleave(outputs, 1) * w_scale
    size = tuple(x.shape[2:])
    gather = None if window.is_point(size, result) else forward_gather(window, size, result)
    for g, images in enumerate(_images(x, groups, factor)):
        w_rk = w_or[g].transpose(1, 2).reshape(outputs, -1)
        w_g = w_factor[0, g * outputs : (g + 1) * outputs]
        _apply(
            kernel, images, w_rk, w_g, gather, _writer(out, scale_no, g * outputs, gather), num_n
        )
    return out


def _is_depthwise(w: Tensor, groups: int) -> bool:
    return w.shape[:2] == (groups, 1)


def _depthwise(x: Tensor, w: Tensor, bits: int, gather: Gather, step: int, out: Tensor) -> None:
    """Write what `gather` names of a convolution of single channels; `step` along its last axis."""
    num_n, channels = x.shape[:2]
    w_ct, w_scale = quantise(
        w.contiguous().view(channels, -1), (1, 1, channels, w[0].numel()), bits
    )
    factor, scale = slice_scales(x, _samples(x, channels), bits)
    scale = (scale.view(num_n, channels) * w_scale).view(-1)
    run(
        convolve_kernel, num_n * channels, _flat_planes(x).reshape(num_n * channels, -1),
        factor.numpy()[0], w_ct.numpy()[:, gather.taps], gather.place, gather.places,
        gather.by_line(gather.base), step, gather.offsets, gather.by_line(gather.result),
        scale.numpy(), out.numpy().reshape(num_n * channels, -1), grain=1,
    )  # fmt: skip


def _flat_planes(x: Tensor) -> np.ndarray:
    """(N, C, *S) as (N, C, positions)."""
    return x.detach().numpy().reshape(x.shape[0], x.shape[1], -1)


def _samples(x: Tensor, groups: int) -> Slices:
    return 1, 1, x.shape[0] * groups, x[0].numel() // groups


def _writer(
    out: Tensor, scale: Tensor, channel: int, gather: Gather | None
) -> Callable[[np.ndarray, _Span], None]:
    """Scales the products of a span back into `out`, from `channel` on."""
    flat = out.numpy().reshape(out.shape[0], out.shape[1], -1)
    places = gather.result if gather else np.arange(flat.shape[2])

    def write(total: np.ndarray, span: _Span) -> None:
        position = places[span.positions.start : span.positions.stop]
        _rescale_kernel(total, scale.numpy(), span.images.start, channel, position, flat)

    return write


@on_cpu
def input_gradient(
    grad: Tensor,
    w: Tensor,
    window: Window,
    groups: int,
    size: Sizes,
    bits: int,
    kernel: ProductKernel | None = None,
) -> Tensor:
    """Gradient of a convolution's image; a transposed convolution's result.

    Args:
        grad: float32 (N, G*O, *T), contiguous. w: float32 (G*O, C, *k). size: S.
        bits: width of the integers, for K = O * taps. kernel: by default the faster one.

    Returns:
        float32 (N, G*C, *S).
    """
    num_n, inputs = grad.shape[0], w.shape[1]
    out = torch.empty((num_n, groups * inputs, *size), dtype=torch.float32)
    if _is_depthwise(w, groups) and kernel is None:
        for gather in phases(window, tuple(grad.shape[2:]), size):
            _depthwise(grad, w, bits, gather, 1, out)
        return out
    kernel = kernel or products.choose(bits, w[:, 0].numel() // groups, out.numel() // groups)
    w_or = w.contiguous().view(groups, -1, inputs, math.prod(w.shape[2:]))
    w_factor, w_scale = slice_scales(w_or, (groups, w_or.shape[1], inputs, w_or.shape[3]), bits)
    factor, scale = (
        part.view(num_n, groups) for part in slice_scales(grad, _samples(grad, groups), bits)
    )
    scale_nc = scale.repeat_interleave(inputs, 1) * w_scale.view(1, -1)
    result = tuple(grad.shape[2:])
    gathers = (None,) if window.is_point(size, result) else phases(window, result, size)
    for g, images in enumerate(_images(grad, groups, factor)):
        for gather in gathers:
            if gather is not None and not len(gather.taps):
                _fill_unreached(out, scale_nc, range(g * inputs, (g + 1) * inputs), gather)
                continue
            taps = w_or[g] if gather is None else w_or[g][:, :, torch.from_numpy(gather.taps)]
            w_rk = taps.permute(1, 2, 0).reshape(inputs, -1)
            write = _writer(out, scale_nc, g * inputs, gather)
            _apply(kernel, images, w_rk, w_factor[g], gather, write, num_n)
    return out


def _fill_unreached(out: Tensor, scale_nc: Tensor, channels: range, gather: Gather) -> None:
    """Positions that no tap reaches are sums of nothing: 0, and NaN with the rest of their
    slice."""
    flat = out.view(out.shape[0], out.shape[1], -1)
    zeros = (scale_nc[:, channels.start : channels.stop] * 0.0).float()
    flat[:, channels.start : channels.stop, torch.from_numpy(gather.result)] = zeros[:, :, None]


@jit
def _weight_kernel(total_okc, row_scale, column_scale, out_ock):
    """Scale products back and bring the channels before the taps."""
    num_o, num_k, num_c = total_okc.shape
    for o in range(num_o):
        for k in range(num_k):
            source = total_okc[o, k]
            for c in range(num_c):
                scaled = source[c] * row_scale[o] * column_scale[c]
                out_ock[o, c, k] = np.float32(scaled + 0.0)


@on_cpu
def weight_gradient(
    grad: Tensor,
    x: Tensor,
    window: Window,
    groups: int,
    bits: int,
    kernel: ProductKernel | None = None,
) -> Tensor:
    """Gradient of a convolution's weight.

    Args:
        grad: float32 (N, G*O, *T), contiguous. x: float32 (N, G*C, *S), contiguous.
        bits: width of the integers, for K = N * positions of grad. kernel: by default the faster
            one.

    Returns:
        float32 (G*O, C, *k).
    """
    outputs, inputs = grad.shape[1] // groups, x.shape[1] // groups
    taps = math.prod(window.kernel)
    out = torch.empty((grad.shape[1], inputs, *window.kernel), dtype=torch.float32)
    row_factor, row_scale = slice_scales(grad, channels_of(grad), bits)
    factor, scale = slice_scales(x, channels_of(x), bits)
    size, result = tuple(x.shape[2:]), tuple(grad.shape[2:])
    gather = forward_gather(window, size, result)
    if outputs == inputs == 1 and kernel is None:
        run(
            weight_kernel, groups, _flat_planes(grad), row_factor.numpy()[0], _flat_planes(x),
            factor.numpy()[0], gather.place, gather.places, gather.by_line(gather.base),
            window.stride[-1], gather.offsets, (row_scale * scale).numpy()[0],
            out.numpy().reshape(groups, taps), grain=1,
        )  # fmt: skip
        return out
    kernel = kernel or products.choose(bits, grad.numel() // grad.shape[1], out.numel() // groups)
    source = None if window.is_point(size, result) else gather
    pairs = zip(_images(grad, groups, row_factor), _images(x, groups, factor), strict=True)
    for g, (rows, images) in enumerate(pairs):
        total = _contract_positions(kernel, rows, images, source, grad.shape[0], taps * inputs)
        _weight_kernel(
            total.numpy().reshape(outputs, taps, inputs),
            row_scale.numpy()[0, rows.group.start :],
            scale.numpy()[0, images.group.start :],
            out.numpy().reshape(groups, outputs, inputs, taps)[g],
        )
    return out


def _contract_positions(
    kernel: ProductKernel,
    rows: _Images,
    images: _Images,
    gather: Gather | None,
    num_n: int,
    num_k: int,
) -> Tensor:
    """Integer sums over samples and positions of rows times patches: float64 (O, K)."""
    patch_bytes = (num_k + len(rows.group)) * kernel.planes * kernel.dtype.itemsize
    spans = _spans(num_n, rows.size, -(-patch_bytes // _LONGER))

    def operands(some: list[_Span]) -> Iterator[tuple[Tensor, Tensor]]:
        planes: list[Tensor] = []
        have = range(0)
        for span in some:
            left = rows.by_channel(kernel, span, left=True)
            if gather is None:
                yield left, images.by_channel(kernel, span, left=False).t()
            else:
                if have != span.images:
                    planes, have = images.planes(kernel, span.images, gather), span.images
                yield left, _patches(kernel, planes, span, gather, by_patch=False)

    def work(start: int, stop: int) -> Tensor:
        return kernel.sum_of_products(operands(spans[start:stop]))

    parts = run_products(work, len(spans))
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)  # integers: in any order
