"""Exact matrix products: scaled integers of a few rows or columns at a time, multiplied, scaled
back.

Work goes by blocks of the result, each in one thread from quantising to scaling back, so that what
lies between stays in the cache and never takes the memory of a whole operand (docs/numerics.md,
"Contraction").
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.cpu import products
from veritrain.numerics.cpu.integers import jit, quantise, rescale, rows_of, slice_scales
from veritrain.numerics.cpu.product_kernel import MAX_INNER, ProductKernel, Strides
from veritrain.numerics.platform.devices import on_cpu
from veritrain.numerics.platform.parallel import grain_of, run, run_products

_BLOCK = 512  # rows or columns of the result
_INNER = 4096  # of the contracted axis at a time, where an operand is not kept whole
_BATCH_VALUES = 1 << 19  # of small matrices multiplied by one call
_KEPT_BYTES = 100_000_000  # of an operand whose integers are kept for all blocks


@jit
def _rescale_kernel(total_mn, row_scale, column_scale, first_row, first_column, out):
    """A block of the result. Adding +0 makes every zero +0: a kernel may give -0."""
    for m in range(total_mn.shape[0]):
        scale = row_scale[first_row + m]
        source = total_mn[m]
        target = out[first_row + m, first_column : first_column + source.shape[0]]
        columns = column_scale[first_column : first_column + source.shape[0]]
        for n in range(source.shape[0]):
            target[n] = np.float32(source[n] * scale * columns[n] + 0.0)


@dataclass(frozen=True)
class _Operand:
    """A float32 matrix with its slices' factors; `by_row`: the contracted axis is the last one."""

    values: Tensor  # (free, K) if by_row, else (K, free); contiguous
    by_row: bool
    left: bool
    factor: Tensor  # float64 (free,)
    scale: Tensor  # float64 (free,)

    @classmethod
    def of(cls, x: Tensor, contracted: int, bits: int, *, left: bool) -> _Operand:
        """Of a matrix whose axis `contracted` is summed over."""
        if not x.is_contiguous() and x.t().is_contiguous():
            x, contracted = x.t(), 1 - contracted
        x = x.contiguous()
        by_row = contracted == 1
        shape = rows_of(x) if by_row else (1, x.shape[0], x.shape[1], 1)
        factor, scale = slice_scales(x, shape, bits)
        return cls(x, by_row, left, factor.view(-1), scale.view(-1))

    @property
    def free(self) -> int:
        return self.values.shape[0 if self.by_row else 1]

    def integers(self, kernel: ProductKernel, free: range, inner: range) -> Tensor:
        """The planes of a block, as the left or the right matrix of a product."""
        num_f, num_k, planes = len(free), len(inner), kernel.planes
        factors = self.factor.numpy()[free.start : free.stop]
        width = self.values.shape[1]
        if self.by_row:
            out = torch.empty((num_f, planes * num_k), dtype=kernel.dtype)
            source = free.start * width + inner.start
            strides = Strides(num_f, num_k, source, width, 0, planes * num_k, num_k)
            run(self._rows, num_f, kernel, factors, out, strides, grain=grain_of(num_k))
            return out if self.left else out.t()
        out = torch.empty((planes * num_k, num_f), dtype=kernel.dtype)
        source = inner.start * width + free.start
        strides = Strides(num_k, num_f, source, width, 0, num_f, num_k * num_f)
        run(self._columns, num_k, kernel, factors, out, strides, grain=grain_of(num_f))
        return out.t() if self.left else out

    def _rows(
        self,
        kernel: ProductKernel,
        factors: np.ndarray,
        out: Tensor,
        all_rows: Strides,
        start: int,
        stop: int,
    ) -> None:
        strides = all_rows.part(start, stop)
        kernel.by_row(self._flat, factors[start:stop], out, strides, left=self.left)

    def _columns(
        self,
        kernel: ProductKernel,
        factors: np.ndarray,
        out: Tensor,
        all_rows: Strides,
        start: int,
        stop: int,
    ) -> None:
        strides = all_rows.part(start, stop)
        kernel.by_column(self._flat, factors, out, strides, left=self.left)

    @property
    def _flat(self) -> np.ndarray:
        return self.values.detach().numpy().reshape(-1)


def _pieces(size: int, piece: int) -> Iterator[range]:
    """Pieces of `range(size)` of about equal size, at most `piece`."""
    count = -(-size // piece)
    for i in range(count):
        yield range(size * i // count, size * (i + 1) // count)


@on_cpu
def batched(a_pmk: Tensor, b_pkn: Tensor, bits: int) -> Tensor:
    """Exact products of P pairs of float32 matrices, none of them empty: float32 (P, M, N)."""
    num_p, num_m, num_k = a_pmk.shape
    num_n = b_pkn.shape[2]
    if num_m * num_k * num_n >= products.SMALL:
        found = [product(a, b, bits) for a, b in zip(a_pmk, b_pkn, strict=True)]
        return found[0][None] if num_p == 1 else torch.stack(found)
    out = torch.empty((num_p, num_m, num_n), dtype=torch.float32)
    together = max(1, _BATCH_VALUES // (num_m * num_k + num_k * num_n + num_m * num_n))

    def work(start: int, stop: int) -> None:
        for chunk in range(start, stop):
            batch = slice(chunk * together, (chunk + 1) * together)
            a, a_scale = _integers(a_pmk[batch], 2, bits)
            b, b_scale = _integers(b_pkn[batch], 1, bits)
            integers = torch.mm(a[0], b[0])[None] if len(a) == 1 else torch.bmm(a, b)
            rescale(integers, a_scale, b_scale, out[batch])

    run_products(work, -(-num_p // together))
    return out


def _integers(x_pmk: Tensor, axis: int, bits: int) -> tuple[Tensor, Tensor]:
    """Integers of small operands with a scale for every index of the axis that is not contracted.

    Args:
        x_pmk: float32 (P, M, K). axis: the contracted axis, 1 or 2.

    Returns:
        float64 integers in the same shape, and scales (P, M or K).
    """
    if not x_pmk.is_contiguous() and x_pmk.mT.is_contiguous():
        q, scale = _integers(x_pmk.mT, 3 - axis, bits)
        return q.mT, scale
    x_pmk = x_pmk.contiguous()
    num_p, num_m, num_k = x_pmk.shape
    if axis == 2:
        q, scale = quantise(x_pmk, (1, 1, num_p * num_m, num_k), bits)
        return q, scale.view(num_p, num_m)
    return quantise(x_pmk, (num_p, num_m, num_k, 1), bits)


def product(a: Tensor, b: Tensor, bits: int, kernel: ProductKernel | None = None) -> Tensor:
    """Exact product of float32 matrices (M, K) and (K, N), none of them 0: float32 (M, N).

    Args:
        bits: width of the integers; K products of two of them stay within 2**53.
        kernel: by default the faster one.
    """
    num_m, num_k = a.shape
    num_n = b.shape[1]
    kernel = kernel or products.choose(bits, num_k, num_m * num_n)
    left = _Operand.of(a, 1, bits, left=True)
    right = _Operand.of(b, 0, bits, left=False)
    out = torch.empty((num_m, num_n), dtype=torch.float32)
    kept, moving = (left, right) if num_m <= num_n else (right, left)
    whole = kept.free * num_k * kernel.planes * kernel.dtype.itemsize <= _KEPT_BYTES
    inner = list(_pieces(num_k, MAX_INNER if whole else _INNER))
    blocks = list(_pieces(moving.free, _BLOCK))
    ready = [kept.integers(kernel, range(kept.free), k) for k in inner] if whole else None

    def operands(block: range) -> Iterator[tuple[Tensor, Tensor]]:
        for i, k in enumerate(inner):
            stays = ready[i] if ready else kept.integers(kernel, range(kept.free), k)
            moves = moving.integers(kernel, block, k)
            yield (stays, moves) if moving is right else (moves, stays)

    def work(start: int, stop: int) -> None:
        for block in blocks[start:stop]:
            total = kernel.sum_of_products(operands(block)).numpy()
            row, column = (0, block.start) if moving is right else (block.start, 0)
            _rescale_kernel(
                total, left.scale.numpy(), right.scale.numpy(), row, column, out.numpy()
            )

    run_products(work, len(blocks))
    return out
