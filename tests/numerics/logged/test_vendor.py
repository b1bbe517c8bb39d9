"""A scale and its growth bound the error of the vendor's kernel, whatever the operands look like.

The kernel in binary32 is the machine here, the same in binary64 stands for what is exact. Sums of
one sign err most, since their partial sums are largest; they are what a bound by largest values
gets wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from veritrain.numerics.logged.logged_mode import _by_name, _is_plain
from veritrain.numerics.logged.thresholds import CLASSES, REACH
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
    """Added up one by one, a number that is no sum of few powers of two errs the same way each
    time."""
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
        (aten.convolution.default, (x(2, 16, 9, 9), x(8, 16, 3, 3), x(8), one, one, one, False, [0,
            0], 1)),
        (aten.convolution.default, (x(2, 16, 9, 9), x(16, 4, 3, 3), None, one, one, one, True, [0,
            0], 2)),
        (
            aten.convolution_backward.default,
            (x(8, 8, 9, 9), x(8, 16, 9, 9), x(8, 16, 3, 3), [8], one, one, one, False, [0, 0], 1,
                [True] * 3),
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
        (forward, (query, key, value, 0.0, True)),
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
        (f"{operator} {result.place}", _over_bound(found[result.place].double(),
            exact[result.place], result))
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


def masked(x: Make, lowest: float) -> Tensor:
    """What is added to the scores of a query: nothing, or something that leaves no weight."""
    return torch.where(x(30, 20) > 0.9, lowest, 0.0)


@pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min, -1e9])
def test_a_mask_does_not_take_part_in_scales(lowest):
    x = partial(of_one_sign, torch.Generator().manual_seed(1))
    a, b = x(3, 30, 90), x(3, 90, 20)
    arguments = masked(x, lowest).expand(3, 30, 20), a, b
    found = aten.baddbmm.default(*arguments)
    named = _by_name(aten.baddbmm.default, arguments, {})
    (result,) = VENDOR[aten.baddbmm.default].results(Call(named, [found]))
    assert result.scale == scale_of(aten.bmm.default, (a, b))
    assert errors_of(aten.baddbmm.default, arguments)[0][1] < 0.5


def scale_of(operator: Any, arguments: tuple) -> float:
    found = operator(*arguments)
    (result,) = VENDOR[operator].results(Call(_by_name(operator, arguments, {}), [found]))
    return result.scale


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_does_not_take_part_in_scales(bad):
    """One bad row spoils its own results; the others' scales are as if it were zero."""
    a, b = torch.ones(4, 9), torch.ones(9, 5)
    spoilt, without = a.clone(), a.clone()
    spoilt[2], without[2] = bad, 0
    for operator, *more in ((aten.mm.default, b), (aten.sum.dim_IntList, [1])):
        assert scale_of(operator, (spoilt, *more)) == scale_of(operator, (without, *more)) > 0
    norm = aten.native_layer_norm.default
    scales = [
        [
            r.scale
            for r in VENDOR[norm].results(
                Call(_by_name(norm, arguments, {}), list(norm(*arguments)))
            )
        ]
        for arguments in ((x + torch.arange(9.0), [9], None, None, 1e-5) for x in (spoilt, without))
    ]
    assert all(math.isfinite(scale) for scale in scales[0] if scale is not None)
    assert scales[0][2] == pytest.approx(scales[1][2])


@pytest.mark.parametrize("mask", [None, -1e4, "ramp", "rows"])
def test_errors_of_masked_attention_are_within_reach(mask):
    x = partial(even, torch.Generator().manual_seed(2))
    query, key, value = (x(2, 3, 40, 16) for _ in range(3))
    given = {
        None: None, "ramp": -8.0 * torch.arange(40.0).expand(40, 40),
        "rows": torch.where(x(40, 40) > 0, -math.inf, 3.0),
    }.get(mask, torch.full((40, 40), -1e4))  # fmt: skip
    forward = aten._scaled_dot_product_flash_attention_for_cpu.default
    named = _by_name(forward, (query, key, value), {"attn_mask": given, "scale": -0.25})
    wide = {n: v.double() if isinstance(v, Tensor) else v for n, v in named.items()}
    exact, found = forward(**wide), list(forward(**named))
    for result in VENDOR[forward].results(Call(named, found)):
        assert _over_bound(found[result.place].double(), exact[result.place], result) < 0.5
        assert result.scale < 1e5


@pytest.mark.parametrize("ratio", [1e2, 1e3, 1e4])
def test_errors_of_norms_with_a_large_mean_are_within_reach(ratio):
    x = partial(even, torch.Generator().manual_seed(3))
    image, grad = x(50, 64) + ratio, x(50, 64)
    _, mean, inverse = aten.native_layer_norm.default(image.double(), [64], None, None, 1e-5)
    arguments = grad, image, [64], mean.float(), inverse.float(), x(64), x(64), [True] * 3
    for name, over in errors_of(aten.native_layer_norm_backward.default, arguments):
        assert over < 0.5, name


def test_errors_of_norms_over_many_rows_alike_are_possible():
    """Added one by one, equal numbers err alike: by n, not by its root."""
    rows, width = 12800, 64
    image = torch.randn(1, width, generator=torch.Generator().manual_seed(4)).expand(rows, width)
    grad = torch.full((rows, width), 0.7)
    mean = image.mean(1, keepdim=True)
    inverse = 1 / image.std(1, keepdim=True)
    operator = aten.native_layer_norm_backward.default
    ones = torch.ones(width)
    arguments = grad, image.contiguous(), [width], mean, inverse, ones, ones, [True] * 3
    for name, over in errors_of(operator, arguments):
        assert over * REACH < rows**0.5, name


def test_every_operator_is_tried():
    tried = {o for ops in (products, convolutions, embeddings, normalisations, attentions)
             for o, _ in ops(lambda *shape: torch.ones(shape))}  # fmt: skip
    assert set(VENDOR) - tried == {aten.mean.default}


def differences(operator: Any, arguments: tuple, dtype: torch.dtype) -> list[float]:
    """For each result how far it moves where its sums run in another order, over what is
    possible."""
    named = _by_name(operator, arguments, {})
    wide = {
        n: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
        for n, v in named.items()
    }
    vendor = VENDOR[operator]
    found, other = operator(**wide), operator(**vendor.reordered(wide))
    found, other = ([r] if isinstance(r, Tensor) else list(r) for r in (found, other))
    call = Call(named, [r.float() if isinstance(r, Tensor) else r for r in found])
    scale = torch.finfo(dtype).eps / 2 / UNIT
    return [
        _over_bound(found[r.place].double(), other[r.place].double(), r) / scale
        for r in vendor.results(call)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_in_another_order_are_the_same_up_to_rounding_and_not_beyond(dtype):
    classes = set()
    for operators in (products, convolutions, embeddings, normalisations, attentions):
        for operator, arguments in operators(partial(even, torch.Generator().manual_seed(1))):
            if VENDOR[operator].reordered is None:
                continue
            moved = differences(operator, arguments, dtype)
            assert max(moved) < 0.5, operator
            if max(moved) > 0.0:
                classes.add(VENDOR[operator].name)
    # binary64 sums of few binary32 numbers are exact
    exact = {"embedding"} if dtype == torch.float64 else set()
    assert classes >= set(CLASSES) - exact


def test_masked_keys_are_reversed_with_their_mask():
    generator = torch.Generator().manual_seed(1)
    query, key, value = (even(generator, 2, 3, 40, 16) for _ in range(3))
    mask = even(generator, 40, 40)
    operator = aten._scaled_dot_product_flash_attention_for_cpu.default
    named = _by_name(operator, (query, key, value), {"attn_mask": mask})
    found, other = operator(**named), operator(**VENDOR[operator].reordered(named))
    assert not torch.equal(found[0], other[0])
    torch.testing.assert_close(found, other)


@pytest.mark.parametrize("dims", [None, [], [1], [-1, 0]])
def test_sums_are_reversed_along_what_they_sum(dims):
    x = even(torch.Generator().manual_seed(1), 7, 30, 3)
    operator = aten.sum.dim_IntList
    named = _by_name(operator, (x, dims), {})
    torch.testing.assert_close(operator(**VENDOR[operator].reordered(named)), operator(**named))
