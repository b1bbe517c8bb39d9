"""Before a run begins: is it a run that an audit can repeat?

An audit reads the records once more, builds the program anew at every checkpoint, and does the
steps again. So the trainer does the same before the first step, on a small part, and refuses by
name what would be rejected after the whole run:

  1. records       some of them, read a second time in the other order, are the same
  2. first steps   the first two steps are done by a program of its own, the second once more by a
                   program that was just built, from the state after the first
  3. order         parameters, and what initialises modules, do not follow the order of a set

`veritrain check` does the same, and goes on where this stops. Under `native` numerics nothing is
done: its audits accept nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from veritrain.errors import JobError, VeritrainError
from veritrain.job.data import Batches
from veritrain.job.job import Job, users_code
from veritrain.job.load import reload
from veritrain.job.state import StateForm, capture
from veritrain.job.step import Program
from veritrain.runtime.progress import Stage, tell
from veritrain.training.attributes import Attributes
from veritrain.training.fresh import Fresh
from veritrain.training.hidden import Memory
from veritrain.training.repeat import (
    Remembered,
    Repetition,
    State,
    StepOutcome,
    changed,
    do_step,
    listed,
    repeat,
)
from veritrain.transcript import state_entries

_RECORDS = 16
_STEPS = 2  # the second one starts from a state that a step has made
_LARGE_STATE = 1 << 26  # bytes
# Of hashes; under -n a small set has the order of n reversed.
_ORDERS = (1, -1, 2, -2, 3, -3, 4, -4)

T = TypeVar("T")


def rehearse(job: Job, device: str = "cpu") -> Attributes:
    """Do what an audit does, before there is anything to audit.

    Both halves are done by the job loaded anew, with a data set of their own, as an audit does it:
    so `job` itself is as it was.

    Args:
        job: that is to be trained.
        device: where its steps will be computed.

    Returns:
        The attributes that a step sets (cached shapes, for example), as the repeated one left them.

    Raises:
        JobError: the job is not the same when it is done again; names what differs, and where it
            may come from.
        NumericsError: as `run_step`, in one of the first steps.
    """
    tell(Stage(doing="rehearsing: the first steps twice, as an audit will repeat them"))
    first = _under_hashes(_ORDERS[0], lambda: _FirstSteps.of(_reloaded(job), device))
    if sum(entry.num_bytes for entry in first.built) > _LARGE_STATE:
        gc.collect()  # programs are cyclic; two at a time would take twice the memory
    again = _under_hashes(
        _ORDERS[1],
        lambda: repeat(
            Batches(_reloaded(job)),
            first.before,
            first.outcome,
            first.remembered,
            first.batches.profile,
            device,
        ),
    )
    require_same_records(first.batches, again.batches, _RECORDS)
    if names := changed(first.built, again.built):
        raise JobError(built_otherwise(names))
    if again.difference is not None:
        raise JobError(stepped_otherwise(again))
    return again.set_by_step


@dataclass(frozen=True, kw_only=True)
class _FirstSteps:
    """The first steps of a job, done by a program of their own, which is gone."""

    batches: Batches
    built: State
    before: dict[str, torch.Tensor]  # the state before the last of them
    outcome: StepOutcome  # of the last of them
    remembered: Remembered  # after it

    @classmethod
    def of(cls, job: Job, device: str) -> _FirstSteps:
        """Do them."""
        batches = Batches(job)
        program = Program.build(job, batches.profile, device)
        built = state_entries(capture(program))
        last = min(_STEPS, job.steps)
        fresh = Fresh(program)
        for step in range(1, last):
            do_step(program, batches, step, fresh.after_shard)
            fresh.require_kept(step)
        before = {name: tensor.clone() for name, tensor in capture(program).items()}
        outcome = do_step(program, batches, last, fresh.after_shard)
        fresh.require_kept(last)
        remembered = Remembered.of(program, batches)
        require_ordered(program)
        return cls(
            batches=batches,
            built=built,
            before=before,
            outcome=outcome,
            remembered=remembered,
        )


def _reloaded(job: Job) -> Job:
    try:
        return reload(job)
    except JobError as error:
        raise JobError(
            f"{error}. The job was executed a second time, as audits do for each interval: what can"
            " be done once only has to be guarded"
        ) from error


def _under_hashes(order: int, act: Callable[[], T]) -> T:
    """Do something under other hashes; where that fails, and it does not without, without.

    Dictionaries that were made before, with tensors or modules as keys, are of no use under others.
    """
    try:
        with hashes(order):
            return act()
    except VeritrainError:
        return act()


def built_otherwise(names: list[str]) -> str:
    """The sentence about a job that was built twice and differs in these tensors."""
    return (
        f"model: built a second time it is not the same: {listed(names)}; let random numbers come "
        "from torch, numpy or random, nothing from what an earlier call left behind, and the order "
        "of modules from no set of them: use a list"
    )


def stepped_otherwise(again: Repetition) -> str:
    """The sentence about a step that was done twice and differs."""
    step = again.outcome.step
    return (
        f"step {step}, done again from the stored state {step - 1} by a program that was just"
        f" built, differs in {again.difference}. It depends on something that is not part of the"
        " state: make it a buffer, or a function of the batch"
    )


def require_same_records(one: Batches, other: Batches, count: int) -> None:
    """Check that some records, evenly spread, are the same when they are read again, in the other
    order, from the same data set and from another opening of it.

    Raises:
        JobError: one is not; names it, and the attributes of the data set that changed.
    """
    used = {
        index
        for step in range(1, min(_STEPS, one.job.steps) + 1)
        for index in one.indices(step)[:4]
    }
    indices = sorted(
        {*spread(one.count, count), *used}
    )  # a cache has kept those of the first steps
    before = Memory.of(one.job, one.dataset)
    first = {index: next(one.record_digests([index])) for index in indices}
    middle = Memory.of(one.job, one.dataset)
    for batches, index in ((batches, i) for i in reversed(indices) for batches in (one, other)):
        if next(batches.record_digests([index])) != first[index]:
            names = before.changed(middle) or middle.changed(Memory.of(one.job, one.dataset))
            cause = f"; {listed(names)} changed as records were read" if names else ""
            raise JobError(
                f"dataset: record {index} is another one when it is read again{cause}. A record"
                " must follow from its index: draw random numbers from torch, numpy.random or"
                " random, which are keyed for each record, or make a generator in __getitem__ with"
                " a seed of the index; and keep in a cache what records are before anything random"
                " is done to them"
            )


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` records, evenly spread, the first and the last among them."""
    if wanted >= count:
        return list(range(count))
    return sorted({i * (count - 1) // max(1, wanted - 1) for i in range(wanted)})


def require_ordered(program: Program) -> None:
    """Check that the optimiser has its parameters in an order that does not depend on addresses.

    The order of a set of tensors is that of their hashes, which are addresses. So the optimiser is
    made again, on the same model, with other hashes.

    Raises:
        JobError: it has another order then.
    """
    job = program.job
    expected = StateForm.of(program).groups
    for order in _ORDERS:
        with (
            hashes(order),
            program.profile.active(seed=job.seed, purpose="init", step=0, device=program.device),
            users_code("optimizer"),
        ):
            made = job.optimizer(program.model)
        names = {id(parameter): name for name, parameter in program.model.named_parameters()}
        groups = tuple(tuple(names[id(p)] for p in group["params"]) for group in made.param_groups)
        for index, (one, other) in enumerate(zip(expected, groups, strict=False)):
            if one != other:
                raise JobError(
                    f"optimizer: the order of the parameters in group {index} is that of a set,"
                    " which is another in each process; make a list in the order of"
                    " model.parameters()"
                )


@contextmanager
def hashes(order: int) -> Generator[None]:
    """Within it, tensors and modules have other hashes, so that sets of them have another order."""
    mask = (1 << 60) - 1
    start = abs(order) * 0x9E3779B97F4A7C15

    def mixed(self: object) -> int:
        # splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)
        value = (id(self) + start) % (1 << 64)
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
        value = (value ^ value >> 27) * 0x94D049BB133111EB % (1 << 64)
        value = (value ^ value >> 31) & mask
        return value if order >= 0 else value ^ mask

    of_tensors, of_modules = torch.Tensor.__hash__, nn.Module.__hash__
    torch.Tensor.__hash__ = nn.Module.__hash__ = mixed
    try:
        yield
    finally:
        torch.Tensor.__hash__, nn.Module.__hash__ = of_tensors, of_modules
