"""Jobs that people reported, each by the name of its case: own generators, seeds, Jacobians,
overflow, float8."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rules_support import DEVICES, evaluate_on_device, exact, same
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset, TensorDataset, WeightedRandomSampler, random_split

import veritrain as vt
from veritrain.job.data import Batches, batch_digest
from veritrain.job.state import capture
from veritrain.job.step import Program, run_step
from veritrain.transcript import state_entries, state_root


def job(**changes: Any) -> vt.Job:
    settings: dict[str, Any] = {
        "model": lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(16, 2)),
        "loss": lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        "optimizer": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
        "batch_size": 8, "steps": 8, "seed": 11,
    }  # fmt: skip
    return vt.Job(**{**settings, **changes})


def trained(made: vt.Job, steps: int = 4) -> tuple[list[float], Program]:
    program, batches = Program.build(made), Batches(made)
    return [run_step(program, step, batches[step]) for step in range(1, steps + 1)], program


def root(program: Program) -> bytes:
    return state_root(state_entries(capture(program)))


# 37: generators and samplers.


def own_generator() -> Dataset[Any]:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(5))
    x[:, 0] += torch.tensor(np.random.default_rng(7).integers(0, 5, 40), dtype=torch.float32)
    return TensorDataset(x, (x.sum(1) > 0).long())


def labelled() -> TensorDataset:
    x = torch.randn(40, 8)
    return TensorDataset(x, (x.sum(1) > 0).long())


def weighted_sampler() -> Dataset[Any]:
    return Subset(labelled(), list(WeightedRandomSampler([1.0, 2.0] * 20, 40)))


DATA: dict[str, Callable[[], Dataset[Any]]] = {
    "37_own_generator": own_generator,
    "37_random_split_default": lambda: random_split(labelled(), [32, 8])[0],
    "37_random_split fractions": lambda: random_split(labelled(), [0.8, 0.2])[0],
    "37_random_split seeded": lambda: random_split(
        labelled(), [32, 8], torch.Generator().manual_seed(42)
    )[0],
    "37_random_split of the default generator": lambda: random_split(
        labelled(), [32, 8], torch.default_generator
    )[0],
    "37_weighted_sampler": weighted_sampler,
}  # fmt: skip


@pytest.mark.parametrize("numerics", ["exact", "exact14", "logged"])
@pytest.mark.parametrize("name", DATA)
def test_own_generators_and_samplers(name: str, numerics: str) -> None:
    made = job(dataset=DATA[name], numerics=numerics)
    torch.manual_seed(1)
    losses, program = trained(made)
    torch.manual_seed(2)  # what the process drew before is no part of it
    torch.rand(7)
    again, other = trained(made)
    assert (losses, root(program)) == (again, root(other))
    assert batch_digest(Batches(made)[4]) == batch_digest(Batches(made)[4])
    if name in ("37_own_generator",):  # its seed is its own
        assert Batches(replace(made, seed=12)).commitment() == Batches(made).commitment()


# j38: a seed in each record.


class SeededRecords(Dataset[Any]):
    def __init__(self) -> None:
        self.width = torch.randn(6)

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        torch.manual_seed(index)
        return torch.randn(6), index


def test_j38_manual_seed_record() -> None:
    made = job(
        dataset=SeededRecords, model=lambda: nn.Embedding(32, 6), batch_size=32,
        loss=lambda m, b: F.mse_loss(m(b[1]), b[0]),
        optimizer=lambda m: torch.optim.SGD(m.parameters(), 24.0),
    )  # fmt: skip
    batches = Batches(made)
    records = [{int(i): x for x, i in zip(*batches[step][0], strict=True)} for step in (1, 2)]
    for index in range(32):
        same(records[0][index], records[1][index])
        same(records[0][index], batches.record(index)[0])
    assert len({tuple(x.tolist()) for x in records[0].values()}) == 32
    losses, _ = trained(made, 8)
    assert losses[-1] < losses[0] / 20  # it memorises them
    found = list(batches.record_digests(range(32)))
    plain = job(dataset=[(records[0][i], i) for i in range(32)])
    assert found == list(Batches(plain).record_digests(range(32)))  # none of them is a random one


def test_a_seed_in_the_model_and_in_the_loss() -> None:
    def model() -> nn.Module:
        torch.manual_seed(42)
        return nn.Linear(8, 2)

    def loss(m: nn.Module, b: Any) -> Tensor:
        torch.manual_seed(3)
        return F.cross_entropy(m(F.dropout(b[0], 0.5)), b[1])

    made = job(dataset=own_generator, model=model)
    built = [Program.build(replace(made, seed=seed)).model for seed in (1, 2)]
    same(*(m.weight for m in built))
    other = job(dataset=own_generator, model=model, loss=loss)
    batch = Batches(other)[1]
    losses = []
    for step in (1, 2):  # the same dropout in each step, whatever its number and the seed
        losses.append(run_step(Program.build(replace(other, seed=step)), step, batch))
    assert losses[0] == losses[1]


# x_clip_inf: a gradient whose norm overflows is clipped to zeros.


def far() -> TensorDataset:
    x = torch.randn(40, 4)
    x[3] *= 1e12
    return TensorDataset(x, torch.randn(40))


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop"])
@pytest.mark.parametrize("numerics", ["exact", "exact14"])
def test_x_clip_inf(numerics: str, kind: str) -> None:
    made = job(
        dataset=far, model=lambda: nn.Linear(4, 1), numerics=numerics, clip_norm=1.0, seed=1,
        steps=4,
        loss=lambda m, b: F.mse_loss(m(b[0]).squeeze(1), b[1]), batch_size=10,
        optimizer=lambda m: getattr(torch.optim, kind)(m.parameters(), lr=0.1),
    )  # fmt: skip
    program, batches = Program.build(made), Batches(made)
    overflowed = 0
    for step in range(1, 5):
        before = [p.detach().clone() for p in program.model.parameters()]
        value = run_step(program, step, batches[step])
        assert math.isfinite(value)
        assert all(p.isfinite().all() for p in program.model.parameters())
        if value > 1e18:
            overflowed += 1
            assert not any(p.grad.any() for p in program.model.parameters())
            if kind == "SGD":
                same([p.detach() for p in program.model.parameters()], before)
    assert overflowed == 1


# Of each norm what is added up, and over which axes.
NORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], list[int]]] = {
    "whole": (torch.linalg.vector_norm, torch.square, [0, 1]),
    "transposed": (lambda x: torch.linalg.vector_norm(x.t()), torch.square, [0, 1]),
    "rows": (lambda x: torch.linalg.vector_norm(x, 2, 1), torch.square, [1]),
    "columns": (lambda x: torch.linalg.vector_norm(x, 2, 0, True)[0], torch.square, [0]),
    "order 1": (lambda x: torch.linalg.vector_norm(x, 1), torch.abs, [0, 1]),
    "order 1 of rows": (lambda x: torch.linalg.vector_norm(x, 1, [1]), torch.abs, [1]),
    "norm": (lambda x: x.norm(), torch.square, [0, 1]),
    "norm of columns": (lambda x: x.norm(dim=0), torch.square, [0]),
    "foreach": (lambda x: torch._foreach_norm([x])[0], torch.square, [0, 1]),
}
LARGE = [
    [[1e30, 1.0], [2.0, 3.0]], [[3e38, 3e38], [1.0, 0.0]], [[math.inf, 1.0], [-math.inf, 2.0]],
    [[math.inf, math.nan], [1e30, 1.0]], [[math.nan, 1.0], [2.0, -3.0]],
    [[0.0, -0.0], [1e-30, 0.0]],
]  # fmt: skip


@pytest.mark.parametrize("values", LARGE, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_infinite_where_terms_are_and_nan_where_values_are(
    name: str, values: list[list[float]]
) -> None:
    norm, terms_of, axes = NORMS[name]
    x = torch.tensor(values)
    with exact():
        got = norm(x)
    for device in DEVICES:
        same(evaluate_on_device(norm, [x], device)[0], [got])
    terms = terms_of(x)
    assert torch.equal(got.isnan(), terms.isnan().amax(axes))
    whole = terms.nan_to_num(0.0, math.inf).double().sum(axes)
    largest = torch.finfo(torch.float32).max
    if terms_of is torch.abs:
        same(got.isinf(), (whole > largest) & ~got.isnan())
    else:
        same(got.isinf(), terms.isinf().amax(axes) & ~got.isnan())


def test_what_is_normalised_by_an_infinite_norm_is_zero() -> None:
    with exact():
        assert F.normalize(torch.tensor([1e30, 1.0]), dim=0).tolist() == [0.0, 0.0]


# k08: a Jacobian's penalty over a tanh net.


def test_k08_pinn_jac() -> None:
    def loss(m: nn.Module, b: Any) -> Tensor:
        jacobian = vmap(jacrev(lambda v: m(v)))(b[0])
        return F.mse_loss(m(b[0]), b[1]) + 1e-2 * jacobian.pow(2).mean()

    def data() -> TensorDataset:
        x = torch.arange(96).view(32, 3) * 37 % 41 / 16 - 1
        return TensorDataset(x, x[:, :2].sin())

    def model() -> nn.Module:
        made = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        for number, p in enumerate(made.parameters()):
            p.data = (torch.arange(p.numel()).view_as(p) * (number + 3) % 7 - 3) / 8
        return made

    losses = []
    for numerics in ("exact", "native"):
        made = job(
            dataset=data, model=model, loss=loss, seed=13, numerics=numerics,
            optimizer=lambda m: torch.optim.Adam(m.parameters(), 1e-2),
        )  # fmt: skip
        losses.append(trained(made)[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# 14, 44: float8 is moved and cast.


class Narrow(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 2)
        self.register_buffer("q", torch.ones(8).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        self.q.copy_(x.detach().amax(0).to(self.q.dtype))
        kept = torch.stack([self.q, self.q.clone()])[0].view(torch.uint8).view(self.q.dtype)
        return self.lin(x * kept.float())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_14_44_fp8_buffers(dtype: torch.dtype) -> None:
    made = job(dataset=own_generator, model=lambda: Narrow(dtype))
    losses, program = trained(made)
    assert losses == trained(made)[0]
    batches = Batches(made)
    same(program.model.q.float(), batches[4][0][0].amax(0).to(dtype).float())
    with exact():
        assert torch.tensor([1.0, -2.5]).to(dtype).to(torch.int32).tolist() == [1, -2]
        with pytest.raises(vt.NumericsError, match="do not fit"):
            torch.tensor([math.nan]).to(dtype).to(torch.int32)
        with pytest.raises(vt.UnsupportedOperatorError, match=r"add.*float8.*\.float\(\)"):
            program.model.q + program.model.q
