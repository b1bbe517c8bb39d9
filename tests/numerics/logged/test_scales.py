"""Scales are the same for any number of threads, near the norms that they are, and NaN where one
is."""

from __future__ import annotations

import math

import pytest
import torch

from veritrain.numerics.logged import scales


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def by_threads(function, *args) -> list[float]:
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(function(*args))
    return found


SHAPES = [(1, 1), (3, 7), (300, 1031), (2, 90_000), (70_000, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("turned", [False, True])
def test_norms_are_those_of_the_vectors_with_any_threads(shape, axis, turned):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x = x.t().contiguous().t() if turned else x
    one, two = by_threads(scales.norm_along, x, axis)
    assert one == two
    assert math.isclose(one, float(x.double().norm(dim=axis).max()), rel_tol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_as_if_its_vector_were_zero(shape, axis, value):
    for place in (0, shape[0] * shape[1] // 2, -1):
        x = torch.ones(shape)
        without = x.clone()
        x.view(-1)[place] = value
        spoilt = ~x.isfinite().all(axis, keepdim=True)
        without.masked_fill_(spoilt, 0.0)
        for found in by_threads(scales.norm_along, x, axis):
            assert found == scales.norm_along(without, axis)
        assert scales.largest(x) == (x.numel() > 1)


def test_norms_of_images():
    x = torch.randn(3, 5, 4, 6)
    wide = x.double()
    assert math.isclose(scales.norm_of_channels(x), float(wide.norm(dim=1).max()), rel_tol=1e-12)
    positions = wide.transpose(0, 1).reshape(5, -1).norm(dim=1).max()
    assert math.isclose(scales.norm_of_positions(x), float(positions), rel_tol=1e-12)
    assert scales.largest(torch.empty(0)) == scales.norm_along(torch.empty(0, 3), -1) == 0.0
