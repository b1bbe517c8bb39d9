"""A shard's result: computed alone, sent, opened in part, and put together to the step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests import jobs
from veritrain import NumericsError, TranscriptError, UsageError, VerificationError
from veritrain.job.data import Batches
from veritrain.job.shard_results import ShardCommitment, ShardOpening, ShardResult, Shards
from veritrain.job.state import capture
from veritrain.job.step import Program, run_step
from veritrain.transcript import state_entries, state_root

JOB = jobs.make(shards=3, accumulate=2, batch_size=12)


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def shards() -> Shards:
    return Shards(JOB)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """After the first step."""
    program = Program.build(JOB)
    run_step(program, 1, Batches(JOB)[1])
    return copied(capture(program))


@pytest.fixture(scope="module")
def result(shards: Shards, state: dict[str, Tensor]) -> ShardResult:
    return shards.shard_result(state, 2, 1)


def test_results_sent_and_put_together_are_the_step(shards: Shards, state: Any) -> None:
    program, batches = Program.build(JOB), Batches(JOB)
    run_step(program, 1, batches[1])
    loss = run_step(program, 2, batches[2])
    sent = [shards.shard_result(state, 2, index).to_bytes() for index in (2, 0, 1)]
    received = Shards(JOB)
    after, found = received.finish(state, 2, [received.decode(data) for data in sent])
    assert found == loss
    assert state_root(state_entries(after)) == state_root(state_entries(capture(program)))


def test_a_result_does_not_depend_on_what_was_computed_before(
    state: Any, result: ShardResult
) -> None:
    other = Shards(JOB)
    other.shard_result(state, 5, 0)
    other.finish(state, 2, [other.shard_result(state, 2, index) for index in range(3)])
    assert other.shard_result(state, 2, 1).digest == result.digest
    assert len({other.shard_result(state, 2, index).digest for index in range(3)}) == 3


def test_bytes_and_back(shards: Shards, result: ShardResult) -> None:
    again = shards.decode(result.to_bytes())
    assert again.digest == result.digest
    assert again.to_bytes() == result.to_bytes()
    encoded = result.commitment.to_bytes()
    assert ShardCommitment.from_bytes(encoded, where="test") == result.commitment
    assert set(again.buffers) == {
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_hostile_bytes_are_refused(shards: Shards, result: ShardResult, data: Any) -> None:
    encoded = bytearray(result.to_bytes())
    place = data.draw(st.integers(0, len(encoded) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "more", "insert"]))
    if how == "flip":
        encoded[place] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del encoded[place:]
    elif how == "more":
        encoded += data.draw(st.binary(min_size=1, max_size=9))
    else:
        encoded[place:place] = data.draw(st.binary(min_size=1, max_size=9))
    try:
        found = shards.decode(bytes(encoded))
    except TranscriptError:
        return
    assert found.digest != result.digest  # another step, shard or loss is another claim


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(shards: Shards, data: bytes) -> None:
    with pytest.raises(TranscriptError):
        shards.decode(data)


def test_sizes_are_checked_before_memory_is_taken(shards: Shards, result: ShardResult) -> None:
    name, entry = next(iter(result.gradients)), result.entries[0]
    huge = replace(entry, shape=(2**40,))
    forged = replace(result)
    forged.__dict__["entries"] = (huge, *result.entries[1:])
    with pytest.raises(TranscriptError, match="is not as in the job's model"):
        shards.decode(forged.to_bytes())
    assert name


def test_parts_are_opened_against_the_digest(result: ShardResult) -> None:
    name = "gradient/first.weight"
    opening = ShardOpening.from_bytes(result.open(name, [(8, 20)]).to_bytes(), where="test")
    opened = opening.verify(result.commitment, name)
    content = result.gradients["first.weight"].numpy().tobytes()
    assert bytes(opened.read(8, 20)) == content[8:20]
    with pytest.raises(VerificationError, match="expected tensor"):
        opening.verify(result.commitment, "gradient/first.bias")
    for other in (
        replace(result.commitment, root=bytes(32)),
        replace(result.commitment, count=result.commitment.count + 8),
    ):
        with pytest.raises(VerificationError):
            opening.verify(other, name)
    wrong = replace(opening.slices, data=opening.slices.data[:-1] + b"\x01")
    with pytest.raises(VerificationError):
        replace(opening, slices=wrong).verify(result.commitment, name)
    with pytest.raises(UsageError, match="no tensor"):
        result.open("gradient/none", [])


def test_what_is_not_there_is_refused(shards: Shards, state: Any, result: ShardResult) -> None:
    with pytest.raises(UsageError, match="the job has shards 0 to 2"):
        shards.shard_result(state, 2, 3)
    with pytest.raises(UsageError, match="the steps 1 to 10"):
        shards.shard_result(state, 11, 0)
    with pytest.raises(UsageError, match="shard 0 is missing"):
        shards.finish(state, 2, [result])
    with pytest.raises(UsageError, match="twice"):
        shards.finish(state, 2, [result, result])
    with pytest.raises(UsageError, match="step 3 alone"):
        shards.finish(state, 3, [result])
    with pytest.raises(UsageError, match="shards=2 or more"):
        Shards(jobs.make())


class Gated(nn.Module):
    """A shard uses one expert: each expert has a gradient in some shards alone."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[int(x[0, 0] * 1e4) % 4](x)


def gated_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]["x"]), batch[1])


def test_gradients_that_only_some_shards_have_count_zeros() -> None:
    job = jobs.make(model=Gated, loss=gated_loss, shards=4, accumulate=1)
    workers, program, batches = Shards(job), Program.build(job), Batches(job)
    seen: set[int] = set()
    for step in (1, 2, 3):
        state = copied(capture(program))
        results = [workers.shard_result(state, step, index) for index in range(4)]
        having = [
            sum(name in r.gradients for r in results)
            for name in dict(program.model.named_parameters())
        ]
        seen |= set(having)
        loss = run_step(program, step, batches[step])
        for name, parameter in program.model.named_parameters():
            parts = [r.gradients.get(name) for r in results]
            if all(part is None for part in parts):
                assert parameter.grad is None
        after, found = workers.finish(state, step, results)
        assert found == loss
        assert state_root(state_entries(after)) == state_root(state_entries(capture(program)))
    assert len(seen) > 1
    assert torch.get_default_dtype() is torch.float32


class Unlike(jobs.Net):
    """A net whose parameter `weight` has a gradient without a number, and whose loss has one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (self.weight * 0).sqrt() * 0


def test_a_result_without_numbers_is_no_result() -> None:
    """The form of a NaN differs between processors: two honest ones would not agree."""
    job = jobs.make(model=Unlike, shards=3, batch_size=12)
    program = Program.build(job)
    with pytest.raises(NumericsError, match="gradient/weight holds a NaN"):
        Shards(job).shard_result(copied(capture(program)), 1, 0)


class Frugal(torch.optim.SGD):
    """Leaves alone what the flags of the step freeze, whatever gradients are there."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if not parameter.requires_grad:
                    parameter.grad = None
        super().step(closure)


class Frozen(jobs.Net):
    """Built with a parameter that every step sets free."""

    def __init__(self) -> None:
        super().__init__()
        next(self.parameters()).requires_grad_(False)


def unfreeze(model: nn.Module, step: int) -> None:
    next(model.parameters()).requires_grad_(True)


def test_who_only_finishes_a_step_has_its_flags() -> None:
    job = jobs.make(
        model=Frozen,
        shards=3,
        batch_size=12,
        accumulate=1,
        before_step=unfreeze,
        scheduler=None,
        optimizer=lambda model: Frugal(model.parameters(), lr=0.1),
    )
    program = Program.build(job)
    state = copied(capture(program))
    run_step(program, 1, Batches(job)[1])
    results = [Shards(job).shard_result(state, 1, index) for index in range(3)]
    after, _ = Shards(job).finish(state, 1, results)
    assert state_root(state_entries(after)) == state_root(state_entries(capture(program)))


def test_a_sent_result_without_numbers_is_refused_and_so_is_a_state(
    shards: Shards, state: dict[str, Tensor]
) -> None:
    results = [shards.shard_result(copied(state), 2, index) for index in range(3)]
    name = next(iter(results[0].gradients))
    for number in ("nan", "inf"):
        values = torch.full_like(results[0].gradients[name], float(number))
        false = replace(results[0], gradients={**results[0].gradients, name: values})
        if number == "nan":
            with pytest.raises(TranscriptError, match="holds a NaN"):
                shards.decode(false.to_bytes())
        opposite = replace(results[1], gradients={**results[1].gradients, name: -values})
        with pytest.raises(NumericsError, match="holds a NaN"):
            Shards(JOB).finish(copied(state), 2, [false, opposite, results[2]])
