"""Python floats: correctly rounded functions and powers, the same on every machine."""

from __future__ import annotations

import contextlib
import math
import random

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.machines import MACHINES, run
from veritrain.numerics.patches import exact_floats
from veritrain.numerics.patches.exact_floats import (
    ExactFloat,
    correctly_rounded_math,
    exact_hyperparameters,
)

finite = st.floats(1e-3, 50)


def nearest(true: mpmath.mpf, got: float) -> bool:
    """Neither neighbour of `got` is nearer to `true`."""
    error = abs(true - mpmath.mpf(got))
    neighbours = (math.nextafter(got, to) for to in (-math.inf, math.inf))
    return all(error <= abs(true - mpmath.mpf(other)) for other in neighbours)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(exact_floats._FUNCTIONS)), finite, st.floats(-5, 5))
def test_functions_round_correctly(name, x, y):
    if name in ("asin", "acos", "atanh"):
        x = x / 51
    if name == "acosh":
        x += 1
    arguments = (x, y) if name in ("pow", "atan2") else (x,)
    function = getattr(math, name, None)
    if function is None:  # a newer Python has it
        return
    with correctly_rounded_math():
        got = getattr(math, name)(*arguments)
    assert got == pytest.approx(function(*arguments), rel=1e-12)
    with mpmath.workprec(2000):
        assert nearest(mpmath.mpf(exact_floats._FUNCTIONS[name](*map(mpmath.mpf, arguments))), got)


def test_all_functions_are_put_back():
    names = [name for name in exact_floats._FUNCTIONS if hasattr(math, name)]
    before = [getattr(math, name) for name in names]
    with contextlib.suppress(ZeroDivisionError), correctly_rounded_math():
        assert [getattr(math, name) for name in names] != before
        assert random._log(2.0) == math.log(2.0)
        raise ZeroDivisionError
    assert [getattr(math, name) for name in names] == before
    assert random._log is math.log


@settings(max_examples=200, deadline=None)
@given(finite, st.floats(-20, 20) | st.integers(0, 100))
def test_powers_round_correctly(base, exponent):
    with mpmath.workprec(2000):
        true = mpmath.power(mpmath.mpf(base), mpmath.mpf(exponent))
        assert nearest(true, ExactFloat(base) ** exponent)
        assert nearest(true, base ** ExactFloat(exponent))


def test_what_is_computed_from_an_exact_float_is_one():
    x = ExactFloat(0.9)
    for value in (x + 1, 1 - x, 2 * x, x / 3, 3 / x, -x, x - 0.1, x**2, 0.96**x, 2**x, 1.5 + x):
        assert type(value) is ExactFloat
    assert x + 1 == 0.9 + 1
    assert 0.0 ** ExactFloat(2.0) == 0
    assert type((x * torch.ones(2)).sum().item()) is float
    with pytest.raises(ZeroDivisionError):
        0.0 ** ExactFloat(-1.0)


def test_hyperparameters_are_plain_again_afterwards():
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    group = optimizer.param_groups[0]
    group["extra"] = {"list": [0.5, 1]}
    before = dict(group)
    with contextlib.suppress(ZeroDivisionError), exact_hyperparameters(optimizer):
        assert type(group["lr"]) is type(group["betas"][0]) is ExactFloat
        group["used"] = group["lr"] ** 2
        optimizer.state[weight]["power"] = [group["betas"][0] ** 3]
        raise ZeroDivisionError
    assert type(group.pop("used")) is float
    assert group == before
    assert type(group["lr"]) is type(group["betas"][0]) is type(group["extra"]["list"][0]) is float
    assert type(optimizer.state[weight]["power"][0]) is float


POWERS = """
import math, random
from veritrain.numerics.patches.exact_floats import ExactFloat, correctly_rounded_math
values = [(0.5 + i / 4001, i % 100) for i in range(1, 1000)]
def functions():
    random.seed(1)
    return [f(x) for x, _ in values for f in (math.exp, math.log, math.cos)] + [
        random.gauss(0, 1) for _ in range(1000)
    ]
raw = [x**n for x, n in values], functions()
with correctly_rounded_math():
    exact = [ExactFloat(x) ** n for x, n in values], functions()
print(hash(str(raw)), hash(str(exact)))
"""


def test_powers_and_functions_are_the_same_on_every_machine(tmp_path, monkeypatch):
    (tmp_path / "scalars_on_a_machine.py").write_text(POWERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    machines = (MACHINES[0], MACHINES[3])
    results = [run(machine, "scalars_on_a_machine").split() for machine in machines]
    assert len({raw for raw, _ in results}) > 1, "the machines have one C library: nothing is shown"
    assert len({exact for _, exact in results}) == 1


def test_powers_of_both_zeros():
    assert math.copysign(1.0, ExactFloat(0.0) ** 3) == 1.0
    assert math.copysign(1.0, ExactFloat(-0.0) ** 3) == -1.0


def test_hyperparameters_of_numpy_are_exact_too():
    optimizer = torch.optim.Adamax([torch.zeros(1)], lr=np.float64(1e-3))
    optimizer.param_groups[0]["betas"] = [np.float64(0.9), 0.999]
    with exact_hyperparameters(optimizer):
        (group,) = optimizer.param_groups
        assert type(group["lr"]) is ExactFloat
        assert [type(beta) for beta in group["betas"]] == [ExactFloat, ExactFloat]
        assert type(abs(-group["lr"]) % 1) is ExactFloat
