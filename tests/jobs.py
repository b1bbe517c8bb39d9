"""One tiny job for tests of the whole path: a step takes a millisecond, every mechanism is in
it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import veritrain as vt


class Points:
    """Records ({"x": float32[6], "weight": float}, label) with keyed noise."""

    def __init__(self, count: int = 40) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
        x = torch.arange(6, dtype=torch.float32) * (index + 1) / 64 + torch.rand(6) / 8
        return {"x": x, "weight": 1.0 + index / 64}, index % 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.25)
        self.second = nn.Linear(8, 3)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(F.relu(self.norm(self.first(x))))) * self.scale


def loss(model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
    fields, labels = batch
    return F.cross_entropy(model(fields["x"]), labels)


def groups(model: nn.Module) -> Iterator[dict[str, Any]]:
    yield {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01}
    yield {"params": [p for p in model.parameters() if p.ndim <= 1], "lr": 0.02}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(groups(model)), lr=0.01)


def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)


def make(**changes: Any) -> vt.Job:
    fields: dict[str, Any] = {
        "model": Net,
        "dataset": Points(),
        "loss": loss,
        "optimizer": adamw,
        "scheduler": cosine,
        "batch_size": 8,
        "accumulate": 2,
        "clip_norm": 1.0,
        "steps": 10,
        "seed": 11,
        "checkpoint_every": 4,
    }
    return vt.Job(**{**fields, **changes})
