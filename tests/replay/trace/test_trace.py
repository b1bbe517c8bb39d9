"""Traces: the same on every machine, of the step itself, complete, and enough to say what comes
next."""

from __future__ import annotations

import random
from unittest import mock

import pytest
import torch

from tests import zoo
from tests.machines import MACHINES, run
from tests.trace_digests import second_step
from veritrain.encoding import encode
from veritrain.errors import UsageError
from veritrain.job.state import capture, restore
from veritrain.job.step import Program, run_step
from veritrain.replay.trace import calls
from veritrain.replay.trace.arithmetic import Arithmetic
from veritrain.replay.trace.cells import cell_digest, is_short
from veritrain.replay.trace.entry import TraceEntry
from veritrain.replay.trace.entry_bodies import EntryBody, OperatorBody, OutcomeBody, read_body
from veritrain.replay.trace.recompute import recompute, recompute_tile
from veritrain.replay.trace.state_openings import StateBefore, state_opening
from veritrain.replay.trace.structure import (
    UNKNOWN,
    CannotFollowError,
    next_structure,
    structure_of,
)
from veritrain.replay.trace.tiles import tile
from veritrain.replay.trace.tracer import Tracer, trace
from veritrain.transcript import state_entries, state_root
from veritrain.transcript.slices import SliceTree, verify

FAMILIES = list(zoo.jobs(1))
SMALL = [
    "perceptron-adam",
    "resnet-nesterov",
    "gru",
    "mixture-of-experts",
    "volume-adadelta",
]
FEW = ["perceptron-adam", "resnet-nesterov", "vit-lamb", "mixture-of-experts"]


class Step:
    """The second step of a family, to be done as often as needed."""

    def __init__(self, name: str, numerics: str = "exact") -> None:
        self.job = zoo.jobs(3, numerics)[name]
        program, self.batches, self.before = second_step(self.job)
        self.state = {name: tensor.clone() for name, tensor in capture(program).items()}
        self.log = None
        rounding = program.recording()
        if rounding is not None:
            run_step(self.program(), 2, self.batches[2], rounding)
            self.log = rounding.finish()

    def program(self) -> Program:
        """In the state before."""
        made = Program.build(self.job)
        restore(made, self.state)
        return made

    def blank(self) -> list[Program]:
        """In states of which a referee knows names, shapes, texts and short tensors."""
        tensors = state_entries(self.state)
        opened = StateBefore.opened(state_opening(tensors, self.state), state_root(tensors))
        made = [Program.build(self.job) for _ in UNKNOWN]
        for program, unknown in zip(made, UNKNOWN, strict=True):
            opened.restore(program, unknown)
        return made

    def trace(self, kept: int | None = None) -> Tracer:
        program = self.program()
        return trace(program, self.before, self.batches[2], program.following(self.log), kept)


def read(tracer: Tracer) -> list[EntryBody]:
    return [read_body(TraceEntry.from_bytes(entry, where="own")) for entry in tracer.entries]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("families", [SMALL, pytest.param(FAMILIES, marks=pytest.mark.long)])
def test_traces_are_the_same_on_every_machine(families):
    lines = {}
    for machine in MACHINES:
        printed = run(machine, "tests.trace_digests", "exact", *families).splitlines()
        lines[machine.name] = [line for line in printed if line.split()[0] in families]
    first = lines[MACHINES[0].name]
    assert len(first) == len(families) == len({line.split()[1] for line in first})
    assert all(other == first for other in lines.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_is_of_the_step_and_leads_to_its_state(name):
    step = Step(name)
    outcome = read(step.trace())[-1]
    program = step.program()
    loss = run_step(program, 2, step.batches[2])
    assert isinstance(outcome, OutcomeBody)
    assert outcome.state == state_root(state_entries(capture(program)))
    assert outcome.loss == loss


@pytest.mark.parametrize("name", FAMILIES)
def test_what_comes_next_is_found_without_values(name):
    step = Step(name)
    entries = read(step.trace())
    rng = random.Random(name)
    for index in [len(entries) - 1, rng.randrange(1, len(entries))]:
        found = next_structure(step.blank(), 2, step.batches[2], entries[:index])
        assert encode(found.structure) == encode(structure_of(entries[index]))


@pytest.mark.parametrize("numerics", ["logged", "logged-bf16"])
def test_logged_steps_have_traces_too(numerics):
    step = Step("convnet-sgd", numerics)
    entries = read(step.trace())
    found = next_structure(step.blank(), 2, step.batches[2], entries[:-1])
    assert encode(found.structure) == encode(structure_of(entries[-1]))
    for index in random.Random(1).sample(range(1, len(entries) - 20), 10):
        body = entries[index]
        if isinstance(body, OperatorBody):
            operands = step.trace(index).operands
            again = recompute(Arithmetic.of(step.job), 2, body, operands, step.log)
            assert again is not None
            assert body.effects is not None
            assert encode(again.to_value()) == encode(body.effects.to_value())


@pytest.mark.parametrize("name", FEW)
def test_operators_are_computed_again_whole_and_in_parts(name):
    step = Step(name)
    entries = read(step.trace())
    by_name: dict[str, int] = {}
    rng = random.Random(name)
    for index, body in rng.sample([*enumerate(entries)], len(entries)):
        if isinstance(body, OperatorBody):
            by_name[body.call.operator] = index
    for index in by_name.values():
        body, kept = entries[index], step.trace(index)
        again = recompute(Arithmetic.of(step.job), 2, body, kept.operands, None)
        assert encode(again.to_value()) == encode(body.effects.to_value())
        for write in body.effects.writes:
            cell, size = write.cell, write.size
            start = 1024 * rng.randrange(max(1, size // 1024))
            part = tile(body, cell, start, min(size, start + 1024)) if size else None
            if part is not None:
                opened = {
                    number: opened_of(kept.operands[number], r)
                    for number, r in part.ranges().items()
                }
                data = recompute_tile(Arithmetic.of(step.job), 2, body, part, opened)
                assert data == kept.results[cell][part.start : part.stop], body.call.operator


def opened_of(content, ranges):
    tree = SliceTree("tensor", content)
    slices = tree.open([(start, min(stop, len(content))) for start, stop in ranges])
    return verify("tensor", tree.digest, len(content), slices)


@pytest.mark.parametrize("name", ["resnet-nesterov", "gru", "perceptron-adamax", "unet-adam-fused"])
def test_no_operator_writes_what_its_entry_does_not_say(name):
    """Digests of all cells that are alive, before and after each operator."""
    seen: dict[int, torch.Tensor] = {}
    add = Tracer._add_operator

    def checked(tracer, operands, call, results, written):
        add(tracer, operands, call, results, written)
        for tensor in calls.tensors_in([results, written]):
            seen[tracer._cells[tensor]] = tensor
        for number, tensor in seen.items():
            if is_short(tensor):  # looked at when it is read
                continue
            assert tracer._known[number].digest == cell_digest(tensor), call.operator

    with mock.patch.object(Tracer, "_add_operator", checked):
        Step(name).trace()


def test_entries_that_the_job_does_not_do_cannot_be_followed():
    step = Step("perceptron-adam")
    entries = read(step.trace())
    other = [*entries[:5], *entries[6:20]]
    with pytest.raises(CannotFollowError, match="entry 5"):
        next_structure(step.blank(), 2, step.batches[2], other)


def test_a_job_that_reads_past_operators_cannot_be_followed():
    step = Step("perceptron-adam")
    entries = read(step.trace())
    programs = step.blank()
    for program in programs:
        program.model.forward = reading(program.model)
    with pytest.raises(CannotFollowError, match="numpy"):
        next_structure(programs, 2, step.batches[2], entries[:10])


def reading(model):
    forward = model.forward

    def read(*args):
        next(model.parameters()).detach().numpy()
        return forward(*args)

    return read


def test_native_steps_have_no_trace():
    job = zoo.jobs(3, "native")["perceptron-adam"]
    program, batches, before = second_step(job)
    with pytest.raises(UsageError, match="exact or logged"):
        trace(program, before, batches[2])
