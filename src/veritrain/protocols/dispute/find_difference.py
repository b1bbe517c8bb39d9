"""What a challenger does before a dispute: find the first step that it computes differently, and
its own leaf of it.

A dispute takes the header for agreed, so a challenger looks at it first: `require_agreed`.
"""

from __future__ import annotations

from collections.abc import Callable

from veritrain.errors import InconclusiveError, UsageError, VerificationError, VeritrainError
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.step import Program
from veritrain.protocols.dispute.replayed_claims import ReplayedClaims
from veritrain.replay.header import other_dataset, other_versions, require_numerics
from veritrain.replay.segments import Replayer, plan, require_prescribed
from veritrain.transcript import Transcript


def require_agreed(job: Job, transcript: Transcript) -> None:
    """Check that a run has this job's numerics and data set, and stored states where the job says.
    A dispute cannot tell.

    Args:
        job: the challenger's own, whose `sources.require_job` the run has passed.
        transcript: the run.

    Raises:
        VerificationError: it has not; the run is to be rejected without a dispute.
        InconclusiveError: other versions may be why.
        UsageError: `native` numerics, under which honest machines differ.
        JobError: the data set fails.
    """
    _require_disputable(job)
    header, batches = transcript.header, Batches(job)
    try:
        require_numerics(job, header)
        require_prescribed(job, transcript)
    except VerificationError as error:
        raise VerificationError(f"reject the run, no dispute is needed: {error}") from error
    other = other_dataset(batches, transcript)
    if other is None:
        return
    if versions := other_versions(Program.build(job), batches, header):
        raise InconclusiveError(f"{other}; {versions}")
    raise VerificationError(
        f"the run is of another data set: reject it, no dispute is needed: {other}"
    )


def first_difference(
    job: Job, transcript: Transcript, on_step: Callable[[int], None] | None = None
) -> int | None:
    """The first step of a run that comes to another result on this machine; None if none does.

    Args:
        job: the challenger's own.
        transcript: with a sound chain.
        on_step: called with the number of each step that was found equal.

    Raises:
        InconclusiveError: this machine cannot recompute a step.
        UsageError: `native` numerics, under which honest machines differ.
        VeritrainError: as `Replayer.replay`.
    """
    _require_disputable(job)
    last = len(transcript.leaves) - 1
    replayer = Replayer(job, transcript, measure_gap=False)
    for segment in plan(transcript, job.checkpoint_every, 1, last):
        result = replayer.replay(segment, on_step)
        if result.obstacle is not None:
            raise InconclusiveError(result.obstacle)
        if result.findings:
            return result.findings[0].step
    return None


def challenger_claims(job: Job, transcript: Transcript, step: int) -> ReplayedClaims:
    """Claims whose leaf of `step` is the challenger's own; those before are the run's.

    Raises:
        UsageError: there is no such step.
        InconclusiveError: this machine cannot recompute the step.
    """
    if not 0 <= step < len(transcript.leaves):
        raise UsageError(f"the run has steps 0 to {len(transcript.leaves) - 1}, got {step}")
    before = [leaf.to_bytes() for leaf in transcript.leaves[:step]]
    claims = ReplayedClaims(job, transcript, before)
    try:
        own = claims.own_leaf(step)
    except VeritrainError as error:
        raise InconclusiveError(f"step {step} cannot be recomputed here: {error}") from error
    return claims.with_leaves([*before, own.to_bytes()])


def _require_disputable(job: Job) -> None:
    if job.numerics == "native":
        raise UsageError(
            "honest machines differ under native numerics: there is nothing to dispute"
        )
