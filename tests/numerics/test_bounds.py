"""Zeros keep their signs where a value meets a bound, also where PyTorch's kernels lose them.

PyTorch's vector code for ARM takes the processor's maximum and minimum, which choose a zero by its
sign. The `arm` here is this processor with kernels that do the same.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from rules_support import exact, layouts, pattern, same
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import veritrain as vt
from veritrain.job.data import Batches
from veritrain.job.state import capture
from veritrain.job.step import Program, run_step

ZEROS = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, 6.0, 7.0, -7.0, math.inf, -math.inf, 1e-45, -1e-45] * 37
)


def on_arm(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Maximum and minimum for which -0 is less than +0."""
    if low is not None:
        x = torch.where((x < low) | ((x == low) & x.signbit()), low, x)
    if high is not None:
        x = torch.where((x > high) | ((x == high) & ~x.signbit()), high, x)
    return x


BOUNDS: dict[str, Callable[..., tuple[float | None, float | None]]] = {
    "relu": lambda: (0.0, None),
    "hardtanh": lambda low=-1.0, high=1.0: (low, high),
    "clamp": lambda min=None, max=None: (min, max),
    "clamp_min": lambda low: (low, None),
    "clamp_max": lambda high: (None, high),
}


@pytest.fixture
def arm() -> Iterator[None]:
    """This process with kernels of bounds like those for ARM."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they replace others is what is wanted
        for name, bounds in BOUNDS.items():
            library.impl(name, lambda x, *a, f=bounds: on_arm(x, *f(*a)), "CPU")
            library.impl(
                f"{name}.out", lambda x, *a, out, f=bounds: out.copy_(on_arm(x, *f(*a))), "CPU"
            )
            library.impl(f"{name}_", lambda x, *a, f=bounds: x.copy_(on_arm(x, *f(*a))), "CPU")
    yield
    library._destroy()


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu in place": lambda x: F.relu(x.clone(), inplace=True),
    "relu out": lambda x: torch.ops.aten.relu.out(x, out=torch.empty_like(x)),
    "relu6": F.relu6,
    "relu6 in place": lambda x: F.relu6(x.clone(), inplace=True),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, -0.0),
    "hardtanh in place": lambda x: F.hardtanh(x.clone(), -0.5, -0.0, inplace=True),
    "clamp": lambda x: x.clamp(0, 6),
    "clamp to -0": lambda x: x.clamp(-1.0, -0.0),
    "clamp in place": lambda x: x.clone().clamp_(0, 1),
    "clamp out": lambda x: torch.clamp(x, 0, 6, out=torch.empty_like(x)),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_min in place": lambda x: x.clone().clamp_min_(0.0),
    "clamp_max": lambda x: x.clamp_max(-0.0),
    "clamp_max in place": lambda x: x.clone().clamp_max_(-0.0),
    "clamp, crossed": lambda x: x.clamp(1.0, 0.0),
    "foreach": lambda x: torch._foreach_clamp_min([x], 0.0)[0],
    "foreach in place": lambda x: (y := x.clone(), torch._foreach_clamp_max_([y], -0.0))[0],
    "foreach maximum": lambda x: torch._foreach_maximum([x], 0.0)[0],
    "integers": lambda x: x.clamp(-9, 9).long().clamp(-1.0, -0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_zero_keeps_its_sign_on_every_processor(name, request):
    function = FUNCTIONS[name]
    with exact():
        want = function(ZEROS)
    assert (pattern(want) == pattern(function(ZEROS))).all()  # as this processor's kernels
    request.getfixturevalue("arm")
    if name != "clamp, crossed":  # its result has no -0
        assert (pattern(function(ZEROS)) != pattern(want)).any(), "the pretence does not show"
    for values in (ZEROS, *layouts(ZEROS[:396].view(2, 2, 9, 11))):
        with exact():
            got = function(values)
        same(got, want[: values.numel()].view(values.shape))


def test_bounds_of_other_types(request):
    nan = torch.full_like(ZEROS, math.nan)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        x = ZEROS.to(dtype)
        with exact():
            got = [x.relu(), x.clamp(0.0, 6.0), x.clamp(-1.0, -0.0)]
        for one, want in zip(got, (x.relu(), x.clamp(0.0, 6.0), x.clamp(-1.0, -0.0)), strict=True):
            assert one.dtype == dtype
            same(one.double(), want.double())
    with exact():
        same(ZEROS.clamp(0.0, math.nan), nan)
        same(nan.clamp(0.0, 1.0), nan)
        assert torch.arange(-3, 3).clamp(0.0, 1.5).tolist() == [0, 0, 0, 0, 1, 1.5]
        assert torch.arange(-3, 3).relu().dtype == torch.int64


class Keeper(nn.Module):
    """Keeps what its activations give, -0 of the dropped values among it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 96)
        self.last = nn.Linear(96, 2)
        self.register_buffer("seen", torch.zeros(16, 96))

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(self.layer(x), 0.5)
        parts = dropped.relu().chunk(2, 1)
        hidden = torch.cat([F.relu6(parts[0]), parts[1].clamp(-1.0, 0.0)], 1)
        self.seen.copy_(hidden.detach())
        return self.last(hidden + dropped.clamp_(min=0))


def trained() -> list[object]:
    x = torch.linspace(-1, 1, 256).view(32, 8)
    job = vt.Job(
        model=Keeper, dataset=lambda: TensorDataset(x, x[:, :2]), batch_size=16, steps=2, seed=3,
        loss=lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )  # fmt: skip
    program, batches = Program.build(job), Batches(job)
    losses = [run_step(program, step, batches[step]) for step in (1, 2)]
    return [losses, {name: pattern(x).tolist() for name, x in capture(program).items()}]


def test_a_step_has_the_same_bits_where_kernels_lose_zeros(request):
    want = trained()
    assert any(bits == 0x80000000 for row in want[1]["model/seen"] for bits in row)
    request.getfixturevalue("arm")
    assert trained() == want
