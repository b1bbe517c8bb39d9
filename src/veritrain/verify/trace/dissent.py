"""What a challenger holds against a run: the first step that it computes differently, and its own leaf of it."""

from __future__ import annotations

from collections.abc import Callable

from veritrain.data import Batches
from veritrain.errors import InconclusiveError, UsageError, VeritrainError
from veritrain.job import Job
from veritrain.transcript import Transcript
from veritrain.verify.segments import Replayer, plan
from veritrain.verify.trace.witness import Witness


def first_difference(
    job: Job, transcript: Transcript, on_step: Callable[[int], None] | None = None
) -> int | None:
    """The first step of a run that comes to something else here; None if there is none.

    Args:
        job: the challenger's own.
        transcript: with a sound chain.
        on_step: called with the number of each step that was found equal.

    Raises:
        InconclusiveError: a step cannot be recomputed here.
        UsageError: `native` numerics, under which honest machines differ.
        VeritrainError: as `Replayer.replay`.
    """
    if job.numerics == "native":
        raise UsageError(
            "honest machines differ under native numerics: there is nothing to dispute"
        )
    last = len(transcript.leaves) - 1
    replayer = Replayer(Batches(job), transcript, measure_gap=False)
    for segment in plan(transcript, 1, last):
        result = replayer.replay(segment, on_step)
        if result.obstacle is not None:
            raise InconclusiveError(result.obstacle)
        if result.findings:
            return result.findings[0].step
    return None


def challenger_witness(job: Job, transcript: Transcript, step: int) -> Witness:
    """A witness whose leaf of `step` is its own; those before are the run's.

    Raises:
        UsageError: there is no such step.
        InconclusiveError: the step cannot be recomputed here, or comes to the run's own leaf.
    """
    if not 0 <= step < len(transcript.leaves):
        raise UsageError(f"the run has steps 0 to {len(transcript.leaves) - 1}, got {step}")
    before = [leaf.to_bytes() for leaf in transcript.leaves[:step]]
    witness = Witness(job, transcript, before)
    try:
        own = witness.own_leaf(step)
    except VeritrainError as error:
        raise InconclusiveError(f"step {step} cannot be recomputed here: {error}") from error
    return witness.with_leaves([*before, own.to_bytes()])
