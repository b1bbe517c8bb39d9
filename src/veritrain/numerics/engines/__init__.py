"""Exact products of scaled integers, by whichever engine of this machine is the faster one.

An engine holds an operand as *planes* of a type that a matrix library multiplies exactly:

- `FLOAT64`: one plane, the integers themselves in binary64;
- `BYTES`: two or three planes of signed 8-bit digits to the base 256, multiplied into 32-bit integers
  (fast where the processor has AMX or VNNI instructions).

Sums of products stay within 2**53 (`integers.contraction_bits`), so both give the same integers: which
one runs never shows in a result. Which is faster is measured once per process.

Layout: a left operand is a matrix (M, planes * K), the highest digit first; a right operand is
(planes * K, N), the lowest first. So a range of planes on the left meets a range on the right in digits
whose weights add up to the same power of 256, and one product adds all of them.
"""

from __future__ import annotations

import math
import time
from functools import cache

import torch

from veritrain.numerics import onednn
from veritrain.numerics.engines.bytes import BytesEngine
from veritrain.numerics.engines.engine import MAX_INNER, Engine, Strides
from veritrain.numerics.engines.float64 import Float64Engine

__all__ = [
    "MAX_INNER", "SMALL", "BytesEngine", "Engine", "Float64Engine", "Strides", "choose", "float64",
]  # fmt: skip

float64 = Float64Engine()

SMALL = 1 << 22  # multiplications; below, the calls cost more than the arithmetic
_SHORT = 192  # inner lengths; below, putting digits together costs more than multiplying them saves


def choose(bits: int, inner: int, results: int) -> Engine:
    """The engine for integers of `bits` and `results` sums of `inner` products."""
    if inner < _SHORT or inner * results < SMALL or not onednn.has_products():
        return float64
    engine = BytesEngine.of(bits)
    return engine if _seconds(engine) < _seconds(float64) else float64


@cache
def _seconds(engine: Engine) -> float:
    """Of a product of typical size: the shortest of a few."""
    left = torch.zeros((512, engine.planes * 1024), dtype=engine.dtype)
    right = torch.zeros((engine.planes * 1024, 512), dtype=engine.dtype)
    shortest = math.inf
    with onednn.products():
        for _ in range(4):
            start = time.perf_counter()
            engine.product(left, right)
            shortest = min(shortest, time.perf_counter() - start)
    return shortest
