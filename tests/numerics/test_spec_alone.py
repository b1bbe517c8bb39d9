"""Contraction, sum and random numbers written once more from the text of docs/numerics.md and
docs/numerics_random.md alone, without `reference`.

Two readers of one text: what this file computes must be what the vectors and the product say.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import blake3
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from product_operations import perform

from spec.vector_files import decode, patterns, read
from veritrain.numerics import resolve

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
    """Search among the bit patterns, which ascend with the magnitudes; an even pattern ends in
    0."""
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


# Random numbers.


def cbor(major: int, size: int) -> bytes:
    """The head of a value, in its shortest form."""
    if size < 24:
        return bytes([major << 5 | size])
    extra = next(i for i in range(4) if size < 1 << (8 << i))
    return bytes([major << 5 | (24 + extra)]) + size.to_bytes(1 << extra, "big")


def key_of(seed: int, purpose: str, step: int, call: int) -> int:
    text = purpose.encode()
    data = cbor(4, 4) + cbor(2, 32) + seed.to_bytes(32, "big") + cbor(3, len(text)) + text
    data += cbor(0, step) + cbor(0, call)
    digest = blake3.blake3(data, derive_key_context="veritrain v1 random key").digest()
    return int.from_bytes(digest[:8], "little")


def block_of(key: int, number: int) -> list[int]:
    a, b, c, d = (number >> 32 * i & 0xFFFFFFFF for i in range(4))
    k, m = key & 0xFFFFFFFF, key >> 32
    for turn in range(10):
        if turn:
            k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = q >> 32 ^ b ^ k, q % 2**32, p >> 32 ^ d ^ m, p % 2**32
    return [a, b, c, d]


def words_of(key: int, count: int) -> list[int]:
    return [word for number in range(-(-count // 4)) for word in block_of(key, number)][:count]


def uniforms(key: int, count: int) -> list[Fraction]:
    return [Fraction(word // 2**8, 2**24) for word in words_of(key, count)]


def doubles(key: int, count: int) -> list[int]:
    words = words_of(key, 2 * count)
    return [words[2 * i] + 2**32 * words[2 * i + 1] for i in range(count)]


def rounded(value: Fraction) -> Fraction:
    return number(nearest_bits(value))


def stretched(key: int, low: float, high: float, count: int) -> list[Fraction]:
    width = rounded(Fraction(high - low))
    return [rounded(rounded(u * width) + rounded(Fraction(low))) for u in uniforms(key, count)]


def permuted(key: int, count: int) -> list[int]:
    words = doubles(key, count)
    return sorted(range(count), key=lambda i: words[i] % 2**63)


def dropped(key: int, values: list[float], p: float) -> list[Fraction]:
    kept = [
        word // 2**8 < math.ceil(Fraction(1 - p) * 2**24) for word in words_of(key, len(values))
    ]
    noise = [rounded(Fraction(k) / rounded(Fraction(1 - p))) for k in kept]
    return [rounded(Fraction(v) * n) for v, n in zip(values, noise, strict=True)]


VALUES = [1.0, -0.75, 3.5, 2.0**-20, 7.0, 11.0, -13.0, 0.3125]

# what torch draws, and what the text says of the call's key
DRAWS = {
    "rand": (lambda: torch.rand(9), lambda key: uniforms(key, 9)),
    "uniform_": (
        lambda: torch.empty(9).uniform_(-0.3, 1.7), lambda key: stretched(key, -0.3, 1.7, 9)
    ),
    "bernoulli": (
        lambda: torch.bernoulli(torch.full((9,), 0.3)),
        lambda key: [u < rounded(Fraction(0.3)) for u in uniforms(key, 9)],
    ),
    "randint": (
        lambda: torch.randint(-3, 9, (9,)), lambda key: [w % 12 - 3 for w in doubles(key, 9)]
    ),
    "random_": (
        lambda: torch.empty(9, dtype=torch.int16).random_(),
        lambda key: [w % (2**15 - 1) for w in doubles(key, 9)],
    ),
    "random_ to": (
        lambda: torch.empty(9, dtype=torch.int64).random_(50),
        lambda key: [w % 50 for w in doubles(key, 9)],
    ),
    "random_ from": (
        lambda: torch.empty(9, dtype=torch.int64).random_(-5, None),
        lambda key: [w % (2**63 + 4) - 5 for w in doubles(key, 9)],
    ),
    "randperm": (
        lambda: torch.randperm(30),
        lambda key: permuted(key, 30),
    ),
    "dropout": (
        lambda: torch.dropout(torch.tensor(VALUES), 0.3, True),
        lambda key: dropped(key, VALUES, 0.3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_of_the_code(name: str) -> None:
    draw, text = DRAWS[name]
    seed, purpose, step = 2**200 + 77, "step", 300
    with resolve("exact").active(seed=seed, purpose=purpose, step=step):
        got = [draw().tolist() for _ in range(2)]
    for call, values in enumerate(got, start=2):
        assert [Fraction(value) for value in values] == text(key_of(seed, purpose, step, call))


def words_of_twister(seed: int, count: int) -> list[int]:
    """MT19937, from Matsumoto's and Nishimura's papers."""
    state = [seed % 2**32]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) % 2**32)
    for i in range(count):
        joined = (state[i] & 0x80000000) | (state[i + 1] & 0x7FFFFFFF)
        state.append(state[i + 397] ^ joined >> 1 ^ (0x9908B0DF if joined & 1 else 0))
    drawn = []
    for y in state[624:]:
        y ^= y >> 11
        y ^= y << 7 & 0x9D2C5680
        y ^= y << 15 & 0xEFC60000
        drawn.append(y ^ y >> 18)
    return drawn


def key_of_generator(seed: int, operator: int, call: int = 0) -> int:
    a, b = words_of_twister(seed, 2 * operator + 2)[-2:]
    return key_of(2**32 * a + b, "generator", 0, call)


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 7, 2**64 - 1, 67280421310721])
@pytest.mark.parametrize("name", [name for name in DRAWS if name != "dropout"])
def test_random_numbers_of_generators(name: str, seed: int) -> None:
    """Those that a job makes, and the default one that it seeds: the 320th operator too, after a
    round of words."""
    draw, text = DRAWS[name]
    with resolve("exact").active(seed=1, purpose="step", step=300):
        torch.manual_seed(seed)
        got = [draw().tolist() for _ in range(2)]
        generator = (
            torch.Generator() if seed == 67280421310721 else torch.Generator().manual_seed(seed)
        )
        for _ in range(319):
            torch.rand(0, generator=generator)
        torch.set_rng_state(generator.get_state())
        got.append(draw().tolist())
    for operator, values in zip((0, 1, 319), got, strict=True):
        assert [Fraction(value) for value in values] == text(key_of_generator(seed, operator))


def chosen(key: int, weights: list[float], count: int) -> list[int]:
    exponent = max(math.frexp(w)[1] for w in weights)
    bits = min(51, 53 - (len(weights) - 1).bit_length())
    whole = [nearest_integer(Fraction(w) * Fraction(2) ** (bits - exponent)) for w in weights]
    drawn = [word % 2**63 % sum(whole) for word in doubles(key, count)]
    return [next(i for i in range(len(whole)) if sum(whole[: i + 1]) > d) for d in drawn]


@pytest.mark.parametrize(
    "weights", [[1.0, 2.0] * 20, [0.1, 0.0, 1e-9, 7.3], [1e300, 5e-324, 3e299]]
)
def test_samples_by_binary64_weights(weights: list[float]) -> None:
    with resolve("exact").active(seed=1, purpose="step", step=0):
        found = torch.multinomial(torch.tensor(weights, dtype=torch.float64), 40, True).tolist()
    assert found == chosen(key_of(1, "step", 0, 2), weights, 40)


def test_calls_that_draw_nothing() -> None:
    x = torch.tensor(VALUES)
    with resolve("exact").active(seed=1, purpose="step", step=0):
        assert torch.equal(torch.dropout(x, 0.0, True), x)
        assert not torch.dropout(x, 1.0, True).any()
        torch.dropout(x[:0], 0.5, True)
        got = torch.rand(3).tolist()
    assert [Fraction(value) for value in got] == uniforms(key_of(1, "step", 0, 2), 3)


def test_block_0_of_key_0() -> None:
    assert [
        f"{word:08x}" for word in block_of(0, 0)
    ] == "6627e8d5 e169c58d bc57ac4c 9b00dbd8".split()


# Clipping, as a step does it.


def length(values: list[np.float32]) -> np.float32:
    squares = total([float(v * v) for v in values])
    return np.sqrt(np.float32(number(squares)))


def test_clipped_gradients() -> None:
    gradients = [np.array(VALUES, np.float32), np.array(VALUES[:3], np.float32)]
    weights = [torch.nn.Parameter(torch.zeros(len(g))) for g in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = torch.from_numpy(gradient.copy())
    with resolve("exact").active(seed=1, purpose="step", step=0):
        torch.nn.utils.clip_grad_norm_(weights, 0.7, foreach=False)
    whole = length([length(list(g)) for g in gradients])
    factor = np.float32(1) / (whole + np.float32(1e-6)) * np.float32(0.7)
    for weight, gradient in zip(weights, gradients, strict=True):
        assert weight.grad is not None
        assert weight.grad.tolist() == (gradient * min(factor, np.float32(1))).tolist()
