"""Error of contractions against float64, beside what else is in use: float32, TF32, bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from veritrain.numerics import resolve

Row = dict[str, Any]


def _rounded(x: Tensor, bits: int) -> Tensor:
    """Float32 values with `bits` bits after the leading one, rounded half to even, as float64."""
    step = 23 - bits
    pattern = x.contiguous().view(torch.int32)
    half = (1 << (step - 1)) - 1 + ((pattern >> step) & 1)
    return (((pattern + half) >> step) << step).view(torch.float32).double()


def _under(numerics: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*operands: Tensor) -> Tensor:
        with resolve(numerics).active(seed=0, purpose="benchmark", step=0):
            return function(*operands)

    return run


def _ways(function: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    """TF32 and bfloat16: operands of 10 and 7 bits, exact products, sums in float64 (their best
    case)."""
    return {
        "float32": function,
        "exact": _under("exact", function),
        "exact14": _under("exact14", function),
        "TF32": lambda *xs: function(*(_rounded(x, 10) for x in xs)),
        "bfloat16": lambda *xs: function(*(_rounded(x, 7) for x in xs)),
    }


def _convolution(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x, w, padding=1)


def accuracy() -> list[Row]:
    """Root mean square error over the result's spread, for normal operands."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    cases: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        f"mm {m} x {k} x {n}": (torch.mm, (normal(m, k), normal(k, n)))
        for m, k, n in (
            (4096, 576, 256), (2048, 768, 3072), (1024, 4608, 512), (64, 131_072, 64),
        )
    }  # fmt: skip
    cases["bmm 96 x 64 x 64 x 64"] = (torch.bmm, (normal(96, 64, 64), normal(96, 64, 64)))
    cases["conv 3x3, 128 channels"] = (
        _convolution, (normal(8, 128, 16, 16), normal(128, 128, 3, 3)),
    )  # fmt: skip
    return [_row(name, *case) for name, case in cases.items()]


def _row(name: str, function: Callable[..., Tensor], operands: tuple[Tensor, ...]) -> Row:
    true = function(*(x.double() for x in operands))
    errors = {
        way: float((run(*operands).double() - true).square().mean().sqrt() / true.std())
        for way, run in _ways(function).items()
    }
    return {"contraction": name, **errors}
