"""Results under `logged` are as good as the target's numbers: the grid's absolute floor spoils
none.

The same kernel in binary64 is what is exact. An error is that of the whole result, in 2-norms, over
the target's own rounding error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.numerics.logged import test_vendor as vendor
from veritrain.numerics.profile import Logged, resolve

aten: Any = torch.ops.aten
TARGETS = ["logged", "logged-bf16"]


def operators() -> Iterator[tuple[Any, tuple]]:
    """Calls of ordinary operands, then with what makes a scale too large if it takes part in it."""
    random = torch.Generator().manual_seed(0)
    x = partial(vendor.even, random)
    for group in (vendor.products, vendor.convolutions, vendor.embeddings, vendor.normalisations):
        yield from group(x)
    rows = x(64, 256)
    rows[5] = 0.0
    yield aten.native_layer_norm.default, (rows, [256], torch.ones(256), torch.zeros(256), 1e-12)
    indices = torch.randint(0, 1000, (4096,), generator=random)
    indices[:3000] = 0
    yield aten.embedding_dense_backward.default, (x(4096, 16), indices, 1000, -1, False)
    for lowest in (-math.inf, -1e9):
        mask = torch.where(x(40, 40) > 0, lowest, 0.0).expand(6, 40, 40)
        yield aten.baddbmm.default, (mask, x(6, 40, 16), x(6, 16, 40))
    yield aten.addmm.default, (torch.full((20,), 1e6), x(30, 90), x(90, 20))


def computed(numerics: str, function: Any, *arguments: Any) -> list[Tensor]:
    profile = resolve(numerics)
    assert isinstance(profile, Logged)
    rounding = profile.recording({})
    with profile.active(seed=1, purpose="step", step=1, rounding=rounding):
        found = function(*arguments)
    return [found] if isinstance(found, Tensor) else list(found)


def wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def error(found: Tensor, exact: Tensor, numerics: str) -> float:
    """In units of the target's rounding error."""
    is_finite = exact.isfinite()
    assert torch.equal(found.isfinite(), is_finite)
    rest = (found.double() - exact)[is_finite].norm() / exact[is_finite].norm().clamp(min=1e-300)
    return float(rest) * 2.0 ** (24 if numerics == "logged" else 9)


@pytest.mark.parametrize("numerics", TARGETS)
def test_results_are_as_good_as_the_targets_numbers(numerics):
    for operator, arguments in operators():
        exact = operator(*map(wide, arguments))
        exact = [exact] if isinstance(exact, Tensor) else list(exact)
        found = computed(numerics, operator, *arguments)
        for place, (one, other) in enumerate(zip(found, exact, strict=True)):
            if one.numel():
                assert error(one, other, numerics) < 6.0, f"{operator}, result {place}"


@pytest.mark.parametrize("numerics", TARGETS)
@pytest.mark.parametrize("mask", ["causal", "none", "far"])
def test_gradients_of_attention_are_as_good_as_the_targets_numbers(numerics, mask):
    random = torch.Generator().manual_seed(1)
    inputs = [torch.randn(2, 4, 96, 32, generator=random) for _ in range(4)]
    far = torch.where(torch.randn(96, 96, generator=random) > 0, -1e9, 0.0)

    def attend(*given: Tensor) -> tuple[Tensor, ...]:
        query, key, value = (x.clone().requires_grad_() for x in given[:3])
        own = far.to(query.dtype) if mask == "far" else None
        out = F.scaled_dot_product_attention(query, key, value, own, is_causal=mask == "causal")
        return out, *torch.autograd.grad(out, (query, key, value), given[3])

    exact = attend(*map(wide, inputs))
    for place, (one, other) in enumerate(
        zip(computed(numerics, attend, *inputs), exact, strict=True)
    ):
        assert error(one.detach(), other.detach(), numerics) < 12.0, place
