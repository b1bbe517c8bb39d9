"""Random numbers that are a function of (seed, purpose, step, call, index) and of nothing else.

Contract: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3,
SC 2011) under a key of 64 bits that is a digest of (seed, purpose, step, call). Block b of a key is
Philox of the 128-bit counter b; it holds words 4b to 4b+3. Element i of a fill depends on the key
and on i alone: not on the shape, the machine, or the number of threads.

Integer operations throughout; `normal` adds correctly rounded functions and IEEE products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numba  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
import torch
from numpy.typing import NDArray

from veritrain import encoding
from veritrain.errors import UsageError
from veritrain.numerics import elementary, parallel

Shape: TypeAlias = Sequence[int]

SEED_BYTES = 32
_UNIFORM_BITS = 24  # an fp32 number has 24 bits: every value k 2^-24 below 1 is one
_GRAIN = 4_096  # blocks per piece


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    return numba.njit(nogil=True, cache=True, error_model="numpy")(function)  # type: ignore[no-any-return]


class Stream:
    """The keys of one step, in the order in which they are asked for."""

    def __init__(self, seed: int, purpose: str, step: int) -> None:
        """Start at call 0.

        Raises:
            UsageError: a seed outside [0, 2^256) or a step outside [0, 2^63).
        """
        if not 0 <= seed < 1 << 8 * SEED_BYTES:
            raise UsageError(f"seed: expected 0 <= seed < 2**256, got {seed}")
        if not 0 <= step < 1 << 63:
            raise UsageError(f"step: expected 0 <= step < 2**63, got {step}")
        self._seed = seed.to_bytes(SEED_BYTES, "big")
        self._purpose = purpose
        self._step = step
        self._call = 0

    def next_key(self) -> int:
        """Return the key of the next call, an integer of 64 bits."""
        value: list[encoding.Value] = [self._seed, self._purpose, self._step, self._call]
        self._call += 1
        return int.from_bytes(encoding.digest_value("random key", value)[:8], "little")


def words(key: int, count: int) -> NDArray[np.uint32]:
    """The first `count` words of a key's stream."""
    if not 0 <= key < 1 << 64:
        raise UsageError(f"random key: expected 0 <= key < 2**64, got {key}")
    blocks = -(-count // 4)
    out = np.empty(4 * blocks, dtype=np.uint32)
    low, high = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    parallel.run(_philox_blocks, blocks, low, high, out, grain=_GRAIN)
    return out[:count]


def uniform24(key: int, shape: Shape) -> torch.Tensor:
    """Uniform on the multiples of 2^-24 in [0, 1), fp32: the top 24 bits of word i."""
    return _scaled(_top_bits(key, shape), 0).reshape(tuple(shape))


def bernoulli(key: int, p: float, shape: Shape, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """True (or 1) where `uniform24(key, shape)` < p, compared as real numbers.

    Raises:
        UsageError: p outside [0, 1].
    """
    if not 0.0 <= p <= 1.0:
        raise UsageError(f"probability: expected 0 <= p <= 1, got {p}")
    # k 2^-24 < p exactly where the integer k < ceil(p 2^24); the product only moves the exponent
    bound = math.ceil(p * 2.0**_UNIFORM_BITS)
    hits = torch.from_numpy(_top_bits(key, shape) < bound)
    return hits.reshape(tuple(shape)).to(dtype)


def normal(key: int, shape: Shape) -> torch.Tensor:
    """Standard normal, fp32, by Box and Muller; magnitudes reach sqrt(48 ln 2) = 5.77.

    Words 2j and 2j+1 make elements 2j and 2j+1: with u = (top bits of word 2j, plus 1) 2^-24 and
    v = (top bits of word 2j+1) 2^-24, they are r cos(2 pi v) and r sin(2 pi v), where r is
    sqrt(-2 log u). Each function and each product is rounded to fp32 once.
    """
    count = math.prod(shape)
    pairs = -(-count // 2)
    bits = _top_bits(key, (2 * pairs,)).reshape(pairs, 2)
    radius = elementary.apply("sqrt", elementary.apply("log", _scaled(bits[:, 0], 1)) * -2.0)
    angle = _scaled(bits[:, 1], 0)
    out = torch.empty(pairs, 2)
    torch.mul(radius, elementary.apply("cos_two_pi", angle), out=out[:, 0])
    torch.mul(radius, elementary.apply("sin_two_pi", angle), out=out[:, 1])
    return out.view(-1)[:count].clone().reshape(tuple(shape))


def integers(key: int, low: int, high: int, shape: Shape) -> torch.Tensor:
    """Integers in [low, high), int64: low + (64-bit word i modulo (high - low)).

    A value's probability is off by less than 2^-64, so that the whole distribution is off by less
    than (high - low) 2^-64.

    Raises:
        UsageError: an empty range, or one that does not fit into int64.
    """
    if not -(1 << 63) <= low < high <= 1 << 63:
        raise UsageError(f"integers: expected -2**63 <= low < high <= 2**63, got {low}, {high}")
    drawn = _words64(key, math.prod(shape))
    if high - low < 1 << 64:
        drawn = drawn % np.uint64(high - low)
    values = drawn + np.uint64(low % (1 << 64))  # modulo 2^64: two's complement
    return torch.from_numpy(values.view(np.int64)).reshape(tuple(shape))


def permutation(seed: int, purpose: str, step: int, n: int) -> NDArray[np.int64]:
    """A permutation of range(n): the stable order of the 64-bit words of the stream's first key."""
    drawn = _words64(Stream(seed, purpose, step).next_key(), n)
    return np.argsort(drawn, kind="stable").astype(np.int64, copy=False)


def _top_bits(key: int, shape: Shape) -> NDArray[np.uint32]:
    return words(key, math.prod(shape)) >> np.uint32(32 - _UNIFORM_BITS)


def _scaled(bits: NDArray[np.uint32], offset: int) -> torch.Tensor:
    """(bits + offset) 2^-24; at most 2^24 before the product, so that both steps are exact."""
    return torch.from_numpy((bits + np.uint32(offset)).astype(np.float32) * np.float32(2.0**-24))


def _words64(key: int, count: int) -> NDArray[np.uint64]:
    """64-bit word i is word 2i plus 2^32 times word 2i + 1."""
    return words(key, 2 * count).astype("<u4", copy=False).view("<u8").astype(np.uint64, copy=False)


@_jit
def _philox_blocks(
    key_low: int, key_high: int, out: NDArray[np.uint32], start: int, stop: int
) -> None:
    """Write Philox4x32-10 of the counters start to stop - 1, four words each."""
    mask = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    for block in range(start, stop):
        a, b = np.uint64(block) & mask, np.uint64(block) >> half
        c = d = np.uint64(0)  # no array has 2^64 blocks
        k, m = np.uint64(key_low), np.uint64(key_high)
        for _ in range(10):
            p = a * np.uint64(0xD2511F53)
            q = c * np.uint64(0xCD9E8D57)
            a, b, c, d = (q >> half) ^ b ^ k, q & mask, (p >> half) ^ d ^ m, p & mask
            k = (k + np.uint64(0x9E3779B9)) & mask
            m = (m + np.uint64(0xBB67AE85)) & mask
        out[4 * block] = a
        out[4 * block + 1] = b
        out[4 * block + 2] = c
        out[4 * block + 3] = d
