"""Chaining values of BLAKE3's tree: what the blake3 library computes and does not show.

Source: O'Connor, Aumasson, Neves, Wilcox-O'Hearn: BLAKE3, one function, fast everywhere, 2020,
section 2. A content is cut into chunks of 1,024 bytes, and only the last may be shorter. Each chunk
has a chaining value of 32 bytes (2.4), as has each pair of neighbouring subtrees (2.5); the value
at the root, made with the flag ROOT, is the digest (2.1). A left subtree has the largest power of
two of chunks that leaves at least one for the right (2.1). Pairing neighbours level by level, a
last one without a partner moving up as it is, gives that very tree.

This module loads numba; import it where it is used. Chaining values are rows of 8 words of 32 bits.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veritrain.encoding import CHUNK_BYTES, CONTEXT
from veritrain.runtime.kernels import kernel

Words: TypeAlias = NDArray[np.uint32]  # flat, or rows of 8: chaining values
Numbers: TypeAlias = NDArray[np.int64]  # of chunks or of nodes of one level, rising
Compressed: TypeAlias = tuple[Any, ...]  # 16 words: a state, or the words of a block

_BLOCK_BYTES = 64
_CHUNK_BLOCKS = CHUNK_BYTES // _BLOCK_BYTES
_VALUE_WORDS = 8
_BLOCK_WORDS = 16
_LANES = 16  # inputs at once: as many as the widest vector registers have words
_THREAD_BYTES = 1 << 20  # input of a thread at least: a third of a millisecond or more

# Table 3 of the paper.
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT = 1, 2, 4, 8
_DERIVE_KEY_CONTEXT, _DERIVE_KEY_MATERIAL = 32, 64
# Table 1.
_IV = (
    *(0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A),
    *(0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19),
)
_IV_0, _IV_1, _IV_2, _IV_3 = (np.uint32(word) for word in _IV[:4])


class Mode(NamedTuple):
    """What is the same in every compression of a content (section 2.3)."""

    key: Words
    flags: int


class _Form(NamedTuple):
    """Inputs of one size: chunks or parent nodes."""

    blocks: int  # of each input
    last_bytes: int  # in the last one of them
    flags: int  # of all blocks
    first_flags: int  # in addition, of the first
    last_flags: int


@lru_cache(maxsize=64)
def mode(domain: str) -> Mode:
    """The mode of `encoding.digest` in a domain: the key is the hash of the context (section
    2.3)."""
    context = np.frombuffer((CONTEXT + domain).encode(), np.uint8)
    hashing = Mode(np.array(_IV, np.uint32), _DERIVE_KEY_CONTEXT)
    return Mode(levels(hashing, context)[-1][0], _DERIVE_KEY_MATERIAL)


def levels(mode: Mode, data: NDArray[np.uint8]) -> list[Words]:
    """Every node of the tree over `data`: the chunks first, the root alone at the end."""
    count = max(1, -(-data.size // CHUNK_BYTES))
    found = [chunk_values(mode, data, np.arange(count), is_root=count == 1)]
    while len(found[-1]) > 1:
        found.append(parent_values(mode, found[-1], is_root=len(found[-1]) == 2))
    return found


def chunk_values(mode: Mode, data: NDArray[np.uint8], numbers: Numbers, *, is_root: bool) -> Words:
    """Values of the chunks of these numbers, whose bytes `data` are; only the last may be shorter.

    `is_root`: it is the only chunk of its tree (section 2.4).
    """
    last_flags = _CHUNK_END | (_ROOT if is_root else 0)
    full = data.size // CHUNK_BYTES
    form = _Form(_CHUNK_BLOCKS, _BLOCK_BYTES, mode.flags, _CHUNK_START, last_flags)
    values = _chain(_words(data[: full * CHUNK_BYTES]), numbers[:full], mode.key, form)
    if full == len(numbers):
        return values
    rest = data[full * CHUNK_BYTES :]
    # Section 2.4: a last block is padded with zeros, and an empty content has one empty block.
    blocks = max(1, -(-rest.size // _BLOCK_BYTES))
    padded = np.zeros(blocks * _BLOCK_BYTES, np.uint8)
    padded[: rest.size] = rest
    last_bytes = rest.size - (blocks - 1) * _BLOCK_BYTES
    form = _Form(blocks, last_bytes, mode.flags, _CHUNK_START, last_flags)
    return np.concatenate([values, _chain(_words(padded), numbers[full:], mode.key, form)])


def parent_values(mode: Mode, children: Words, *, is_root: bool) -> Words:
    """The level above: neighbours are joined, and a last one without a partner moves up.

    `is_root`: the children are the two of the root (section 2.5).
    """
    pairs = len(children) // 2
    words = children[: 2 * pairs].reshape(-1)
    form = _Form(1, _BLOCK_BYTES, mode.flags | _PARENT, 0, _ROOT if is_root else 0)
    joined = _chain(words, np.zeros(pairs, np.int64), mode.key, form)  # section 2.5: counter 0
    return joined if len(children) % 2 == 0 else np.concatenate([joined, children[-1:]])


def _words(data: NDArray[np.uint8]) -> Words:
    """Little-endian words; a copy only where the bytes do not lie on a word's border."""
    return np.require(data.view("<u4"), np.uint32, ["A"])


def _chain(words: Words, counters: Numbers, key: Words, form: _Form) -> Words:
    """Compress inputs of one form, one after the other in `words`; in threads where it is worth
    it."""
    values = np.empty((len(counters), _VALUE_WORDS), np.uint32)
    words = words.view()
    words.flags.writeable = False  # bytes are read-only: one type, so that numba compiles it once
    threads = min(os.cpu_count() or 1, words.nbytes // _THREAD_BYTES)
    if threads <= 1:
        _fill(words, counters, key, form, values, 0, len(counters))
        return values
    cuts = [len(counters) * piece // threads for piece in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        pieces = [
            pool.submit(_fill, words, counters, key, form, values, start, stop)
            for start, stop in pairwise(cuts)
        ]
    for piece in pieces:
        piece.result()
    return values


_jit = kernel(forceinline=True)


# numba computes on words of 32 bits in 64; each result is cut to 32, and LLVM sees through it.


@_jit
def _rotated(word: Any, right: Any) -> Any:
    word = np.uint32(word)
    return np.uint32((word >> np.uint32(right)) | (word << np.uint32(32 - right)))


@_jit
def _mixed(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any) -> Compressed:
    """The quarter round G of section 2.2."""
    a = np.uint32(a + b + x)
    d = _rotated(d ^ a, 16)
    c = np.uint32(c + d)
    b = _rotated(b ^ c, 12)
    a = np.uint32(a + b + y)
    d = _rotated(d ^ a, 8)
    c = np.uint32(c + d)
    b = _rotated(b ^ c, 7)
    return a, b, c, d


@_jit
def _round(v: Compressed, m: Compressed) -> Compressed:
    """Columns, then diagonals (section 2.2)."""
    v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, va, vb, vc, vd, ve, vf = v
    v0, v4, v8, vc = _mixed(v0, v4, v8, vc, m[0], m[1])
    v1, v5, v9, vd = _mixed(v1, v5, v9, vd, m[2], m[3])
    v2, v6, va, ve = _mixed(v2, v6, va, ve, m[4], m[5])
    v3, v7, vb, vf = _mixed(v3, v7, vb, vf, m[6], m[7])
    v0, v5, va, vf = _mixed(v0, v5, va, vf, m[8], m[9])
    v1, v6, vb, vc = _mixed(v1, v6, vb, vc, m[10], m[11])
    v2, v7, v8, vd = _mixed(v2, v7, v8, vd, m[12], m[13])
    v3, v4, v9, ve = _mixed(v3, v4, v9, ve, m[14], m[15])
    return v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, va, vb, vc, vd, ve, vf


@_jit
def _permuted(m: Compressed) -> Compressed:
    """Table 2: the order of the words in the next round."""
    left = m[2], m[6], m[3], m[10], m[7], m[0], m[4], m[13]
    return left + (m[1], m[11], m[12], m[5], m[9], m[14], m[15], m[8])  # noqa: RUF005 - for numba


@_jit
def _eight(rows: Words, lane: int) -> Compressed:
    """Entry `lane` of each of eight rows."""
    return (
        rows[lane],
        rows[_LANES + lane],
        rows[2 * _LANES + lane],
        rows[3 * _LANES + lane],
        rows[4 * _LANES + lane],
        rows[5 * _LANES + lane],
        rows[6 * _LANES + lane],
        rows[7 * _LANES + lane],
    )


@_jit
def _compress(v: Words, m: Words, counters: Words, num_bytes: Any, flags: Any) -> None:
    """The compression function of section 2.2, cut to its first 8 words, in every lane.

    Rows have an entry for each lane: 8 of chaining values, replaced; 16 of the block; 2 of the
    counter. The body has no inner loop, so that LLVM vectorises the loop over the lanes.
    """
    for lane in range(_LANES):
        block = _eight(m, lane) + _eight(m[8 * _LANES :], lane)
        counter = counters[lane], counters[_LANES + lane]
        constants = _IV_0, _IV_1, _IV_2, _IV_3
        state = _eight(v, lane) + constants + counter + (np.uint32(num_bytes), np.uint32(flags))
        state = _round(state, block)
        block = _permuted(block)
        state = _round(state, block)
        block = _permuted(block)
        state = _round(state, block)
        block = _permuted(block)
        state = _round(state, block)
        block = _permuted(block)
        state = _round(state, block)
        block = _permuted(block)
        state = _round(state, block)
        state = _round(state, _permuted(block))
        v[lane] = state[0] ^ state[8]
        v[_LANES + lane] = state[1] ^ state[9]
        v[2 * _LANES + lane] = state[2] ^ state[10]
        v[3 * _LANES + lane] = state[3] ^ state[11]
        v[4 * _LANES + lane] = state[4] ^ state[12]
        v[5 * _LANES + lane] = state[5] ^ state[13]
        v[6 * _LANES + lane] = state[6] ^ state[14]
        v[7 * _LANES + lane] = state[7] ^ state[15]


@_jit
def _fill(
    words: Words, counters: Numbers, key: Words, form: _Form, values: Words, start: int, stop: int
) -> None:
    """Values of the inputs from `start` to `stop`; lanes without an input compute what is not
    kept."""
    v, m = np.zeros(8 * _LANES, np.uint32), np.zeros(16 * _LANES, np.uint32)
    places = np.zeros(2 * _LANES, np.uint32)  # counters: low words, then high ones
    width = form.blocks * _BLOCK_WORDS
    for first in range(start, stop, _LANES):
        lanes = min(_LANES, stop - first)
        for lane in range(lanes):
            places[lane] = counters[first + lane] & 0xFFFFFFFF
            places[_LANES + lane] = counters[first + lane] >> 32
        for word in range(_VALUE_WORDS):
            v[word * _LANES : (word + 1) * _LANES] = key[word]
        for number in range(form.blocks):
            for lane in range(lanes):
                begin = (first + lane) * width + number * _BLOCK_WORDS
                block = words[begin : begin + _BLOCK_WORDS]
                for word in range(_BLOCK_WORDS):
                    m[word * _LANES + lane] = block[word]
            is_last = number == form.blocks - 1
            num_bytes = form.last_bytes if is_last else _BLOCK_BYTES
            flags = form.flags | (form.first_flags if number == 0 else 0)
            _compress(v, m, places, num_bytes, flags | (form.last_flags if is_last else 0))
        for lane in range(lanes):
            for word in range(_VALUE_WORDS):
                values[first + lane, word] = v[word * _LANES + lane]
