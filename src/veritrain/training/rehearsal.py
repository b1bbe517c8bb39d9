"""Before a run begins: is it a run that an audit can repeat?

An audit reads the records once more, builds the program anew at every checkpoint, and does the steps
again. So the trainer does the same before the first step, on a small part, and refuses by name what
would be rejected after the whole run:

  1. records       some of them, read a second time in the other order, are the same
  2. first steps   the first two steps are done by a program of its own, the second one once more by a
                   program that was just built, from the state after the first
  3. order         parameters, and what initialises modules, do not follow the order of a set

`veritrain check` does the same, and goes on where this stops. Under `native` numerics nothing is done:
its audits accept nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from veritrain.data import Batches
from veritrain.errors import JobError
from veritrain.fresh import Fresh
from veritrain.job import users_code
from veritrain.progress import Stage, tell
from veritrain.state import StateForm, capture
from veritrain.step import Program
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
_ORDERS = (
    1,
    -1,
    2,
    -2,
    3,
    -3,
    4,
    -4,
)  # of hashes; under -n a small set has the order of n reversed


def rehearse(batches: Batches, device: str = "cpu") -> State:
    """Do what an audit does, before there is anything to audit.

    Args:
        batches: of the job that is to be trained.
        device: where its steps will be computed.

    Returns:
        The initial state that a run of this job has.

    Raises:
        JobError: the job is not the same when it is done again; names what differs, and where it may
            come from.
        NumericsError: as `run_step`, in one of the first steps.
    """
    tell(Stage(doing="rehearsing: the first steps twice, as an audit will repeat them"))
    require_same_records(batches, _RECORDS)
    with hashes(_ORDERS[0]):
        program = Program.build(batches.job, batches.profile, device)
        built = state_entries(capture(program))
        before, outcome = _first_steps(program, batches)
        remembered = Remembered.of(program, batches)
    require_ordered(program)
    del program
    if sum(entry.num_bytes for entry in built) > _LARGE_STATE:
        gc.collect()  # programs are cyclic; two at a time would take twice the memory
    with hashes(_ORDERS[1]):
        again = repeat(batches, before, outcome, remembered, batches.profile, device)
    if names := changed(built, again.built):
        raise JobError(built_otherwise(names))
    if again.difference is not None:
        raise JobError(stepped_otherwise(again))
    return built


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
        f"step {step}, done again from the stored state {step - 1} by a program that was just built, "
        f"differs in {again.difference}. It depends on something that is not part of the state: make it "
        "a buffer, or a function of the batch"
    )


def require_same_records(batches: Batches, count: int) -> None:
    """Check that some records, evenly spread, are the same when they are read again in the other order.

    Raises:
        JobError: one is not; names it, and the attributes of the data set that changed.
    """
    indices = spread(batches.count, count)
    before = Memory.of(batches.job, batches.dataset)
    first = {index: next(batches.record_digests([index])) for index in indices}
    middle = Memory.of(batches.job, batches.dataset)
    for index in reversed(indices):
        if next(batches.record_digests([index])) != first[index]:
            names = before.changed(middle) or middle.changed(
                Memory.of(batches.job, batches.dataset)
            )
            blame = f"; {listed(names)} changed as records were read" if names else ""
            raise JobError(
                f"dataset: record {index} is another one when it is read again{blame}. A record must "
                "follow from its index: draw random numbers from torch, numpy.random or random, which "
                "are keyed for each record, or make a generator in __getitem__ with a seed of the index"
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
                    f"optimizer: the order of the parameters in group {index} is that of a set, which "
                    "is another in each process; make a list in the order of model.parameters()"
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

    original = torch.Tensor.__hash__
    torch.Tensor.__hash__ = mixed
    nn.Module.__hash__ = mixed
    try:
        yield
    finally:
        torch.Tensor.__hash__ = original
        del nn.Module.__hash__


def _first_steps(program: Program, batches: Batches) -> tuple[dict[str, torch.Tensor], StepOutcome]:
    """The state before the last of the first steps, and what that step came to."""
    last = min(_STEPS, batches.job.steps)
    fresh = Fresh(program)
    for step in range(1, last):
        do_step(program, batches, step)
        fresh.require_kept(step)
    before = {name: tensor.clone() for name, tensor in capture(program).items()}
    outcome = do_step(program, batches, last)
    fresh.require_kept(last)
    return before, outcome
