"""The GPU against the CPU, bit for bit, where there is one.

`rules_support.check` runs the cases of every covered operator on it too, in the other test files.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_device import here
from rules_support import evaluate, evaluate_on_device, exact, numbers, same
from test_device import REFUSED, train
from test_elementary import SPECIAL, floats_of
from test_rules import CASES
from test_rules_random import DRAWS

import veritrain as vt
from tests import zoo
from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.cpu import elementary, exact_sums, integers, norms

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="PyTorch sees no GPU here; the pretended device stands in for one (test_device.py)",
)
CUDA = torch.device("cuda", 0)


# PyTorch computes an LSTM's and a GRU's cell in one operator there, which has no rule.
REFUSED_THERE = {*REFUSED, "lstm", "gru", "cells"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", zoo.jobs())
def test_every_step_has_the_same_bits(name):
    job = zoo.jobs()[name]
    if name in REFUSED_THERE:
        with pytest.raises(UnsupportedOperatorError):
            train(job, "cuda", 1)
    else:
        assert train(job, "cuda", 20) == train(job, "cpu", 20)


@pytest.mark.parametrize(("trainer", "auditor"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_either_device_audits_the_other(trainer, auditor, tmp_path):
    job = zoo.jobs(8)["convnet-sgd"]
    vt.train(job, tmp_path / "run", signer=vt.Signer.generate(), device=trainer)
    vt.audit(tmp_path / "run", job, device=auditor).require_accepted()


@pytest.mark.parametrize("name", CASES)
def test_no_case_is_refused(name):
    function, *inputs = CASES[name]
    with exact():
        want = evaluate(function, inputs)
    same(evaluate_on_device(function, inputs, CUDA), want)


@pytest.mark.parametrize("name", DRAWS)
def test_draws(name):
    with exact():
        want = DRAWS[name]()
    with exact(device=CUDA):
        same(here(DRAWS[name]()), want)


@pytest.mark.parametrize("name", sorted(elementary.FUNCTIONS))
def test_elementary(name):
    generator = torch.Generator().manual_seed(2)
    patterns = torch.randint(-(2**31), 2**31, (1 << 20,), generator=generator).to(torch.int32)
    moderate = torch.randn(1 << 20, generator=generator) * 4
    for x in (floats_of(SPECIAL), patterns.view(torch.float32), moderate):
        same(elementary.apply(name, x.to(CUDA)).cpu(), elementary.apply(name, x))


@given(
    sizes=st.tuples(*[st.integers(1, 300)] * 3),
    scale=st.integers(-120, 120),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_matrix_products(sizes, scale, seed):
    num_m, inner, num_n = sizes
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(num_m, inner, generator=generator) * 2.0**scale
    b = torch.randn(num_n, inner, generator=generator).T
    with exact():
        want = evaluate(torch.mm, [a, b])
    same(evaluate_on_device(torch.mm, [a, b], CUDA), want)


@pytest.mark.parametrize(
    ("groups", "kernel", "stride"), [(1, 3, 1), (1, 7, 2), (4, 3, 2), (1, 1, 1)]
)
def test_convolutions(groups, kernel, stride):
    x, w = numbers(1, 4, 16, 20, 20), numbers(2, 32, 16 // groups, kernel, kernel)

    def convolve(x, w):
        return torch.nn.functional.conv2d(x, w, None, stride, kernel // 2, 1, groups)

    with exact():
        want = evaluate(convolve, [x, w])
    same(evaluate_on_device(convolve, [x, w], CUDA), want)


@pytest.mark.parametrize("shape", [(1, 64, 128, 196), (1, 1, 500, 768), (1, 500, 768, 1)])
def test_sums_and_norms(shape):
    x = numbers(3, *shape) * torch.logspace(-30, 30, shape[2])[:, None]
    same(exact_sums.total(x.to(CUDA), shape).cpu(), exact_sums.total(x, shape))
    for bits in (1, 22, 51):
        got = integers.quantise(x.to(CUDA), shape, bits)
        same([part.cpu() for part in got], list(integers.quantise(x, shape, bits)))
    same([part.cpu() for part in norms.moments(x.to(CUDA), shape)], list(norms.moments(x, shape)))


def test_subnormal_numbers_are_kept():
    x = torch.tensor([1e-45, 1.1754942e-38, 3e-39])
    with exact():
        want = [x + x, x * 0.5, x / 3, x.sqrt(), x - 1e-45]
    with exact(device=CUDA):
        y = x.to(CUDA)
        same([here(z) for z in (y + y, y * 0.5, y / 3, y.sqrt(), y - 1e-45)], want)


def test_what_has_no_rule_is_refused():
    with exact(device=CUDA), pytest.raises(UnsupportedOperatorError):
        torch.ones(3).cosh()
