"""Rounding to the grid against its definition in exact fractions, and two machines against each
other.

Within `_SLACK` of a boundary or of the end of what is ambiguous, the definition allows either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from veritrain.numerics.logged import grid as module
from veritrain.numerics.logged.grid import (
    BLOCK,
    OFFSET,
    Grid,
    Rounded,
    follow,
    round_in_place,
    round_to,
    turns,
)

BITS = (8, 15, 18, 24)
SLACK = Fraction(module._SLACK)
CHUNK = module._CHUNK
FAR = 0.498  # of a step: how far what another decided is followed
NEAR = 0.2489  # of a step: what is ambiguous on a machine so near is within the reach of the other
seeds = st.integers(0, 2**32 - 1)


# The definition


@dataclass(frozen=True)
class Entry:
    """What may become of one value: pairs of a result's steps and its direction."""

    outcomes: tuple[tuple[int, bool], ...]
    exponent: int  # of the step
    ambiguous: bool | None  # None: either
    distance: Fraction = Fraction(1)  # to the boundary, in steps


def step_exponent(v: float, grid: Grid) -> int:
    return max(math.frexp(v)[1] - 1 - (grid.bits - 1), grid.finest) if v else grid.finest


@cache
def entry(v: float, grid: Grid) -> Entry:
    """Of a finite value."""
    exponent = step_exponent(v, grid)
    step = Fraction(2) ** exponent
    x = Fraction(v) / step
    n = math.floor(x + Fraction(1, 2) - Fraction(OFFSET))
    side = x - n - Fraction(OFFSET)
    distance, up = Fraction(1, 2) - abs(side), side < 0
    outcomes = [(n, up)]
    if distance <= SLACK:
        outcomes.append((n - 1, False) if up else (n + 1, True))
    logged = Fraction(grid.delta) / step + Fraction(grid.relative)
    least = capped(logged, grid.most - module._SLACK)
    most = capped(logged + 3 * SLACK, grid.most + module._SLACK)
    ambiguous = None if least < distance <= most else distance <= least
    return Entry(tuple(outcomes), exponent, ambiguous, distance)


def capped(distance: Fraction, most: float) -> Fraction:
    return min(distance, Fraction(most)) if most < math.inf else distance


def pattern_of(n: int, exponent: int) -> int:
    value = n * Fraction(2) ** exponent
    if abs(value) >= 2**128:
        value = math.inf if value > 0 else -math.inf
    return int(np.float32(float(value)).view(np.uint32))


def weight(i: int) -> int:
    return i * 0x9E3779B1 % 2**32 | 1


def checksum_of(out: np.ndarray) -> int:
    patterns = out.view(np.uint32).tolist()
    return sum(pattern * weight(i) for i, pattern in enumerate(patterns)) % 2**64


def rank(n: int, exponent: int, grid: Grid) -> int:
    """Number on the grid of n steps, by counting: a binade after the first has 2**(bits - 1)
    results."""
    if abs(n) * Fraction(2) ** exponent >= 2**128:
        return 0
    wider, half = exponent - grid.finest, 2 ** (grid.bits - 1)
    number = 2 * half + (wider - 1) * half + (abs(n) - half) if wider else abs(n)
    return -number if n < 0 else number


def check(grid: Grid, values: np.ndarray, out: np.ndarray, rounded: Rounded) -> None:
    """That `rounded` and `out` are what the definition makes of `values`."""
    up = dict(zip(rounded.places.tolist(), rounded.up.tolist(), strict=True))
    assert list(up) == sorted(up)
    assert rounded.sketch.dtype == np.uint16
    sketch = [0] * -(-values.size // BLOCK)
    for i, (v, got) in enumerate(
        zip(values.astype(np.float64).tolist(), out.view(np.uint32).tolist(), strict=True)
    ):
        if not math.isfinite(v):
            expected = 0x7FC00000 if v != v else 0x7F800000 if v > 0 else 0xFF800000
            assert got == expected
            assert i not in up
            continue
        true = entry(v, grid)
        if true.ambiguous is not None:
            assert (i in up) == true.ambiguous, (v, grid)
        outcomes = [n for n, rose in true.outcomes if up.get(i, rose) == rose]
        outcomes = [n for n in outcomes if pattern_of(n, true.exponent) == got]
        assert outcomes, (v, grid)
        number = rank(outcomes[0], true.exponent, grid)
        sketch[i // BLOCK] += number if weight(i) >> 31 else -number
    assert rounded.checksum == checksum_of(out)
    assert rounded.sketch.tolist() == [total % 2**16 for total in sketch]


def rounded(grid: Grid, values: np.ndarray) -> tuple[Rounded, np.ndarray]:
    out = np.full(values.size, -7.5, np.float32)
    return round_to(grid, values, out), out


def same(a: Rounded, b: Rounded) -> None:
    assert a.checksum == b.checksum
    np.testing.assert_array_equal(a.places, b.places)
    np.testing.assert_array_equal(a.up, b.up)
    np.testing.assert_array_equal(a.sketch, b.sketch)


# Values where it matters


def boundary(n: int, exponent: int) -> Fraction:
    """Between n and n + 1 steps."""
    return (n + Fraction(1, 2) + Fraction(OFFSET)) * Fraction(2) ** exponent


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    finest = draw(st.sampled_from([-149, -140, -126, -60, -24, 0, 3, 90]))
    delta = draw(st.sampled_from([0.0, 2.0**-30, 2.0**-20, 0.01, 0.2, 0.25, 0.3, 1.0]))
    relative = draw(st.sampled_from([0.0, 0.0, 2.0**-25, 0.125, 0.4]))
    bits = draw(st.sampled_from(BITS))
    most = draw(st.sampled_from([Grid.most, Grid.most, Grid.most, 0.1]))
    return Grid(bits=bits, finest=finest, delta=delta * 2.0**finest, relative=relative, most=most)


SPECIAL = [
    0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 5e-324, -5e-324, 2.2250738585072014e-308,
    1e-45, -1e-45, 2.0**-150, 3 * 2.0**-150, 1.1754942e-38, 3.4028234663852886e38,
    3.4028235677973366e38, -3.4028235677973366e38, 3.41e38, 2.0**128, -(2.0**128), 1e300, -1.7e308,
]  # fmt: skip


def shifted(v: float, ulps: int) -> float:
    for _ in range(abs(ulps)):
        v = math.nextafter(v, math.copysign(math.inf, ulps))
    return v


@st.composite
def edges(draw: st.DrawFn, grid: Grid) -> float:
    """A number of steps, a midpoint, a boundary or the end of its ambiguous stretch, and ulps
    off."""
    top = 2**grid.bits
    exponent = grid.finest + draw(st.sampled_from([0, 0, 1, 7, 60]))
    least = 0 if exponent == grid.finest else top // 2
    n = draw(st.sampled_from([least, least + 1, top // 2, top - 1]) | st.integers(least, top - 1))
    n = draw(st.sampled_from([n, -n, -n - 1]))
    at = draw(st.sampled_from(["steps", "midpoint", "boundary", "ambiguous"]))
    step = Fraction(2) ** exponent
    if at == "steps":
        v = n * step
    elif at == "midpoint":
        v = (n + Fraction(1, 2)) * step
    else:
        reach = Fraction(grid.delta) + Fraction(grid.relative) * step if at == "ambiguous" else 0
        far = min(reach, Fraction(grid.most) * step)
        v = boundary(n, exponent) + far * draw(st.sampled_from([-1, 1]))
    return shifted(float(v), draw(st.integers(-2, 2)))


@st.composite
def cases(draw: st.DrawFn, max_size: int = 80) -> tuple[Grid, np.ndarray]:
    grid = draw(grids())
    powers = st.builds(
        lambda e, sign, ulps: shifted(sign * 2.0**e, ulps),
        st.integers(-160, 140), st.sampled_from([-1, 1]), st.integers(-1, 1),
    )  # fmt: skip
    element = st.one_of(
        edges(grid), edges(grid), powers, st.floats(), st.floats(width=32), st.sampled_from(SPECIAL)
    )
    values = np.array(draw(st.lists(element, max_size=max_size)), np.float64)
    values[np.isnan(values)] = math.nan  # one of them all
    if draw(st.booleans()):
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
    return grid, values


@given(cases(), st.booleans())
@settings(max_examples=400, deadline=None)
def test_rounding_equals_its_definition(case, any_distance):
    grid, values = case
    if any_distance:
        grid = replace(grid, most=math.inf)
    got, out = rounded(grid, values)
    check(grid, values, out, got)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("bits", BITS)
def test_special_values_follow_the_definition(bits, dtype):
    with np.errstate(over="ignore"):
        values = np.array(SPECIAL, np.float64).astype(dtype)
    for finest in (-149, -30, 100):
        grid = Grid(bits=bits, finest=finest, delta=2.0 ** (finest - 3))
        got, out = rounded(grid, values)
        check(grid, values, out, got)


def pool(grid: Grid, rng: np.random.Generator) -> list[float]:
    """Some values of every sort; one in four is ambiguous."""
    step = 2.0**grid.finest
    n = rng.integers(-(2**grid.bits) + 1, 2**grid.bits - 1, 12).tolist()
    near = [float(boundary(k, grid.finest)) for k in n]
    far = (rng.standard_normal(30) * 2**grid.bits * step).tolist()
    return [*near[:8], *(v + grid.delta for v in near[8:]), *far, 0.0, -0.0, math.inf, math.nan]


@pytest.mark.parametrize("ambiguous", [True, False])
@pytest.mark.parametrize(
    "size", [0, 1, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, BLOCK - 1, BLOCK, BLOCK + 1,
        3 * BLOCK + 65]
)  # fmt: skip
def test_sizes_at_the_ends_of_chunks_and_blocks_follow_the_definition(size, ambiguous):
    grid, rng = Grid(bits=18, finest=-20, delta=2.0**-30), np.random.default_rng(size)
    choices = np.array(pool(grid, rng))
    values = rng.choice(choices if ambiguous else choices[12:], size)
    if size and not ambiguous:  # but for the last one: few enough for the first pass
        values[-1] = choices[0]
    got, out = rounded(grid, values)
    check(grid, values, out, got)
    assert bool(got.places.size) == bool(size and values[-1] == choices[0]) or ambiguous


@pytest.mark.parametrize("crowded", [0, 1, 2])
def test_one_block_may_hold_all_that_is_ambiguous(crowded):
    """A block of ambiguous entries only does not run into the memory of the next."""
    grid = Grid(bits=24, finest=-24, delta=2.0**-50)
    values = np.full(3 * BLOCK, 0.5)
    values[crowded * BLOCK : (crowded + 1) * BLOCK] = float(boundary(3, -24))
    got, out = rounded(grid, values)
    np.testing.assert_array_equal(got.places, np.arange(BLOCK) + crowded * BLOCK)
    assert got.checksum == checksum_of(out)


@given(seeds, st.sampled_from([1, BLOCK, BLOCK + 1, 5 * BLOCK - 1]), st.sampled_from([1, 40]))
@settings(max_examples=8, deadline=None)
def test_threads_do_not_show(seed, size, rarity):
    rng, grid = np.random.default_rng(seed), Grid(bits=15, finest=-24, delta=2.0**-34)
    values = rng.standard_normal(size) * 2.0**-10
    values[::rarity] = rng.choice(pool(grid, rng), values[::rarity].size)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(rounded(grid, values))
    finally:
        torch.set_num_threads(before)
    same(found[0][0], found[1][0])
    assert found[0][1].tobytes() == found[1][1].tobytes()


def on_grid(grid: Grid, rng: np.random.Generator, count: int) -> np.ndarray:
    """Float64 values of the grid."""
    n = rng.integers(-(2**grid.bits), 2**grid.bits + 1, count).astype(np.float64)
    wider = rng.integers(0, 10, count)
    n = np.where(wider, np.copysign(abs(n) % 2 ** (grid.bits - 1) + 2 ** (grid.bits - 1), n), n)
    return np.ldexp(n, grid.finest + wider)


@given(grids(), seeds)
@settings(max_examples=60, deadline=None)
def test_values_on_the_grid_stay_and_are_never_ambiguous(grid, seed):
    values = on_grid(grid, np.random.default_rng(seed), 200)
    got, out = rounded(grid, values)
    np.testing.assert_array_equal(out, values)
    assert got.places.size == 0
    again, _ = rounded(grid, out)
    same(again, got)


@given(cases())
@settings(max_examples=100, deadline=None)
def test_rounding_twice_is_rounding_once(case):
    grid, values = case
    _, once = rounded(grid, values)
    _, twice = rounded(grid, once)
    assert once.tobytes() == twice.tobytes()


@given(grids(), st.sampled_from([2.0**-20, 0.01, 0.25]))
@settings(max_examples=40, deadline=None)
def test_midpoints_are_not_ambiguous_within_less_than_the_offset(grid, share):
    """Sums of a few fp32 numbers are midpoints often: that is what the offset is for."""
    grid = replace(grid, delta=share * OFFSET * 2.0**grid.finest, relative=0.0)
    n = np.arange(-(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1), 2 ** (grid.bits - 7))
    got, _ = rounded(grid, np.ldexp(n + 0.5, grid.finest))
    assert got.places.size == 0


@pytest.mark.parametrize("most", [0.0, 0.1, Grid.most, 0.45, 0.5, math.inf])
def test_an_entry_is_ambiguous_up_to_the_most_of_a_step_and_never_below_no_distance(most):
    off = np.linspace(-0.495, 0.495, 34)
    values = np.arange(34) + 0.5 + OFFSET + off
    grid = Grid(bits=24, finest=0, delta=math.inf, most=most)
    got, _ = rounded(grid, values)
    np.testing.assert_array_equal(got.places, np.flatnonzero(abs(off) <= most))
    np.testing.assert_array_equal(got.up, off[got.places] > 0)
    nothing, _ = rounded(replace(grid, delta=-math.inf), values)
    assert nothing.places.size == 0


def test_less_than_a_quarter_of_a_step_is_ambiguous_unless_asked_for():
    assert Grid(bits=8, finest=0, delta=1.0).most < 0.25


# The sketch: a sum of ranks, in which a result next to another one is a step away


def two_sides(bits: int, n: int, finest: int = -30, wider: int = 0) -> list[int]:
    """Sketches of one entry on either side of the boundary above n steps of the binade `wider`."""
    grid, middle = Grid(bits=bits, finest=finest, delta=0.0), boundary(n, finest + wider)
    off = Fraction(2) ** (finest + wider) / 64
    return [int(rounded(grid, np.array([float(middle + d)]))[0].sketch[0]) for d in (-off, off)]


def moved(sketches: list[int]) -> int:
    difference = (sketches[1] - sketches[0]) % 2**16
    return min(difference, 2**16 - difference)


@pytest.mark.parametrize("wider", [0, 5])
@pytest.mark.parametrize("bits", BITS)
def test_next_results_are_one_step_apart_in_the_sketch(bits, wider):
    top = 2**bits
    for n in (top // 2, top // 2 + 1, top - 3, -top // 2 - 2, -top + 1):
        assert moved(two_sides(bits, n, wider=wider)) == 1


@pytest.mark.parametrize("wider", [0, 1, 5])
@pytest.mark.parametrize("bits", BITS)
def test_the_first_result_of_a_binade_is_one_step_from_the_last_before(bits, wider):
    assert moved(two_sides(bits, 2**bits - 1, wider=wider)) == 1
    assert moved(two_sides(bits, -(2**bits), wider=wider)) == 1


@pytest.mark.parametrize("bits", [3, 8])
def test_results_are_numbered_one_by_one_over_all_binades(bits):
    """Every result up to some binades beyond the finest, and the negative ones: no number twice."""
    half, finest = 2 ** (bits - 1), -20
    results = [n * 2.0**finest for n in range(2 * half)]
    results += [(half + k) * 2.0 ** (finest + e) for e in range(1, 6) for k in range(half)]
    grid = Grid(bits=bits, finest=finest, delta=0.0)
    for sign in (1, -1):
        sketches = [int(rounded(grid, np.array([sign * v]))[0].sketch[0]) for v in results]
        numbers = [sketch * -sign % 2**16 for sketch in sketches]  # entry 0 has the sign -
        assert numbers == list(range(len(results)))


@pytest.mark.parametrize("i", [0, 1, 2, 3, 4, 63, 64, 1000])
def test_a_rank_is_added_or_taken_away_by_the_top_bit_of_the_mixed_index(i):
    values = np.zeros(i + 1)
    values[i] = 3.0
    got, _ = rounded(Grid(bits=8, finest=0, delta=0.0), values)
    assert got.sketch.tolist() == [3 if weight(i) >= 2**31 else 2**16 - 3]


@given(grids(), seeds)
@settings(max_examples=60, deadline=None)
def test_results_have_the_sketch_of_their_values(grid, seed):
    grid = replace(grid, finest=min(grid.finest, 3))  # without overflow
    values = on_grid(grid, np.random.default_rng(seed), 100)
    values += np.random.default_rng(seed).uniform(-0.6, 0.6, 100) * 2.0**grid.finest
    got, out = rounded(grid, values)
    again, _ = rounded(grid, out)
    np.testing.assert_array_equal(again.sketch, got.sketch)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("v", [1.3 * 2.0**128, -1.7e308, math.inf, -math.inf, 2.0**128 - 2.0**100])
def test_results_that_overflow_count_nothing_in_the_sketch(v, bits):
    grid = Grid(bits=bits, finest=-149, delta=0.0)
    got, out = rounded(grid, np.array([v]))
    assert abs(out[0]) == math.inf
    assert got.sketch.tolist() == rounded(grid, out)[0].sketch.tolist() == [0]


def test_every_nan_has_the_same_sketch():
    patterns = [0x7FF8000000000000, 0x7FF8000000000001, 0x7FF0000000000001, -1]
    values = np.array(patterns, np.int64).view(np.float64)
    grid = Grid(bits=24, finest=-149, delta=0.0)
    first, *others = (rounded(grid, values[i : i + 1])[0] for i in range(values.size))
    for other in others:
        same(first, other)
    assert first.sketch.tolist() == [0]


# Two machines: what one decided, the other follows


def machines_agree(grid: Grid, mine: np.ndarray, theirs: np.ndarray, reach: Grid) -> Rounded:
    """The trainer's values are `mine`, the auditor's `theirs`: the bits come out the same."""
    log, out = rounded(grid, mine)
    own, result = rounded(grid, theirs)
    followed = follow(grid, theirs, result, log.places, log.up, reach)
    assert followed.impossible == -1
    assert result.tobytes() == out.tobytes()
    assert (own.checksum + followed.added) % 2**64 == log.checksum
    assert checksum_of(result) == log.checksum
    return log


def twice(grid: Grid) -> Grid:
    return replace(grid, delta=2 * grid.delta, relative=2 * grid.relative, most=FAR)


def near_boundaries(grid: Grid, rng: np.random.Generator, count: int) -> np.ndarray:
    """Values within some deltas of boundaries, of the first and last of binades above all."""
    top = 2**grid.bits
    wider = rng.choice([0, 0, 0, 1, 2, 9], count)
    least = np.where(wider, top // 2, 0)
    n = rng.choice([0, 1, 2], count) + least
    n = np.where(rng.random(count) < 0.3, top - 1 - rng.choice([0, 1], count), n)
    n = np.where(rng.random(count) < 0.3, rng.integers(least, top), n)
    n = np.where(rng.random(count) < 0.5, n, -n - 1)
    offset = rng.choice([-1.0, 1.0], count) * rng.choice([0.0, 0.5, 1.0, 1.0, 1.5, 2.0], count)
    middle = n.astype(np.float64) + (0.5 + OFFSET)
    return np.ldexp(middle, grid.finest + wider) + offset * grid.delta


def perturbed(grid: Grid, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another machine's values: up to delta away, at delta itself often."""
    share = np.where(rng.random(values.size) < 0.5, rng.uniform(-1, 1, values.size), 1.0)
    share *= rng.choice([-1.0, 1.0], values.size)
    finite = np.where(np.isfinite(values), values, 0.0)
    other = finite + share * grid.delta
    return np.where(np.isfinite(values) & (abs(other - finite) <= grid.delta), other, values)


@given(
    st.sampled_from(BITS),
    st.integers(-149, 60),
    st.sampled_from([0.0, 2.0**-40, 2.0**-27, 2.0**-26, 2.0**-20, 0.003, OFFSET, 0.1, NEAR]),
    seeds,
)
@settings(max_examples=250, deadline=None)
def test_machines_that_differ_by_less_than_delta_get_the_same_bits(bits, finest, share, seed):
    rng = np.random.default_rng(seed)
    grid = Grid(bits=bits, finest=finest, delta=share * 2.0**finest)
    mine = np.concatenate([near_boundaries(grid, rng, 150), pool(grid, rng)])
    machines_agree(grid, mine, perturbed(grid, mine, rng), twice(grid))


@given(cases(), seeds)
@settings(max_examples=150, deadline=None)
def test_machines_agree_on_any_values(case, seed):
    grid, mine = case
    most = (NEAR - grid.relative / 4) * 2.0**grid.finest
    grid = replace(
        grid, delta=min(grid.delta, most), relative=grid.relative / 4, most=Grid.most
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    mine = mine.astype(np.float64)
    machines_agree(grid, mine, perturbed(grid, mine, rng), twice(grid))


@given(st.sampled_from(BITS), st.sampled_from([2.0**-29, 2.0**-20, 0.01, 0.06]), seeds)
@settings(max_examples=60, deadline=None)
def test_machines_that_differ_relatively_get_the_same_bits(bits, relative, seed):
    """What differs by a share of each value's own step, and not more than of the finer one at a
    power."""
    rng = np.random.default_rng(seed)
    grid = Grid(bits=bits, finest=-149, delta=0.0, relative=relative)
    e = rng.integers(-120, 100, 200)
    n = np.where(rng.random(200) < 0.3, 2**bits - 1, rng.integers(2 ** (bits - 1), 2**bits, 200))
    step = np.ldexp(1.0, e)
    mine = np.ldexp(n + 0.5 + OFFSET, e) + rng.choice([-1, -0.5, 0, 0.5, 1], 200) * relative * step
    theirs = mine + rng.choice([-0.5, -0.49, 0, 0.49, 0.5], 200) * relative * step
    theirs = np.where(abs(theirs - mine) <= relative / 2 * step, theirs, mine)
    sign = rng.choice([-1.0, 1.0], 200)
    machines_agree(grid, sign * mine, sign * theirs, twice(grid))


@given(st.sampled_from(BITS), st.integers(-2, 2), st.integers(-2, 2), st.booleans(), seeds)
@example(24, 0, 0, False, 0)
@settings(max_examples=80, deadline=None)
def test_machines_a_few_ulps_round_a_boundary_agree(bits, mine, theirs, negative, seed):
    rng, grid = np.random.default_rng(seed), Grid(bits=bits, finest=-20, delta=2.0**-46)
    n = rng.integers(2 ** (bits - 1), 2**bits, 40)
    middles = [float(boundary(int(-k - 1 if negative else k), -20)) for k in n]
    first, second = (np.array([shifted(v, by) for v in middles]) for by in (mine, theirs))
    log = machines_agree(grid, first, second, twice(grid))
    assert log.places.size == 40


@pytest.mark.parametrize("values", [[math.nan, -math.nan], [math.inf, math.inf]])
def test_machines_agree_on_what_is_not_finite(values):
    grid = Grid(bits=24, finest=-149, delta=1.0)
    log = machines_agree(grid, np.array(values[:1]), np.array(values[1:]), twice(grid))
    assert log.places.size == 0


def test_machines_beyond_the_last_boundary_of_a_binade_need_less_than_a_quarter_step():
    """Why `Grid.most`: a quarter of a step above it another binade begins, whose boundaries are
    far."""
    grid = Grid(bits=8, finest=0, delta=0.25, most=math.inf)
    mine = boundary(255, 0) + Fraction(2499, 10000)
    log, _ = rounded(grid, np.array([float(mine)]))
    theirs = np.array([float(mine + Fraction(2499, 10000))])
    _, out = rounded(grid, theirs)
    assert log.places.size == 1
    assert theirs[0] > 256
    assert follow(grid, theirs, out, log.places, log.up, twice(grid)).impossible == 0


@pytest.mark.parametrize("share", [0.23, 0.2489])
def test_machines_agree_up_to_the_most_that_is_ambiguous(share):
    """What is ambiguous on one lies up to twice as far from the boundary on the other."""
    grid, middle = Grid(bits=24, finest=0, delta=share), float(boundary(9, 0))
    machines_agree(grid, np.array([middle + share]), np.array([middle + 2 * share]), twice(grid))


# Following


@given(
    cases(max_size=30),
    seeds,
    st.sampled_from([2.0, 2.0, 100.0, math.inf]),
    st.sampled_from([FAR, FAR, 0.1, math.inf]),
)
@settings(max_examples=200, deadline=None)
def test_following_equals_its_definition(case, seed, wider, most):
    grid, values = case
    rng = np.random.default_rng(seed)
    reach = replace(grid, delta=grid.delta * wider if grid.delta else 0.0, most=most)
    places = np.flatnonzero(rng.random(values.size) < 0.6)
    up = rng.random(places.size) < 0.5
    own, out = rounded(grid, values)
    result = out.copy()
    got = follow(grid, values, result, places, up, reach)
    for k, (i, upward) in enumerate(zip(places.tolist(), up.tolist(), strict=True)):
        v = float(values[i])
        true = entry(v, grid) if math.isfinite(v) else None
        step = Fraction(2) ** (true.exponent if true else 0)
        far = capped(Fraction(1), most)
        if reach.delta < math.inf:
            far = min(far, Fraction(reach.delta) / step + Fraction(reach.relative))
        if got.impossible == k:
            assert true is None or true.distance > far - SLACK
            assert result[i:].tobytes() == out[i:].tobytes()
            break
        assert true is not None
        assert true.distance <= far + 2 * SLACK
        allowed = {n for n, _ in true.outcomes}
        n = round(Fraction(float(result[i])) / step) if math.isfinite(result[i]) else None
        if got.ratios[k] == -1.0:
            assert result[i].tobytes() == out[i].tobytes()
            if len(allowed) == 1:
                assert true.outcomes[0][1] == upward
        else:
            assert got.ratios[k] >= 0.0
        if got.ratios[k] != -1.0 and len(allowed) == 1:
            threshold = Fraction(grid.delta) / step + Fraction(grid.relative) + SLACK
            ratio = float(true.distance / threshold)
            assert got.ratios[k] == pytest.approx(ratio, rel=1e-6)
            if n is not None:
                assert n == true.outcomes[0][0] + (1 if upward else -1)
    assert (own.checksum + got.added) % 2**64 == checksum_of(result)


def one(v: float) -> np.ndarray:
    return np.array([v])


def test_a_decision_within_reach_is_followed_and_one_beyond_is_not():
    grid = Grid(bits=24, finest=0, delta=0.01)
    reach = replace(grid, delta=0.02)
    for offset, possible in ((0.005, True), (0.015, True), (0.0199, True), (0.0201, False)):
        for above in (False, True):
            values = one(float(boundary(9, 0)) + (offset if above else -offset))
            _, out = rounded(grid, values)
            got = follow(grid, values, out, np.array([0]), np.array([not above]), reach)
            assert got.impossible == (-1 if possible else 0)
            assert out[0] == ((9 if above else 10) if possible else (10 if above else 9))
            if possible:
                assert got.ratios[0] == pytest.approx(offset / 0.01, rel=1e-6)


@pytest.mark.parametrize("most", [0.1, 0.3, 0.45, FAR])
def test_reach_ends_at_its_most_however_wide_the_possible(most):
    grid = Grid(bits=24, finest=0, delta=0.01)
    for wide in ({"delta": math.inf}, {"delta": 0.3, "relative": 0.3}):
        for distance in (0.05, most - 1e-4, most + 1e-4, 0.499):
            for offset in (-distance, distance):
                values, up = one(float(boundary(9, 0)) + offset), np.array([offset < 0])
                _, out = rounded(grid, values)
                got = follow(grid, values, out, np.array([0]), up, replace(grid, most=most, **wide))
                assert got.impossible == (-1 if distance < most else 0)
                assert out[0] == (10 if (offset < 0) == (distance < most) else 9)


def test_ratios_are_of_the_threshold_however_wide():
    """Not of the most, at which what is logged is cut, nor of what is possible."""
    for delta, relative, threshold in ((3.0, 0.0, 3.0), (0.1, 0.7, 0.8), (0.2, 0.0, 0.2)):
        grid = Grid(bits=24, finest=0, delta=delta, relative=relative)
        reach = replace(grid, delta=2 * delta, most=FAR)
        values = one(float(boundary(9, 0)) + 0.3)
        _, out = rounded(grid, values)
        got = follow(grid, values, out, np.array([0]), np.array([False]), reach)
        assert got.ratios[0] == pytest.approx(0.3 / threshold, rel=1e-6)


def test_a_corrected_entry_has_no_negative_ratio():
    """The sum with 1/2 may round across the boundary."""
    grid = Grid(bits=24, finest=0, delta=0.0)
    values = np.array([float(boundary(2**k - 3, 0)) for k in range(2, 25)])
    own, out = rounded(grid, values)
    assert own.places.size == values.size
    assert (follow(grid, values, out, own.places, ~own.up, grid).ratios >= 0.0).all()


def test_a_decision_that_agrees_changes_nothing_but_must_be_within_reach_too():
    grid = Grid(bits=24, finest=0, delta=0.01)
    for v, impossible in ((float(boundary(9, 0)) + 0.01, -1), (10.0, 0)):
        _, out = rounded(grid, one(v))
        got = follow(grid, one(v), out, np.array([0]), np.array([True]), grid)
        assert (got.impossible, got.added, out[0]) == (impossible, 0, 10.0)
        assert got.ratios[0] == -1.0


@pytest.mark.parametrize("v", [math.nan, math.inf, -math.inf])
def test_a_decision_about_what_is_not_finite_is_impossible(v):
    grid = Grid(bits=24, finest=0, delta=math.inf)
    _, out = rounded(grid, one(v))
    assert follow(grid, one(v), out, np.array([0]), np.array([True]), grid).impossible == 0


# Turns: what the checksum gains where an entry is rounded the other way


@given(cases(max_size=40), seeds)
@settings(max_examples=150, deadline=None)
def test_a_turn_is_what_following_the_other_decision_adds(case, seed):
    """Within the reach; over boundaries of binades and into overflow as well."""
    grid, values = case
    rng, near = np.random.default_rng(seed), replace(grid, delta=math.inf, most=0.449)
    found, out = rounded(near, values)
    chosen = rng.random(found.places.size) < 0.7
    places, other = found.places[chosen], ~found.up[chosen]
    before = out.copy()
    gains = turns(grid, values, out, places)
    assert (gains.dtype, gains.shape) == (np.uint64, places.shape)
    assert out.tobytes() == before.tobytes()
    for place, up, gain in zip(places.tolist(), other.tolist(), gains.tolist(), strict=True):
        result = out.copy()
        followed = follow(grid, values, result, np.array([place]), np.array([up]), near)
        assert followed.impossible == -1
        assert gain == followed.added
        assert gain == (checksum_of(result) - checksum_of(out)) % 2**64
    follow(grid, values, out, places, other, near)
    together = (checksum_of(out) - checksum_of(before)) % 2**64
    assert sum(gains.tolist()) % 2**64 == together


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("off", [-0.01, 0.01])
def test_a_turn_at_the_end_of_a_binade_leads_into_the_next(bits, off):
    top, place = 2**bits, 5
    values = np.zeros(place + 1)
    for n in (top - 1, -top):
        values[place] = float(boundary(n, 0)) + off
        grid = Grid(bits=bits, finest=0, delta=0.0)
        _, out = rounded(grid, values)
        there = np.float32(n + 1 if off < 0 else n).view(np.int32)
        (gain,) = turns(grid, values, out, np.array([place])).tolist()
        assert gain == weight(place) * (int(there) - int(out[place].view(np.int32))) % 2**64


def test_a_turn_is_from_the_result_that_is_there():
    """An entry which went the other way already turns back."""
    grid = Grid(bits=24, finest=0, delta=0.01)
    values = np.array([float(boundary(n, 0)) for n in (9, 30)])
    own, out = rounded(grid, values)
    before = turns(grid, values, out, own.places).tolist()
    follow(grid, values, out, own.places[:1], ~own.up[:1], grid)
    gains = turns(grid, values, out, own.places).tolist()
    assert (gains[0] + before[0]) % 2**64 == 0
    assert gains[1] == before[1]
    assert gains[1] != 0


def test_no_places_have_no_turns():
    grid, values = Grid(bits=24, finest=0, delta=0.0), np.array([1.5])
    _, out = rounded(grid, values)
    assert turns(grid, values, out, np.empty(0, np.int64)).tolist() == []


# Settling: a float32 tensor, in place


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "view",
    [lambda x: x, lambda x: x.T, lambda x: x[::2, 1:], lambda x: x[0, 0], lambda x: x[:0]],
    ids=["all", "transposed", "strided", "scalar", "empty"],
)  # fmt: skip
def test_settling_rounds_each_value_in_place(view: Callable[[torch.Tensor], torch.Tensor], bits):
    x = torch.randn(6, 50) * torch.logspace(-40, 30, 50)
    x[0, :4] = torch.tensor([-0.0, math.inf, math.nan, 1e-45])
    before, part = x.clone(), view(x)
    expected = view(before).contiguous().numpy().reshape(-1)
    out = np.empty_like(expected)
    grid = Grid(bits=bits, finest=-149, delta=0.0)
    check(grid, expected, out, round_to(grid, expected, out))
    round_in_place(part, bits)
    assert view(x).contiguous().numpy().reshape(-1).tobytes() == out.tobytes()
    untouched = torch.ones_like(x, dtype=torch.bool)
    view(untouched).fill_(False)
    assert torch.equal(x[untouched].view(torch.int32), before[untouched].view(torch.int32))


def test_settling_a_leaf_leaves_no_trace_in_its_graph():
    x = torch.full((3,), 1.23456789, requires_grad=True)
    round_in_place(x, 8)
    assert x.grad_fn is None
    assert x.requires_grad
    assert x.tolist() == [1.234375] * 3
