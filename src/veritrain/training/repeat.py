"""Is a step a function of its state? Do it again as an auditor would, and compare.

The auditor builds the program anew, puts a stored state into it and computes the next step. What a
job remembers outside of its state (an attribute of a module, a global variable) is not there then,
or is another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)

from veritrain.encoding import Digest
from veritrain.job.data import Batches, batch_digest
from veritrain.job.shard_results import ShardResult
from veritrain.job.shards import BlockSum
from veritrain.job.state import capture, refuse_nan, require_fit, restore
from veritrain.job.step import Program, run_shard, run_step
from veritrain.numerics import Profile
from veritrain.runtime.progress import Stage, tell
from veritrain.training.attributes import Attributes
from veritrain.training.fresh import Fresh
from veritrain.training.hidden import Memory
from veritrain.transcript import TensorEntry, state_entries

_SHOWN = 3  # differences that a message names

State = tuple[TensorEntry, ...]


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What a leaf says of a step (its batch, its loss, the state after it), its log, and how long
    it took."""

    step: int
    batch: Digest
    loss: float
    state: State
    log_bytes: int | None  # of its rounding log, where the numerics have one
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """What a program and its job held just after a step, beside the state: for messages."""

    attributes: Attributes
    memory: Memory

    @classmethod
    def of(cls, program: Program, batches: Batches) -> Remembered:
        """Note it as it is now."""
        memory = Memory.of(batches.job, batches.dataset)
        return cls(attributes=Attributes.of(program), memory=memory)

    def differences(self, again: Remembered) -> list[str]:
        """Names of what is another, with short values where there are such."""
        attributes = [str(change) for change in self.attributes.changes(again.attributes)]
        return attributes + self.memory.changed(again.memory)


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """A program that did a step again, and how the step differed; None: in nothing."""

    program: Program
    batches: Batches
    built: State  # as it was built, at step 0
    outcome: StepOutcome
    difference: str | None
    set_by_step: Attributes  # what the step has set, the program's first


def do_step(
    program: Program,
    batches: Batches,
    step: int,
    after_shard: Callable[[BlockSum], None] | None = None,
) -> StepOutcome:
    """Fetch, compute and hash one step, which is what training does but for writing it down.

    Args:
        program: in the state before the step.
        batches: of its job.
        step: from 1.
        after_shard: as that of `run_step`.

    Raises:
        JobError, NumericsError: as `run_step`; the state holds a NaN.
        UsageError: the state cannot be committed to.
    """
    tell(Stage(doing=f"doing step {step}"))
    start = perf_counter()
    batch = batches[step]
    digest = batch_digest(batch, program.job.shards)  # before the step, which may write into it
    rounding = program.recording()
    loss = run_step(program, step, batch, rounding, after_shard=after_shard)
    log = None if rounding is None else rounding.finish()
    state = capture(program)
    refuse_nan(state, step)
    entries = state_entries(state)
    seconds = perf_counter() - start
    return StepOutcome(
        step=step, batch=digest, loss=loss, state=entries,
        log_bytes=None if log is None else len(log), seconds=seconds,
    )  # fmt: skip


def repeat(
    batches: Batches,
    before: Mapping[str, Tensor],
    outcome: StepOutcome,
    remembered: Remembered,
    profile: Profile,
    device: str = "cpu",
) -> Repetition:
    """Do the step of `outcome` again, from the state before it, by a program that was just built.

    Of several processes, one computes the last shard without those before it. So this program does
    too, first of all, and again within the step. What a job remembers from shard to shard changes
    the shard, or else, one call later, the step.

    Args:
        batches: of the job whose step it is.
        before: the state before the step.
        outcome: of the step when it was done first.
        remembered: of the program that did it, just after it.
        profile: computes it.
        device: where.

    Raises:
        JobError, NumericsError: the program cannot be built, or fails in the step.
        TranscriptError: the state does not fit the program.
    """
    program = Program.build(batches.job, profile, device)
    fresh = Fresh(program)
    built = state_entries(capture(program))
    require_fit(program, state_entries(before))
    restore(program, before)
    step, last = outcome.step, batches.job.shards - 1
    alone = within = _shard_alone(program, batches, step, last) if last > 0 else ()

    def after_shard(result: BlockSum) -> None:
        nonlocal within
        fresh.after_shard(result)
        if result.shards.start == last:
            within = _entries(step, result)

    again = do_step(program, batches, step, after_shard)
    found = _difference(outcome, again)
    if found is None and alone != within:
        names = listed(changed(alone, within))
        found = f"shard {last}, where it is computed without those before it: {names}"
    if found is not None and (names := remembered.differences(Remembered.of(program, batches))):
        found = f"{found}; these are not the same: {listed(names)}"
    return Repetition(
        program=program,
        batches=batches,
        built=built,
        outcome=again,
        difference=found,
        set_by_step=fresh.set_in(step),
    )


def _shard_alone(program: Program, batches: Batches, step: int, shard: int) -> State:
    """What a shard gives to a program in the state before the step."""
    tell(Stage(doing=f"doing shard {shard} of step {step} by itself"))
    batch = batches.of_shards(step, range(shard, shard + 1))
    return _entries(step, run_shard(program, step, shard, batch))


def _entries(step: int, result: BlockSum) -> State:
    """The tensors of a shard's result, and its loss as one of them."""
    with _disable_current_modes():  # within a step, its numerics would have rules for what follows
        loss = torch.tensor(result.loss, dtype=torch.float64)
        return state_entries({**ShardResult.of(step, result).tensors, "loss": loss})


def changed(one: State, other: State) -> list[str]:
    """Names of the tensors in which two states differ, sorted."""
    left = {entry.name: entry for entry in one}
    right = {entry.name: entry for entry in other}
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def _difference(first: StepOutcome, again: StepOutcome) -> str | None:
    if first.batch != again.batch:
        return "its batch, so a record is not the same each time it is asked for"
    names = [] if repr(first.loss) == repr(again.loss) else ["its loss"]
    names += changed(first.state, again.state)
    return listed(names) if names else None
