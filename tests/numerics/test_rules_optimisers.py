"""The fused updates equal PyTorch's plain loops under the mode, bit for bit, whatever the
options."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from rules_support import exact, numbers, same

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics import resolve

# Powers of these have few bits, so that Python's `**` and products agree exactly.
BETAS = (0.5, 0.75)
LAYOUTS = ("contiguous", "transposed", "channels_last", "late")


def parameters(layout: str) -> list[torch.Tensor]:
    weights = [
        numbers(1, 3, 4, 5, 2),
        numbers(2, 7),
        numbers(3),
        numbers(4, 0, 3),
        numbers(5, 6, 5),
    ]
    if layout == "transposed":
        weights[4] = weights[4].T
    if layout == "channels_last":
        weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
    return [torch.nn.Parameter(w) for w in weights]


def train(kind, options: dict, layout: str, *, plain: bool, steps: int = 4) -> list:
    """Weights and optimiser tensors after some steps."""
    with exact():
        weights = parameters(layout)
        optimizer = kind(weights, **options)
        resolve("exact").fix_flags(optimizer)
        if plain:
            optimizer = kind(weights, **options, fused=False, foreach=False)
        for step in range(steps):
            for i, weight in enumerate(weights):
                grad = numbers(10 * step + i, *weight.shape)
                grad = torch.where(grad.abs() < 0.2, torch.copysign(torch.zeros(()), grad), grad)
                weight.grad = None if layout == "late" and step < i else grad
            optimizer.step()
    tensors = [w.detach() for w in weights]
    for weight in weights:
        state = optimizer.state.get(weight, {})
        tensors += [value for _, value in sorted(state.items()) if isinstance(value, torch.Tensor)]
    return tensors


SGD = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.01},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
]
ADAM = [
    {"lr": 0.01, "betas": BETAS, "eps": 1e-6, **extra}
    for extra in (
        {},
        {"weight_decay": 0.1},
        {"amsgrad": True},
        {"maximize": True, "weight_decay": 0.1, "amsgrad": True},
        {"lr": torch.tensor(0.01)},
    )
]
CASES = [
    *itertools.product([torch.optim.SGD], SGD),
    *itertools.product([torch.optim.Adam, torch.optim.AdamW], ADAM),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_fused_equals_plain(case, layout):
    kind, options = CASES[case]
    same(train(kind, options, layout, plain=False), train(kind, options, layout, plain=True))


def test_layout_of_parameters_does_not_matter():
    for kind, options in CASES:
        first = train(kind, options, "contiguous", plain=False)
        for layout in ("transposed", "channels_last"):
            other = train(kind, options, layout, plain=False)
            if layout == "transposed":  # that parameter is another one: leave it out
                keep = [i for i, x in enumerate(first) if x.shape != (6, 5)]
                same([first[i] for i in keep], [other[i] for i in keep])
            else:
                same(first, other)


def test_late_momentum_starts_with_its_gradient():
    with exact():
        early, late = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        optimizer = torch.optim.SGD([early, late], lr=0.5, momentum=0.5, dampening=0.5)
        resolve("exact").fix_flags(optimizer)
        early.grad = torch.ones(2)
        optimizer.step()
        assert optimizer.param_groups[0]["fused"]
        early.grad, late.grad = torch.zeros(2), torch.full((2,), 4.0)
        optimizer.step()
        assert optimizer.state[late]["momentum_buffer"].tolist() == [4.0, 4.0]
        optimizer.step()
        assert optimizer.param_groups[0]["fused"]
    assert late.tolist() == [1 - 0.5 * 4 - 0.5 * 4] * 2
    assert early.tolist() == [1 - 0.5 - 0.25 - 0.125] * 2


def test_gradients_are_only_read():
    with exact():
        weight = torch.nn.Parameter(numbers(1, 3, 4))
        weight.grad = numbers(2, 1).expand(3, 4)
        before = weight.grad.clone()
        torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True).step()
        torch.optim.Adam([weight], lr=0.1, fused=True, maximize=True).step()
        same(weight.grad, before)


def test_threads_do_not_matter():
    def run():
        weight = torch.nn.Parameter(numbers(1, 300, 400))
        weight.grad = numbers(2, 300, 400)
        with exact():
            for kind in (torch.optim.SGD, torch.optim.AdamW):
                optimizer = kind([weight], lr=0.1)
                resolve("exact").fix_flags(optimizer)
                optimizer.step()
                optimizer.step()
        return weight.detach()

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = run()
        for count in (2, 5):
            torch.set_num_threads(count)
            same(run(), first)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", [torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta])
def test_other_optimisers_run_their_plain_loop(kind):
    with exact():
        weight = torch.nn.Parameter(numbers(1, 3, 4))
        wide = torch.nn.Parameter(numbers(1, 3, 4).double())
        optimizer = kind([weight], lr=0.1)
        resolve("exact").fix_flags(optimizer)
        weight.grad = numbers(2, 3, 4)
        optimizer.step()
    oracle = kind([wide], lr=0.1, foreach=False)
    wide.grad = numbers(2, 3, 4).double()
    oracle.step()
    np.testing.assert_allclose(weight.detach().numpy(), wide.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_differentiable_optimiser_takes_the_plain_loop():
    weight = torch.nn.Parameter(numbers(1, 3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.5, differentiable=True)
    resolve("exact").fix_flags(optimizer)
    assert not optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_refuses_gradient_scaling_and_other_types(kind):
    with exact():
        weight = torch.nn.Parameter(numbers(1, 3))
        weight.grad = numbers(2, 3)
        optimizer = kind([weight], lr=0.1, fused=True)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
        with pytest.raises(UnsupportedOperatorError, match="GradScaler"):
            optimizer.step()
        for dtype in (torch.float64, torch.bfloat16):
            weight = torch.nn.Parameter(numbers(1, 3).to(dtype))
            weight.grad = numbers(2, 3).to(dtype)
            with pytest.raises(UnsupportedOperatorError, match=str(dtype)):
                kind([weight], lr=0.1, fused=True).step()
