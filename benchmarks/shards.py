"""A step in n shards against one that accumulates n micro-batches, in fresh processes.

The step in shards may take one gradient more: the sum that waits. Two models: one whose gradient is
most of its memory, one whose activations are. The allocator of the C library gives large blocks
back when they are freed, in both: else what it keeps, in holes, is more than what is compared.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import veritrain as vt
from benchmarks.large import peak
from veritrain.job.data import Batches
from veritrain.job.step import Program, run_step

COUNTS = (2, 4, 8)
STEPS = 3
_RECORDS = 32  # of a step


class Noise:
    """Records of random numbers, float32, and a label."""

    def __init__(self, *shape: int) -> None:
        self._shape = shape

    def __len__(self) -> int:
        return _RECORDS * STEPS

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(self._shape), index % 10


def perceptron() -> nn.Module:
    """33.6 million parameters, a gradient of 134 MB."""
    layers = [m for _ in range(8) for m in (nn.Linear(2048, 2048), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(2048, 10))


def convolutions() -> nn.Module:
    """A small gradient; activations of 8 MB for each record."""
    layers = [
        m
        for _ in range(6)
        for m in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    ]
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Noise]] = {
    "perceptron": (perceptron, Noise(2048)),
    "convolutions": (convolutions, Noise(3, 96, 96)),
}  # fmt: skip


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def shards() -> list[dict[str, Any]]:
    """A row for each model and n."""
    rows: list[dict[str, Any]] = []
    for model in MODELS:
        for count in COUNTS:
            accumulated, cut = (_measured(model, way, count) for way in ("accumulate", "shards"))
            extra = cut["peak"] - accumulated["peak"]
            rows.append({
                "model and n": f"{model} {count}",
                "gradient MB": cut["gradient"] / 1e6,
                "accumulate=n MB": accumulated["peak"] / 1e6,
                "shards=n MB": cut["peak"] / 1e6,
                "more MB": extra / 1e6,
                "accumulate=n ms": accumulated["seconds"] * 1e3,
                "shards=n ms": cut["seconds"] * 1e3,
                "shards / accumulate": cut["seconds"] / accumulated["seconds"],
            })  # fmt: skip
    return rows


def _measured(model: str, way: str, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.shards", model, way, str(count)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # bytes
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure(model: str, way: str, count: int) -> dict[str, float]:
    """In a process of its own: some steps, the most memory that they took, and their time."""
    build, dataset = MODELS[model]
    ways: dict[str, Any] = {way: count}
    job = vt.Job(
        model=build, dataset=dataset, loss=loss, batch_size=_RECORDS, steps=STEPS, seed=1,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.01), **ways,
    )  # fmt: skip
    program, batches = Program.build(job), Batches(job)
    seconds: list[float] = []
    for step in range(1, STEPS + 1):
        batch = batches[step]
        start = time.perf_counter()
        run_step(program, step, batch)
        seconds.append(time.perf_counter() - start)
    gradient = sum(p.numel() * p.element_size() for p in program.model.parameters())
    return {"peak": peak(), "gradient": gradient, "seconds": statistics.median(seconds)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
