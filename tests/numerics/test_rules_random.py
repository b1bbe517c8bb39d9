"""Random operators draw from the stream of (seed, purpose, step, call), and only from it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rules_support import exact, layouts, numbers, same

from veritrain.errors import NumericsError
from veritrain.numerics import resolve

X = numbers(1, 6, 7)
DRAWS = {
    "rand": lambda: torch.rand(6, 7), "randn": lambda: torch.randn(6, 7),
    "rand_like": lambda: torch.rand_like(X),
    "randn_like": lambda: torch.randn_like(X), "randint": lambda: torch.randint(1000, (9,)),
    "randint low": lambda: torch.randint(-5, 500, (9,), dtype=torch.int32),
    "randperm": lambda: torch.randperm(30),
    "normal": lambda: torch.normal(2.0, 3.0, (9,)), "normal_": lambda: X.clone().normal_(1, 2),
    "uniform_": lambda: X.clone().uniform_(-1, 1),
    "bernoulli": lambda: torch.bernoulli(X.sigmoid()),
    "bernoulli_": lambda: X.clone().bernoulli_(0.5),
    "bernoulli tensor": lambda: X.clone().bernoulli_(X.sigmoid()),
    "bernoulli p": lambda: torch.bernoulli(X, 0.5),
    "random_": lambda: torch.zeros(9, dtype=torch.int64).random_(),
    "random_ to": lambda: torch.zeros(9, dtype=torch.int32).random_(500),
    "random_ from": lambda: torch.zeros(9, dtype=torch.int64).random_(-9, 400),
    "dropout": lambda: F.dropout(X, 0.5), "native_dropout": lambda: torch.native_dropout(X, 0.5,
        True)[0],
    "kaiming": lambda: torch.nn.init.kaiming_normal_(X.clone()),
    "alpha_dropout": lambda: F.alpha_dropout(X, 0.5, True),
    "trunc_normal": lambda: torch.nn.init.trunc_normal_(X.clone()),
    "dropout2d": lambda: F.dropout2d(X[None, :, :, None], 0.5),
    "normal tensors": lambda: torch.normal(X, X.abs()), "normal mean": lambda: torch.normal(X, 2.0),
    "normal deviation": lambda: torch.normal(1.0, X.abs()),
    "gaussian": lambda: torch.distributions.Normal(X, 1.0).sample(),
    "exponential_": lambda: X.clone().exponential_(2.0), "gumbel": lambda: F.gumbel_softmax(X),
    "multinomial": lambda: torch.multinomial(torch.ones(40), 20),
    "categories": lambda: torch.distributions.Categorical(logits=X).sample((9,)),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_keyed_by_step_and_call(name):
    draw = DRAWS[name]
    torch.manual_seed(1)
    with exact():
        first, second = draw(), draw()
    torch.manual_seed(2)
    with exact():
        again = draw()
    with exact(step=1):
        other = draw()
    same(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_other_seeds_and_purposes_differ():
    draws = []
    for seed, purpose in ((0, "test"), (1, "test"), (0, "other")):
        with resolve("exact").active(seed=seed, purpose=purpose, step=0):
            draws.append(torch.rand(8))
    assert len({tuple(draw.tolist()) for draw in draws}) == 3


@pytest.mark.parametrize("p", [1.5, -0.1, float("nan")])
def test_probabilities_outside_of_0_and_1_are_errors(p):
    with exact():
        for draw in (
            lambda: torch.bernoulli(torch.tensor([0.5, p])),
            lambda: torch.zeros(2).bernoulli_(torch.tensor([0.5, p])),
        ):
            with pytest.raises(NumericsError, match="probabilities"):
                draw()
        assert torch.bernoulli(torch.tensor([0.0, 1.0])).tolist() == [0, 1]


def test_callers_generator_is_left_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    with exact():
        torch.rand(100)
    same(torch.rand(3), want)


@pytest.mark.parametrize("name", ["normal_", "uniform_", "bernoulli_", "exponential_"])
def test_memory_layout_does_not_matter(name):
    with exact():
        want = getattr(X.clone(), name)()
    for other in layouts(X):
        with exact():
            same(getattr(other, name)(), want)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 1.0])
def test_dropout_keeps_scales_and_passes_the_gradient(p):
    ones = torch.ones(2000, requires_grad=True)
    for function in (F.dropout, lambda x, p: torch.native_dropout(x, p, True)[0]):
        with exact():
            y = function(ones, p)
            (grad,) = torch.autograd.grad(y.sum(), ones)
        same(grad, y.detach())
        scale = 1 / (1 - p) if p < 1 else 0.0
        assert set(y.tolist()) <= {0.0, torch.tensor(scale).item()}
        assert abs(float((y != 0).sum()) / 2000 - (1 - p)) < 0.06
        with exact():
            same(F.dropout(ones, p, training=False).detach(), torch.ones(2000))


def test_means_and_deviations_that_are_tensors():
    mean, deviation = numbers(2, 6, 1), numbers(3, 7).abs()
    with exact():
        drawn = torch.normal(mean, deviation)
    with exact():
        same(drawn, torch.randn(6, 7) * deviation + mean)


def test_ranges():
    with exact():
        assert sorted(torch.randperm(50).tolist()) == list(range(50))
        values = torch.randint(3, 6, (300,))
        assert set(values.tolist()) == {3, 4, 5}
        x = torch.empty(3000).uniform_(-2, 3)
        assert -2 <= x.min() < -1.9
        assert 2.9 < x.max() <= 3
        z = torch.randn(3000)
        assert abs(z.mean()) < 0.1
        assert abs(z.var() - 1) < 0.15
        assert torch.rand(0, 3).shape == (0, 3)
        assert torch.randperm(0).numel() == 0
        assert torch.rand(()).shape == ()
