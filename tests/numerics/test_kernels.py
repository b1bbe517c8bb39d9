"""Fused kernels of sums, softmax and pooling against the definitions, where their short cuts
end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rules_support import numbers, same

import spec
from veritrain.numerics.cpu import elementary, elementary_kernels, exact_sums, pools, softmax
from veritrain.numerics.cpu.elementary_constants import UNDECIDED

moderate = st.floats(-8, 8, width=32)
anything = st.floats(width=32)


def defined_sum(values: torch.Tensor) -> torch.Tensor:
    return torch.tensor(spec.exact_sum(values.numpy().ravel()))


@pytest.mark.parametrize("order", ["rising", "falling", "late", "binades", "not finite"])
def test_sums_start_again_under_a_larger_scale(order: str) -> None:
    """Blocks are added under the largest value so far; here the largest comes late, or in every
    block."""
    x = numbers(1, 20_000).abs().sort()[0]
    if order == "falling":
        x = x.flip(0)
    elif order == "late":
        x[-1] = 1e6
    elif order == "binades":
        steps = np.ldexp(np.float32(1), np.arange(20)).astype(np.float32)
        x = x * torch.from_numpy(steps.repeat(1000))
    elif order == "not finite":
        x[-1] = math.inf
    same(exact_sums.total(x, (1, 1, 1, x.numel()))[0, 0], defined_sum(x))
    rows = x.view(2, -1)
    expected = torch.stack([defined_sum(row) for row in rows])
    same(exact_sums.total(rows, (1, 1, 2, 10_000))[0], expected)
    same(torch.tensor([exact_sums.exact_sum(row.numpy()) for row in rows]), expected)
    same(exact_sums.total(x, (1, 2, 1, 10_000))[0, 0], defined_sum(x))


def test_threads_with_unlike_scales_agree() -> None:
    x = torch.cat([numbers(1, 40_000), numbers(2, 40_000, scale=100.0)])
    alone = exact_sums.total(x, (1, 1, 1, x.numel()))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        same(exact_sums.total(x, (1, 1, 1, x.numel())), alone)
    finally:
        torch.set_num_threads(threads)


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.one_of(moderate, anything)))
@settings(max_examples=100, deadline=None)
def test_sum_of_squares_equals_definition(values: np.ndarray) -> None:
    x = torch.from_numpy(values)
    squares = x * x
    infinite = bool(squares.isinf().any()) and not bool(x.isnan().any())
    same(
        exact_sums.sum_of_squares(x), torch.tensor(torch.inf) if infinite else defined_sum(squares)
    )


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.one_of(moderate, anything),
    )
)
@settings(max_examples=60, deadline=None)
def test_softmax_equals_definition(values: np.ndarray) -> None:
    x = torch.from_numpy(values)
    grad = torch.from_numpy(values[::-1].copy())
    shifted = x - x.amax(1, keepdim=True)
    powers = elementary.apply("exp", shifted)
    totals = torch.stack([defined_sum(row) for row in powers])[:, None]
    same(softmax.softmax(x), powers / totals)
    logs = shifted - elementary.apply("log", totals)
    same(softmax.log_softmax(x), logs)
    added = torch.stack([defined_sum(row) for row in grad])[:, None]
    same(softmax.log_softmax_backward(grad, x), grad - elementary.apply("exp", x) * added)
    products = torch.stack([defined_sum(row) for row in grad * x])[:, None]
    same(softmax.softmax_backward(grad, x), (grad - products) * x)


def test_long_and_masked_rows_of_softmax() -> None:
    x = numbers(3, 3, 5_000)
    x[0, ::2] = -math.inf
    x[1, 7] = math.nan
    powers = elementary.apply("exp", x - x.amax(1, keepdim=True))
    totals = torch.stack([defined_sum(row) for row in powers])[:, None]
    same(softmax.softmax(x), powers / totals)


def test_rows_left_open_get_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad = numbers(4, 6, 100), numbers(5, 6, 100)

    def results() -> list[torch.Tensor]:
        return [softmax.softmax(x), softmax.log_softmax(x), softmax.log_softmax_backward(grad, x)]

    expected = results()
    for name in ("_softmax_kernel", "_log_softmax_kernel", "_log_softmax_backward_kernel"):
        kernel = getattr(softmax, name)

        def open_everywhere(*args: object, kernel=kernel) -> None:
            kernel(*args)
            *_, open_r, out, _start, _stop = args
            open_r[1::2] = True
            out[1::2] = np.nan

        monkeypatch.setattr(softmax, name, open_everywhere)
    same(results(), expected)


def test_undecided_places() -> None:
    out = np.zeros(1000, np.int32)
    assert elementary_kernels.undecided_places(out).tolist() == []
    out[[0, 63, 64, 500, 999]] = UNDECIDED
    assert elementary_kernels.undecided_places(out).tolist() == [0, 63, 64, 500, 999]


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)]
)
def test_windows_equal_definition(size: int, stride: int, padding: int) -> None:
    x = numbers(6, 2, 7, 9)
    window = ((size, size), (stride, stride), (padding, padding))
    padded = torch.nn.functional.pad(x, [padding] * 4)
    windows = padded.unfold(1, size, stride).unfold(2, size, stride)
    expected = torch.stack([defined_sum(row) for row in windows.reshape(-1, size * size)])
    got = pools.window_sums(x, (windows.shape[1], windows.shape[2]), *window)
    same(got, expected.view(got.shape))
    # the gradient: each share is added to the places of its window, all planes as one slice
    places = torch.arange(padded[0].numel()).view(padded[0].shape)
    places = places.unfold(0, size, stride).unfold(1, size, stride).reshape(-1)
    rows = got[..., None].expand(*got.shape, size * size).reshape(2, -1).T
    if stride < size:
        added = exact_sums.accumulate(rows.contiguous(), places, padded[0].numel())
    else:
        added = torch.zeros(padded[0].numel(), 2).index_copy(0, places, rows)
    inner = added.T.reshape(padded.shape)[:, padding : padding + 7, padding : padding + 9]
    same(pools.spread(got, (7, 9), *window), inner)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_scatter_into_planes_equals_accumulation(data: st.DataObject) -> None:
    planes, count = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20))
    values = data.draw(hnp.arrays(np.float32, (planes, count), elements=moderate))
    places = data.draw(hnp.arrays(np.int64, (planes, count), elements=st.integers(0, 11)))
    got = pools.scatter(torch.from_numpy(values), torch.from_numpy(places), 12)
    flat = torch.from_numpy(places) + torch.arange(planes)[:, None] * 12
    expected = exact_sums.accumulate(
        torch.from_numpy(values).reshape(-1, 1), flat.reshape(-1), planes * 12
    )
    same(got, expected.view(planes, 12))


@pytest.mark.parametrize("place", [-1, 12])
def test_scatter_refuses_a_place_outside(place: int) -> None:
    with pytest.raises(IndexError, match="outside"):
        pools.scatter(torch.ones(1, 1), torch.tensor([[place]]), 12)


def test_sum_of_a_whole_plane_equals_definition() -> None:
    x = numbers(7, 3, 5, 6)
    expected = torch.stack([defined_sum(plane) for plane in x])
    same(pools.window_sums(x, (1, 1), (5, 6), (1, 1), (0, 0)), expected.view(3, 1, 1))
