"""Run by the matrix tests on each machine: train families in shards, print what each step came to.

python -m tests.shard_digests STEPS SHARDS[,SHARDS] [NAME ...]
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import veritrain as vt
from tests import jobs, zoo
from veritrain.job.data import Batches, batch_digest
from veritrain.job.state import capture
from veritrain.job.step import Program, run_step
from veritrain.transcript import state_entries, state_root

FAMILIES = (
    "resnet-nesterov",  # batch norm
    "convnet-sgd",  # dropout, augmented records, a scheduler
    "transformer-adamw",  # attention with dropout, clipping
    "gru",  # recurrent, bidirectional
    "mixture-of-experts",  # experts that some shards leave alone
    "gpt2",  # tied weights
    "frozen",  # frozen, unused and late parameters
)


class Partly(nn.Module):
    """A frozen layer, one that is never used, and one that only some records use."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 8)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(6, 8)
        self.sometimes = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)
        self.register_buffer("mask", torch.full((8,), torch.finfo(torch.float32).max))

    def forward(self, x: Tensor) -> Tensor:
        y = self.frozen(x)
        if bool(x[0, 1] > x[-1, 1]):
            y = y + self.sometimes(x)
        return self.head(F.relu(self.norm(torch.minimum(y, self.get_buffer("mask")))))


def families(steps: int) -> dict[str, vt.Job]:
    """Each with a batch of 16 records."""
    found = zoo.jobs(steps, "exact")
    found["frozen"] = jobs.make(model=Partly, steps=steps)
    return {name: replace(found[name], batch_size=16, accumulate=1) for name in FAMILIES}


def digests(job: vt.Job) -> list[str]:
    """State, batch and loss of each step."""
    program, batches = Program.build(job), Batches(job)
    result: list[str] = []
    for step in range(1, job.steps + 1):
        batch = batches[step]
        loss = run_step(program, step, batch)
        root = state_root(state_entries(capture(program)))
        result.append(f"{root.hex()} {batch_digest(batch, job.shards).hex()} {loss!r}")
    return result


if __name__ == "__main__":
    every = families(int(sys.argv[1]))
    made: dict[str, list[str]] = {}
    for name in sys.argv[3:] or every:
        for count in map(int, sys.argv[2].split(",")):
            job = replace(every[name], shards=count, accumulate=2 if count < 8 else 1)
            made[f"{name} {count}"] = digests(job)
    print(json.dumps(made))
