"""A step in shards: its tree, who may add what, and that the bits do not depend on it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import veritrain as vt
from spec import shards as slow
from tests import jobs
from tests import shard_digests as matrix
from tests.machines import MACHINES, run
from veritrain import JobError, NumericsError, UsageError
from veritrain.job.data import Batches, batch_digest, joined_digest, shard_digests
from veritrain.job.shards import (
    BlockSum,
    ModelBefore,
    Sums,
    blocks,
    cut,
    is_node,
    joined,
    mean,
    parts,
)
from veritrain.job.state import capture, restore
from veritrain.job.step import Program, finish_step, run_shard, run_step
from veritrain.numerics import resolve
from veritrain.numerics.keys.generators import JobStream, calls_of_shard, set_state
from veritrain.numerics.keys.stream import KeyStream
from veritrain.transcript import Signer, state_entries, state_root
from veritrain.transcript.tensors import DTYPES


def nodes(block: range) -> list[range]:
    """Every node of the tree, by its definition."""
    return [block] + [n for half in cut(block) for n in nodes(half)] if len(block) > 1 else [block]


def digest(program: Program) -> bytes:
    return state_root(state_entries(capture(program)))


@given(st.integers(1, 200), st.data())
def test_blocks_are_the_largest_nodes_inside_of_a_range(count: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, count - 1))
    mine = range(start, data.draw(st.integers(start + 1, count)))
    found = blocks(mine, count)
    assert [shard for block in found for shard in block] == list(mine)
    every = nodes(range(count))
    inside = [node for node in every if node.start >= mine.start and node.stop <= mine.stop]
    assert set(found) <= set(inside)
    for node in inside:
        assert any(block.start <= node.start and node.stop <= block.stop for block in found)


@given(st.integers(1, 80))
def test_nodes_are_known_without_the_tree(count: int) -> None:
    every = {(node.start, node.stop) for node in nodes(range(count))}
    ranges = [range(a, b) for a in range(count) for b in range(a + 1, count + 1)]
    assert {(r.start, r.stop) for r in ranges if is_node(r, count)} == every


class Split:
    """Several processes played one after another: the last one to come has the sums of all."""

    def __init__(self, mine: range, others: list[BlockSum]) -> None:
        self._mine = mine
        self.sums = others

    def mine(self, count: int) -> range:
        return self._mine

    def total(self, sums: Sequence[BlockSum], count: int) -> BlockSum:
        self.sums += sums
        assert [item.shards for item in sums] == blocks(self._mine, count)
        if self._mine.stop < count:
            raise InterruptedError
        return joined(self.sums, count)


def step_of_processes(job: Any, step: int, bounds: list[int], program: Program) -> float:
    """The step as processes with the shards between these bounds come to it.

    `program` is the last one's.
    """
    sums: list[BlockSum] = []
    before = {name: tensor.clone() for name, tensor in capture(program).items()}
    for start, stop in pairwise(bounds):
        mine = range(start, stop)
        batch = Batches(job, shards=mine)[step]
        if stop < job.shards:
            other = Program.build(job)
            restore(other, before)
            with pytest.raises(InterruptedError):
                run_step(other, step, batch, reduction=Split(mine, sums))
        else:
            return run_step(program, step, batch, reduction=Split(mine, sums))
    raise AssertionError


@pytest.mark.parametrize(
    ("shards", "bounds"),
    [
        (2, [0, 1, 2]),
        (4, [0, 1, 4]),
        (4, [0, 3, 4]),
        (6, [0, 1, 5, 6]),
        (7, [0, 2, 5, 7]),
        (8, [0, 8]),
    ],
)
def test_the_bits_do_not_depend_on_who_computes_which_shards(
    shards: int, bounds: list[int]
) -> None:
    job = jobs.make(shards=shards, accumulate=1, batch_size=2 * shards)
    one, other, batches = Program.build(job), Program.build(job), Batches(job)
    for step in (1, 2):
        loss = run_step(one, step, batches[step])
        assert step_of_processes(job, step, bounds, other) == loss
        assert digest(one) == digest(other)


def test_the_digest_of_a_batch_is_that_of_its_shards() -> None:
    job = jobs.make(shards=4, accumulate=1)
    whole = Batches(job)[3]
    found = [
        value
        for mine in (range(1), range(1, 4))
        for value in shard_digests(Batches(job, shards=mine)[3], len(mine))
    ]
    assert batch_digest(whole, 4) == joined_digest(found)
    assert batch_digest(whole, 4) != batch_digest(whole, 2) != batch_digest(whole)
    with pytest.raises(UsageError, match="do not make 3 equal shards"):
        batch_digest(whole, 3)
    assert [len(part) for part in parts(whole, 2)] == [2, 2]


def block(shard: int, gradients: dict[str, Tensor]) -> BlockSum:
    return BlockSum(
        shards=range(shard, shard + 1), loss=float(shard), gradients=gradients, buffers={},
        changed=frozenset(),
    )  # fmt: skip


NUMBERS = st.one_of(
    st.floats(width=32), st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, float("nan")])
)


def mean_of(gradients: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The mean over shards as the product computes it, under `exact` numerics."""
    count = len(gradients)
    with resolve("exact").active(seed=0, purpose="test", step=1), Sums(count) as sums:
        for shard, value in enumerate(gradients):
            sums.make_room()
            sums.push(block(shard, {} if value is None else {"w": torch.from_numpy(value.copy())}))
        (whole,) = sums.finish()
        model = nn.Module()
        first = next((value for value in gradients if value is not None), np.zeros(1, np.float32))
        model.register_parameter("w", nn.Parameter(torch.zeros(first.shape)))
        loss = mean(whole, ModelBefore(model))
    assert loss == slow.mean_loss([float(shard) for shard in range(count)])
    found = model.get_parameter("w").grad
    return None if found is None else found.numpy()


@settings(deadline=None)
@given(st.data(), st.integers(2, 13))
def test_the_mean_is_that_of_the_slow_definition(data: st.DataObject, count: int) -> None:
    row = st.lists(NUMBERS, min_size=3, max_size=3).map(lambda v: np.array(v, np.float32))
    gradients = data.draw(st.lists(st.none() | row, min_size=count, max_size=count))
    assert slow.encoded(mean_of(gradients)) == slow.encoded(slow.mean(gradients))


def test_vectors_are_those_of_the_slow_definition_and_the_products() -> None:
    assert slow.FILE.read_text() == slow.text()
    for case in json.loads(slow.FILE.read_text())["cases"]:
        gradients = [None if x is None else decoded(x) for x in case["inputs"].values()]
        assert slow.encoded(mean_of(gradients)) == case["outputs"]["y"], case["name"]


def decoded(tensor: dict[str, Any]) -> np.ndarray:
    words = [int(word, 16) for word in tensor["float32"].split()]
    return np.array(words, np.uint32).view(np.float32).reshape(tensor["shape"])


def test_at_most_one_sum_waits_in_memory() -> None:
    def held(block: BlockSum) -> int:
        return block.gradients["w"].untyped_storage().nbytes()

    most = 0
    with Sums(16) as sums:
        for shard in range(16):
            sums.make_room()
            most = max(most, len(sums._waiting))
            assert sum(held(item) > 0 for item in sums._waiting) <= 1
            sums.push(block(shard, {"w": torch.full((5,), 2.0**shard)}))
        (found,) = sums.finish()
    assert most == 4
    assert found.gradients["w"].tolist() == [2.0**16 - 1] * 5


@pytest.mark.parametrize("size", [5, 100_000])
@pytest.mark.parametrize("folder", ["full", "missing"])
def test_no_room_for_sums_that_wait_is_said(size: int, folder: str, tmp_path: Path) -> None:
    script = f"""
import resource, tempfile, torch
from veritrain.errors import StorageError
from veritrain.job.shards import BlockSum, Sums

if {folder!r} == "full":  # no file may be larger
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
else:
    tempfile.tempdir = {str(tmp_path / "missing")!r}
try:
    with Sums(4) as sums:
        for shard in range(4):
            sums.make_room()
            gradients, mine = {{"w": torch.ones({size})}}, range(shard, shard + 1)
            sums.push(BlockSum(
                shards=mine, loss=0.0, gradients=gradients, buffers={{}}, changed=frozenset()
            ))
except StorageError as error:
    print(error)
"""
    done = subprocess.run(  # the limit is one of a whole process
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "set TMPDIR to a folder with enough room" in done.stdout, done.stderr


def test_sums_of_ranges_that_are_no_blocks_come_back_from_the_file() -> None:
    whole = torch.arange(6.0)
    with Sums(8) as sums:
        for shard in range(1, 7):
            sums.make_room()
            sums.push(block(shard, {"w": whole[2:4] * shard, "v": whole[3:5]}))
        found = sums.finish()
    assert [item.shards for item in found] == [range(1, 2), range(2, 4), range(4, 6), range(6, 7)]
    assert [item.gradients["w"].tolist() for item in found] == [
        [2.0, 3.0], [10.0, 15.0], [18.0, 27.0], [12.0, 18.0],
    ]  # fmt: skip


def test_shards_alone_and_put_together_are_the_step() -> None:
    job = jobs.make(shards=4, accumulate=2, batch_size=16)
    one, worker, other, batches = *(Program.build(job) for _ in range(3)), Batches(job)
    for step in (1, 2):
        loss = run_step(one, step, batches[step])
        results = [
            run_shard(worker, step, shard, Batches(job, shards=range(shard, shard + 1))[step])
            for shard in (2, 0, 3, 1)
        ]
        assert finish_step(other, step, joined(results, 4)) == loss
        assert digest(other) == digest(one)
        run_step(worker, step, batches[step])


def test_a_buffer_of_integers_that_shards_leave_differently_is_refused_by_name() -> None:
    class Counting(jobs.Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += (x.sum(0)[:3] > x[0, 3]).long()
            return super().forward(x)

    job = jobs.make(model=Counting, shards=2)
    with pytest.raises(JobError, match=r"shards: buffer seen \(int64\) is not the same"):
        run_step(Program.build(job), 1, Batches(job)[1])


def test_a_loss_that_writes_into_a_parameter_is_refused_by_name() -> None:
    def writing(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            model.first.weight.clamp_(-0.1, 0.1)
        return jobs.loss(model, batch)

    job = jobs.make(loss=writing, shards=2)
    with pytest.raises(JobError, match="the loss writes into parameter first.weight"):
        run_step(Program.build(job), 1, Batches(job)[1])


def test_an_attribute_that_shards_leave_differently_is_refused_by_name(tmp_path: Path) -> None:
    class Toggling(jobs.Net):
        flag = False

        def forward(self, x: Tensor) -> Tensor:
            self.flag = not self.flag  # after two shards it is as before
            return super().forward(x) * (1.0 if self.flag else 2.0)

    job = jobs.make(model=Toggling, shards=2, accumulate=1)
    with pytest.raises(JobError, match=r"shard 1 does not leave what shard 0 left: model.flag"):
        vt.train(job, tmp_path / "run", signer=Signer.generate(), progress=False)
    assert "model.flag" in vt.check(job).problems[0].message


def test_check_says_what_a_shard_needs() -> None:
    report = vt.check(jobs.make(shards=4, accumulate=1))
    assert report.is_ok, str(report)
    assert report.shards is not None
    trained = sum(4 * p.numel() for p in jobs.Net().parameters())
    assert (report.shards.count, report.shards.records) == (4, 2)
    assert report.shards.gradient_bytes == trained
    assert report.shards.peak_bytes > trained
    assert "4 of 2 records each" in str(report)
    assert vt.check(jobs.make()).shards is None


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("steps", "counts", "names"),
    [
        (2, "4", ["frozen"]),
        pytest.param(20, "1,2,4,8", matrix.FAMILIES, marks=pytest.mark.long),
    ],
)
def test_steps_in_shards_are_the_same_on_every_machine(
    steps: int, counts: str, names: Sequence[str]
) -> None:
    arguments = (str(steps), counts, *names)
    found = {
        machine.name: json.loads(run(machine, "tests.shard_digests", *arguments, timeout=1700))
        for machine in MACHINES
    }
    first = found[MACHINES[0].name]
    assert len(first) == len(names) * len(counts.split(","))
    assert all(len(lines) == len(set(lines)) == steps for lines in first.values())
    assert len({lines[-1] for lines in first.values()}) == len(first)  # n is part of the job
    assert all(other == first for other in found.values())


@pytest.mark.parametrize("numerics", ["logged", "logged-bf16", "logged-b26"])
def test_logged_numerics_refuse_shards_by_name(numerics: str) -> None:
    with pytest.raises(JobError, match=f"shards: {numerics} numerics have one rounding log"):
        jobs.make(shards=2, numerics=numerics)


@pytest.mark.parametrize("numerics", ["exact14", "native"])
def test_other_numerics_have_shards_too(numerics: str) -> None:
    job = jobs.make(shards=4, accumulate=1, numerics=numerics)
    one, other, batches = Program.build(job), Program.build(job), Batches(job)
    loss = run_step(one, 1, batches[1])
    assert step_of_processes(job, 1, [0, 1, 4], other) == loss
    assert digest(one) == digest(other)


def test_what_a_shard_draws_has_an_end() -> None:
    calls = calls_of_shard(3)
    assert list(calls_of_shard(None)[:2]) == [0, 1]
    stream = JobStream(1, "step", 1, calls)
    assert stream.next_key() == KeyStream(1, "step", 1, range(calls.start, calls.stop)).next_key()
    set_state(calls.stop)
    with pytest.raises(NumericsError, match="the stream has 1048576 calls"):
        stream.next_key()


def test_masks_that_no_shard_changes_keep_their_bits() -> None:
    job = replace(matrix.families(1)["frozen"], shards=8)
    program = Program.build(job)
    run_step(program, 1, Batches(job)[1])
    assert program.model.get_buffer("mask").tolist() == [torch.finfo(torch.float32).max] * 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_buffer_of_any_dtype_that_no_shard_changes_is_in_no_operator(dtype: str) -> None:
    """Exact numerics have no additions of these floats, and need none."""

    class Constant(jobs.Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.tensor([-0.0, 1.0, 0.5]).to(DTYPES[dtype]))

    job = jobs.make(model=Constant, shards=4, accumulate=1)
    program = Program.build(job)
    before = digest_of(program.model.get_buffer("table"))
    run_step(program, 1, Batches(job)[1])
    assert digest_of(program.model.get_buffer("table")) == before


def digest_of(tensor: Tensor) -> bytes:
    return state_root(state_entries({"x": tensor}))


@settings(deadline=None)
@given(st.data(), st.integers(2, 13))
def test_shards_that_leave_a_buffer_alone_count_with_its_value(
    data: st.DataObject, count: int
) -> None:
    row = st.lists(NUMBERS.filter(math.isfinite), min_size=3, max_size=3)
    before, *values = data.draw(st.lists(row, min_size=count + 1, max_size=count + 1))
    changed = data.draw(st.sets(st.integers(0, count - 1)))
    rows = [values[shard] if shard in changed else before for shard in range(count)]
    results = [
        BlockSum(
            shards=range(shard, shard + 1), loss=0.0, gradients={},
            buffers={"mean": torch.tensor(rows[shard])},
            changed=frozenset({"mean"} if shard in changed else ()),
        )
        for shard in range(count)
    ]  # fmt: skip
    model = nn.Module()
    model.register_buffer("mean", torch.tensor(before))
    with resolve("exact").active(seed=0, purpose="test", step=1):
        mean(joined(results, count), ModelBefore(model))
    arrays = [np.array(row, np.float32) for row in rows]
    expected = slow.mean(arrays) if changed else np.array(before, np.float32)
    assert slow.encoded(model.get_buffer("mean").numpy()) == slow.encoded(expected)
