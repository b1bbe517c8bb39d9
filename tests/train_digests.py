"""Run by the matrix tests on each machine: train the zoo, print the state digest after every step.

python -m tests.train_digests PLAN

PLAN is JSON: {"NUMERICS": {"NAME": STEPS, ...}, ...}; lines are printed under the same names.
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


def digests(numerics: str, steps: dict[str, int]) -> dict[str, list[str]]:
    """Lines of each model that is named, after as many steps as stand beside its name."""
    return {
        name: job_digests(zoo.jobs(count, numerics)[name], count) for name, count in steps.items()
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
    plan: dict[str, dict[str, int]] = json.loads(sys.argv[1])
    print(json.dumps({numerics: digests(numerics, steps) for numerics, steps in plan.items()}))
