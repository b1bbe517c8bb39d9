"""Counts of rounded values, and from when on a trainer is said to steer."""

from __future__ import annotations

import math
from bisect import bisect_right
from fractions import Fraction
from functools import reduce
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritrain.numerics.logged import tally as module
from veritrain.numerics.logged.tally import Tally, combined

counts = st.integers(0, 10**12)
tallies = st.builds(
    Tally, values=counts, logged=counts, corrected=counts, widest=st.floats(0, 10, allow_nan=False)
)
by_class = st.dictionaries(st.sampled_from(["norm", "product", "sum"]), tallies)


@given(tallies, tallies)
def test_a_sum_adds_counts_and_keeps_the_widest(a, b):
    both = a + b
    assert both == b + a
    assert both.values == a.values + b.values
    assert both.logged == a.logged + b.logged
    assert both.corrected == a.corrected + b.corrected
    assert both.widest in (a.widest, b.widest)
    assert both.widest >= a.widest and both.widest >= b.widest
    assert a + Tally() == a


@given(by_class, by_class)
def test_combined_tallies_are_sums_by_class(a, b):
    before = dict(a), dict(b)
    both = combined(a, b)
    assert list(both) == sorted({*a, *b})
    for name, tally in both.items():
        assert tally == sum((x[name] for x in (a, b) if name in x), Tally())
    assert (a, b) == before


@given(st.lists(by_class, max_size=4))
def test_tallies_combine_in_any_order(given_tallies):
    forward = reduce(combined, given_tallies, {})
    backward = reduce(combined, reversed(given_tallies), {})
    assert forward == backward


def test_nothing_is_not_steered():
    assert combined({}, {}) == {}
    assert not Tally().is_steered


@pytest.mark.parametrize(
    ("widest", "is_steered"), [(0.0, False), (0.999, False), (1.0, False), (1.0000001, True), (9.0,
        True)]
)  # fmt: skip
def test_a_decision_beyond_the_threshold_is_steered(widest, is_steered):
    assert Tally(values=10**6, logged=10**4, corrected=1, widest=widest).is_steered == is_steered


@pytest.mark.parametrize("logged", [33, 100, 300, 10**4, 10**9])
def test_from_some_number_of_foreign_decisions_on_it_is_steering(logged):
    def is_steered(corrected: int) -> bool:
        return Tally(values=10**10, logged=logged, corrected=corrected, widest=0.5).is_steered

    most = bisect_right(range(logged + 1), False, key=is_steered) - 1  # the last that is honest
    spread = math.sqrt(logged * 7 / 64)  # of a binomial distribution of an eighth
    assert max(module._CHANCE, logged / 8 + 6 * spread) - 1 < most
    assert most < max(module._CHANCE, logged / 8 + 12 * spread) + 1
    assert not is_steered(0) and is_steered(logged)


@pytest.mark.parametrize("corrected", range(module._CHANCE + 1))
def test_few_foreign_decisions_show_nothing(corrected):
    assert not Tally(values=10**6, logged=corrected, corrected=corrected, widest=0.5).is_steered


@given(st.integers(1, 120), st.data())
def test_a_surprise_bounds_the_probability_of_so_many(of, data):
    count = data.draw(st.integers(0, of))
    p = Fraction(1, 8)
    tail = sum(comb(of, k) * p**k * (1 - p) ** (of - k) for k in range(count, of + 1))
    assert float(tail) <= 2.0 ** -module._surprise(count, of) * (1 + 1e-9)


def test_honest_machines_are_not_steered_and_one_who_decides_all_one_way_is():
    """A quarter of the threshold apart, one decision of eight is foreign; steered ones are every
    other."""
    for logged in (100, 1000, 10**6):
        assert not Tally(values=10**9, logged=logged, corrected=logged // 8, widest=0.25).is_steered
    for logged in (200, 1000, 10**6):
        assert Tally(values=10**9, logged=logged, corrected=logged // 2, widest=0.99).is_steered


def test_what_steps_hide_one_by_one_all_together_show():
    """Few foreign decisions of a step are chance; as many in each of a hundred are not."""
    step = Tally(values=1000, logged=20, corrected=10, widest=0.9)
    assert not step.is_steered
    assert sum([step] * 100, Tally()).is_steered
