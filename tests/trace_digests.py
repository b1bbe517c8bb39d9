"""Digests of the traces of a step of every family, for one machine of the matrix: `NAME DIGEST`
lines.

The second step: the state that it starts from was made by a step. Arguments: numerics, families
    (none: all).
"""

from __future__ import annotations

import sys

from tests import zoo
from veritrain.encoding import digest
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.state import capture
from veritrain.job.step import Program, run_step
from veritrain.replay.trace.tracer import Before, Tracer, trace
from veritrain.transcript import state_entries, state_root


def second_step(job: Job) -> tuple[Program, Batches, Before]:
    """A program after its first step."""
    program, batches = Program.build(job), Batches(job)
    run_step(program, 1, batches[1])
    state = state_root(state_entries(capture(program)))
    return program, batches, Before(step=2, previous=bytes(32), state=state)


def trace_of(job: Job) -> Tracer:
    program, batches, before = second_step(job)
    return trace(program, before, batches[2])


if __name__ == "__main__":
    found = zoo.jobs(3, sys.argv[1])
    for name in sys.argv[2:] or found:
        print(name, digest("trace", b"".join(trace_of(found[name]).entries)).hex(), flush=True)
