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
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from veritrain.errors import UsageError
from veritrain.numerics.cpu import elementary
from veritrain.numerics.keys.stream import KeyStream
from veritrain.numerics.platform import parallel
from veritrain.numerics.platform.devices import on_cpu
from veritrain.runtime.kernels import kernel

Shape: TypeAlias = Sequence[int]
Word = TypeVar("Word", np.uint32, np.float32)

_UNIFORM_BITS = 24  # an fp32 number has 24 bits: every value k 2^-24 below 1 is one
_GRAIN = 4_096  # blocks per piece


_jit = kernel(forceinline=True)


def words(key: int, count: int) -> NDArray[np.uint32]:
    """The first `count` words of a key's stream."""
    if not 0 <= key < 1 << 64:
        raise UsageError(f"random key: expected 0 <= key < 2**64, got {key}")
    return _fill(_fill_words, key, count, np.uint32)


def uniform24(key: int, shape: Shape) -> torch.Tensor:
    """Uniform on the multiples of 2^-24 in [0, 1), fp32: the top 24 bits of word i."""
    return uniform24_on(key, shape, torch.get_default_device())


@on_cpu
def uniform24_on(key: int, shape: Shape, device: torch.device) -> torch.Tensor:
    """`uniform24` on that device."""
    flat = torch.from_numpy(_fill(_fill_uniform, key, math.prod(shape), np.float32))
    return flat.reshape(tuple(shape))


def bernoulli(key: int, p: float, shape: Shape, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """True (or 1) where `uniform24(key, shape)` < p, compared as real numbers.

    Raises:
        UsageError: p outside [0, 1].
    """
    if not 0.0 <= p <= 1.0:
        raise UsageError(f"probability: expected 0 <= p <= 1, got {p}")
    # for an integer k: k 2^-24 < p just where k < ceil(p 2^24); fp32 holds both sides exactly
    bound = math.ceil(p * 2.0**_UNIFORM_BITS) * 2.0**-_UNIFORM_BITS
    return uniform24(key, shape).lt(bound).to(dtype)


def normal(key: int, shape: Shape) -> torch.Tensor:
    """Standard normal, fp32, by Box and Muller; magnitudes reach sqrt(48 ln 2) = 5.77.

    Words 2j and 2j+1 make elements 2j and 2j+1: with u = (top bits of word 2j, plus 1) 2^-24 and
    v = (top bits of word 2j+1) 2^-24, they are r cos(2 pi v) and r sin(2 pi v), where r is
    sqrt(-2 log u). Each function and each product is rounded to fp32 once.
    """
    count = math.prod(shape)
    pairs = uniform24(key, (-(-count // 2), 2))
    radius = elementary.apply("log", pairs[:, 0] + 2.0**-24).mul_(-2.0)
    radius = elementary.apply("sqrt", radius)
    angle = pairs[:, 1].contiguous()
    out = torch.empty(pairs.shape, dtype=torch.float32)
    torch.mul(radius, elementary.apply("cos_two_pi", angle), out=out[:, 0])
    torch.mul(radius, elementary.apply("sin_two_pi", angle), out=out[:, 1])
    return out.view(-1)[:count].clone().reshape(tuple(shape))


def exponential(key: int, shape: Shape) -> torch.Tensor:
    """Exponential with mean 1, fp32, above 0: -log(u), correctly rounded, u the larger of
    `uniform24` and 2^-24."""
    return elementary.apply("log", uniform24(key, shape).clamp_min(2.0**-_UNIFORM_BITS)).neg_()


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
    drawn64 = torch.from_numpy(values.view(np.int64)).reshape(tuple(shape))
    return drawn64.to(torch.get_default_device())


def permutation(seed: int, purpose: str, step: int, n: int) -> NDArray[np.int64]:
    """A permutation of range(n): the stable order of the 64-bit words of the stream's first key."""
    drawn = _words64(KeyStream(seed, purpose, step).next_key(), n)
    return np.argsort(drawn, kind="stable").astype(np.int64, copy=False)


def _fill(kernel: Callable[..., None], key: int, count: int, dtype: type[Word]) -> NDArray[Word]:
    """Entries 0 to count - 1 of what `kernel` writes in whole blocks."""
    if not 0 <= key < 1 << 64:
        raise UsageError(f"random key: expected 0 <= key < 2**64, got {key}")
    blocks = -(-count // 4)
    out = np.empty(4 * blocks, dtype=dtype)
    low, high = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    parallel.run(kernel, blocks, out, low, high, grain=_GRAIN)
    return out if out.size == count else out[:count].copy()  # no storage beyond the entries


def _words64(key: int, count: int) -> NDArray[np.uint64]:
    """64-bit word i is word 2i plus 2^32 times word 2i + 1."""
    return words(key, 2 * count).astype("<u4", copy=False).view("<u8").astype(np.uint64, copy=False)


@_jit
def _philox(key_low: int, key_high: int, block: int) -> Any:
    """Philox4x32-10 of a counter below 2^64; words of 32 bits in registers of 64."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b = np.uint64(block) & mask, np.uint64(block) >> half
    c = d = np.uint64(0)  # no array has 2^64 blocks
    k, m = np.uint64(key_low), np.uint64(key_high)
    for _ in range(10):
        p = a * np.uint64(0xD2511F53)
        q = c * np.uint64(0xCD9E8D57)
        a, b, c, d = (q >> half) ^ b ^ k, q & mask, (p >> half) ^ d ^ m, p & mask
        k = (k + np.uint64(0x9E3779B9)) & mask
        m = (m + np.uint64(0xBB67AE85)) & mask
    return a, b, c, d


# The fills write whole blocks. Slices first: LLVM does not vectorise an index that may be negative.


@_jit
def _fill_words(
    out: NDArray[np.uint32], key_low: int, key_high: int, start: int, stop: int
) -> None:
    out = out[4 * start : 4 * stop]
    for block in range(stop - start):
        a, b, c, d = _philox(key_low, key_high, start + block)
        out[4 * block] = a
        out[4 * block + 1] = b
        out[4 * block + 2] = c
        out[4 * block + 3] = d


@_jit
def _unit(word: int) -> Any:
    """The top 24 bits as a fraction; both the conversion and the product are exact."""
    return np.float32(np.int32(word >> np.uint64(32 - _UNIFORM_BITS))) * np.float32(2.0**-24)


@_jit
def _fill_uniform(
    out: NDArray[np.float32], key_low: int, key_high: int, start: int, stop: int
) -> None:
    out = out[4 * start : 4 * stop]
    for block in range(stop - start):
        a, b, c, d = _philox(key_low, key_high, start + block)
        out[4 * block] = _unit(a)
        out[4 * block + 1] = _unit(b)
        out[4 * block + 2] = _unit(c)
        out[4 * block + 3] = _unit(d)
