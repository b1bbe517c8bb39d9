"""The Triton kernels through Triton's interpreter, on CPU tensors; run by test_fused.py in a
process of its own, since TRITON_INTERPRET is read when Triton is loaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rules_support import same
from test_device import slices, test_adam, test_sgd  # noqa: F401 - run here too
from test_elementary import SPECIAL, floats_of

from veritrain.numerics.cpu import elementary, exact_sums, integers, philox
from veritrain.numerics.device import elementary_twins as device_elementary
from veritrain.numerics.device import fused
from veritrain.numerics.device import integer_twins as device_integers
from veritrain.numerics.device import philox_twins as device_random
from veritrain.numerics.device import sum_twins as device_sums


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch):
    monkeypatch.setattr(fused, "serves", lambda place: True)
    monkeypatch.setattr(fused, "_BLOCK", 8)  # several programs
    monkeypatch.setattr(fused, "_ROWS", 2)
    monkeypatch.setattr(fused, "_COLUMNS", 2)


@given(slices(), st.integers(1, 51))
@settings(max_examples=40, deadline=None)
def test_integers(values, bits):
    x, shape = torch.from_numpy(values), values.shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "serves", lambda place: True)
        same(device_integers.quantise(x, shape, bits), integers.quantise(x, shape, bits))
        same(device_sums.total(x, shape), exact_sums.total(x, shape))


@pytest.mark.parametrize("shape", [(1, 1, 3, 50), (1, 50, 3, 1), (2, 5, 3, 1), (1, 0, 3, 2)])
def test_sums(shape):
    x = torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))
    same(device_sums.total(x, shape), exact_sums.total(x, shape))


def test_rescale():
    generator = torch.Generator().manual_seed(1)
    c = torch.randint(-(2**53), 2**53, (2, 3, 5), generator=generator).double()
    rows, columns = torch.full((2, 3), 2.0**-90), torch.full((2, 5), 2.0**-70)
    rows[1, 2], columns[0, 1] = float("nan"), 2.0**40
    arguments = (c, rows.double(), columns.double())
    expected = torch.empty(arguments[0].shape)
    integers.rescale(*arguments, expected)
    same(device_integers.rescale(*arguments), expected)


@pytest.mark.filterwarnings("ignore:overflow")  # numpy, of products modulo 2^64
@pytest.mark.parametrize(
    "key", [0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF]
)
def test_random_numbers(key):
    for count in (0, 1, 31, 32, 37):
        got = device_random.uniform24_on(key, (count,), torch.device("cpu"))
        same(got, philox.uniform24(key, (count,)))


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy, of the square root of -1
@pytest.mark.parametrize("name", sorted(elementary.FUNCTIONS))
def test_elementary(name, monkeypatch):
    monkeypatch.setattr(fused, "_BLOCK", 1024)
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randint(-(2**31), 2**31, (3000,), generator=generator).to(torch.int32)
    moderate = torch.randn(3000, generator=generator) * 4
    for x in (floats_of(SPECIAL), patterns.view(torch.float32), moderate, moderate[:0]):
        same(device_elementary.apply(name, x), elementary.apply(name, x))
