"""Contractions: matrix products and convolutions through exact integer products.

Both operands are rounded to scaled integers so narrow that every dot product stays within 2**53
(`integers.contraction_bits`). Integer products and sums of that size are exact in binary64, so any
engine, blocking, order and thread count gives the same integers; they are scaled back and rounded
once to float32 (docs/numerics.md, "Contraction").
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from veritrain.numerics import unfold
from veritrain.numerics.device import contraction as device
from veritrain.numerics.device import elsewhere
from veritrain.numerics.integers import (
    channels_of,
    contraction_bits,
    quantise,
    rescale,
    rescale_rows,
    slice_scales,
    total,
)
from veritrain.numerics.rules.table import Kind, aten, require_float32, rule


def _operand(x_pmk: Tensor, axis: int, bits: int) -> tuple[Tensor, Tensor]:
    """Integers of one operand with a scale for every index of the other matrix axis.

    Args:
        x_pmk: float32 (P, M, K). axis: the contracted axis, 1 or 2.

    Returns:
        float64 integers in the same shape, and scales (P, M or K).
    """
    if not x_pmk.is_contiguous() and x_pmk.mT.is_contiguous():
        q, scale = _operand(x_pmk.mT, 3 - axis, bits)
        return q.mT, scale
    x_pmk = x_pmk.contiguous()
    num_p, num_m, num_k = x_pmk.shape
    if axis == 2:
        q, scale = quantise(x_pmk, (1, 1, num_p * num_m, num_k), bits)
        return q, scale.view(num_p, num_m)
    return quantise(x_pmk, (num_p, num_m, num_k, 1), bits)


def product(a_pmk: Tensor, b_pkn: Tensor) -> Tensor:
    """Exact batched product, float32 (P, M, K) x (P, K, N) to (P, M, N)."""
    if elsewhere(a_pmk):
        return device.product(a_pmk, b_pkn)
    inner = a_pmk.shape[2]
    if inner == 0:
        shape = (a_pmk.shape[0], a_pmk.shape[1], b_pkn.shape[2])
        return torch.zeros(shape, dtype=torch.float32)
    bits = contraction_bits(inner)
    a, a_scale = _operand(a_pmk, 2, bits)
    b, b_scale = _operand(b_pkn, 1, bits)
    integers = torch.mm(a[0], b[0])[None] if a.shape[0] == 1 else torch.bmm(a, b)
    return rescale(integers, a_scale, b_scale)


@rule(Kind.CONTRACTION, aten.mm.default)
def _mm(a: Tensor, b: Tensor) -> Tensor:
    require_float32("mm", a, b)
    return product(a[None], b[None])[0]


@rule(Kind.CONTRACTION, aten.bmm.default)
def _bmm(a: Tensor, b: Tensor) -> Tensor:
    require_float32("bmm", a, b)
    return product(a, b)


@rule(Kind.CONTRACTION, aten.mv.default)
def _mv(a: Tensor, b: Tensor) -> Tensor:
    return _mm(a, b[:, None])[:, 0]


@rule(Kind.CONTRACTION, aten.dot.default, aten.vdot.default)
def _dot(a: Tensor, b: Tensor) -> Tensor:
    return _mm(a[None], b[:, None])[0, 0]


def _add_scaled(base: Tensor, result: Tensor, beta: float, alpha: float) -> Tensor:
    """beta * base + alpha * result, each operation rounded; PyTorch ignores `base` if beta is 0."""
    if alpha != 1:
        result = result * alpha
    if beta == 0:
        return result
    return (base if beta == 1 else base * beta) + result


@rule(Kind.CONTRACTION, aten.addmm.default)
def _addmm(base: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _add_scaled(base, _mm(a, b), beta, alpha)


@rule(Kind.CONTRACTION, aten.baddbmm.default)
def _baddbmm(base: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _add_scaled(base, _bmm(a, b), beta, alpha)


@rule(Kind.CONTRACTION, aten.addmv.default)
def _addmv(base: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _add_scaled(base, _mv(a, b), beta, alpha)


# Convolutions. Shapes: image x (N, C, *S), weight w (O, C/G, *k), result y (N, O, *T); for a transposed
# convolution w is (C, O/G, *k). The integers go through PyTorch's own float64 convolution: on the CPU
# it unfolds and multiplies, it never uses a Winograd or Fourier algorithm, whose intermediate values
# would not be integers. Two-dimensional convolutions without groups take the faster path of `unfold`.


@rule(Kind.CONTRACTION, aten.convolution.default)
def _convolution(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    require_float32("convolution", x, w, bias)
    geometry = (stride, padding, dilation, transposed, output_padding, groups)
    y = _apply_weight(x, w, geometry, over_inputs=not transposed)
    return y if bias is None else y + bias.view(1, -1, *[1] * (y.ndim - 2))


def _apply_weight(image: Tensor, w: Tensor, geometry: Any, *, over_inputs: bool) -> Tensor:
    """Convolve `image` with `w` exactly.

    `over_inputs`: the weight's axis 1 is contracted and its axis 0 is the result's channel, as in a
    forward convolution; else the reverse, as in a transposed one.
    """
    if elsewhere(image):
        return device.apply_weight(image, w, geometry, over_inputs=over_inputs)
    groups = geometry[5]
    num_n = image.shape[0]
    outer, inner = w.shape[0] // groups, w.shape[1]
    taps = math.prod(w.shape[2:])
    bits = contraction_bits(max((inner if over_inputs else outer) * taps, 1))
    image = image.contiguous()
    image_shape = (1, 1, num_n * groups, math.prod(image.shape[1:]) // groups)
    if over_inputs:
        w_shape = (1, 1, groups * outer, inner * taps)
    else:
        w_shape = (groups, outer, inner, taps)
    w_q, w_scale = quantise(w.contiguous(), w_shape, bits)
    if _is_plain(image, groups):
        return _unfolded(image, slice_scales(image, image_shape, bits), w_q, w_scale, geometry)
    image_q, image_scale = quantise(image, image_shape, bits)
    y = torch.ops.aten.convolution(image_q, w_q, None, *geometry).contiguous()
    scale = image_scale.view(num_n, groups, 1) * w_scale.view(1, groups, -1)
    return rescale_rows(_as_rows(y, scale), scale.view(-1)).view(y.shape)


def _as_rows(integers: Tensor, scale: Tensor) -> Tensor:
    """One row for each scale, also where there are none."""
    count = scale.numel()
    return integers.view(count, integers.numel() // max(count, 1))


def _is_plain(image: Tensor, groups: int) -> bool:
    return image.ndim == 4 and groups == 1 and image.numel() > 0


def _window(w: Tensor, geometry: Any) -> unfold.Window:
    stride, padding, dilation, *_ = geometry
    kernel, stride, padding, dilation = (
        (int(pair[0]), int(pair[1])) for pair in (w.shape[2:], stride, padding, dilation)
    )
    return unfold.Window(kernel=kernel, stride=stride, padding=padding, dilation=dilation)


def _unfolded(
    image: Tensor, image_scales: tuple[Tensor, Tensor], w_q: Tensor, w_scale: Tensor, geometry: Any
) -> Tensor:
    """The fast path of `_apply_weight`: the same integers, unfolded and multiplied."""
    _, _, _, transposed, output_padding, _ = geometry
    window = _window(w_q, geometry)
    factor, scale = (part.view(-1, 1) for part in image_scales)
    factor = factor.expand(-1, image.shape[1]).contiguous()
    scale = (scale * w_scale.view(1, -1)).contiguous()
    size = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1 + extra
        if transposed
        else (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d, extra in zip(
            image.shape[2:], window.kernel, window.stride, window.padding, window.dilation,
            output_padding, strict=True,
        )
    ]  # fmt: skip
    flat = w_q.view(w_q.shape[0], -1)
    if not transposed:
        return unfold.forward(image, factor, flat, scale, window, (size[0], size[1]))
    shape = torch.Size((image.shape[0], w_q.shape[1], *size))
    return unfold.input_gradient(image, factor, flat, scale, window, shape)


@rule(Kind.CONTRACTION, aten.convolution_backward.default)
def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    require_float32("convolution_backward", grad, x, w)
    geometry = (stride, padding, dilation, transposed, output_padding, groups)
    grad = grad.contiguous()
    grad_x = _input_gradient(grad, x, w, geometry) if output_mask[0] else None
    grad_w = _weight_gradient(grad, x.contiguous(), w, geometry) if output_mask[1] else None
    grad_bias = total(grad, channels_of(grad)).view(-1) if output_mask[2] else None
    return grad_x, grad_w, grad_bias


def _input_gradient(grad: Tensor, x: Tensor, w: Tensor, geometry: Any) -> Tensor:
    stride, padding, dilation, transposed, _, groups = geometry
    if transposed:  # the gradient of a transposed convolution is a forward one
        forward = (stride, padding, dilation, False, [0] * len(stride), groups)
        result = _apply_weight(grad, w, forward, over_inputs=True)
        # output padding of a whole stride makes positions that no input has
        for d, size in enumerate(x.shape[2:], 2):
            result = result.narrow(d, 0, size)
        return result.contiguous()
    # positions that the stride never reached
    missing = [
        size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, out, s, p, d, k in zip(
            x.shape[2:], grad.shape[2:], stride, padding, dilation, w.shape[2:], strict=True
        )
    ]
    backward = (stride, padding, dilation, True, missing, groups)
    return _apply_weight(grad, w, backward, over_inputs=False)


def _weight_gradient(grad: Tensor, x: Tensor, w: Tensor, geometry: Any) -> Tensor:
    if elsewhere(x):
        return device.weight_gradient(grad, x, w, geometry)
    stride, padding, dilation, transposed, output_padding, groups = geometry
    num_n = x.shape[0]
    positions = math.prod((x if transposed else grad).shape[2:])
    bits = contraction_bits(max(num_n * positions, 1))
    if _is_plain(x, groups):
        # a transposed convolution unfolds its gradient where a forward one unfolds its image
        rows, image = (x, grad) if transposed else (grad, x)
        return _unfolded_weight_gradient(rows, image, w, bits, geometry)
    grad_q, grad_scale = quantise(grad, channels_of(grad), bits)
    x_q, x_scale = quantise(x, channels_of(x), bits)
    integers = torch.ops.aten.convolution_backward(
        grad_q, x_q, w.double(), None, stride, padding, dilation, transposed, output_padding, groups,
        [False, True, False],
    )[1].contiguous()  # fmt: skip
    outer, inner = (x_scale, grad_scale) if transposed else (grad_scale, x_scale)
    scale = outer.view(groups, -1, 1) * inner.view(groups, 1, -1)
    flat = integers.view(scale.numel(), -1)
    return rescale_rows(flat, scale.reshape(-1)).view(w.shape)


def _unfolded_weight_gradient(
    rows: Tensor, image: Tensor, w: Tensor, bits: int, geometry: Any
) -> Tensor:
    row_factor, row_scale = slice_scales(rows, channels_of(rows), bits)
    factor, scale = slice_scales(image, channels_of(image), bits)
    integers = unfold.weight_gradient(
        rows, row_factor.expand(rows.shape[0], -1).contiguous(),
        image, factor.expand(image.shape[0], -1).contiguous(), _window(w, geometry),
    )  # fmt: skip
    each = (row_scale.view(-1, 1) * scale.view(1, -1)).reshape(-1)
    return rescale_rows(integers.view(each.numel(), -1), each).view(w.shape)
