"""Run by the matrix tests on each machine: train the zoo, print the state digest after every step.

python -m tests.train_digests NUMERICS STEPS [NAME ...]
"""

from __future__ import annotations

import json
import sys

import veritrain as vt
from tests import zoo
from veritrain.job.data import Batches, batch_digest
from veritrain.job.state import capture
from veritrain.job.step import Program, run_step
from veritrain.transcript.tensors import state_entries, state_root


def digests(numerics: str, steps: int, names: list[str]) -> dict[str, list[str]]:
    return {
        name: job_digests(job, steps)
        for name, job in zoo.jobs(steps, numerics).items()
        if not names or name in names
    }


def job_digests(job: vt.Job, steps: int) -> list[str]:
    """Digest of the state before the first step, then of state, batch and loss of each."""
    program, batches = Program.build(job), Batches(job)
    result = [state_root(state_entries(capture(program))).hex()]
    for step in range(1, steps + 1):
        batch = batches[step]
        loss = run_step(program, step, batch)
        root = state_root(state_entries(capture(program)))
        result.append(f"{root.hex()} {batch_digest(batch).hex()} {loss!r}")
    return result


if __name__ == "__main__":
    print(json.dumps(digests(sys.argv[1], int(sys.argv[2]), sys.argv[3:])))
