"""Operators that make each axis of a result out of chosen places of the input's axis: padding by
reflection or replication, and interpolation (docs/numerics.md, "Resampling").

Places and weights are computed here, from integers and IEEE operations: PyTorch's kernels compute
them in C++, where a compiler may fuse them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from veritrain.numerics.rules.sums import scatter_rows
from veritrain.numerics.rules.table import Kind, aten, require_float32, result_shape, rule


@dataclass(frozen=True, kw_only=True)
class _ResampledAxis:
    """result[i] = sum over t of input[places[t, i]] * weights[t, i].

    places: int64 (T, outputs). weights: float32 (T, outputs), or None for copies (T = 1).
    """

    size: int  # of the input
    places: Tensor
    weights: Tensor | None = None


def choose(x: Tensor, dim: int, places: Tensor) -> Tensor:
    """x[..., places, ...] with `places` int64 (K,) along `dim`."""
    if dim < x.ndim - 1:
        return x.index_select(dim, places)
    rows = math.prod(x.shape[:-1])  # PyTorch selects columns of matrices many times faster
    return x.reshape(rows, x.shape[-1]).index_select(1, places).view(*x.shape[:-1], len(places))


def _resample(x: Tensor, axes: Sequence[_ResampledAxis]) -> Tensor:
    """Along the last axes of x, from the first of them to the last; terms are added in order of
    t."""
    for dim, axis in enumerate(axes, x.ndim - len(axes)):
        terms = [
            _weighted(choose(x, dim, places), axis.weights, t, dim)
            for t, places in enumerate(axis.places)
        ]
        x = terms[0]
        for term in terms[1:]:
            x = x + term
    return x


def _resample_backward(grad: Tensor, axes: Sequence[_ResampledAxis]) -> Tensor:
    """The transpose, from the last axis to the first: exact sums of the values for each place."""
    first = grad.ndim - len(axes)
    for dim, axis in reversed(list(enumerate(axes, first))):
        terms = [_weighted(grad, axis.weights, t, dim) for t in range(len(axis.places))]
        values = torch.cat(terms, dim).movedim(dim, 0)
        rows = values.reshape(len(values), -1)
        added = scatter_rows(rows, axis.places.reshape(-1), axis.size)
        grad = added.view(axis.size, *values.shape[1:]).movedim(0, dim)
    return grad.contiguous()


def _weighted(x: Tensor, weights: Tensor | None, t: int, dim: int) -> Tensor:
    if weights is None:
        return x
    return x * weights[t].view([-1 if d == dim else 1 for d in range(x.ndim)])


# Padding. `padding` is (before, after) of the last axis, then of the one before it, ...


def _reflected(size: int, before: int, after: int) -> _ResampledAxis:
    places = torch.arange(-before, size + after).abs()
    last = size - 1
    return _ResampledAxis(size=size, places=(last - (last - places).abs())[None])


def _replicated(size: int, before: int, after: int) -> _ResampledAxis:
    return _ResampledAxis(
        size=size, places=torch.arange(-before, size + after).clamp(0, size - 1)[None]
    )


def _register_padding(
    name: str, rank: int, make: Callable[[int, int, int], _ResampledAxis]
) -> None:
    forward = getattr(aten, f"{name}{rank}d").default

    def axes_of(x: Tensor, padding: list[int]) -> list[_ResampledAxis]:
        result_shape(forward, x, padding)  # raises where they do not fit
        pairs = zip(padding[::2], padding[1::2], strict=True)
        return [
            make(size, *pair)
            for size, pair in zip(x.shape[-rank:], reversed(list(pairs)), strict=True)
        ]

    @rule(Kind.MOVEMENT, forward)
    def _(x: Tensor, padding: list[int]) -> Tensor:
        return _resample(x, axes_of(x, padding))

    @rule(Kind.SUM, getattr(aten, f"{name}{rank}d_backward").default)
    def _(grad: Tensor, x: Tensor, padding: list[int]) -> Tensor:
        require_float32(f"{name}{rank}d_backward", grad)
        return _resample_backward(grad, axes_of(x, padding))


for _rank in (1, 2, 3):
    _register_padding("reflection_pad", _rank, _reflected)
    _register_padding("replication_pad", _rank, _replicated)


# Interpolation. An axis is made of (input size, output size, scale or None).

_Maker = Callable[[int, int, float | None], _ResampledAxis]


def _nearest(offset: float) -> _Maker:
    """Place floor((i + offset) * step), in float32 as PyTorch computes it."""

    def make(size: int, outputs: int, scale: float | None) -> _ResampledAxis:
        index = torch.arange(outputs, dtype=torch.float32) + offset
        places = (index * _float32_step(size, outputs, scale)).floor().long()
        return _ResampledAxis(size=size, places=places.clamp(max=size - 1)[None])

    return make


def _float32_step(size: int, outputs: int, scale: float | None) -> Tensor:
    if scale:
        return torch.full((), 1.0 / scale, dtype=torch.float32)
    return torch.full((), size, dtype=torch.float32) / torch.full((), outputs, dtype=torch.float32)


def _step(size: int, outputs: int, scale: float | None, align_corners: bool) -> float:
    """How many of the input's places lie between two outputs."""
    if align_corners:
        return (size - 1) / (outputs - 1) if outputs > 1 else 0.0
    return 1.0 / scale if scale else size / outputs


def _positions(size: int, outputs: int, scale: float | None, align_corners: bool) -> Tensor:
    """Where the centre of each output lies between the input's places, float64 (outputs,)."""
    index = torch.arange(outputs, dtype=torch.float64)
    step = _step(size, outputs, scale, align_corners)
    return index * step if align_corners else (index + 0.5) * step - 0.5


def _split(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The place at or before each position, and how far behind it lies, in [0, 1], float64."""
    place = position.floor().clamp(max=size - 1)
    return place.long(), (position - place).clamp(0, 1)


def _linear(align_corners: bool) -> _Maker:
    def make(size: int, outputs: int, scale: float | None) -> _ResampledAxis:
        position = _positions(size, outputs, scale, align_corners).clamp(min=0)
        place, fraction = _split(position, size)
        upper = fraction.float()
        return _ResampledAxis(
            size=size, places=torch.stack([place, (place + 1).clamp(max=size - 1)]),
            weights=torch.stack([1 - upper, upper]),
        )  # fmt: skip

    return make


_SHARPNESS = -0.75  # PyTorch's coefficients of the cubic convolution
_ANTIALIASED_SHARPNESS = -0.5


def _inner_cubic(z: Tensor, a: float = _SHARPNESS) -> Tensor:  # 0 <= z <= 1
    return ((a + 2) * z - (a + 3)) * z * z + 1


def _outer_cubic(z: Tensor, a: float = _SHARPNESS) -> Tensor:  # 1 <= z <= 2
    return ((a * z - 5 * a) * z + 8 * a) * z - 4 * a


def _cubic(align_corners: bool) -> _Maker:
    """Cubic convolution. Source: Keys, Cubic convolution interpolation, 1981, equation 4."""

    def make(size: int, outputs: int, scale: float | None) -> _ResampledAxis:
        place, z = _split(_positions(size, outputs, scale, align_corners), size)
        weights = [_outer_cubic(z + 1), _inner_cubic(z), _inner_cubic(1 - z), _outer_cubic(2 - z)]
        places = [(place + offset).clamp(0, size - 1) for offset in (-1, 0, 1, 2)]
        return _ResampledAxis(
            size=size, places=torch.stack(places), weights=torch.stack(weights).float()
        )

    return make


def _triangle(z: Tensor) -> Tensor:
    return (1 - z).clamp(min=0)


def _cubic_bell(z: Tensor) -> Tensor:
    inner, outer = (f(z, _ANTIALIASED_SHARPNESS) for f in (_inner_cubic, _outer_cubic))
    return torch.where(z < 1, inner, torch.where(z < 2, outer, 0.0))


def _antialiased(radius: int, bell: Callable[[Tensor], Tensor]) -> Callable[[bool], _Maker]:
    """Weights bell(distance) within `radius`, widened where there are fewer outputs than places."""

    def maker(align_corners: bool) -> _Maker:
        def make(size: int, outputs: int, scale: float | None) -> _ResampledAxis:
            step = _step(size, outputs, scale, align_corners)
            widening = max(step, 1.0)
            centre = (torch.arange(outputs, dtype=torch.float64) + 0.5) * step
            first = (centre - radius * widening + 0.5).long().clamp(min=0)
            last = (centre + radius * widening + 0.5).long().clamp(max=size) - 1
            terms = int((last - first).max()) + 1
            places = first + torch.arange(terms)[:, None]
            distance = ((places - centre + 0.5) / widening).abs()
            weights = torch.where(places <= last, bell(distance), 0.0)
            total = torch.zeros(outputs, dtype=torch.float64)
            for weight in weights:
                total = total + weight
            return _ResampledAxis(
                size=size, places=torch.minimum(places, last), weights=(weights / total).float()
            )

        return make

    return maker


def _axes(
    make: _Maker, sizes: Sequence[int], outputs: Sequence[int], scales: Sequence[float | None]
) -> list[_ResampledAxis]:
    padded = [*scales, *[None] * (len(outputs) - len(scales))]
    return [make(*each) for each in zip(sizes[-len(outputs) :], outputs, padded, strict=True)]


def _register_nearest(name: str, make: _Maker) -> None:
    @rule(Kind.MOVEMENT, getattr(aten, name).default)
    def _(x: Tensor, output_size: list[int], *scales: float | None) -> Tensor:
        return _resample(x, _axes(make, x.shape, output_size, scales))

    @rule(Kind.SUM, getattr(aten, f"{name}_backward").default)
    def _(
        grad: Tensor, output_size: list[int], input_size: list[int], *scales: float | None
    ) -> Tensor:
        require_float32(f"{name}_backward", grad)
        return _resample_backward(grad, _axes(make, input_size, output_size, scales))


for _rank in (1, 2, 3):
    _register_nearest(f"upsample_nearest{_rank}d", _nearest(0.0))
    _register_nearest(f"_upsample_nearest_exact{_rank}d", _nearest(0.5))


def _register_weighted(name: str, maker: Callable[[bool], _Maker]) -> None:
    @rule(Kind.COMPOSITE, getattr(aten, name).default)
    def _(x: Tensor, output_size: list[int], align_corners: bool, *scales: float | None) -> Tensor:
        require_float32(name, x)
        return _resample(x, _axes(maker(align_corners), x.shape, output_size, scales))

    @rule(Kind.SUM, getattr(aten, f"{name}_backward").default)
    def _(
        grad: Tensor, output_size: list[int], input_size: list[int], align_corners: bool,
        *scales: float | None,
    ) -> Tensor:  # fmt: skip
        require_float32(f"{name}_backward", grad)
        axes = _axes(maker(align_corners), input_size, output_size, scales)
        return _resample_backward(grad, axes)


for _name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"):
    _register_weighted(_name, _linear)
_register_weighted("upsample_bicubic2d", _cubic)
_register_weighted("_upsample_bilinear2d_aa", _antialiased(1, _triangle))
_register_weighted("_upsample_bicubic2d_aa", _antialiased(2, _cubic_bell))
