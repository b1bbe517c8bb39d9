"""Fused kernels against the slow definitions, bit for bit, at the edges where rounding bugs
live."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import spec
from veritrain.numerics.cpu import exact_sums, integers

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754942e-38, 3.4028235e38, 0.5, 1.5, 2.5]
finite = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from(SPECIAL)
)
moderate = st.floats(-8, 8, width=32)
anything = st.floats(width=32)


def arrays(elements, min_dims=1, max_dims=1, max_side=9):
    shapes = hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=0, max_side=max_side)
    return hnp.arrays(np.float32, shapes, elements=elements)


def bits(x) -> np.ndarray:
    """Bit patterns, all NaNs alike."""
    values = np.ascontiguousarray(x, dtype=np.float32)
    return np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))


def same(x, y) -> None:
    np.testing.assert_array_equal(bits(x), bits(y))


@given(arrays(st.one_of(finite, moderate, anything), max_side=40))
@settings(max_examples=200, deadline=None)
def test_exact_sum_equals_definition(values):
    same(exact_sums.exact_sum(values), spec.exact_sum(values))
    got = exact_sums.total(torch.from_numpy(values), (1, 1, 1, values.size))
    same(got.view(()), spec.exact_sum(values))


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=4),
        elements=st.one_of(moderate, anything),
    )
)
@settings(max_examples=80, deadline=None)
def test_total_of_slices_equals_definition(values):
    p, _, c, _ = values.shape
    expected = [[spec.exact_sum(values[i, :, j, :]) for j in range(c)] for i in range(p)]
    same(exact_sums.total(torch.from_numpy(values), values.shape), np.array(expected))


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=5),
        elements=st.one_of(moderate, finite, anything),
    ),
    st.integers(1, 30),
)
@settings(max_examples=80, deadline=None)
def test_quantise_equals_definition(values, width):
    q, scale = integers.quantise(torch.from_numpy(values), values.shape, width)
    for p in range(values.shape[0]):
        for c in range(values.shape[2]):
            part = values[p, :, c, :]
            if not np.isfinite(part).all():
                assert np.isnan(scale[p, c].item())
                assert (q.numpy()[p, :, c, :] == 0).all()
                continue
            whole, unit = spec.integers(part, width)
            assert q.numpy()[p, :, c, :].ravel().tolist() == whole
            assert scale[p, c].item() == float(unit)


def test_column_blocks_agree_with_rows():
    x = torch.randn(37, 700)
    q, scale = integers.quantise(x, (1, 37, 700, 1), 20)
    q_rows, scale_rows = integers.quantise(x.T.contiguous(), (1, 1, 700, 37), 20)
    assert torch.equal(q, q_rows.T)
    assert torch.equal(scale, scale_rows)
    assert torch.equal(
        exact_sums.total(x, (1, 37, 700, 1)), exact_sums.total(x.T.contiguous(), (1, 1, 700, 37))
    )


@pytest.mark.parametrize("count", [1, 2, 3, 512, 513, 131072])
def test_bit_widths_keep_sums_exact(count):
    assert integers.contraction_bits(count) == spec.contraction_bits(count)
    assert integers.sum_bits(count) == spec.sum_bits(count)
    assert count * 2 ** (2 * integers.contraction_bits(count)) <= 2**53
    assert count * 2 ** integers.sum_bits(count) <= 2**53


def test_ties_round_to_even():
    # top = 1 gives E = 1; with bits = 1 the unit is 1, so that halves are ties
    q, _ = integers.quantise(torch.tensor([1.0, 0.5, -0.5, 0.75]), (1, 1, 1, 4), 1)
    assert q.tolist() == [1.0, 0.0, 0.0, 1.0]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_accumulate_equals_sum_of_rows(data):
    count, width, rows = (data.draw(st.integers(0, 12)), data.draw(st.sampled_from([1, 3, 17])), 4)
    values = data.draw(hnp.arrays(np.float32, (count, width), elements=moderate))
    index = np.array(data.draw(st.lists(st.integers(0, rows - 1), min_size=count, max_size=count)))
    got = exact_sums.accumulate(
        torch.from_numpy(values), torch.from_numpy(index.astype(np.int64)), rows
    ).numpy()
    for r in range(rows):
        for d in range(width):
            # all values share one scale, so rows are not slices of their own
            whole, unit = spec.integers(values, spec.sum_bits(max(count, 1)))
            column = np.array(whole, object).reshape(count, width)[index == r, d]
            same(got[r, d], spec.to_float32(int(sum(column)) * unit))


def test_accumulate_refuses_a_row_outside():
    with pytest.raises(IndexError, match="outside"):
        exact_sums.accumulate(torch.ones(1, 1), torch.tensor([5]), 4)


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=300, deadline=None)
def test_reference_rounds_to_float32_as_ieee_does(value):
    from fractions import Fraction

    with np.errstate(over="ignore"):
        if value != 0:
            same(spec.to_float32(Fraction(value)), np.float32(value))
