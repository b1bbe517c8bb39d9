"""What generators that a job seeds give: python -m tests.numerics.draw_generators prints it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from veritrain.numerics import resolve

X = torch.arange(1.0, 13).view(3, 4) / 16

DRAWS: dict[str, Callable[[torch.Generator | None], Tensor]] = {
    "rand": lambda g: torch.rand(9, generator=g),
    "randn": lambda g: torch.randn(3, 3, generator=g),
    "randint": lambda g: torch.randint(1000, (9,), generator=g),
    "randint low": lambda g: torch.randint(-5, 500, (9,), generator=g),
    "randperm": lambda g: torch.randperm(30, generator=g),
    "normal": lambda g: torch.normal(2.0, 3.0, (9,), generator=g),
    "normal tensors": lambda g: torch.normal(X, X, generator=g),
    "normal_": lambda g: X.clone().normal_(1, 2, generator=g),
    "uniform_": lambda g: X.clone().uniform_(-1, 1, generator=g),
    "bernoulli": lambda g: torch.bernoulli(X.expand(9, 3, 4), generator=g),
    "bernoulli_": lambda g: torch.zeros(99).bernoulli_(0.5, generator=g),
    "random_": lambda g: torch.zeros(9, dtype=torch.int64).random_(generator=g),
    "random_ from": lambda g: torch.zeros(9, dtype=torch.int64).random_(-9, 400, generator=g),
    "exponential_": lambda g: X.clone().exponential_(2.0, generator=g),
    "multinomial": lambda g: torch.multinomial(torch.ones(40), 20, generator=g),
    "multinomial 64": lambda g: torch.multinomial(torch.ones(40).double(), 20, generator=g),
    "multinomial replaced": lambda g: torch.multinomial(torch.ones(40), 20, True, generator=g),
    "multinomial replaced 64": lambda g: torch.multinomial(
        torch.ones(40).double(), 20, True, generator=g
    ),
    "kaiming": lambda g: torch.nn.init.kaiming_normal_(torch.zeros(4, 4), generator=g),
    "split": lambda g: torch.tensor(random_split(range(20), [0.5, 0.5], generator=g)[0].indices),
    "sampler": lambda g: torch.tensor(list(RandomSampler(range(20), generator=g))),
    "sampler replaced": lambda g: torch.tensor(list(RandomSampler(range(20), True, generator=g))),
    "sampler of a subset": lambda g: torch.tensor(list(SubsetRandomSampler(range(20),
        generator=g))),
    "weighted sampler": lambda g: torch.tensor(
        list(WeightedRandomSampler([1.0, 2.0] * 20, 40, generator=g))
    ),
    "loader": lambda g: torch.cat(
        [batch for (batch,) in DataLoader(TensorDataset(torch.arange(20)), 5, shuffle=True,
            generator=g)]
    ),
}  # fmt: skip


def made(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn() -> str:
    """Bits of every draw, of a generator's and after a seed."""
    found: dict[str, Any] = {}
    for name, draw in DRAWS.items():
        with resolve("exact").active(seed=0, purpose="test", step=0):
            generator = made(12)
            torch.manual_seed(13)
            found[name] = [draw(generator).tolist(), draw(generator).tolist(), draw(None).tolist()]
    return json.dumps(found)


if __name__ == "__main__":
    print(drawn())
