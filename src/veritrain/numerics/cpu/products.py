"""Exact products of scaled integers, by whichever kernel of this machine is the faster one.

A kernel holds an operand as *planes* of a type that a matrix library multiplies exactly:

- `FLOAT64`: one plane, the integers themselves in binary64;
- `BYTES`: two or three planes of signed 8-bit digits to the base 256, multiplied into 32-bit
  integers (fast where the processor has AMX or VNNI instructions).

Sums of products stay within 2**53 (`integers.contraction_bits`), so both give the same integers:
which one runs never shows in a result. Which is faster is measured once per process.

Layout: a left operand is a matrix (M, planes * K), the highest digit first; a right operand is
(planes * K, N), the lowest first. So a range of planes on the left meets a range on the right in
digits whose weights add up to the same power of 256, and one product adds all of them.
"""

from __future__ import annotations

import math
import time
from functools import cache

import torch

from veritrain.numerics.cpu.byte_products import ByteProducts
from veritrain.numerics.cpu.float64_products import Float64Products
from veritrain.numerics.cpu.product_kernel import ProductKernel
from veritrain.numerics.platform import onednn

float64 = Float64Products()

SMALL = 1 << 22  # multiplications; below, the calls cost more than the arithmetic
_SHORT = 192  # inner lengths; below, putting digits together costs more than multiplying them saves


def choose(bits: int, inner: int, results: int) -> ProductKernel:
    """The kernel for integers of `bits` and `results` sums of `inner` products."""
    if inner < _SHORT or inner * results < SMALL or not onednn.has_products():
        return float64
    if not bytes_are_exact():
        return float64
    kernel = ByteProducts.of(bits)
    return kernel if _seconds(kernel) < _seconds(float64) else float64


@cache
def bytes_are_exact() -> bool:
    """Whether this process multiplies bytes exactly, tried with the largest ones.

    Without VNNI oneDNN adds pairs of products in 16 bits, which saturate: never take it on trust.
    """
    with onednn.products():
        return all(
            torch.equal(
                torch.ops.aten._int_mm.default(a, layout(b)).double(), a.double() @ b.double()
            )
            for m, k, n in ((64, 512, 64), (33, 100, 70), (512, 1024, 512))
            for x, y in ((127, 127), (-128, 127), (127, -128), (-128, -128))
            for a, b in [(_filled(m, k, x), _filled(k, n, y))]
            for layout in (torch.clone, _by_column)
        )


def _filled(rows: int, columns: int, value: int) -> torch.Tensor:
    return torch.full((rows, columns), value, dtype=torch.int8)


def _by_column(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t()


@cache
def _seconds(kernel: ProductKernel) -> float:
    """Of a product of typical size: the shortest of a few."""
    left = torch.zeros((512, kernel.planes * 1024), dtype=kernel.dtype)
    right = torch.zeros((kernel.planes * 1024, 512), dtype=kernel.dtype)
    shortest = math.inf
    with onednn.products():
        for _ in range(4):
            start = time.perf_counter()
            kernel.product(left, right)
            shortest = min(shortest, time.perf_counter() - start)
    return shortest
