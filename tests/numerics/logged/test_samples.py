"""Measuring gaps: what is sampled, and that a disagreement is noted and measuring goes on."""

from __future__ import annotations

import numpy as np
import pytest

from veritrain.errors import TranscriptError, VerificationError
from veritrain.numerics.logged.rounding import Target, Tensors
from veritrain.numerics.logged.samples import Comparing, Sampling
from veritrain.numerics.logged.thresholds import Thresholds

TARGET = Target(bits=8, unit=2.0**-24, depth=17)
NOTHING_LOGGED = Thresholds({"product": 0})


def tensors(values: np.ndarray) -> Tensors:
    return Tensors(
        operator="aten.mm.default", result="result 0", kind="product", scale=4.0, growth=16.0,
        values=values.copy(), out=np.empty(values.size, np.float32),
    )  # fmt: skip


def values(size: int = 20_000) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(size).astype(np.float32)


def sampled(*results: np.ndarray) -> tuple[Sampling, list[Tensors]]:
    sampling, rounded = Sampling(TARGET, NOTHING_LOGGED), [tensors(x) for x in results]
    for one in rounded:
        sampling.round(one)
    return sampling, rounded


def comparing(of: Sampling) -> Comparing:
    return Comparing(TARGET, NOTHING_LOGGED, of.finish(), of.decisions(), of.samples())


def test_many_turned_entries_are_noted_and_measuring_goes_on():
    x = values()
    sampling, theirs = sampled(x, x)
    other = comparing(sampling)
    for one in theirs:
        mine = tensors(x + np.float32(4 * 2.0**-22))
        other.round(mine)
        assert np.array_equal(mine.out, one.out), "both go on with the same numbers"
    other.finish()
    assert len(other.disagreements) == 2
    assert other.gaps["product"].samples == 4 * 8192
    assert 2.0 < other.gaps["product"].largest < 5.0  # 4 units of scale, and less of large values
    assert 0.0 < other.gaps["product"].reach < 1.0


def test_what_no_decisions_explain_is_refused():
    sampling, _ = sampled(values())
    with pytest.raises(VerificationError, match="more than rounding errors explain"):
        comparing(sampling).round(tensors(values() * np.float32(1.1)))


def test_the_largest_value_is_sampled():
    x, other = values(100_003), values(100_003)
    x[54_321], other[54_321] = 64.0, 64.5
    sampling, _ = sampled(x)
    compared = comparing(sampling)
    with pytest.raises(VerificationError):
        compared.round(tensors(other))
    assert compared.gaps["product"].reach > 1.0


@pytest.mark.parametrize("place", [-1, 5])
def test_samples_of_other_places_are_refused(place):
    sampling, _ = sampled(values(5))
    samples = bytearray(sampling.samples())
    samples[:8] = place.to_bytes(8, "little", signed=True)
    other = Comparing(
        TARGET, NOTHING_LOGGED, sampling.finish(), sampling.decisions(), bytes(samples)
    )
    with pytest.raises(TranscriptError, match="places below 5"):
        other.round(tensors(values(5)))
