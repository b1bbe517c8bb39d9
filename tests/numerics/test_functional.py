"""Derivatives by `torch.func` and `torch.autograd.functional`, under `vmap` and forwards too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rules_support import exact, same
from torch import Tensor, nn
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

from veritrain.errors import UnsupportedOperatorError

torch.manual_seed(0)
X = (torch.arange(20.0).view(5, 4) * 37 % 23 - 11) / 8
LINEAR, ROWS, IMAGES = nn.Linear(4, 4), nn.Conv1d(1, 2, 3), nn.Conv2d(1, 2, 2)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "gelu": F.gelu, "silu": F.silu,
    "softplus": F.softplus,
    "exp": torch.exp, "log": lambda v: (v * v + 1).log(), "relu": torch.relu, "elu": F.elu,
    "mish": F.mish,
    "selu": F.selu, "celu": F.celu, "leaky_relu": F.leaky_relu, "hardswish": F.hardswish,
    "sin": torch.sin,
    "logsigmoid": F.logsigmoid, "hardtanh": F.hardtanh, "tanhshrink": F.tanhshrink,
    "erf": torch.erf,
    "softsign": F.softsign, "sqrt": lambda v: (v * v + 1).sqrt(),
    "softmax": lambda v: v.softmax(-1), "log_softmax": lambda v: v.log_softmax(-1),
    "norm": lambda v: v.norm().view(1),
    "layer norm": lambda v: F.layer_norm(v, (4,)),
    "group norm": lambda v: F.group_norm(v.view(1, 4, 1), 2).view(4),
    "batch norm": lambda v: F.batch_norm(v.view(4, 1), None, None, training=True).view(4),
    "rms norm": lambda v: F.rms_norm(v, (4,)), "linear": LINEAR,
    "conv1d": lambda v: ROWS(v.view(1, 1, 4)).view(-1),
    "conv2d": lambda v: IMAGES(v.view(1, 1, 2, 2)).view(-1),
    "product": lambda v: (v.view(2, 2) @ v.view(2, 2)).view(-1),
    "cross-entropy": lambda v: F.cross_entropy(v.view(1, 4), torch.tensor([1])).view(1),
    "var": lambda v: v.var().view(1),
    "attention": lambda v: F.scaled_dot_product_attention(*[v.view(1, 1, 2, 2)] * 3).reshape(-1),
    "average": lambda v: F.avg_pool1d(v.view(1, 1, 4), 2).view(-1),
    "embedding": lambda v: F.embedding(
        torch.tensor([0, 1, 1]), v.view(2, 2)).reshape(-1),
}  # fmt: skip

TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Tensor]] = {
    "grad": lambda f: grad(lambda v: f(v).sum())(X[0]),
    "vmap": lambda f: vmap(f)(X),
    "vmap of grad": lambda f: vmap(grad(lambda v: f(v).pow(2).sum()))(X),
    "jacrev": lambda f: jacrev(f)(X[0]),
    "vmap of jacrev": lambda f: vmap(jacrev(f))(X),
    "jacfwd": lambda f: jacfwd(f)(X[0]),
    "hessian": lambda f: hessian(lambda v: f(v).pow(2).sum())(X[0]),
    "vmap of jacrev of jacrev": lambda f: vmap(jacrev(jacrev(f)))(X),
}
# PyTorch's own attention has no derivative of these kinds; that of the definitions has.
BY_DEFINITION = ("jacfwd", "hessian", "vmap of jacrev of jacrev")


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_transform_is_that_of_pytorch(name: str, transform: str) -> None:
    derive, function = TRANSFORMS[transform], FUNCTIONS[name]
    with exact():
        got = derive(function)
    with exact():
        same(derive(function), got)
    if name != "attention" or transform not in BY_DEFINITION:
        torch.testing.assert_close(got, derive(function), rtol=2e-3, atol=2e-4)


NET = nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    nn.Linear(4, 6),
    nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2),
)  # fmt: skip
PARAMETERS = {name: value.detach() for name, value in NET.named_parameters()}
PICTURES = (torch.arange(80.0).view(5, 1, 4, 4) * 29 % 31 - 15) / 8
LABELS = torch.arange(5) % 2


def loss(parameters: dict[str, Tensor], picture: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(NET, parameters, (picture[None],)), label[None])


def each_gradient() -> Tensor:
    return vmap(grad(loss), in_dims=(None, 0, 0))(PARAMETERS, PICTURES, LABELS)["0.weight"]


def ensemble() -> Tensor:
    torch.manual_seed(1)
    nets = [nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)) for _ in range(3)]
    stacked = stack_module_state(nets)
    return vmap(lambda p, b: functional_call(nets[0], (p, b), (X,)))(*stacked)


WHOLE: dict[str, Callable[[], Tensor]] = {
    "gradients of each record": each_gradient,
    "vjp": lambda: vjp(NET, PICTURES)[1](torch.ones(5, 2))[0],
    "jvp": lambda: jvp(NET, (PICTURES,), (torch.ones_like(PICTURES),))[1],
    "jacobian": lambda: torch.autograd.functional.jacobian(NET, PICTURES, vectorize=True),
    "hessian": lambda: torch.autograd.functional.hessian(
        lambda v: NET(v).pow(2).sum(), PICTURES[:1]
    ),
    "hvp": lambda: torch.autograd.functional.hvp(lambda v: NET(v).pow(2).sum(), PICTURES, PICTURES)[
        1
    ],
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_net_is_derived_as_pytorch_does(name: str) -> None:
    with exact():
        got = WHOLE[name]()
    torch.testing.assert_close(got.detach(), WHOLE[name]().detach(), rtol=2e-3, atol=2e-4)


def test_an_ensemble_is_each_of_its_nets() -> None:
    with exact():
        got = ensemble()
    with exact():
        torch.manual_seed(1)
        nets = [nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)) for _ in range(3)]
        same(got, torch.stack([net(X) for net in nets]))


def test_random_numbers_under_vmap_are_keyed() -> None:
    for randomness in ("different", "same"):
        results: list[Tensor] = []
        for seed in (None, 5, 5):
            with exact():
                if seed is not None:
                    torch.manual_seed(seed)
                results.append(vmap(lambda v: F.dropout(v, 0.5), randomness=randomness)(X))
        same(results[1], results[2])
        assert not torch.equal(results[0], results[1])


def test_derivatives_without_a_definition_are_refused_by_name() -> None:
    with exact():
        with pytest.raises(UnsupportedOperatorError, match=r"operator aten\.glu_jvp.*no rule"):
            jacfwd(F.glu)(X[0])
        with pytest.raises(
            UnsupportedOperatorError, match=r"operator aten\._cdist_forward.*no rule"
        ):
            grad(lambda v: torch.cdist(v, v).sum())(X)
