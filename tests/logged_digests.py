"""Run by the matrix tests on each machine: train jobs under `logged` numerics, print digests of each step.

python -m tests.logged_digests NUMERICS STEPS FOLDER write|follow NAME...

The machine that writes leaves its rounding logs in FOLDER; the others follow them. A full-size model goes
by its name in `benchmarks.large`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.large import MODELS
from tests import zoo
from veritrain.data import Batches
from veritrain.errors import VeritrainError
from veritrain.job import Job
from veritrain.state import capture
from veritrain.step import Program, run_step
from veritrain.transcript import state_entries, state_root


def job_digests(job: Job, steps: int, logs: Path, *, writes: bool) -> list[str]:
    """One line per state: digest and loss; the last one is an error where the log does not lead on."""
    program, batches = Program.build(job), Batches(job)
    lines = [state_root(state_entries(capture(program))).hex()]
    for step in range(1, steps + 1):
        file = logs.with_suffix(f".{step}")
        rounding = program.recording() if writes else program.following(file.read_bytes())
        try:
            loss = run_step(program, step, batches[step], rounding)
            log = rounding.finish()
        except VeritrainError as error:
            return [*lines, f"{type(error).__name__}: {error}"]
        if writes:
            file.write_bytes(log)
        lines.append(f"{state_root(state_entries(capture(program))).hex()} {loss!r}")
    return lines


if __name__ == "__main__":
    numerics, steps, folder, role, *names = sys.argv[1:]
    jobs = {} if names[0] in MODELS else zoo.jobs(int(steps), numerics)
    found = {
        name: job_digests(
            MODELS[name].job(numerics, int(steps)) if name in MODELS else jobs[name], int(steps),
            Path(folder) / name.replace(" ", "-"), writes=role == "write",
        )
        for name in names
    }  # fmt: skip
    print(json.dumps(found))
