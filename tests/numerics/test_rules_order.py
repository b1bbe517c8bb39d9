"""Where PyTorch leaves the result open, exact numerics has one answer, wherever a value stands."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rules_support import exact, layouts, numbers, same

from veritrain.errors import NumericsError

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, float("inf"), float("-inf"), float("nan"), 3.0]
vectors = st.lists(st.sampled_from(SPECIAL), min_size=1, max_size=40)

BINARY = {
    "maximum": torch.maximum, "minimum": torch.minimum, "fmax": torch.fmax, "fmin": torch.fmin,
    "clamp": lambda x, y: x.clamp(y, y), "clamp_min": torch.clamp_min, "clamp_max": torch.clamp_max,
    "hardtanh_backward": lambda x, y: torch.ops.aten.hardtanh_backward(x, y, -1.0, 1.0),
    "threshold_backward": lambda x, y: torch.ops.aten.threshold_backward(x, y, 0.0),
    "relu": lambda x, y: torch.relu(x), "clamp scalar": lambda x, y: x.clamp(-0.0, 0.0),
    "leaky_relu": lambda x, y: F.leaky_relu(x, 0.1), "hardtanh": lambda x, y: F.hardtanh(x),
    "sign": lambda x, y: x.sign(), "nan_to_num": lambda x, y: x.nan_to_num(), "abs": lambda x,
    y: x.abs(),
    "where": lambda x, y: torch.where(x > y, x, y), "mul": torch.mul, "add": torch.add,
    "div": torch.div,
    "copysign": torch.copysign, "round": lambda x, y: x.round(), "frac": lambda x, y: x.frac(),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3), "addcmul": lambda x, y: torch.addcmul(x, x, y),
    "sqrt": lambda x, y: x.sqrt(), "exp": lambda x, y: x.exp(), "silu": lambda x, y: F.silu(x),
}  # fmt: skip


@pytest.mark.parametrize("name", BINARY)
@given(vectors, vectors)
@example([0.0, -0.0] * 20, [-0.0, 0.0] * 20)
@example([float("nan"), 1.0] * 20, [1.0, float("nan")] * 20)
@settings(max_examples=15, deadline=None)
def test_value_does_not_depend_on_its_place(name, first, second):
    count = min(len(first), len(second))
    x, y = torch.tensor(first[:count]), torch.tensor(second[:count])
    function = BINARY[name]
    with exact():
        whole = function(x, y)
        same(whole, torch.cat([function(x[i : i + 1], y[i : i + 1]) for i in range(count)]))
        same(whole, function(x.repeat(9), y.repeat(9))[-count:])
        same(whole, function(layouts(x)[0], layouts(y)[0]))


REDUCTIONS = {
    "amax": lambda x: x.amax(1), "amin": lambda x: x.amin(1), "sum": lambda x: x.sum(1),
    "aminmax": lambda x: tuple(torch.aminmax(x, dim=1)), "mean": lambda x: x.mean(1),
    "max": lambda x: torch.stack([row.max() for row in x]), "var": lambda x: x.var(1),
    "min": lambda x: torch.stack([row.min() for row in x]), "norm": lambda x: x.norm(dim=1),
    "sorted": lambda x: x.sort(1)[0] + 0.0, "nll": lambda x: F.mse_loss(x[0], x[-1]),
}  # fmt: skip


@pytest.mark.parametrize("name", REDUCTIONS)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_order_within_a_reduction_does_not_matter(name, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    choices = torch.tensor(SPECIAL[:6] if seed % 2 else SPECIAL[:2])
    x = choices[torch.randint(len(choices), (rows, columns), generator=generator)]
    order = torch.randperm(columns, generator=generator)
    function = REDUCTIONS[name]
    with exact():
        want = function(x)
        for other in (x[:, order], x.T.contiguous().T, *layouts(x)):
            same(function(other), want)


def test_zero_extrema_are_positive():
    zeros = torch.tensor([-0.0, -0.0])
    with exact():
        for result in (
            zeros.max(),
            zeros.amin(),
            torch.maximum(zeros, zeros),
            zeros.clamp_max(zeros),
        ):
            same(result, torch.zeros(result.shape))
        for out in (torch.empty(0), torch.empty(2)):
            same(torch.maximum(zeros, zeros, out=out), torch.zeros(2))
            same(torch.clamp(zeros, zeros, zeros, out=out), torch.zeros(2))
            same(out, torch.zeros(2))
        with torch.inference_mode():
            result = torch.max(zeros, zeros)
    same(result, torch.zeros(2))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.booleans(), st.data())
@settings(max_examples=40, deadline=None)
def test_equal_values_keep_their_order(values, descending, data):
    x = torch.tensor(values, dtype=torch.float32)
    want = sorted(range(len(values)), key=lambda i: -values[i] if descending else values[i])
    count = data.draw(st.integers(0, len(values)))
    with exact():
        assert x.sort(descending=descending)[1].tolist() == want
        assert x.argsort(descending=descending).tolist() == want
        for ordered in (True, False):
            got = x.topk(count, largest=descending, sorted=ordered)
            assert got.indices.tolist() == want[:count]
            assert got.values.tolist() == [values[i] for i in want[:count]]
        out = torch.empty(0), torch.empty(0, dtype=torch.int64)
        torch.sort(x, descending=descending, out=out)
        assert out[1].tolist() == want


def test_nan_is_largest_and_first_extremum_wins():
    x = torch.tensor([1.0, float("nan"), 3.0, 3.0, float("nan"), 1.0])
    with exact():
        assert x.sort()[1].tolist() == [0, 5, 2, 3, 1, 4]
        assert x.topk(3)[1].tolist() == [1, 4, 2]
        assert x.argmax().item() == 1
        assert x[2:4].argmax().item() == 0
        assert x[[0, 2, 3, 5]].min(0).indices.item() == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_of_repeated_places_the_last_stays(places):
    index, rows = torch.tensor(places), numbers(1, len(places), 2)
    want = torch.zeros(6, 2)
    for place, row in zip(places, rows, strict=True):
        want[place] = row
    with exact():
        put, base = torch.zeros(6, 2), torch.zeros(6, 2)
        put[index] = rows
        same(put, want)
        same(base.index_put((index,), rows), want)
        same(base.index_copy(0, index, rows), want)
        same(base.T.index_copy(1, index, rows.T), want.T)
        same(base.scatter(0, index[:, None].expand(-1, 2), rows), want)


def test_of_many_repeated_places_the_last_stays_on_any_number_of_threads():
    index = torch.arange(200_000) % 7
    want = torch.arange(200_000)[-7:].float().roll(200_000 % 7)
    threads = torch.get_num_threads()
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            with exact():
                x = torch.zeros(7)
                x[index] = torch.arange(200_000).float()
                same(x, want)
                same(torch.zeros(7).index_copy(0, index, torch.arange(200_000).float()), want)
                same(torch.zeros(7).scatter(0, index, torch.arange(200_000).float()), want)
    finally:
        torch.set_num_threads(threads)


def test_the_sign_of_a_nan_does_not_show():
    nans = torch.tensor([0x7FC00000, -0x400000], dtype=torch.int32).view(torch.float32)
    x = torch.tensor([-1.0, -2.0])
    with exact():
        for signs in (nans, nans.double(), float("nan"), -float("nan")):
            assert torch.copysign(x, signs).tolist() == [1, 2]
            assert x.clone().copysign_(signs).tolist() == [1, 2]
        assert torch.copysign(x, torch.tensor([-0.0, 3.0])).tolist() == [-1, 2]
        assert torch.copysign(x, torch.tensor([-4, 3])).tolist() == [-1, 2]
        assert torch.copysign(x, -0.0).tolist() == [-1, -2]
        for dtype in (torch.int32, torch.int16, torch.float64):
            with pytest.raises(NumericsError, match="view.*NaN"):
                nans.view(dtype)
        assert nans.view(torch.float32).isnan().all()
        assert x.view(torch.int32).tolist() == [-0x40800000, -0x40000000]


def test_new_memory_holds_zeros():
    for _ in range(5):
        torch.full((1000,), 7.0)  # leave something in the allocator's hands
        with exact():
            x = torch.ones(3)
            made = (
                torch.empty(1000), torch.empty_like(torch.full((1000,), 7.0)), x.new_empty(1000),
                torch.empty_strided((10, 100), (100, 1)), x.new_empty_strided((10, 100), (100, 1)),
                torch.empty(1000, dtype=torch.int64), torch.empty(1000, dtype=torch.bool),
            )  # fmt: skip
            assert all(not part.any() for part in made)
            assert x.resize_(1000).tolist() == [1.0] * 3 + [0.0] * 997


def test_max_pool_takes_the_first_maximum_and_nan_in_any_layout():
    x = torch.tensor([0.0, -0.0, 1.0, float("nan")])[
        torch.randint(4, (2, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    ]
    with exact():
        want = F.max_pool2d(x, 3, 2, 1, return_indices=True)
        for other in layouts(x):
            same(F.max_pool2d(other, 3, 2, 1, return_indices=True), want)
