"""Every result is the correctly rounded one, and the error bounds are neither short nor idle."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mpmath import mp

import spec
from spec.elementary import exact_value
from veritrain.errors import UsageError
from veritrain.numerics.cpu import (
    elementary,
    elementary_constants,
    elementary_intervals,
    elementary_kernels,
    elementary_quick,
    multiprecision,
)

NAMES = sorted(elementary.FUNCTIONS)
VECTORS = Path(__file__).parents[2] / "vectors/numerics/elementary/cases.json"
INF, NAN = math.inf, math.nan

SPECIAL = [0x00000000, 0x00000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000]
SPECIAL += [0x7F800001, 0x7FC12345, 0x3F800000, 0x3F000000, 0x3E800000, 0x33800000, 0x33800001]
SPECIAL += [bits | 0x80000000 for bits in SPECIAL]


def floats_of(bits: list[int] | np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32))


def bits_of(x: torch.Tensor) -> np.ndarray:
    return x.reshape(-1).numpy().view(np.uint32)


def assert_rounded(name: str, x: torch.Tensor) -> None:
    """Alone, which is by interval, and each in a chunk of usual values, which is tried quickly
    first."""
    chunks = torch.ones(x.numel(), int(elementary_kernels.CHUNK))
    chunks[:, 0] = x
    expected = [multiprecision.rounded_bits(name, v) for v in x.tolist()]
    for got in (elementary.apply(name, x), elementary.apply(name, chunks)[:, 0].contiguous()):
        for value, g, e in zip(x.tolist(), bits_of(got).tolist(), expected, strict=True):
            assert g == e, f"{name}({value!r}): expected {e:08x}, got {g:08x}"


# Results


@pytest.mark.parametrize("name", NAMES)
def test_special_inputs(name: str) -> None:
    assert_rounded(name, floats_of(SPECIAL))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=20, max_size=40))
def test_any_bits(name: str, bits: list[int]) -> None:
    assert_rounded(name, floats_of(bits))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(values=st.lists(st.floats(-20, 20, width=32), min_size=20, max_size=40))
def test_common_values(name: str, values: list[float]) -> None:
    assert_rounded(name, torch.tensor(values))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("exp", np.exp),
        ("expm1", np.expm1),
        ("tanh", np.tanh),
        ("log", np.log),
        ("log1p", np.log1p),
        ("sin", np.sin),
        ("cos", np.cos),
        ("sqrt", np.sqrt),
    ],
)
def test_sweep_over_all_bit_patterns(name: str, function: np.ufunc) -> None:
    """Against long double functions; where those cannot decide, against the reference."""
    bits = np.arange(0, 2**32, 4093, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    if name in {"sin", "cos"}:
        x = x[np.abs(x) < 2.0**20]  # beyond, the reference does all the work
    got = elementary.apply(name, torch.from_numpy(x)).numpy()
    with np.errstate(all="ignore"):
        wide = function(x.astype(np.longdouble))
        slack = np.abs(wide) * (16 * np.finfo(np.longdouble).eps)
        low, high = (wide - slack).astype(np.float32), (wide + slack).astype(np.float32)
    decided = (low == high) & np.isfinite(wide) & (wide != 0)
    assert np.array_equal(got.view(np.uint32)[decided], low.view(np.uint32)[decided])
    assert np.array_equal(np.isnan(wide), np.isnan(got))
    undecided = np.flatnonzero(~decided & ~np.isnan(wide) & np.isfinite(x))
    assert_rounded(name, torch.from_numpy(x[undecided[:: max(1, undecided.size // 500)]]))


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("exp", -INF, 0.0),
        ("exp", 89.0, INF),
        ("exp", -104.0, 0.0),
        ("exp", -103.0, 2.0**-149),
        ("expm1", -INF, -1.0),
        ("tanh", -0.0, -0.0),
        ("expm1", -0.0, -0.0),
        ("erf", -0.0, -0.0),
        ("erfinv", -0.0, -0.0),
        ("erfinv", -1.0, -INF),
        ("erfinv", 1.5, NAN),
        ("sin", -0.0, -0.0),
        ("log1p", -0.0, -0.0),
        ("sqrt", -0.0, -0.0),
        ("silu", -0.0, -0.0),
        ("gelu", -0.0, -0.0),
        ("gelu_tanh", -0.0, -0.0),
        ("silu", -INF, -0.0),
        ("gelu", -INF, -0.0),
        ("gelu_tanh", -INF, -0.0),
        ("gelu", INF, INF),
        ("softplus", -INF, 0.0),
        ("softplus", INF, INF),
        ("gelu_grad", -INF, -0.0),
        ("gelu_grad", INF, 1.0),
        ("log", -0.0, -INF),
        ("log", 1.0, 0.0),
        ("log", -1.0, NAN),
        ("log1p", -1.0, -INF),
        ("log1p", -2.0, NAN),
        ("sqrt", -1.0, NAN),
        ("rsqrt", -0.0, -INF),
        ("rsqrt", 0.0, INF),
        ("rsqrt", INF, 0.0),
        ("sin", INF, NAN),
        ("cos_two_pi", 0.25, 0.0),
        ("cos_two_pi", -0.25, 0.0),
        ("sin_two_pi", 0.5, 0.0),
        ("sin_two_pi", -0.5, -0.0),
    ],
)
def test_stated_values(name: str, x: float, expected: float) -> None:
    got = elementary.apply(name, torch.tensor([x]))
    assert bits_of(got).item() == multiprecision.bits_of(expected)


def test_vectors() -> None:
    cases = json.loads(VECTORS.read_text())
    assert sorted(cases) == NAMES
    for name, pairs in cases.items():
        inputs, outputs = zip(*pairs, strict=True)
        got = bits_of(elementary.apply(name, floats_of([int(bits, 16) for bits in inputs])))
        for given_bits, expected, g in zip(inputs, outputs, got.tolist(), strict=True):
            assert f"{g:08x}" == expected, f"{name}({given_bits})"


# Error bounds


def points(name: str) -> list[float]:
    """Where the fp64 functions are worst: reduction limits, thresholds, cancellation, at random."""
    random = np.random.default_rng(11)
    spans = [random.uniform(-s, s, 250) for s in (0.2, 0.4, 1.1, 4, 16, 100)]
    edges = np.arange(-40, 41)[:, None] * np.log(2) / 2 * (1 + np.array([-1e-6, 0, 1e-6]))
    tiny = 2.0 ** random.uniform(-60, 0, 200) * random.choice([-1, 1], 200)
    x = np.concatenate([*spans, edges.ravel(), tiny, 1 + tiny / 4]).astype(np.float32)
    x = x[x != 0]
    if name in {"log", "sqrt", "rsqrt"}:
        x = np.abs(x)
    if name == "log1p":
        x = x[x > -1]
    limit = {"erf": 4.0, "erfinv": 1.0, "gelu": 15.0, "gelu_grad": 15.0}.get(name, 110.0)
    return x[np.abs(x) < limit].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_bounds_hold_and_are_not_idle(name: str) -> None:
    interval = getattr(elementary_intervals, f"{name}_interval")
    worst = 0.0
    for x in points(name):
        low, high = interval(x)
        exact = exact_value(name, x)
        if abs(exact) < 2.0**-151:
            continue  # rounds to zero: arguments may be clamped
        if low == high:
            assert name == "sqrt"
            continue
        with mp.workprec(200):
            centre, radius = (mp.mpf(low) + high) / 2, (mp.mpf(high) - low) / 2
            worst = max(worst, float(abs(mp.mpf(exact) - centre) / radius))
    assert worst < 0.75, "the bound is too tight for comfort"
    if name != "sqrt":
        assert worst > 0.08, (
            "the bound could be much tighter: entries are left undecided for nothing"
        )


QUICK = sorted(name for name in dir(elementary_quick) if name.endswith(("_quick", "_near")))


@pytest.mark.parametrize("kernel", QUICK)
def test_quick_values_decide_rightly(kernel: str) -> None:
    """Within their bound where they are used, and no decided one rounds to another number."""
    quick = getattr(elementary_quick, kernel)
    name = kernel.rpartition("_")[0]
    decided = 0
    for x in points(name):
        y, sure = quick(np.float32(x))
        if not sure:
            continue
        decided += 1
        exact = mp.mpf(exact_value(name, x))
        assert multiprecision.bits_of(y) == multiprecision.rounded_bits(name, x)
        with mp.workprec(200):
            assert abs(y - exact) <= 0.75 * _quick_bound(kernel, name, x, exact)
    assert decided > 400


def _quick_bound(kernel: str, name: str, x: float, exact: mp.mpf) -> mp.mpf:
    if kernel == "gelu_grad_near":
        return mp.mpf(elementary_constants.NEAR_GELU_GRAD)
    if name.endswith("_grad"):  # of f(x) = x s(x): s + x s', and s = f(x) / x
        first = mp.mpf(exact_value(name.removesuffix("_grad"), x)) / x
        return elementary_constants.QUICK * (first + abs(exact - first))
    return elementary_constants.QUICK * abs(exact)


@pytest.mark.parametrize("kernel", QUICK)
def test_quick_values_decide_nearly_all(kernel: str) -> None:
    x = np.random.default_rng(6).normal(0, 0.7, 20_000).astype(np.float32)
    x = np.abs(x) if kernel in {"log_quick", "rsqrt_quick"} else x
    quick = getattr(elementary_quick, kernel)
    assert sum(not quick(value)[1] for value in x) <= 30


@pytest.mark.parametrize("name", ["silu_grad", "gelu_grad", "gelu_tanh_grad"])
def test_products_are_rounded_by_themselves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([floats_of(SPECIAL), torch.linspace(-9, 9, 200)])
    factor = torch.linspace(-2, 5, x.numel())
    expected = bits_of(elementary.apply(name, x) * factor)
    assert np.array_equal(bits_of(elementary.apply_times(name, x, factor)), expected)

    def undecided(
        _x: np.ndarray, _factor: np.ndarray, out: np.ndarray, start: int, stop: int
    ) -> int:
        out[start:stop] = elementary_constants.UNDECIDED
        return stop - start

    monkeypatch.setitem(elementary._PRODUCTS, name, undecided)
    assert np.array_equal(bits_of(elementary.apply_times(name, x, factor)), expected)
    with pytest.raises(UsageError, match="expected one shape"):
        elementary.apply_times(name, x, factor[:1])


@pytest.mark.parametrize("name", NAMES)
def test_few_entries_are_undecided(name: str) -> None:
    x = torch.from_numpy(np.random.default_rng(5).normal(0, 3, 400_000).astype(np.float32))
    out = np.empty(x.numel(), np.int32)
    assert elementary.FUNCTIONS[name](x.numpy(), out, 0, x.numel()) <= 8


@pytest.mark.parametrize("name", ["exp", "gelu", "log", "sin_two_pi"])
def test_undecided_entries_get_the_same_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([floats_of(SPECIAL), torch.linspace(-3, 3, 50)])
    expected = bits_of(elementary.apply(name, x))

    def undecided(_x: np.ndarray, out: np.ndarray, start: int, stop: int) -> int:
        out[start:stop] = elementary_constants.UNDECIDED
        return stop - start

    monkeypatch.setitem(elementary.FUNCTIONS, name, undecided)
    assert np.array_equal(bits_of(elementary.apply(name, x)), expected)


# Powers


def assert_powers(x: torch.Tensor, y: torch.Tensor) -> None:
    got = bits_of(elementary.power(x, y)).tolist()
    for g, base, exponent in zip(got, x.tolist(), y.tolist(), strict=True):
        expected = multiprecision.power_bits(base, exponent)
        assert g == expected, f"{base!r} ** {exponent!r}: expected {expected:08x}, got {g:08x}"


WHOLE = [0.0, 1.0, 2.0, 3.0, 0.5, 1.5, 0.25, 150.0, 149.0, 2.0**24, 4097.0, 2.0**-140, 3e38, INF]


def test_special_powers_are_those_of_ieee() -> None:
    """numpy's powers of doubles follow IEEE but for roots of -0 and -infinity, which have no
    sign."""
    values = torch.tensor([sign * value for value in WHOLE for sign in (1, -1)] + [NAN])
    x, y = (part.reshape(-1) for part in torch.meshgrid(values, values, indexing="ij"))
    assert_powers(x, y)
    with np.errstate(all="ignore"):
        expected = np.power(x.double().numpy(), y.double().numpy()).astype(np.float32)
    same = torch.from_numpy(expected).eq(elementary.power(x, y)) | (
        torch.from_numpy(expected).isnan() & elementary.power(x, y).isnan()
    )
    odd = x.isinf() & (x < 0) & (y.frac() != 0)
    assert bool((same | odd).all())


@settings(max_examples=40, deadline=None)
@given(bits=st.lists(st.tuples(*[st.integers(0, 2**32 - 1)] * 2), min_size=20, max_size=40))
def test_powers_of_any_bits(bits: list[tuple[int, int]]) -> None:
    bases, exponents = zip(*bits, strict=True)
    assert_powers(floats_of(list(bases)), floats_of(list(exponents)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 20, width=32), st.floats(-9, 9, width=32)), min_size=20))
def test_common_powers(pairs: list[tuple[float, float]]) -> None:
    x, y = torch.tensor(pairs).unbind(1)
    assert_powers(x.contiguous(), y.contiguous())
    assert_powers(x.contiguous(), y.round())


@settings(max_examples=60, deadline=None)
@given(odd=st.integers(1, 2**12), power=st.integers(1, 5), shift=st.integers(-75, 40))
def test_ties_and_exact_powers(odd: int, power: int, shift: int) -> None:
    """Among them products of 25 bits, half-way between two fp32 numbers; and exact roots."""
    x = Fraction(2 * odd + 1) * Fraction(2) ** shift
    got = elementary.power(torch.tensor([float(x)]), torch.tensor([float(power)]))
    assert got.item() == spec.to_float32(x**power)
    if shift >= -74 and (2 * odd + 1) ** 2 < 2**24:  # the square is an fp32 number
        root = elementary.power(torch.tensor([float(x * x)]), torch.tensor([0.5]))
        assert root.item() == float(x)


def test_vectors_of_powers() -> None:
    triples = json.loads(VECTORS.with_name("powers.json").read_text())
    x, y, expected = ([int(bits, 16) for bits in column] for column in zip(*triples, strict=True))
    assert bits_of(elementary.power(floats_of(x), floats_of(y))).tolist() == expected


def test_bound_of_powers_holds_and_is_not_idle() -> None:
    random = np.random.default_rng(12)
    x, y = 2.0 ** random.uniform(-20, 20, 3000), random.normal(0, 4, 3000)
    worst = 0.0
    for base, exponent in zip(x.astype(np.float32), y.astype(np.float32), strict=True):
        if abs(float(exponent) * math.log(base)) > 85:
            continue
        low, high = elementary_intervals.power_interval(float(base), float(exponent))
        with mp.workprec(200):
            exact = mp.mpf(float(base)) ** mp.mpf(float(exponent))
            centre, radius = (mp.mpf(low) + high) / 2, (mp.mpf(high) - low) / 2
            worst = max(worst, float(abs(exact - centre) / radius))
    assert 0.08 < worst < 0.75


def test_powers_broadcast_and_refuse_other_types() -> None:
    y = elementary.power(torch.tensor([[2.0], [3.0]]), torch.tensor([1.0, 2.0, -1.0]))
    assert y.tolist() == [[2.0, 4.0, 0.5], [3.0, 9.0, float(np.float32(1 / 3))]]
    assert elementary.power(torch.empty(0, 2), torch.ones(2)).shape == (0, 2)
    with pytest.raises(UsageError, match="power: expected a float32 tensor"):
        elementary.power(torch.ones(1), torch.ones(1, dtype=torch.float64))


def _digest() -> str:
    bits = np.random.default_rng(8).integers(0, 2**32, 2_000, dtype=np.uint32)
    near = np.random.default_rng(9).normal(0, 4, 20_000).astype(np.float32)
    x = torch.cat([floats_of(bits), torch.from_numpy(near)])
    digest = hashlib.sha256()
    for name in NAMES:
        digest.update(bits_of(elementary.apply(name, x)).tobytes())
    digest.update(bits_of(elementary.power(x, x.roll(1))).tobytes())
    return digest.hexdigest()


def test_another_machine_gives_the_same_bits(tmp_path: Path) -> None:
    """A processor of 2003: no AVX, no fused multiply-add, PyTorch's plain kernels."""
    plain = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "", "ATEN_CPU_CAPABILITY": "default"}
    if os.uname().machine != "x86_64":
        plain = {"ATEN_CPU_CAPABILITY": "default"}
    environment = {**os.environ, **plain, "OMP_NUM_THREADS": "1"}
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['_digest']())"
    other = subprocess.run(
        [sys.executable, "-c", code, __file__],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert other.stdout.strip() == _digest()


# The tensors around it


@settings(deadline=None)  # the first example may have to compile
@given(shape=st.lists(st.integers(0, 4), max_size=4))
def test_shapes_and_strides(shape: list[int]) -> None:
    base = torch.randn([*shape, 2])
    for x in (base[..., 0], base.transpose(0, -1), base.flip(0)):
        before = x.clone()
        y = elementary.apply("tanh", x)
        assert y.shape == x.shape
        assert y.is_contiguous()
        assert y.dtype == torch.float32
        assert torch.equal(x, before)
        assert torch.equal(y.view(-1), elementary.apply("tanh", x.reshape(-1)))


def test_grad_mode_and_empty_and_scalar_inputs() -> None:
    assert elementary.apply("exp", torch.tensor(0.0, requires_grad=True)).item() == 1.0
    assert elementary.apply("exp", torch.empty(0, 3)).shape == (0, 3)
    assert elementary.apply("exp", torch.zeros(1).expand(3, 4)).tolist() == [[1.0] * 4] * 3


def test_other_types_are_refused() -> None:
    with pytest.raises(UsageError, match="expected a float32 tensor, got torch.float64"):
        elementary.apply("exp", torch.zeros(2, dtype=torch.float64))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="got 'exp10'"):
        elementary.apply("exp10", torch.zeros(1))
    with pytest.raises(UsageError, match="got 'exp10'"):
        multiprecision.rounded_bits("exp10", 0.0)


# The reference itself


def nearest_by_fractions(value: Fraction) -> int:
    """Compare with both neighbours of a double's conversion: no bit arithmetic."""
    if value == 0:
        return 0
    guess = np.float32(float(value))
    candidates = {
        guess,
        np.nextafter(guess, np.float32(INF)),
        np.nextafter(guess, -np.float32(INF)),
    }
    finite = [c for c in candidates if np.isfinite(c)]
    best = min(finite, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(np.uint32)) & 1))
    return int(best.view(np.uint32))


@settings(max_examples=300, deadline=None)
@given(mantissa=st.integers(-(2**60), 2**60), exponent=st.integers(-215, 60))
@example(mantissa=2**24 + 1, exponent=0)
@example(mantissa=2**24 + 3, exponent=-10)
@example(mantissa=3, exponent=-150)
@example(mantissa=1, exponent=-150)
@example(mantissa=2**24 - 1, exponent=-150)
def test_rounding_to_fp32(mantissa: int, exponent: int) -> None:
    value = mp.mpf((mantissa, exponent))
    got = multiprecision._nearest(value)
    expected = nearest_by_fractions(Fraction(mantissa) * Fraction(2) ** exponent)
    assert got & 0x7FFFFFFF == expected & 0x7FFFFFFF
    assert got >> 31 == (mantissa < 0)


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("silu", lambda x: x / (1 + mp.exp(-x))),
        ("gelu", lambda x: x / 2 * (1 + mp.erf(x / mp.sqrt(2)))),
        (
            "gelu_tanh",
            lambda x: x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))),
        ),
    ],
)
@given(x=st.floats(-9, 9, width=32))
@settings(max_examples=25, deadline=None)
def test_definitions_and_derivatives(name: str, definition: object, x: float) -> None:
    with mp.workprec(200):
        value, slope = definition(mp.mpf(x)), mp.diff(definition, mp.mpf(x))
        assert abs(value - mp.mpf(exact_value(name, x))) < 2.0**-150
        grad = mp.mpf(exact_value(f"{name}_grad", x))
        assert abs(slope - grad) < 2.0**-60
