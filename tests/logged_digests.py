"""Run by the matrix tests on each machine: train jobs under `logged` numerics, print digests of
each step.

python -m tests.logged_digests NUMERICS STEPS FOLDER write|follow|reorder NAME...

The machine that writes leaves its rounding logs and samples of its raw values in FOLDER; the others
follow the logs. One that reorders has sums that run in another order, and measures how far raw
values lie apart. A full-size model goes by its name in `benchmarks.large`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.large import MODELS
from tests import zoo
from veritrain.errors import VeritrainError
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.state import capture
from veritrain.job.step import Program, run_step
from veritrain.numerics.logged.rounding import Rounding
from veritrain.numerics.logged.samples import Comparing, Sampling
from veritrain.transcript import state_entries, state_root


def job_digests(job: Job, steps: int, logs: Path, role: str, gaps: dict[str, float]) -> list[str]:
    """One line per state: digest and loss; the last one is an error where the log does not lead on.

    `gaps` takes the largest of each class, in units of u * S.
    """
    program, batches = Program.build(job), Batches(job)
    lines = [state_root(state_entries(capture(program))).hex()]
    for step in range(1, steps + 1):
        file = logs.with_suffix(f".{step}")
        rounding = rounding_of(program, role, file)
        try:
            loss = run_step(program, step, batches[step], rounding)
            log = rounding.finish()
        except VeritrainError as error:
            return [*lines, f"{type(error).__name__}: {error}"]
        if isinstance(rounding, Sampling):
            file.write_bytes(log)
            _beside(file, "samples").write_bytes(rounding.samples())
            _beside(file, "decisions").write_bytes(rounding.decisions())
        if isinstance(rounding, Comparing):
            if rounding.disagreements:
                return [*lines, rounding.disagreements[0]]
            for name, gap in rounding.gaps.items():
                gaps[name] = max(gaps.get(name, 0.0), gap.largest)
        lines.append(f"{state_root(state_entries(capture(program))).hex()} {loss!r}")
    return lines


def rounding_of(program: Program, role: str, file: Path) -> Rounding:
    """Who decides on this machine."""
    plain = program.recording()
    assert plain is not None
    if role == "write":
        return Sampling(plain.target, plain.thresholds)
    log = file.read_bytes()
    if role == "reorder":
        parts = [_beside(file, name).read_bytes() for name in ("decisions", "samples")]
        return Comparing(plain.target, plain.thresholds, log, *parts, reordered=True)
    following = program.following(log)
    assert following is not None
    return following


def _beside(file: Path, name: str) -> Path:
    return file.with_name(f"{file.name}.{name}")


if __name__ == "__main__":
    numerics, steps, folder, role, *names = sys.argv[1:]
    jobs = {} if names[0] in MODELS else zoo.jobs(int(steps), numerics)
    gaps: dict[str, float] = {}
    digests = {
        name: job_digests(
            MODELS[name].job(numerics, int(steps)) if name in MODELS else jobs[name], int(steps),
            Path(folder) / name.replace(" ", "-"), role, gaps,
        )
        for name in names
    }  # fmt: skip
    print(json.dumps({"digests": digests, "gaps": gaps}))
