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
from collections.abc import Callable
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
    return engine if engine.products * _seconds_of_bytes() < _seconds_of_float64() else float64


@cache
def _seconds_of_bytes() -> float:
    """One product of bytes of the size that both engines are timed at."""
    a, b = (torch.ones((512, 512), dtype=torch.int8) for _ in range(2))
    with onednn.products():
        return _shortest(lambda: torch.ops.aten._int_mm.default(a, b))


@cache
def _seconds_of_float64() -> float:
    a, b = (torch.ones((512, 512), dtype=torch.float64) for _ in range(2))
    return _shortest(lambda: torch.mm(a, b))


def _shortest(function: Callable[[], object]) -> float:
    shortest = math.inf
    for _ in range(4):
        start = time.perf_counter()
        function()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest
