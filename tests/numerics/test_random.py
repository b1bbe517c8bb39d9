"""Random numbers equal a plain implementation bit for bit, and look random."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veritrain import encoding
from veritrain.errors import UsageError
from veritrain.numerics.cpu import multiprecision, philox
from veritrain.numerics.keys.stream import KeyStream

VECTORS = Path(__file__).parents[2] / "vectors/numerics/random/cases.json"
KEYS = st.integers(0, 2**64 - 1)
SHAPES = st.lists(st.integers(0, 6), max_size=3)
quick = settings(max_examples=30, deadline=None)  # the first example may have to compile


# A plain implementation


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as in section 4 of the paper."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * a, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c, 2**32)
        a, b, c, d = high1 ^ b ^ k, low1, high0 ^ d ^ m, low0
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def words(key: int):
    block = 0
    while True:
        counter = [block >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)]
        yield from plain_philox(counter, [key & 0xFFFFFFFF, key >> 32])
        block += 1


def first(key: int, count: int) -> list[int]:
    return list(islice(words(key), count))


def fp32(x: float) -> float:
    return float(np.float32(x))


def rounded(name: str, x: float) -> float:
    return multiprecision.float_of(multiprecision.rounded_bits(name, x))


def normal_pair(word0: int, word1: int) -> tuple[float, float]:
    """A product of two fp32 numbers is exact in double: `fp32` rounds it once."""
    u, v = ((word0 >> 8) + 1) * 2.0**-24, (word1 >> 8) * 2.0**-24
    radius = rounded("sqrt", -2.0 * rounded("log", u))
    return fp32(radius * rounded("cos_two_pi", v)), fp32(radius * rounded("sin_two_pi", v))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers_of_random123(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    assert plain_philox(counter, key) == expected


# Bits


@quick
@given(key=KEYS, count=st.integers(0, 50))
def test_words(key: int, count: int) -> None:
    got = philox.words(key, count)
    assert got.dtype == np.uint32
    assert got.tolist() == first(key, count)


@quick
@given(key=KEYS, block=st.integers(0, 2**64 - 1))
def test_far_blocks(key: int, block: int) -> None:
    got = philox._philox(np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32), np.uint64(block))
    counter = [block & 0xFFFFFFFF, block >> 32, 0, 0]
    assert [int(word) for word in got] == plain_philox(counter, [key & 0xFFFFFFFF, key >> 32])


@quick
@given(key=KEYS, shape=SHAPES)
def test_uniform24(key: int, shape: list[int]) -> None:
    got = philox.uniform24(key, shape)
    assert got.dtype == torch.float32
    assert got.shape == tuple(shape)
    assert got.untyped_storage().nbytes() == 4 * got.numel()
    assert got.reshape(-1).tolist() == [(w >> 8) / 2**24 for w in first(key, got.numel())]


@quick
@given(key=KEYS, shape=SHAPES, p=st.floats(0, 1))
def test_bernoulli(key: int, shape: list[int], p: float) -> None:
    got = philox.bernoulli(key, p, shape)
    assert got.dtype == torch.bool
    assert got.shape == tuple(shape)
    uniform = philox.uniform24(key, shape).reshape(-1).tolist()
    assert got.reshape(-1).tolist() == [u < p for u in uniform]
    assert torch.equal(philox.bernoulli(key, p, shape, torch.float32), got.float())


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_bernoulli_next_to_a_drawn_value(offset: int) -> None:
    """p moves by the least double step around a value that is drawn: comparisons are exact."""
    drawn = philox.uniform24(5, (1,)).item()
    p = drawn if offset == 0 else math.nextafter(drawn, offset * math.inf)
    assert philox.bernoulli(5, p, (1,)).item() == (drawn < p)


@quick
@given(key=KEYS, shape=SHAPES)
def test_normal(key: int, shape: list[int]) -> None:
    got = philox.normal(key, shape)
    assert got.dtype == torch.float32
    assert got.shape == tuple(shape)
    drawn = first(key, got.numel() + 1)
    expected = [z for j in range(0, got.numel(), 2) for z in normal_pair(*drawn[j : j + 2])]
    bits = got.reshape(-1).numpy().view(np.uint32)
    assert bits.tolist() == [multiprecision.bits_of(z) for z in expected[: got.numel()]]


@quick
@given(key=KEYS, shape=SHAPES)
def test_exponential(key: int, shape: list[int]) -> None:
    got = philox.exponential(key, shape)
    assert got.dtype == torch.float32
    assert got.shape == tuple(shape)
    drawn = [max(word >> 8, 1) / 2**24 for word in first(key, got.numel())]
    assert got.reshape(-1).tolist() == [-rounded("log", u) for u in drawn]


def test_no_waiting_time_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([0.0, 2.0**-24, 1 - 2.0**-24])
    monkeypatch.setattr(philox, "uniform24", lambda key, shape: ends)
    assert philox.exponential(0, (3,)).tolist() == [
        -rounded("log", u) for u in (2**-24, 2**-24, 1 - 2**-24)
    ]
    assert (philox.exponential(0, (3,)) > 0).all()


@quick
@given(key=KEYS, shape=SHAPES, ends=st.tuples(*[st.integers(-(2**63), 2**63)] * 2))
def test_integers(key: int, shape: list[int], ends: tuple[int, int]) -> None:
    low, high = min(ends), max(ends)
    if low == high:
        return
    got = philox.integers(key, low, high, shape)
    assert got.dtype == torch.int64
    assert got.shape == tuple(shape)
    drawn = first(key, 2 * got.numel())
    pairs = zip(drawn[::2], drawn[1::2], strict=True)
    assert got.reshape(-1).tolist() == [low + (a + (b << 32)) % (high - low) for a, b in pairs]


def test_integers_over_the_whole_range() -> None:
    word = first(9, 2)
    expected = word[0] + (word[1] << 32) - 2**63
    assert philox.integers(9, -(2**63), 2**63, (1,)).tolist() == [expected]


@quick
@given(n=st.integers(0, 100), seed=st.integers(0, 2**256 - 1), step=st.integers(0, 2**63 - 1))
def test_permutation(n: int, seed: int, step: int) -> None:
    got = philox.permutation(seed, "order", step, n)
    drawn = first(KeyStream(seed, "order", step).next_key(), 2 * n)
    values = [a + (b << 32) for a, b in zip(drawn[::2], drawn[1::2], strict=True)]
    assert got.dtype == np.int64
    assert got.tolist() == sorted(range(n), key=values.__getitem__)


@quick
@given(seed=st.integers(0, 2**256 - 1), purpose=st.text(max_size=20), step=st.integers(0, 2**40))
def test_keys(seed: int, purpose: str, step: int) -> None:
    stream = KeyStream(seed, purpose, step)
    for call in range(3):
        value = [seed.to_bytes(32, "big"), purpose, step, call]
        digest = encoding.digest_value("random key", value)
        assert stream.next_key() == int.from_bytes(digest[:8], "little")


def test_every_part_of_the_name_changes_the_key() -> None:
    names = [(0, "a", 0), (1, "a", 0), (2**255, "a", 0), (0, "b", 0), (0, "a", 1)]
    streams = [KeyStream(*name) for name in names]
    assert len({stream.next_key() for stream in streams for _ in range(3)}) == 15


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_prefixes_and_threads_do_not_matter(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        long = philox.normal(3, (100_001,))
        assert torch.equal(philox.normal(3, (33_333, 3))[:10].reshape(-1), long[:30])
        uniform = philox.uniform24(3, (100_001,))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(uniform, philox.uniform24(3, (100_003,))[:-2])
    picked = [0, 49_999, 65_536, 100_000]
    drawn = first(3, 100_001)
    assert uniform[picked].tolist() == [(drawn[i] >> 8) / 2**24 for i in picked]


def test_vectors() -> None:
    for case in json.loads(VECTORS.read_text()):
        seed, purpose, step = int(case["seed"], 16), case["purpose"], case["step"]
        stream = KeyStream(seed, purpose, step)
        assert [f"{stream.next_key():016x}" for _ in case["keys"]] == case["keys"]
        key, shape = int(case["keys"][0], 16), (len(case["words"]),)
        assert [f"{w:08x}" for w in philox.words(key, *shape).tolist()] == case["words"]
        for name in ("uniform24", "normal", "exponential"):
            bits = getattr(philox, name)(key, shape).numpy().view(np.uint32).tolist()
            assert [f"{b:08x}" for b in bits] == case[name]
        assert philox.bernoulli(key, case["p"], shape).int().tolist() == case["bernoulli"]
        low, high = case["range"]
        assert philox.integers(key, low, high, shape).tolist() == case["integers"]
        order = philox.permutation(seed, purpose, step, len(case["permutation"]))
        assert order.tolist() == case["permutation"]


# Refusals


@pytest.mark.parametrize(
    ("seed", "step", "message"),
    [(-1, 0, "seed"), (2**256, 0, "seed"), (0, -1, "step"), (0, 2**63, "step")],
)
def test_names_out_of_range(seed: int, step: int, message: str) -> None:
    with pytest.raises(UsageError, match=f"{message}: expected .* got"):
        KeyStream(seed, "step", step)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, math.inf])
def test_probabilities_out_of_range(p: float) -> None:
    with pytest.raises(UsageError, match="probability: expected 0 <= p <= 1, got"):
        philox.bernoulli(0, p, (1,))


@pytest.mark.parametrize(("low", "high"), [(0, 0), (1, 0), (0, 2**63 + 1), (-(2**63) - 1, 0)])
def test_empty_or_wide_ranges(low: int, high: int) -> None:
    with pytest.raises(UsageError, match="integers: expected"):
        philox.integers(0, low, high, (1,))


@pytest.mark.parametrize("key", [-1, 2**64])
def test_keys_out_of_range(key: int) -> None:
    with pytest.raises(UsageError, match="random key: expected"):
        philox.uniform24(key, (1,))


# Statistics: fixed keys, limits at five standard deviations or a probability of 1e-6


COUNT = 2_000_000


def test_uniform_cells() -> None:
    u = philox.uniform24(KeyStream(1, "test", 0).next_key(), (COUNT,)).numpy()
    cells = np.bincount((u * 256).astype(int), minlength=256)
    chi = float(((cells - COUNT / 256) ** 2 / (COUNT / 256)).sum())
    assert abs(chi - 255) < 5 * math.sqrt(2 * 255)
    pairs = np.corrcoef(u[:-1], u[1:])[0, 1]
    assert abs(pairs) < 5 / math.sqrt(COUNT)


def test_every_bit_of_a_word_is_fair() -> None:
    drawn = philox.words(KeyStream(1, "test", 1).next_key(), COUNT)
    for bit in range(32):
        ones = int((drawn >> np.uint32(bit) & np.uint32(1)).sum())
        assert abs(ones - COUNT / 2) < 5 * math.sqrt(COUNT) / 2


def test_normal_moments_and_distribution() -> None:
    z = philox.normal(KeyStream(1, "test", 2).next_key(), (COUNT,)).double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        got = float((z**power).mean())
        assert abs(got - moment) < 5 * math.sqrt(variance / COUNT), f"moment {power}: {got}"
    cdf = torch.special.ndtr(z.sort().values)
    grid = (torch.arange(COUNT, dtype=torch.float64) + 0.5) / COUNT
    assert float((cdf - grid).abs().max()) < 2.8 / math.sqrt(COUNT)  # Kolmogorov, p about 3e-7
    assert abs(float((z[0::2] * z[1::2]).mean())) < 5 / math.sqrt(COUNT / 2)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_bernoulli_frequency(p: float) -> None:
    hits = int(philox.bernoulli(KeyStream(1, "test", 3).next_key(), p, (COUNT,)).sum())
    assert abs(hits - p * COUNT) <= 5 * math.sqrt(p * (1 - p) * COUNT)


def test_integers_and_permutations_are_even() -> None:
    drawn = philox.integers(KeyStream(1, "test", 4).next_key(), -3, 4, (COUNT,))
    cells = torch.bincount(drawn + 3, minlength=7).double()
    assert float(((cells - COUNT / 7) ** 2 / (COUNT / 7)).sum()) < 6 + 8 * math.sqrt(12)
    firsts = [int(philox.permutation(1, "test", step, 5)[0]) for step in range(2_000)]
    assert float(((np.bincount(firsts, minlength=5) - 400.0) ** 2 / 400).sum()) < 4 + 8 * math.sqrt(
        8
    )
