"""Checking a job before a long run: what would be refused, is it repeatable, what will it cost.

Nothing is written. The job's first two steps are done on its real model and data, and the last of
them once more by a second program, as an auditor will do it.
"""

from __future__ import annotations

import gc

from veritrain.errors import UsageError
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.load import reload
from veritrain.numerics import resolve
from veritrain.numerics.observed import Indifferent, observed
from veritrain.training.carry import carried_bytes
from veritrain.training.check_report import CheckReport, Estimates, Problem
from veritrain.training.observe import Observation, observe
from veritrain.training.rehearsal import (
    built_otherwise,
    require_ordered,
    require_same_records,
    stepped_otherwise,
)
from veritrain.training.repeat import changed, do_step, repeat
from veritrain.transcript.sizes import disk_use

DEFAULT_RECORDS = 1000


def check(job: Job, *, records: int = DEFAULT_RECORDS) -> CheckReport:
    """Find out what would end a run of this job, or have its audit fail, and what it would take.

    Args:
        job: what is to be trained.
        records: of the data set to look at, evenly spread; training looks at all of them.

    Raises:
        UsageError: `records` is not a positive number.
    """
    if type(records) is not int or records < 1:
        raise UsageError(f"records: expected 1 or more, got {records!r}")
    seen = observe(job, records)
    gc.collect()  # programs are cyclic; two at a time would take twice the memory
    times: list[float] = []
    if seen.is_complete:
        times = seen.attempt("repeated step", lambda: _repeat(job, seen, records)) or []
    estimates: Estimates | None = None
    if times:
        try:
            estimates = _estimates(job, seen, times)
        except UsageError as error:  # a limit of the format
            seen.problems.append(Problem(part="run", message=str(error), error=error))
    return CheckReport(
        numerics=job.numerics,
        steps=job.steps,
        operators=seen.refused,
        problems=tuple(seen.problems),
        records_checked=seen.records_checked,
        records=seen.records,
        estimates=estimates,
        shards=seen.shards,
    )


def _repeat(job: Job, seen: Observation, records: int) -> list[float]:
    """Do the last step again and compare; the seconds of that step and of the next."""
    profile = observed(job.numerics, Indifferent()) if seen.refused else resolve(job.numerics)
    if seen.remembered is None:
        return []
    one, other = Batches(reload(job), profile), Batches(reload(job), profile)
    again = repeat(other, seen.before, seen.outcomes[-1], seen.remembered, profile)
    seen.attempt("data set", lambda: require_same_records(one, other, records))
    if names := changed(seen.states[0], again.built):
        seen.problems.append(Problem(part="building", message=built_otherwise(names)))
    if again.difference is not None:
        message = stepped_otherwise(again) + (
            " (or on kernels that do not repeat themselves)" if job.numerics == "native" else ""
        )
        seen.problems.append(Problem(part="hidden state", message=message))
    seen.attempt("building", lambda: require_ordered(again.program))
    times = [again.outcome.seconds]
    if (following := again.outcome.step + 1) <= job.steps:
        times.append(do_step(again.program, again.batches, following).seconds)
    return times


def _estimates(job: Job, seen: Observation, times: list[float]) -> Estimates | None:
    if seen.header is None:
        return None
    step_seconds = sum(times) / len(times)
    return Estimates(
        step_seconds=step_seconds,
        timed_steps=len(times),
        record_seconds=seen.record_seconds,
        seconds=step_seconds * job.steps + seen.record_seconds * seen.records,
        peak_bytes=seen.peak_bytes,
        state_bytes=sum(entry.num_bytes for entry in seen.states[-1]),
        disk=disk_use(
            seen.header,
            seen.states,
            seen.outcomes[-1].loss,
            job.steps,
            job.checkpoint_every,
            log=max(
                (outcome.log_bytes for outcome in seen.outcomes if outcome.log_bytes), default=None
            ),
            carried=carried_bytes(job, seen.records),
        ),
        operators=seen.operators,
        places=seen.places,
    )
