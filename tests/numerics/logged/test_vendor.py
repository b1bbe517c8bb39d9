"""A scale and its growth bound the error of the vendor's kernel, whatever the operands look like.

The kernel in binary32 is the machine here, the same in binary64 stands for what is exact. Sums of one sign
err most, since their partial sums are largest; they are what a bound by largest values gets wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from veritrain.numerics.logged.mode import _by_name, _is_plain
from veritrain.numerics.logged.thresholds import REACH
from veritrain.numerics.logged.vendor import VENDOR, Call

aten: Any = torch.ops.aten
UNIT = 2.0**-24
Make = Callable[..., Tensor]


def even(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def of_one_sign(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) * 0.3 + 0.7


def heavy(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator).pow(5)


def alike(generator: torch.Generator, *shape: int) -> Tensor:
    """Added up one by one, a number that is no sum of few powers of two errs the same way each time."""
    return torch.full(shape, 0.7) + torch.rand(1, generator=generator)


KINDS = [even, of_one_sign, heavy, alike]


def products(x: Make) -> list[tuple[Any, tuple]]:
    return [
        (aten.mm.default, (x(30, 900), x(900, 20))),
        (aten.addmm.default, (x(20), x(30, 900), x(900, 20))),
        (aten.bmm.default, (x(3, 30, 90), x(3, 90, 20))),
        (aten.baddbmm.default, (x(3, 30, 20), x(3, 30, 90), x(3, 90, 20))),
        (aten.sum.dim_IntList, (x(9, 8000), [1])),
        (aten.sum.default, (x(9, 8000),)),
        (aten.mean.dim, (x(9, 8000), [1])),
        (aten.linalg_vector_norm.default, (x(9000),)),
    ]


def convolutions(x: Make) -> list[tuple[Any, tuple]]:
    one = [1, 1]
    return [
        (aten.convolution.default, (x(2, 16, 9, 9), x(8, 16, 3, 3), x(8), one, one, one, False, [0, 0], 1)),
        (aten.convolution.default, (x(2, 16, 9, 9), x(16, 4, 3, 3), None, one, one, one, True, [0, 0], 2)),
        (
            aten.convolution_backward.default,
            (x(8, 8, 9, 9), x(8, 16, 9, 9), x(8, 16, 3, 3), [8], one, one, one, False, [0, 0], 1, [True] * 3),
        ),
    ]  # fmt: skip


def embeddings(x: Make) -> list[tuple[Any, tuple]]:
    indices = torch.zeros(4000, dtype=torch.int64)
    indices[::3] = 2
    return [(aten.embedding_dense_backward.default, (x(4000, 5), indices, 4, -1, False))]


def normalisations(x: Make) -> list[tuple[Any, tuple]]:
    image, grad = x(8, 6, 20, 20), x(8, 6, 20, 20)
    means, spreads = image.mean((0, 2, 3)), 1 / image.std((0, 2, 3)).clamp(min=0.1)
    rows, groups = image.view(-1, 20), image.view(8, 3, -1)
    stats = [(y.mean(-1), 1 / y.std(-1).clamp(min=0.1)) for y in (rows, groups)]
    row_stats = [s.view(8, 6, 20, 1) for s in stats[0]]
    return [
        (aten.native_batch_norm.default, (image, x(6), x(6), None, None, True, 0.1, 0.01)),
        (aten.native_layer_norm.default, (image, [20], x(20), x(20), 0.01)),
        (aten.native_group_norm.default, (image, x(6), x(6), 8, 6, 400, 3, 0.01)),
        (
            aten.native_batch_norm_backward.default,
            (grad, image, x(6), None, None, means, spreads, True, 0.01, [True] * 3),
        ),
        (
            aten.native_layer_norm_backward.default,
            (grad, image, [20], *row_stats, x(20), x(20), [True] * 3),
        ),
        (
            aten.native_group_norm_backward.default,
            (grad, image, *stats[1], x(6), 8, 6, 400, 3, [True] * 3),
        ),
    ]  # fmt: skip


def attentions(x: Make) -> list[tuple[Any, tuple]]:
    query, key, value, grad = (x(2, 3, 40, 16) for _ in range(4))
    forward = aten._scaled_dot_product_flash_attention_for_cpu.default
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    out, sums = forward(query, key, value)
    return [
        (forward, (query, key, value)),
        (backward, (grad, query, key, value, out, sums, 0.0, False)),
    ]


def errors_of(operator: Any, arguments: tuple) -> list[tuple[str, float]]:
    """For each result its largest error, over the bound that its scale and growth give."""
    vendor, named = VENDOR[operator], _by_name(operator, arguments, {})
    assert _is_plain(vendor, named)
    wide = {
        n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for n, v in named.items()
    }
    exact, found = operator(**wide), operator(**named)
    exact, found = ([r] if isinstance(r, Tensor) else list(r) for r in (exact, found))
    scaled = vendor.results(Call(named, found))
    return [
        (f"{operator} {result.place}", _over_bound(found[result.place].double(), exact[result.place], result))
        for result in scaled
    ]  # fmt: skip


def _over_bound(found: Tensor, exact: Tensor, result: Any) -> float:
    own = 2.0 * found.abs()
    bound = REACH * result.growth * UNIT * ((result.scale or 0.0) + own)
    assert result.scale is None or math.isfinite(result.scale)
    return float(((found - exact).abs() / bound).nan_to_num(nan=0.0).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "operators", [products, convolutions, embeddings, normalisations, attentions]
)
def test_errors_are_within_reach(operators, kind):
    for seed in range(3):
        make = partial(kind, torch.Generator().manual_seed(seed))
        for operator, arguments in operators(make):
            for name, ratio in errors_of(operator, arguments):
                assert ratio < 0.5, name


def test_every_operator_is_tried():
    tried = {o for ops in (products, convolutions, embeddings, normalisations, attentions)
             for o, _ in ops(lambda *shape: torch.ones(shape))}  # fmt: skip
    assert set(VENDOR) - tried == {aten.mean.default}
