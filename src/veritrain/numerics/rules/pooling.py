"""Windows that slide over an input: pooling of any rank, fold, and their gradients.

Averages are exact window sums; gradients of windows that overlap are added exactly
(docs/numerics.md, "Windows").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from veritrain.numerics.cpu import pools
from veritrain.numerics.platform.devices import elsewhere
from veritrain.numerics.rules.resampling import choose
from veritrain.numerics.rules.sums import reduce_sum, scatter_rows
from veritrain.numerics.rules.table import Kind, aten, require_float32, result_shape, rule


@dataclass(frozen=True, kw_only=True)
class _WindowedAxis:
    """The windows along one axis of an input.

    places: int64 (outputs, width), what each window holds; `size` stands for "outside".
    counts: int64 (outputs,), by which an average is divided.
    regular: width, stride and padding, of windows without gaps.
    """

    size: int
    places: Tensor
    counts: Tensor
    overlap: bool
    regular: tuple[int, int, int] | None


def _expand(values: Sequence[int] | None, rank: int) -> list[int]:
    values = list(values or [0])
    return values * rank if len(values) == 1 else values


def _regular(
    size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int = 1,
    count_padding: bool = True,
) -> _WindowedAxis:  # fmt: skip
    """Windows of one width at every `stride`; only the padding itself counts where the last
    overhangs."""
    starts = torch.arange(outputs)[:, None] * stride - padding
    places = starts + torch.arange(kernel) * dilation
    inside = (places >= 0) & (places < size)
    counted = places < size + padding if count_padding else inside
    reach = (kernel - 1) * dilation + 1
    return _WindowedAxis(
        size=size, places=torch.where(inside, places, size), counts=counted.sum(1),
        overlap=stride < reach, regular=(kernel, stride, padding) if dilation == 1 else None,
    )  # fmt: skip


def _adaptive(size: int, outputs: int) -> _WindowedAxis:
    """Window i is [floor(i * size / outputs), ceil((i + 1) * size / outputs))."""
    index = torch.arange(outputs)
    starts, stops = index * size // outputs, -(-(index + 1) * size // outputs)
    counts = stops - starts
    width = int(counts.max()) if outputs else 0
    divides = bool(outputs) and size % outputs == 0
    places = starts[:, None] + torch.arange(width)
    return _WindowedAxis(
        size=size, places=torch.where(places < stops[:, None], places, size), counts=counts,
        overlap=not divides, regular=(width, width, 0) if divides else None,
    )  # fmt: skip


def _adaptive_axes(sizes: Sequence[int], outputs: Sequence[int]) -> list[_WindowedAxis]:
    return [_adaptive(size, out) for size, out in zip(sizes, outputs, strict=True)]


def _gather(x: Tensor, axes: list[_WindowedAxis]) -> Tensor:
    """The windows of x (..., S1, S2, ...): (..., outputs 1, width 1, outputs 2, width 2, ...)."""
    first = x.ndim - len(axes)
    for dim, axis in reversed(list(enumerate(axes, first))):
        places = axis.places.reshape(-1)
        if not torch.equal(places, torch.arange(axis.size)):  # else they are a view of it
            if bool((places == axis.size).any()):
                outside = [1 if d == dim else size for d, size in enumerate(x.shape)]
                x = torch.cat([x, x.new_zeros(outside)], dim)
            x = choose(x, dim, places)
        x = x.unflatten(dim, axis.places.shape)
    return x


def _add_back(values: Tensor, axes: list[_WindowedAxis]) -> Tensor:
    """The transpose of `_gather`.

    Args:
        values: float32 (P, outputs 1, outputs 2, ..., width 1, width 2, ...); may be expanded.

    Returns:
        float32 (P, S1, S2, ...).
    """
    rank = len(axes)
    flat = torch.zeros([1] * (2 * rank), dtype=torch.int64)
    for j, axis in enumerate(axes):
        shape = [1] * (2 * rank)
        shape[j], shape[rank + j] = axis.places.shape
        flat = flat * (axis.size + 1) + axis.places.view(shape)
    places, sizes = flat.reshape(-1), [axis.size + 1 for axis in axes]
    rows = values.flatten(1)
    if any(axis.overlap for axis in axes):
        added = scatter_rows(rows.t(), places, math.prod(sizes)).t()
    else:  # each place receives at most one value; those outside are dropped below
        added = rows.new_zeros((len(rows), math.prod(sizes)))
        added.index_copy_(1, places, rows)
    added = added.reshape(len(rows), *sizes)
    for dim, axis in enumerate(axes, 1):
        added = added.narrow(dim, 0, axis.size)
    return added.contiguous()


def _average(x: Tensor, axes: list[_WindowedAxis], divisor: int | None = None) -> Tensor:
    first = x.ndim - len(axes)
    window = _in_planes(x, axes)
    if window is not None:
        outputs = len(axes[0].places), len(axes[1].places)
        sums = pools.window_sums(x.reshape(-1, *x.shape[-2:]).contiguous(), outputs, *window)
        sums = sums.view(*x.shape[:-2], *outputs)
    else:
        sums = reduce_sum(_gather(x, axes), range(first + 1, first + 2 * len(axes), 2))
    return sums / _divisor(axes, divisor)


def _in_planes(x: Tensor, axes: list[_WindowedAxis]) -> list[pools.Pair] | None:
    """Size, stride and padding of windows that the fused kernels can do."""
    if len(axes) != 2 or axes[0].regular is None or axes[1].regular is None:
        return None
    if elsewhere(x) or not x.numel():
        return None
    return list(zip(axes[0].regular, axes[1].regular, strict=True))


def _average_backward(
    grad: Tensor, shape: Sequence[int], axes: list[_WindowedAxis], divisor: int | None = None
) -> Tensor:
    rank = len(axes)
    planes = math.prod(shape[:-rank])
    shares = (grad / _divisor(axes, divisor)).reshape(planes, *grad.shape[-rank:])
    window = _in_planes(shares, axes)
    if window is not None:
        extent = axes[0].size, axes[1].size
        return pools.spread(shares.contiguous(), extent, *window).view(shape)
    widths = [axis.places.shape[1] for axis in axes]
    values = shares.reshape(*shares.shape, *[1] * rank).expand(*shares.shape, *widths)
    return _add_back(values, axes).view(shape)


def _divisor(axes: list[_WindowedAxis], divisor: int | None) -> Tensor:
    """Number of values that each window counts, float32 (outputs 1, outputs 2, ...), or
    `divisor`."""
    if divisor is not None:
        return torch.full((), divisor, dtype=torch.float32)
    counts = torch.ones((), dtype=torch.int64)
    for axis in axes:
        counts = counts[..., None] * axis.counts
    return counts.float()


def _register_average(rank: int, forward: Any, backward: Any) -> None:
    def axes_of(
        x: Tensor, kernel_size: list[int], stride: list[int] | None, padding: list[int] | int,
        ceil_mode: bool, count_include_pad: bool, divisor: int | None,
    ) -> list[_WindowedAxis]:  # fmt: skip
        kernel = _expand(kernel_size, rank)
        steps = _expand(stride or kernel, rank)
        edges = _expand([padding] if isinstance(padding, int) else padding, rank)
        options = kernel, steps, edges, ceil_mode, count_include_pad, divisor
        out = result_shape(forward, x, *options)[-rank:]
        places = zip(x.shape[-rank:], out, kernel, steps, edges, strict=True)
        return [_regular(*place, count_padding=count_include_pad) for place in places]

    @rule(Kind.SUM, forward)
    def _(
        x: Tensor, kernel_size: list[int], stride: list[int] | None = None,
        padding: list[int] | int = 0, ceil_mode: bool = False, count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:  # fmt: skip
        require_float32("avg_pool", x)
        axes = axes_of(
            x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
        return _average(x, axes, divisor_override)

    @rule(Kind.SUM, backward)
    def _(
        grad: Tensor, x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int],
        ceil_mode: bool, count_include_pad: bool, divisor_override: int | None,
    ) -> Tensor:  # fmt: skip
        require_float32("avg_pool_backward", grad)
        axes = axes_of(
            x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
        return _average_backward(grad, x.shape, axes, divisor_override)


_register_average(2, aten.avg_pool2d.default, aten.avg_pool2d_backward.default)
_register_average(3, aten.avg_pool3d.default, aten.avg_pool3d_backward.default)


def _register_adaptive_average(rank: int, forward: Any, backward: Any) -> None:
    @rule(Kind.SUM, forward)
    def _(x: Tensor, output_size: list[int]) -> Tensor:
        require_float32("adaptive_avg_pool", x)
        return _average(x, _adaptive_axes(x.shape[-rank:], output_size))

    @rule(Kind.SUM, backward)
    def _(grad: Tensor, x: Tensor) -> Tensor:
        require_float32("adaptive_avg_pool_backward", grad)
        axes = _adaptive_axes(x.shape[-rank:], grad.shape[-rank:])
        return _average_backward(grad, x.shape, axes)


_register_adaptive_average(
    2, aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d_backward.default
)
_register_adaptive_average(
    3, aten._adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d_backward.default
)


# Maxima: forward they only choose values (`as_is`).


def _to_chosen(grad: Tensor, x: Tensor, indices: Tensor, rank: int, overlap: bool) -> Tensor:
    """Gradient of x: each value of `grad` goes to the place in its plane that `indices` names."""
    require_float32("max_pool_backward", grad)
    planes, area = math.prod(x.shape[:-rank]), math.prod(x.shape[-rank:])
    if not planes:
        return torch.zeros_like(x)
    places, values = indices.reshape(planes, -1), grad.reshape(planes, -1)
    if not overlap or not values.numel():
        return values.new_zeros((planes, area)).scatter_(1, places, values).view(x.shape)
    if elsewhere(values):
        flat = (places + torch.arange(planes)[:, None] * area).reshape(-1)
        added = scatter_rows(values.reshape(-1, 1), flat, planes * area)
    else:
        added = pools.scatter(values.contiguous(), places.contiguous(), area)
    return added.view(x.shape)


def _register_max(rank: int, backward: Any) -> None:
    @rule(Kind.SUM, backward)
    def _(
        grad: Tensor, x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int],
        dilation: list[int], ceil_mode: bool, indices: Tensor,
    ) -> Tensor:  # fmt: skip
        kernel = _expand(kernel_size, rank)
        steps, spread = _expand(stride or kernel, rank), _expand(dilation, rank)
        overlap = any(s < (k - 1) * d + 1 for s, k, d in zip(steps, kernel, spread, strict=True))
        return _to_chosen(grad, x, indices, rank, overlap)


_register_max(2, aten.max_pool2d_with_indices_backward.default)
_register_max(3, aten.max_pool3d_with_indices_backward.default)


def _register_adaptive_max(rank: int, backward: Any) -> None:
    @rule(Kind.SUM, backward)
    def _(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
        sizes = zip(x.shape[-rank:], grad.shape[-rank:], strict=True)
        overlap = any(out and size % out for size, out in sizes)
        return _to_chosen(grad, x, indices, rank, overlap)


_register_adaptive_max(2, aten.adaptive_max_pool2d_backward.default)
_register_adaptive_max(3, aten.adaptive_max_pool3d_backward.default)


@rule(Kind.MOVEMENT, aten.max_unpool2d.default)
def _max_unpool2d(x: Tensor, indices: Tensor, output_size: list[int]) -> Tensor:
    """Of several values for one place the last stays."""
    shape = (*x.shape[:-2], *output_size)
    planes = math.prod(shape[:-2])
    spread = x.new_zeros((planes, math.prod(output_size)))
    places, values = indices.reshape(planes, -1), x.reshape(planes, -1)
    return spread.scatter_(1, places, values).view(shape)


@rule(Kind.MOVEMENT, aten.max_unpool3d.default)
def _max_unpool3d(
    x: Tensor, indices: Tensor, output_size: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    flat = _max_unpool2d(
        x.flatten(-2), indices.flatten(-2), [output_size[0], math.prod(output_size[1:])]
    )
    return flat.view(*x.shape[:-3], *output_size)


# Windows without a pooling.


@rule(Kind.SUM, aten.col2im.default)
def _col2im(
    x: Tensor, output_size: list[int], kernel_size: list[int], dilation: list[int],
    padding: list[int], stride: list[int],
) -> Tensor:  # fmt: skip
    """x (N, C * kh * kw, positions), or without N, to (N, C, H, W): windows that overlap are
    added."""
    require_float32("col2im", x)
    channels = x.shape[-2] // math.prod(kernel_size)
    shape = [*x.shape[:-2], channels, *output_size]
    axes = [
        _regular(size, (size + 2 * p - d * (k - 1) - 1) // s + 1, k, s, p, d)
        for size, k, d, p, s in zip(
            output_size, kernel_size, dilation, padding, stride, strict=True
        )
    ]
    outputs = [len(axis.places) for axis in axes]
    values = x.reshape(math.prod(shape[:-2]), *kernel_size, *outputs).permute(0, 3, 4, 1, 2)
    return _add_back(values, axes).view(shape)


@rule(Kind.SUM, aten.unfold_backward.default)
def _unfold_backward(
    grad: Tensor, input_sizes: list[int], dim: int, size: int, step: int
) -> Tensor:
    require_float32("unfold_backward", grad)
    dim %= max(len(input_sizes), 1)
    if not input_sizes:
        return grad.reshape(())
    axis = _regular(input_sizes[dim], grad.shape[dim], size, step, 0)
    rest = [n for d, n in enumerate(input_sizes) if d != dim]
    values = grad.movedim(dim, -2).reshape(math.prod(rest), grad.shape[dim], size)
    return _add_back(values, [axis]).view(*rest, input_sizes[dim]).movedim(-1, dim)
