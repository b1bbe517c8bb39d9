"""Run by the matrix tests on each machine: train families in shards, print what each step came to.

python -m tests.shard_digests STEPS SHARDS[,SHARDS] [NAME ...]

Started as one of several ranks, with their variables in the environment, it computes its shards
alone.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import veritrain as vt
from tests import jobs, zoo
from veritrain.job.data import Batches, joined_digest, shard_digests
from veritrain.job.shards import ALONE
from veritrain.job.state import capture
from veritrain.job.step import Program, run_step
from veritrain.training.distributed.agreement import agree
from veritrain.training.distributed.ranks import Ranks
from veritrain.training.distributed.reduction import RankReduction
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


def digests(job: vt.Job, ranks: Ranks | None = None) -> list[str]:
    """State, batch and loss of each step, computed alone or by all ranks together."""
    program = Program.build(job)
    reduction = ALONE if ranks is None else RankReduction(ranks, program.model)
    mine = reduction.mine(job.shards)
    batches = Batches(job, shards=mine)
    result: list[str] = []
    for step in range(1, job.steps + 1):
        batch = batches[step]
        shards = shard_digests(batch, len(mine))
        loss = run_step(program, step, batch, reduction=reduction)
        entries = state_entries(capture(program))
        if ranks is not None:
            shards = agree(ranks, step, entries, shards, job.shards, stops=False).batches
        whole = joined_digest(shards) if job.shards > 1 else shards[0]
        result.append(f"{state_root(entries).hex()} {whole.hex()} {loss!r}")
    return result


def made(
    steps: int, counts: list[int], names: list[str], ranks: Ranks | None
) -> dict[str, list[str]]:
    every, found = families(steps), dict[str, list[str]]()
    for name in names or every:
        for count in counts:
            job = replace(every[name], shards=count, accumulate=2 if count < 8 else 1)
            found[f"{name} {count}"] = digests(job, ranks)
    return found


if __name__ == "__main__":
    given = int(sys.argv[1]), [int(count) for count in sys.argv[2].split(",")], sys.argv[3:]
    with Ranks.join(deadline=300) if "WORLD_SIZE" in os.environ else nullcontext() as others:
        print(json.dumps(made(*given, others)))
