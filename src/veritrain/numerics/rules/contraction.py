"""Contractions: matrix products and convolutions through exact integer products.

Both operands are rounded to scaled integers so narrow that every dot product stays within 2**53
(`integers.contraction_bits`). Integer products and sums of that size are exact in binary64, so any
kernel, blocking, order and thread count gives the same integers; they are scaled back and rounded
once to float32 (docs/numerics.md, "Contraction").
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.cpu import convolution, matmul
from veritrain.numerics.cpu.exact_sums import total
from veritrain.numerics.cpu.gather import Sizes, Window
from veritrain.numerics.cpu.integers import FULL_GRADE, channels_of, contraction_bits
from veritrain.numerics.rules.table import Kind, aten, require_float32, rule

_grade: ContextVar[int] = ContextVar("grade", default=FULL_GRADE)


@contextmanager
def grade(bits: int) -> Generator[None]:
    """Give the operands of contractions at most `bits` bits: FULL_GRADE or NARROW_GRADE."""
    token = _grade.set(bits)
    try:
        yield
    finally:
        _grade.reset(token)


def _bits(inner: int) -> int:
    return contraction_bits(inner, _grade.get())


def product(a_pmk: Tensor, b_pkn: Tensor) -> Tensor:
    """Exact batched product, float32 (P, M, K) x (P, K, N) to (P, M, N)."""
    inner = a_pmk.shape[2]
    shape = (a_pmk.shape[0], a_pmk.shape[1], b_pkn.shape[2])
    if not inner or not math.prod(shape):
        return torch.zeros(shape, dtype=torch.float32)
    return matmul.batched(a_pmk, b_pkn, _bits(inner))


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


@rule(Kind.CONTRACTION, aten._grouped_mm.default)
def _grouped_mm(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """One product for each group; `offs` are the groups' ends on the axis that has no group index.

    (M, K) by (G, K, N) groups rows, (G, M, K) by (K, N) columns, (M, K) by (K, N) the inner axis.
    What lies behind the last group is left out: zeros.
    """
    if bias is not None or out_dtype not in (None, torch.float32):
        raise UnsupportedOperatorError("_grouped_mm with a bias or another type has no exact rule")
    if offs is None:
        return _bmm(a, b)
    ends: list[int] = offs.tolist()
    groups = list(enumerate(zip([0, *ends], ends, strict=False)))
    if a.ndim == b.ndim:
        return torch.stack([_mm(a[:, low:high], b[low:high]) for _, (low, high) in groups])
    if a.ndim == 2:
        return _filled([_mm(a[low:high], b[g]) for g, (low, high) in groups], 0, a.shape[0])
    return _filled([_mm(a[g], b[:, low:high]) for g, (low, high) in groups], 1, b.shape[1])


def _filled(parts: list[Tensor], dim: int, size: int) -> Tensor:
    """The parts along `dim`, and zeros up to `size`."""
    joined = torch.cat(parts, dim)
    missing = list(joined.shape)
    missing[dim] = size - missing[dim]
    return torch.cat([joined, joined.new_zeros(missing)], dim)


# Convolutions. Shapes: image x (N, C, *S), weight w (O, C/G, *k), result y (N, O, *T); for a
# transposed convolution w is (C, O/G, *k). A transposed convolution is the gradient of a forward
# one for its image, and the other way round.


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
    window = _window(w, stride, padding, dilation)
    sizes = zip(
        x.shape[2:], window.kernel, window.stride, window.padding, window.dilation, strict=True
    )
    if transposed:
        size = tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + 1 + extra
            for (n, k, s, p, d), extra in zip(
                sizes, _expanded(output_padding, w.ndim - 2), strict=True
            )
        )
        y = _input_gradient(x, w, window, groups, size)
    else:
        result = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        y = _forward(x, w, window, groups, result)
    return y if bias is None else y + bias.view(1, -1, *[1] * (y.ndim - 2))


@rule(Kind.CONTRACTION, aten._convolution.default)
def _traced_convolution(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    *kernel_settings: bool,
) -> Tensor:
    """The form that `torch.jit.trace` records; its settings choose among PyTorch's own kernels."""
    return _convolution(x, w, bias, stride, padding, dilation, transposed, output_padding, groups)


def _window(w: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Window:
    rank = w.ndim - 2
    return Window(
        kernel=tuple(w.shape[2:]),
        stride=_expanded(stride, rank),
        padding=_expanded(padding, rank),
        dilation=_expanded(dilation, rank),
    )


def _expanded(values: list[int], rank: int) -> Sizes:
    """One value may stand for every axis: padding="valid" arrives as [0]."""
    return tuple(values) if len(values) == rank else tuple(values) * rank


def _forward(x: Tensor, w: Tensor, window: Window, groups: int, result: Sizes) -> Tensor:
    shape = (x.shape[0], w.shape[0], *result)
    if not (x.numel() and w.numel() and math.prod(shape)):
        return torch.zeros(shape, dtype=torch.float32)
    bits = _bits(w[0].numel())
    return convolution.forward(x.contiguous(), w, window, groups, result, bits)


def _input_gradient(grad: Tensor, w: Tensor, window: Window, groups: int, size: Sizes) -> Tensor:
    shape = (grad.shape[0], w.shape[1] * groups, *size)
    if not (grad.numel() and w.numel() and math.prod(shape)):
        return torch.zeros(shape, dtype=torch.float32)
    bits = _bits(w[:, 0].numel() // groups)
    return convolution.input_gradient(grad.contiguous(), w, window, groups, size, bits)


def _weight_gradient(grad: Tensor, x: Tensor, w: Tensor, window: Window, groups: int) -> Tensor:
    if not (grad.numel() and x.numel() and w.numel()):
        return torch.zeros(w.shape, dtype=torch.float32)
    bits = _bits(grad.shape[0] * math.prod(grad.shape[2:]))
    return convolution.weight_gradient(grad.contiguous(), x.contiguous(), window, groups, bits)


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
    window = _window(w, stride, padding, dilation)
    grad_x = grad_w = None
    if output_mask[0]:
        back = _forward if transposed else _input_gradient
        grad_x = back(grad, w, window, groups, tuple(x.shape[2:]))
    if output_mask[1]:
        rows, image = (x, grad) if transposed else (grad, x)
        grad_w = _weight_gradient(rows, image, w, window, groups)
    grad_bias = None
    if output_mask[2]:
        grad_bias = total(grad.contiguous(), channels_of(grad)).view(-1)
    return grad_x, grad_w, grad_bias
