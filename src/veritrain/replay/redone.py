"""Doing a step of a run again, from a stored state: what audits and the parties of a dispute
share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from veritrain.encoding import Digest
from veritrain.job.data import Batches, batch_digest
from veritrain.job.state import require_fit, restore
from veritrain.job.step import Program, run_step
from veritrain.numerics.logged.rounding import Rounding
from veritrain.transcript import Transcript


@dataclass(frozen=True, kw_only=True)
class RedoneStep:
    """What a leaf says of a step beside its state, which is in the program."""

    batch: Digest
    loss: float


def start_of(step: int, every: int) -> int:
    """The step from whose stored state a replay of `step` begins.

    Args:
        step: 1 or later.
        every: the job's steps from one stored state to the next.
    """
    return (step - 1) // every * every


def restore_stored(program: Program, transcript: Transcript, step: int) -> None:
    """Put the state that a run stores after `step` into a program. The state of step 0 is the one
    as built.

    Raises:
        TranscriptError, VerificationError: the stored state is not sound, or does not fit.
    """
    if step > 0:
        restore(program, transcript.load_state(step, check=partial(require_fit, program)))


def redo_step(
    program: Program, batches: Batches, step: int, rounding: Rounding | None
) -> RedoneStep:
    """Do a step with the batch that the seed prescribes.

    Args:
        program: in the state before; in the state after it when this returns.
        batches: of the job.
        step: 1 or later.
        rounding: records or follows the step's rounding log, where the numerics have one.

    Raises:
        NumericsError, JobError: as `run_step`.
        TranscriptError, VerificationError: the rounding log does not lead on.
    """
    batch = batches[step]
    found = batch_digest(batch, program.job.shards)  # before the step, which may write to it
    return RedoneStep(batch=found, loss=run_step(program, step, batch, rounding))
