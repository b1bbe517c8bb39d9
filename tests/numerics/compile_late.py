"""Compile inside a step of a process that has not loaded the compiler: run by test_interplay.py."""

from __future__ import annotations

import sys

import torch

from veritrain.numerics import resolve


def function(x: torch.Tensor) -> torch.Tensor:
    return (x.exp() * x).sum(0).softmax(0)


if __name__ == "__main__":
    x = torch.linspace(-3, 3, 1200).view(300, 4)
    with resolve("exact").active(seed=0, purpose="test", step=1):
        print("torch._dynamo" in sys.modules)
        compiled = torch.compile(function)(x)
        print("equal" if torch.equal(compiled, function(x)) else "different")
