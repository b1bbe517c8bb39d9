"""The device's twins against the CPU's kernels, bit for bit, and whole jobs on the pretended
device.

The twins are plain torch operations, so they run on CPU tensors too. That the rules reach them, and
nothing else, is what the pretended device shows (pretend_device.py). `rules_support.check` runs
every operator's cases on it as well.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import numpy as np
import pretend_device
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pretend_device import Elsewhere, Moving, here, pretended
from rules_support import evaluate, evaluate_on_device, exact, numbers, same
from test_elementary import SPECIAL, floats_of
from test_rules_random import DRAWS

from tests import zoo
from veritrain.errors import UnsupportedOperatorError, UsageError
from veritrain.job.data import Batches
from veritrain.job.state import capture, restore
from veritrain.job.step import Program, find_device, run_step
from veritrain.numerics.cpu import (
    convolution,
    elementary,
    exact_sums,
    integers,
    matmul,
    norms,
    philox,
    softmax,
    updates,
)
from veritrain.numerics.cpu.updates import AdamFlags, AdamNumbers, SgdFlags, SgdNumbers
from veritrain.numerics.device import convolution_twins as device_convolution
from veritrain.numerics.device import elementary_twins as device_elementary
from veritrain.numerics.device import gate
from veritrain.numerics.device import integer_twins as device_integers
from veritrain.numerics.device import matmul_twins as device_matmul
from veritrain.numerics.device import norm_twins as device_norms
from veritrain.numerics.device import philox_twins as device_random
from veritrain.numerics.device import softmax_twins as device_softmax
from veritrain.numerics.device import sum_twins as device_sums
from veritrain.numerics.device import update_twins as device_optimisers
from veritrain.transcript.tensors import state_entries, state_root

anything = st.one_of(st.floats(-8, 8, width=32), st.floats(width=32))
finite = st.floats(-8, 8, width=32)


def slices(elements=anything):
    shapes = hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=5)
    return hnp.arrays(np.float32, shapes, elements=elements)


# Twins


@given(slices(), st.integers(1, 51))
@settings(max_examples=100, deadline=None)
def test_integers(values, bits):
    x = torch.from_numpy(values)
    for name in ("quantise", "slice_scales"):
        cpu = getattr(integers, name)(x, values.shape, bits)
        same(getattr(device_integers, name)(x, values.shape, bits), cpu)
    same(device_sums.total(x, values.shape), exact_sums.total(x, values.shape))


def test_sums_in_parts(monkeypatch):
    x = numbers(1, 2, 9, 3, 2)
    monkeypatch.setattr(device_sums, "_LIMIT", 24)  # two rows at a time
    same(device_sums.total(x, (2, 9, 3, 2)), exact_sums.total(x, (2, 9, 3, 2)))


@pytest.mark.parametrize("shape", [(1, 0, 3, 2), (2, 3, 0, 2), (0, 1, 2, 3)])
def test_sums_of_nothing(shape):
    x = torch.zeros(shape)
    same(device_sums.total(x, shape), exact_sums.total(x, shape))


@given(st.integers(0, 12), st.integers(0, 3), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_accumulate(count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, width, generator=generator)
    rows = torch.randint(4, (count,), generator=generator)
    same(device_sums.accumulate(values, rows, 4), exact_sums.accumulate(values, rows, 4))


def test_accumulate_of_what_is_not_finite():
    values, rows = torch.tensor([[1.0], [float("inf")]]), torch.tensor([0, 1])
    same(device_sums.accumulate(values, rows, 2), exact_sums.accumulate(values, rows, 2))
    with pytest.raises(IndexError, match="outside"):
        device_sums.accumulate(values, rows, 1)


@given(hnp.arrays(np.float64, (2, 3, 4), elements=st.integers(-(2**53), 2**53)), st.data())
@settings(max_examples=50, deadline=None)
def test_rescale(values, data):
    exponents = st.one_of(st.integers(-160, 120), st.just(None))
    c = torch.from_numpy(values)
    draws = [data.draw(st.lists(exponents, min_size=n, max_size=n)) for n in (6, 8)]
    rows, columns = (
        torch.tensor([float("nan") if e is None else 2.0**e for e in part], dtype=torch.float64)
        for part in draws
    )
    arguments = (c, rows.view(2, 3), columns.view(2, 4))
    expected = torch.empty(c.shape)
    integers.rescale(*arguments, expected)
    same(device_integers.rescale(*arguments), expected)
    integers.rescale(c, rows.view(2, 3), torch.ones(2, 4, dtype=torch.float64), expected)
    same(device_integers.rescale_rows(c.view(6, 4), rows), expected.view(6, 4))


@given(slices(), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_norms(values, seed):
    x, shape = torch.from_numpy(values), values.shape
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(shape, generator=generator)
    weight, bias = torch.randn(2, shape[2], generator=generator)
    mean, square = norms.moments(x, shape)
    same(device_norms.moments(x, shape), (mean, square))
    rstd = square.abs() + 0.5
    for name, arguments in {
        "normalise": (x, shape, mean, rstd, weight, bias),
        "normalise_backward": (grad, x, shape, mean, rstd, rstd * weight),
    }.items():
        same(getattr(device_norms, name)(*arguments), getattr(norms, name)(*arguments))
    x, grad = x[0], grad[0]
    channels = (1, *shape[1:])
    each = torch.randn(2, shape[1], shape[2], generator=generator)
    arguments = (grad, x, channels, each[0], each[1])
    same(device_norms.channel_sums(*arguments), norms.channel_sums(*arguments))


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.one_of(anything, st.sampled_from([0.0, -0.0])),
    )
)
@settings(max_examples=100, deadline=None)
def test_rows(values):
    x, grad = torch.from_numpy(values), torch.from_numpy(values[::-1].copy())
    weight, bias = torch.ones(1, x.shape[1]) * 0.3, torch.ones(1, x.shape[1]) * 0.7
    if x.shape[0] % 2 == 0:  # two groups
        weight, bias = torch.cat([weight, -weight]), torch.cat([bias, -bias])
    statistics = torch.ones(x.shape[0]) * 0.3, torch.ones(x.shape[0]) * 1.7
    for name, arguments in {
        "normalise_rows": (x, 1e-5, weight, bias),
        "rows_backward": (grad, x, *statistics, weight),
        "column_sums": (grad, x, *statistics),
    }.items():
        same(getattr(device_norms, name)(*arguments), getattr(norms, name)(*arguments))
    for name, arguments in {
        "softmax": (x,),
        "log_softmax": (x,),
        "softmax_backward": (grad, x),
        "log_softmax_backward": (grad, x),
    }.items():
        same(getattr(device_softmax, name)(*arguments), getattr(softmax, name)(*arguments))
    same(device_sums.sum_of_squares(x), exact_sums.sum_of_squares(x))


def test_the_same_elementary_functions():
    assert device_elementary.FUNCTIONS.keys() == elementary.FUNCTIONS.keys()


@pytest.mark.parametrize("name", sorted(elementary.FUNCTIONS))
def test_elementary(name):
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randint(-(2**31), 2**31, (20_000,), generator=generator).to(torch.int32)
    moderate = torch.randn(20_000, generator=generator) * 4
    for x in (floats_of(SPECIAL), patterns.view(torch.float32), moderate):
        same(device_elementary.apply(name, x), elementary.apply(name, x))


def test_elementary_decides_what_a_bound_cannot(monkeypatch):
    monkeypatch.setattr(device_elementary.k, "EXP", 2.0**-26)  # a bound that decides little
    x = torch.randn(50)
    same(device_elementary.apply("exp", x), elementary.apply("exp", x))


def test_elementary_refuses_other_types():
    with pytest.raises(UsageError, match="float64"):
        device_elementary.apply("exp", torch.ones(2, dtype=torch.float64))
    with pytest.raises(UsageError, match="sinh"):
        device_elementary.apply("sinh", torch.ones(2))


@given(st.integers(0, 2**64 - 1), st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_random_words(key, count):
    cpu = torch.device("cpu")
    assert device_random.words(key, count, cpu).tolist() == philox.words(key, count).tolist()
    same(device_random.uniform24_on(key, (count,), cpu), philox.uniform24(key, (count,)))


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_matrix_products(seed, num_p, num_m, inner):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(num_p, num_m, inner, generator=generator)
    b = torch.randn(num_p, 4, inner, generator=generator).mT
    for bits in (14, 22):
        same(device_matmul.batched(a, b, bits), matmul.batched(a, b, bits))


def test_products_of_nothing_and_powers():
    def both(x, y):
        return x[:, :0] @ y[:0], x.abs() ** y

    x, y = numbers(1, 3, 3), numbers(2, 3, 3)
    with exact():
        want = evaluate(both, [x, y])
    same(evaluate_on_device(both, [x, y]), want)


def test_derivatives_times_a_factor():
    x, factor = numbers(1, 50), numbers(2, 50)
    for name in ("silu_grad", "gelu_grad", "gelu_tanh_grad"):
        same(
            device_elementary.apply_times(name, x, factor), elementary.apply_times(name, x, factor)
        )


@given(
    rank=st.integers(1, 3),
    groups=st.integers(1, 2),
    channels=st.tuples(st.integers(0, 2), st.integers(1, 2), st.integers(1, 3)),
    data=st.data(),
    transposed=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_convolutions(rank, groups, channels, data, transposed, seed):
    def draw(low, high):
        return data.draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))

    size, kernel, stride, padding, dilation = (
        draw(1, 6), draw(1, 3), draw(1, 3), draw(0, 2), draw(1, 2),
    )  # fmt: skip
    extra = [
        data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
    ]
    num_n, num_c, num_o = channels
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    axes = list(zip(size, stride, padding, reach, extra, strict=True))
    if transposed:
        fits = all((n - 1) * s - 2 * p + r + e > 0 for n, s, p, r, e in axes)
    else:
        fits = all(n + 2 * p >= r for n, _, p, r, _ in axes)
    if not fits or not num_n:
        return
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_n, num_c * groups, *size, generator=generator)
    outer, inner = (num_c * groups, num_o) if transposed else (num_o * groups, num_c)
    w = torch.randn(outer, inner, *kernel, generator=generator)
    geometry = (stride, padding, dilation, transposed, extra if transposed else [0] * rank, groups)
    with exact():
        want = evaluate(lambda x, w: torch.convolution(x, w, None, *geometry), [x, w])
    same(evaluate_on_device(lambda x, w: torch.convolution(x, w, None, *geometry), [x, w]), want)


def test_convolution_in_parts(monkeypatch):
    x, w, grad = numbers(1, 3, 2, 7, 7), numbers(2, 4, 2, 3, 3), numbers(3, 3, 4, 7, 7)
    window = convolution.Window(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    monkeypatch.setattr(device_convolution, "_INNER", 5)  # three taps at a time
    monkeypatch.setattr(device_convolution, "_CHUNK", 1)  # one sample at a time
    for name, arguments in {
        "forward": (x, w, window, 1, (7, 7), 20),
        "input_gradient": (grad, w, window, 1, (7, 7), 20),
        "weight_gradient": (grad, x, window, 1, 20),
    }.items():
        twin = getattr(device_convolution, name)
        same(twin(*arguments), getattr(convolution, name)(*arguments))


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)))
def test_adam(flags):
    same_update(updates.adam, device_optimisers.adam, 5, AdamFlags(*flags), AdamNumbers)


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=4)))
def test_sgd(flags):
    same_update(updates.sgd, device_optimisers.sgd, 3, SgdFlags(*flags), SgdNumbers)


def same_update(update, twin, tensors, flags, kind):
    cpu = [numbers(i, 37) for i in range(tensors)]
    cpu[3:] = [x.abs() for x in cpu[3:]]  # squares
    device = [x.clone() for x in cpu]
    values = kind(*(np.float32(0.1 + i / 7) for i in range(len(kind._fields))))
    update(*cpu, flags, values)
    twin(*device, flags, values)
    same(device, cpu)


# The pretended device


def on_device(function, *inputs, step=0):
    """One call, as (result on the CPU, whether it was computed on the device)."""
    with pretended() as place, exact(step, place), Moving(place):
        result = function(*(x.to(place) for x in inputs))
    return here(result), isinstance(result, Elsewhere)


@pytest.mark.parametrize(
    "name", sorted(DRAWS.keys() - {"trunc_normal"})
)  # it leaves "meta" tensors alone
def test_draws(name):
    with exact():
        want = DRAWS[name]()
    got, there = on_device(DRAWS[name])
    assert there or name == "normal"  # torch.normal knows no default device
    same(got, want)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_dropout_of_cuda_is_dropout_of_the_cpu(p):
    """F.dropout is one fused operator on CUDA and a product on the CPU, backward too."""
    x = numbers(1, 40, 50)
    with exact():
        want = evaluate(lambda x: F.dropout(x, p), [x])
    same(evaluate_on_device(lambda x: torch.native_dropout(x, p, True)[0], [x]), want)


def test_the_pretended_device_computes_as_cuda_does():
    """Without the gate's repairs the quirks show, so that the tests here can fail."""
    x = numbers(1, 1000)
    with pretended() as place:
        there = x.to(place)
        assert not torch.equal((there / 3).values, x / 3)
        assert not torch.equal(torch.add(there, there, alpha=0.3).values, x + x * 0.3)
        assert not torch.relu(-torch.zeros(2).to(place)).values.signbit().any()
        places = torch.tensor([0, 0]).to(place)
        assert torch.zeros(1).to(place).scatter(0, places, x[:2].to(place)).values == x[0]
        with pytest.raises(RuntimeError, match="same device"):
            there + x


# Why a job cannot be shown here.
NOT_SHOWN = {
    **dict.fromkeys(
        ("lstm", "gru", "rnn"), "transpose_ changes a shape behind the pretended tensor"
    ),
    "perceptron-asgd": "makes tensors of its state out of sight of the dispatch modes",
}


REFUSED = {
    "mixtral": "histc",  # of integers, which it counts so on a device alone
    "recommender": "scatter_reduce",  # of bags that take the largest value
}


@pytest.mark.parametrize("name", sorted(zoo.jobs().keys() - NOT_SHOWN.keys() - REFUSED.keys()))
def test_zoo_on_the_pretended_device(name):
    """Two steps: the second one starts from a state that a step has made."""
    job = zoo.jobs()[name]
    want = train(job, "cpu", 2)
    with pretended():
        assert train(job, "meta", 2) == want


@pytest.mark.parametrize("name", REFUSED)
def test_zoo_that_the_gate_refuses(name):
    with pretended(), pytest.raises(UnsupportedOperatorError, match=REFUSED[name]):
        train(zoo.jobs()[name], "meta", 1)


def train(job, device, steps):
    """State digests and losses."""
    program, batches = Program.build(job, device=device), Batches(job)
    found = [(digest(program), 0.0)]
    for number in range(1, steps + 1):
        loss = run_step(program, number, batches[number])
        found.append((digest(program), loss))
    return found


def state(program):
    return {name: here(tensor) for name, tensor in capture(program).items()}


def digest(program):
    return state_root(state_entries(state(program)))


def test_a_state_moves_between_places():
    job = zoo.jobs()["transformer-adamw"]
    here = Program.build(job)
    batches = Batches(job)
    run_step(here, 1, batches[1])
    with pretended():
        there = Program.build(job, device="meta")
        restore(there, capture(here))
        assert all(
            isinstance(tensor, Elsewhere)
            for name, tensor in capture(there).items()
            if not name.endswith(("hyper", "scheduler/state"))
        )
        assert digest(there) == digest(here)
        run_step(there, 2, batches[2])
    run_step(here, 2, batches[2])
    assert digest(there) == digest(here)


def test_sort_keys_order_floats_as_the_cpu_does():
    x = torch.tensor([0.0, -0.0, 1.0, float("nan"), -1.0, float("inf"), -float("inf"), 1e-45, -0.0])
    x[3] = -x[3]  # a NaN with a sign
    for descending in (False, True):
        got, want = (
            gate.sort(x, 0, descending),
            torch.sort(x, dim=0, descending=descending, stable=True),
        )
        same([got[0], got[1]], [want[0], want[1]])


@given(st.integers(0, 2**31), st.integers(0, 1), st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_scatter_keeps_the_last(seed, dim, count):
    generator = torch.Generator().manual_seed(seed)
    x, source = torch.randn(3, 4, generator=generator), torch.randn(4, 4, generator=generator)
    shape = (count, 4) if dim == 0 else (3, count)
    index = torch.randint(x.shape[dim], shape, generator=generator)
    same(gate.scatter(x, dim, index, source), x.scatter(dim, index, source))


@given(
    hnp.arrays(np.float32, 20, elements=anything),
    st.one_of(st.none(), anything, st.just(-0.0)),
    anything,
)
@settings(max_examples=100, deadline=None)
def test_clamps(values, low, high):
    x = torch.from_numpy(values)
    same(gate.way(torch.ops.aten.clamp.default)(x, low, high), torch.clamp(x, low, high))
    same(gate.way(torch.ops.aten.clamp_max.default)(x, high), torch.clamp_max(x, high))
    same(gate.way(torch.ops.aten.relu.default)(x), torch.relu(x))


# Refusals


@contextmanager
def without_rules():
    """The gate alone, as within a rule."""
    with torch.utils._python_dispatch._disable_current_modes(), gate.DeviceGate():
        yield


def test_what_is_not_known_is_refused():
    with pretended() as place, exact(device=place):
        x = torch.ones(3)
        assert isinstance(x, Elsewhere)
        for refused in (
            lambda: torch.ops.aten.sum(x),
            lambda: torch.ops.aten.exp(x),
            lambda: torch.mm(x[None], x[:, None]),
            lambda: torch.sqrt(x),
            lambda: torch.ops.aten.cumsum(x.long(), 0, dtype=torch.float32),
            lambda: torch.ops.aten.div(x, 2.0, rounding_mode="trunc"),
            lambda: torch.ops.aten.sub.Tensor(x, x, alpha=0.5),
            lambda: torch.ops.aten.index_put(x, [x.long()], x, True),
        ):
            with without_rules(), pytest.raises(UnsupportedOperatorError):
                refused()


def test_another_device_is_refused():
    with pretended() as place:
        x = torch.ones(3).to(place)
        with exact(), pytest.raises(UnsupportedOperatorError, match="computed on the CPU"):
            x + x


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "cuda"])
def test_a_device_that_is_not_there(name):
    if name == "cuda" and torch.cuda.is_available():
        assert find_device(name).type == "cuda"
        return
    with pytest.raises(UsageError, match="device"):
        find_device(name)


def test_emulated_products_are_refused(monkeypatch):
    monkeypatch.setenv("CUBLAS_EMULATE_DOUBLE_PRECISION", "1")
    with pytest.raises(UsageError, match="inexact"), exact(device=pretend_device.PLACE):
        pass
