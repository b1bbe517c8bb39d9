"""Steps in shards have traces like others: they are of the step, can be followed, and settle
disputes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests import jobs, zoo
from tests.replay.trace.court import Liar, Scene, changed, decide
from tests.replay.trace.test_judge import CHEATS, build
from tests.replay.trace.test_trace import Step, read
from veritrain.encoding import encode
from veritrain.job import shards
from veritrain.job.state import capture
from veritrain.job.step import run_step
from veritrain.protocols.dispute.judge import Loser
from veritrain.replay.trace.arithmetic import Arithmetic
from veritrain.replay.trace.entry_bodies import OperatorBody, OutcomeBody
from veritrain.replay.trace.recompute import recompute
from veritrain.replay.trace.structure import next_structure, structure_of
from veritrain.transcript import state_entries, state_root

STEP = 3
FAMILIES = ["perceptron-adam", "resnet-nesterov", "gru", "mixture-of-experts"]


@contextmanager
def in_shards(count: int) -> Iterator[None]:
    """The zoo's jobs in so many shards."""
    made = zoo.jobs

    def with_shards(*args: Any) -> dict[str, Any]:
        return {name: replace(job, shards=count, accumulate=1) for name, job in made(*args).items()}

    with mock.patch.object(zoo, "jobs", with_shards):
        yield


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_of_shards_is_of_the_step_and_can_be_followed(name: str, count: int) -> None:
    with in_shards(count):
        step = Step(name)
    entries = read(step.trace())
    program = step.program()
    loss = run_step(program, 2, step.batches[2])
    outcome = entries[-1]
    assert isinstance(outcome, OutcomeBody)
    assert outcome.state == state_root(state_entries(capture(program)))
    assert outcome.loss == loss
    rng = random.Random(name)
    for index in [len(entries) - 1, rng.randrange(1, len(entries))]:
        found = next_structure(step.blank(), 2, step.batches[2], entries[:index])
        assert encode(found.structure) == encode(structure_of(entries[index]))


def test_what_a_shard_draws_is_computed_again_from_its_entry() -> None:
    with in_shards(4):
        step = Step("convnet-sgd")
    entries = read(step.trace())
    drawing = {
        index: body
        for index, body in enumerate(entries)
        if isinstance(body, OperatorBody) and body.call.draw != body.effects.drawn
    }
    assert len({body.call.draw >> 20 for body in drawing.values()}) == 4  # each shard has its own
    for index, body in drawing.items():
        operands = step.trace(index).operands
        again = recompute(Arithmetic.of(step.job), 2, body, operands, None)
        assert encode(again.to_value()) == encode(body.effects.to_value())


@pytest.fixture(scope="module", params=[2, 8])
def scene(request: Any, tmp_path_factory: Any) -> Scene:
    job = build(shards=request.param, accumulate=1, batch_size=2 * request.param)
    return Scene.of(job, tmp_path_factory.mktemp("scene") / "run")


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_in_a_step_in_shards_loses(scene: Scene, cheat: str) -> None:
    liar = Liar(scene, STEP, CHEATS[cheat](scene.job))
    assert decide(scene, STEP, trainer=liar).loser is Loser.TRAINER
    assert decide(scene, STEP, challenger=liar).loser is Loser.CHALLENGER


@pytest.mark.parametrize("lie", ["number", "order", "left out", "divided twice"])
def test_a_lie_in_the_tree_loses(scene: Scene, lie: str) -> None:
    """The party adds the shards in another way, and all that follows fits."""
    honest, calls = shards.add_gradients, 0

    def dishonest(left: Tensor | None, right: Tensor | None) -> Tensor:
        nonlocal calls
        calls += 1
        if calls != 3 or left is None or right is None:
            return honest(left, right)
        if lie == "number":
            return honest(left, right).add_(2.0**-20)
        if lie == "order":
            return honest(right, left)
        if lie == "left out":
            return honest(left, None)
        return torch.div(honest(left, right), 2)

    with mock.patch.object(shards, "add_gradients", dishonest):
        liar = Liar(scene, STEP)
    assert decide(scene, STEP, trainer=liar).loser is Loser.TRAINER
    assert decide(scene, STEP, challenger=liar).loser is Loser.CHALLENGER


@pytest.mark.parametrize("seed", range(12))
def test_a_false_result_of_an_addition_loses(scene: Scene, seed: int) -> None:
    """The claimed result of one operator of the tree is another, in one bit of its digest."""
    rng = random.Random(seed)

    def change(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        last = max(i for i, body in enumerate(bodies) if body.get("operator") == "aten.div.Tensor")
        adds = [
            i for i, body in enumerate(bodies[:last])
            if body.get("operator") in ("aten.add.Tensor", "aten.div.Tensor")
        ]  # fmt: skip
        index = rng.choice(adds)
        field = rng.choice(["writes", "results", "reads", "arguments"])
        bodies[index][field] = changed(bodies[index][field], rng)[0]
        return bodies

    liar = Liar(scene, STEP, change=change)
    assert decide(scene, STEP, trainer=liar).loser is Loser.TRAINER
    assert decide(scene, STEP, challenger=liar).loser is Loser.CHALLENGER


def test_jobs_differ_in_their_shards() -> None:
    assert jobs.make(shards=2).settings != jobs.make().settings
    assert "shards" not in jobs.make().settings
