"""Contraction and sum written once more from the text of docs/numerics.md alone, without `reference`.

Two readers of one text: what this file computes must be what the vectors and the product say.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from product_operations import perform
from vector_files import decode, patterns, read

WIDTHS = {
    "exact": lambda n: min(22, (53 - (n - 1).bit_length()) // 2),
    "exact14": lambda n: min(14, (53 - (n - 1).bit_length()) // 2),
}


def nearest_integer(value: Fraction) -> int:
    upper = math.floor(value + Fraction(1, 2))
    return upper - 1 if value + Fraction(1, 2) == upper and upper % 2 else upper


def number(bits: int) -> Fraction:
    return Fraction(struct.unpack("<f", struct.pack("<I", bits))[0])


def nearest_bits(value: Fraction) -> int:
    """Search among the bit patterns, which ascend with the magnitudes; an even pattern ends in 0."""
    sign, size = (0x80000000 if value < 0 else 0), abs(value)
    if size >= 2**128 - 2**103:
        return sign | 0x7F800000
    low, high = 0, 0x7F7FFFFF
    while low < high:  # the largest number that is not above
        middle = (low + high + 1) // 2
        low, high = (middle, high) if number(middle) <= size else (low, middle - 1)
    if low < 0x7F7FFFFF:
        below, above = size - number(low), number(low + 1) - size
        low += above < below or (above == below and low % 2)
    return sign | low


def scaled(values: list[float], bits: int) -> tuple[list[int], Fraction] | None:
    if not all(math.isfinite(v) for v in values):
        return None
    exponent = max([-125, *(math.frexp(v)[1] for v in values if v)])
    scale = Fraction(2) ** (exponent - bits)
    return [nearest_integer(Fraction(v) / scale) for v in values], scale


def dot(row: list[float], column: list[float], numerics: str) -> int:
    if not row:
        return 0
    bits = WIDTHS[numerics](len(row))
    left, right = scaled(row, bits), scaled(column, bits)
    if left is None or right is None:
        return 0x7FC00000
    total = sum(a * b for a, b in zip(left[0], right[0], strict=True))
    return nearest_bits(total * left[1] * right[1])


def total(values: list[float]) -> int:
    if not values:
        return 0
    found = scaled(values, min(51, 53 - (len(values) - 1).bit_length()))
    return 0x7FC00000 if found is None else nearest_bits(sum(found[0]) * found[1])


def product(a: np.ndarray, b: np.ndarray, numerics: str = "exact") -> list[int]:
    return [dot(row, column, numerics) for row in a.tolist() for column in b.T.tolist()]


@pytest.mark.parametrize("chapter", ["contraction", "contraction14"])
def test_products_of_the_vectors(chapter: str) -> None:
    file = read(chapter)
    cases = [case for case in file["cases"] if case["operation"] == "mm"]
    read_out = [case for case in cases if "float32" in case["outputs"]["y"]]
    assert len(read_out) > 30
    for case in read_out:
        a, b = (decode(case["inputs"][name]) for name in "ab")
        words = case["outputs"]["y"]["float32"].split()
        assert product(a, b, file["numerics"]) == [int(word, 16) for word in words], case["name"]


def test_sums_of_the_vectors() -> None:
    cases = [case for case in read("sums")["cases"] if case["operation"] == "sum"]
    whole = [case for case in cases if case["arguments"]["axes"] is None]
    assert len(whole) > 15
    for case in whole:
        values = decode(case["inputs"]["x"]).tolist()
        assert f"{total(values):08x}" == case["outputs"]["y"]["float32"], case["name"]


finite = st.floats(width=32) | st.floats(-4, 4, width=32) | st.sampled_from([-0.0, 1e-45, 3.4e38])


@given(st.integers(0, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_products_of_the_code(inner: int, data: st.DataObject) -> None:
    rows = st.lists(st.lists(finite, min_size=inner, max_size=inner), min_size=2, max_size=2)
    a, b = (np.array(data.draw(rows), np.float32).reshape(2, inner) for _ in range(2))
    got = perform("mm", {"a": a, "b": b.T}, {})["y"]
    assert patterns(got).ravel().tolist() == product(a, b.T)


@given(st.lists(finite, max_size=20))
@settings(max_examples=60, deadline=None)
def test_sums_of_the_code(values: list[float]) -> None:
    x = np.array(values, np.float32)
    got = perform("sum", {"x": x}, {"axes": None})["y"]
    assert int(patterns(got).item()) == total(x.tolist())
