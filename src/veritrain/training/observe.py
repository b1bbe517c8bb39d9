"""The first steps of a job, done with someone looking on: what is refused, where, and what it
costs.

Nothing stops the observation but an error that leaves nothing to go on with: each part of the job
is tried by itself, and an operator without a rule is noted and computed by PyTorch's own kernel.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TypeVar

from torch import Tensor

from veritrain.encoding import DIGEST_BYTES, Value
from veritrain.errors import VeritrainError
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.shards import BlockSum
from veritrain.job.sources import commitment, environment
from veritrain.job.state import capture
from veritrain.job.step import Program
from veritrain.numerics.observed import observed
from veritrain.training.check_report import Cost, Problem, RefusedOperator, ShardNeeds
from veritrain.training.fresh import Fresh
from veritrain.training.notes import Notes, merged
from veritrain.training.places import Places
from veritrain.training.rehearsal import spread
from veritrain.training.repeat import Remembered, State, StepOutcome, do_step
from veritrain.transcript import Header, state_entries
from veritrain.transcript.records import PUBLIC_KEY_BYTES

_STEPS = 2  # the second one starts from a state that a step has made

T = TypeVar("T")


@dataclass(kw_only=True)
class Observation:
    """What was seen; later fields stay empty where something earlier went wrong."""

    problems: list[Problem] = field(default_factory=list)
    refused: tuple[RefusedOperator, ...] = ()
    records_checked: int = 0
    records: int = 0
    record_seconds: float = 0.0
    # of a run of this job; digest of the data and key stand for others
    header: Header | None = None
    states: list[State] = field(default_factory=list)  # after the steps 0, 1 and 2
    outcomes: list[StepOutcome] = field(default_factory=list)  # of the steps 1 and 2
    before: dict[str, Tensor] = field(default_factory=dict)  # the state before the last of them
    remembered: Remembered | None = None  # after it
    peak_bytes: int = 0
    shards: ShardNeeds | None = None
    operators: tuple[Cost, ...] = ()  # of the last step
    places: tuple[Cost, ...] = ()
    is_complete: bool = False  # both steps were done

    def attempt(self, part: str, act: Callable[[], T]) -> T | None:
        """What `act` returns; its error becomes a problem of that part of the job."""
        try:
            return act()
        except Exception as error:
            known = isinstance(error, VeritrainError)
            message = str(error) if known else f"{type(error).__name__}: {error}"
            if message not in [problem.message for problem in self.problems]:
                self.problems.append(Problem(part=part, message=message, error=error))
            return None


def observe(job: Job, records: int) -> Observation:
    """Look at a job up to its second step; at most `records` records are tried.

    The program is gone when this returns, so that it does not take memory from the next one.
    """
    return _Observing(job).run(records)


class _Observing:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._places = Places()
        self._notes = [Notes(self._places)]
        self._profile = observed(job.numerics, self._notes[0])
        self._seen = Observation()

    def run(self, records: int) -> Observation:
        job = self._job
        with self._places.hooked():
            sources = self._attempt("job", lambda: commitment(job))
            batches = self._attempt("data set", lambda: Batches(job, self._profile))
            if batches is not None:
                self._attempt("data set", lambda: self._read(batches, records))
            program = self._attempt("building", self._build)
            if program is not None:
                self._attempt("state", lambda: self._capture(program))
            if batches is not None and program is not None:
                self._attempt("step", lambda: self._do_steps(program, batches))
        if sources is not None and batches is not None and program is not None:
            self._seen.header = self._attempt(
                "job", lambda: _header(sources, replace(program, job=job), batches)
            )
        self._seen.refused = merged(self._notes)
        return self._seen

    def _attempt(self, part: str, act: Callable[[], T]) -> T | None:
        self._places.enter(part)
        return self._seen.attempt(part, act)

    def _read(self, batches: Batches, records: int) -> None:
        self._seen.records = batches.count
        indices = spread(batches.count, records)
        list(batches.record_digests(indices[:1]))  # the first one takes longer
        start = perf_counter()
        for _ in batches.record_digests(indices):
            self._seen.records_checked += 1
        self._seen.record_seconds = (perf_counter() - start) / len(indices)

    def _build(self) -> Program:
        job = replace(self._job, loss=self._places.watching(self._job.loss))
        program = Program.build(job, self._profile)
        self._places.follow(program.model, program.optimizer, clips=job.clip_norm is not None)
        return program

    def _capture(self, program: Program) -> None:
        self._seen.states.append(state_entries(capture(program)))

    def _do_steps(self, program: Program, batches: Batches) -> None:
        fresh = Fresh(program)

        def after_shard(result: BlockSum) -> None:
            if self._seen.shards is None:
                self._seen.shards = self._needs(program)
            fresh.after_shard(result)

        last = min(_STEPS, self._job.steps)
        peak = 0  # before the copy below
        for step in range(1, last + 1):
            if step == last:
                peak = peak_memory()
                self._seen.before = {name: x.clone() for name, x in capture(program).items()}
            if step > 1:
                self._notes.append(Notes(self._places))
                self._profile.observer = self._notes[-1]
            self._places.enter("data set")
            outcome = do_step(program, batches, step, after_shard)
            fresh.require_form(step)
            self._attempt("state", lambda step=step: fresh.require_attributes(step))
            self._seen.outcomes.append(outcome)
            self._seen.states.append(outcome.state)
        copied = sum(x.numel() * x.element_size() for x in self._seen.before.values())
        self._seen.peak_bytes = max(peak, peak_memory() - copied)
        self._seen.remembered = Remembered.of(program, batches)
        self._seen.operators = self._notes[-1].operators.largest()
        self._seen.places = self._notes[-1].places.largest()
        self._seen.is_complete = True

    def _needs(self, program: Program) -> ShardNeeds:
        """What the first shard took, which was just computed."""
        job, trained = self._job, (p for p in program.model.parameters() if p.requires_grad)
        return ShardNeeds(
            count=job.shards,
            records=job.batch_size // job.shards,
            peak_bytes=peak_memory(),
            gradient_bytes=sum(p.numel() * p.element_size() for p in trained),
        )


def _header(sources: dict[str, Value], program: Program, batches: Batches) -> Header:
    return Header(
        numerics=program.profile.name,
        numerics_version=program.profile.version,
        job=sources,
        dataset_root=bytes(DIGEST_BYTES),
        dataset_count=batches.count,
        environment=environment(program, batches.dataset),
        public_key=bytes(PUBLIC_KEY_BYTES),
    )


def peak_memory() -> int:
    """Most bytes of memory that this process ever held at a time.

    Not `ru_maxrss` where there is better: on Linux it begins at that of the program which started
    this one.
    """
    try:
        held = re.search(
            r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE
        )
    except OSError:
        held = None
    if held is not None:
        return int(held[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
