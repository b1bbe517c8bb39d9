"""Rounding to a grid that machines agree on: one pass that rounds, finds the ambiguous entries and
sums up.

A machine's result v of higher precision differs from another's by a little. Both are rounded to the
grid whose step at v is

    g(v) = max(2**(E - depth), unit of v with `bits` significant bits, 2**-149)

with E the exponent of the tensor's scale: relative to each value, as floating point is, but never
finer than the scale allows, because a value near zero that comes from cancellation carries the
absolute error of its summands (docs/numerics_logged.md). Rounding is to nearest, with the
boundaries displaced by `OFFSET` of a step, so that sums of a few fp32 numbers, which are exact
midpoints often, are never ambiguous.

An entry within `delta` of a boundary is *ambiguous*: another machine may come out on the other
side.

Every operation is an IEEE basic operation on binary64 or an integer operation.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from veritrain.numerics.cpu.exact_sums import bare_jit
from veritrain.numerics.cpu.integers import ROUNDING, jit
from veritrain.numerics.platform.parallel import run

OFFSET = 0.0006180339887498949  # of a step; no multiple of a small power of two
_SLACK = 2.0**-27  # of a step: what rounding x + 1/2 itself may be wrong by, with room
BLOCK = 1 << 16  # entries with a sketch of their own
_SEGMENT = 64  # blocks whose ambiguous entries are held at a time
_CHUNK = 64  # entries that are looked through together
_MAGNITUDE = np.int32(0x7FFFFFFF)
_NOT_FINITE = np.int32(0x7F800000)
_NAN = np.int32(0x7FC00000)  # the one NaN that a result can be


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid of one tensor, and what is ambiguous on it."""

    bits: int  # significant bits of a value
    finest: int  # exponent of the finest step
    delta: float  # distance to a boundary, absolute, up to which an entry is ambiguous
    relative: float = 0.0  # and this many steps more
    most: float = 0.249  # steps; farther off, another machine may be nearer to another boundary


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Where the ambiguous entries of a tensor are, rising, and which way each went."""

    places: np.ndarray  # int64
    up: np.ndarray  # bool
    checksum: int  # of all results, 64 bits
    sketch: np.ndarray  # uint16, one for each block of results


@bare_jit
def _step_exponent(v, bits, finest):
    """Of g(v); a zero or subnormal has the finest."""
    exponent = ((np.float64(v).view(np.int64) >> 52) & 0x7FF) - 1023
    return max(exponent - (bits - 1), finest)


@bare_jit
def _power(exponent):
    return np.int64((exponent + 1023) << 52).view(np.float64)


@bare_jit
def _pattern(value):
    """The fp32 bits of an fp64 number that is one, or overflows."""
    bits = np.float32(value).view(np.int32)
    return bits if value == value else _NAN


@bare_jit
def _mixed(i):
    """32 bits for entry i: odd, the weight of its result in the checksum."""
    return np.uint64(np.uint32(np.uint32(i) * np.uint32(0x9E3779B1)) | np.uint32(1))


@bare_jit
def _rank(n, exponent, finest, bits, pattern):
    """A result's number on its grid, counted from 0; neighbours differ by 1, across binades too.

    Its low bits only. What is not finite counts 0.
    """
    rank = np.float64(abs(n) + ROUNDING).view(np.int64) + ((exponent - finest) << (bits - 1))
    signed = -rank if n < 0.0 else rank
    return signed if (pattern & _MAGNITUDE) < _NOT_FINITE else np.int64(0)


@bare_jit
def _round_kernel(
    values,
    out,
    bits,
    finest,
    delta,
    relative,
    most,
    offsets,
    up,
    held,
    near,
    sketch,
    counts,
    first,
    start,
    stop,
):
    """Round the blocks [start, stop) of those from `first` on; `offsets` and `up` take the
    ambiguous entries of each block, `counts` how many there are.

    `held` and `near` have room for a chunk of each block: its values, since `out` may be their
    memory, and which of them are ambiguous. Returns the checksum.
    """
    checksum = np.uint64(0)
    for block in range(start, stop):
        begin = (first + block) * BLOCK
        end = min(begin + BLOCK, values.shape[0])
        count, total = 0, np.int64(0)
        for low in range(begin, end, _CHUNK):
            high = min(low + _CHUNK, end)
            source, target = held[block, : high - low], out[low:high]
            given = values[low:high]
            for i in range(source.shape[0]):
                source[i] = given[i]
            unsure = 0
            for i in range(source.shape[0]):
                v = np.float64(source[i])
                exponent = _step_exponent(v, bits, finest)
                inverse = _power(-exponent)
                x = v * inverse
                n = np.floor(x + (0.5 - OFFSET))
                is_near = 0.5 - abs((x - n) - OFFSET) <= min(delta * inverse + relative, most)
                near[block, i] = is_near
                unsure += is_near
                pattern = _pattern(n * _power(exponent) + 0.0)
                target[i] = pattern
                mixed = _mixed(low + i)
                checksum += np.uint64(np.uint32(pattern)) * mixed
                rank = _rank(n, exponent, finest, bits, pattern)
                total += rank if mixed & np.uint64(0x80000000) else -rank
            if unsure:
                for i in range(source.shape[0]):
                    if near[block, i]:
                        v = np.float64(source[i])
                        x = v * _power(-_step_exponent(v, bits, finest))
                        offsets[block, count] = low + i - begin
                        up[block, count] = (x - np.floor(x + (0.5 - OFFSET))) - OFFSET < 0.0
                        count += 1
        sketch[first + block] = np.uint16(total & 0xFFFF)
        counts[block] = count
    return checksum


def round_to(grid: Grid, values: np.ndarray, out: np.ndarray) -> Rounded:
    """Round `values` to the grid.

    Args:
        values: float64 or float32, flat.
        out: float32 of the same size, other memory or the same.
    """
    blocks = -(-values.size // BLOCK)
    room = min(blocks, _SEGMENT)
    offsets, up = np.empty((room, BLOCK), np.uint16), np.empty((room, BLOCK), np.bool_)
    held, near = np.empty((room, _CHUNK), values.dtype), np.empty((room, _CHUNK), np.bool_)
    sketch, counts = np.empty(blocks, np.uint16), np.empty(room, np.int64)
    places, ups, checksum = [np.empty(0, np.int64)], [np.empty(0, np.bool_)], 0
    for first in range(0, blocks, _SEGMENT):
        count = min(_SEGMENT, blocks - first)
        checksums = run(
            _round_kernel, count, values, out.view(np.int32), grid.bits, grid.finest, grid.delta,
            grid.relative + _SLACK, grid.most, offsets, up, held, near, sketch, counts, first,
            grain=1,
        )  # fmt: skip
        checksum += sum(map(int, checksums))
        for block, held_here in enumerate(counts[:count].tolist()):
            if held_here:
                begin = (first + block) * BLOCK
                places.append(offsets[block, :held_here].astype(np.int64) + begin)
                ups.append(up[block, :held_here].copy())
    return Rounded(
        places=np.concatenate(places), up=np.concatenate(ups), checksum=checksum % 2**64,
        sketch=sketch,
    )  # fmt: skip


@jit
def _follow_kernel(
    values,
    out,
    bits,
    finest,
    delta,
    relative,
    far_delta,
    far_relative,
    far_most,
    places,
    up,
    ratios,
):
    """Give the entries at `places` the directions `up`; see `follow`."""
    added = np.uint64(0)
    for k in range(places.shape[0]):
        i = places[k]
        v = np.float64(values[i])
        exponent = _step_exponent(v, bits, finest)
        step, inverse = _power(exponent), _power(-exponent)
        x = v * inverse
        n = np.floor(x + (0.5 - OFFSET))
        side = (x - n) - OFFSET
        distance = 0.5 - abs(side)
        if not distance <= min(far_delta * inverse + far_relative, far_most):
            return k, added
        threshold = delta * inverse + relative
        own_up = side < 0.0
        ratios[k] = max(0.0, distance) / threshold if own_up != up[k] else -1.0
        if own_up != up[k]:
            n = n + 1.0 if up[k] else n - 1.0
            pattern = _pattern(n * step + 0.0)
            added += _mixed(i) * (np.uint64(np.uint32(pattern)) - np.uint64(np.uint32(out[i])))
            out[i] = pattern
    return -1, added


@jit
def _turns_kernel(values, out, bits, finest, places, turns):
    """What the checksum gains where an entry at `places` is rounded the other way."""
    for k in range(places.shape[0]):
        i = places[k]
        v = np.float64(values[i])
        exponent = _step_exponent(v, bits, finest)
        x = v * _power(-exponent)
        n = np.floor(x + (0.5 - OFFSET))
        other = n - 1.0 if (x - n) - OFFSET < 0.0 else n + 1.0
        nearest = _pattern(n * _power(exponent) + 0.0)
        pattern = _pattern(other * _power(exponent) + 0.0) if out[i] == nearest else nearest
        turns[k] = _mixed(i) * (np.uint64(np.uint32(pattern)) - np.uint64(np.uint32(out[i])))


def turns(grid: Grid, values: np.ndarray, out: np.ndarray, places: np.ndarray) -> np.ndarray:
    """uint64 for each entry: what the checksum gains where that one is rounded the other way."""
    found = np.empty(places.size, np.uint64)
    _turns_kernel(values, out.view(np.int32), grid.bits, grid.finest, places, found)
    return found


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What came of following someone else's decisions."""

    impossible: int  # index of the first entry whose boundary is out of reach, -1 for none
    ratios: np.ndarray  # distance to the boundary over the threshold; -1 where decided alike
    added: int  # to the checksum, modulo 2**64


def follow(
    grid: Grid, values: np.ndarray, out: np.ndarray, places: np.ndarray, up: np.ndarray,
    possible: Grid,
) -> Followed:  # fmt: skip
    """Round the entries at `places` of `out` as `up` says, up to the first that is out of reach.

    Args:
        grid, values, out: of `round_to`, which came before.
        places: int64, rising. up: bool of the same size.
        possible: the same grid with the distances up to which a decision is possible.
    """
    ratios = np.full(places.size, -1.0)
    impossible, added = _follow_kernel(
        values, out.view(np.int32), grid.bits, grid.finest, grid.delta, grid.relative + _SLACK,
        possible.delta, possible.relative + _SLACK, possible.most, places, up, ratios,
    )  # fmt: skip
    return Followed(impossible=impossible, ratios=ratios, added=int(added) % 2**64)


def round_in_place(x: Tensor, bits: int) -> None:
    """Round a float32 tensor to `bits` significant bits, in place."""
    values = x.detach().contiguous()  # `x` itself where it can be
    flat = values.numpy().reshape(-1)
    round_to(Grid(bits=bits, finest=-149, delta=-math.inf), flat, flat)
    if values.data_ptr() != x.data_ptr():
        with torch.no_grad():
            x.copy_(values)
