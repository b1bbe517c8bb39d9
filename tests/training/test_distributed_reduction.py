"""The sum over ranks is that of the tree, bit for bit, whoever adds what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.training.ranks_support import as_ranks
from veritrain import JobError
from veritrain.job.shards import BlockSum, Sums, blocks, joined
from veritrain.training.distributed import reduction
from veritrain.training.distributed.ranks import Ranks
from veritrain.training.distributed.reduction import RankReduction, shards_of

SPECIAL = (0.0, -0.0, 1e-42, -1e-45, 3.4e38, -3.4e38, float("inf"), float("nan"), 1.0, 2.0**-24)
SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)


class Model(nn.Module):
    """Parameters and buffers of any shapes."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
        super().__init__()
        for index, shape in enumerate(shapes):
            self.register_parameter(f"p{index}", nn.Parameter(torch.zeros(shape, dtype=dtype)))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("some", torch.arange(6.0).reshape(2, 3).t())  # not contiguous
        self.register_buffer("again", self.some)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def result(model: Model, shard: int, absent: set[tuple[int, int]], seed: int) -> BlockSum:
    """What a shard computed: the same whenever it is asked for."""
    generator = torch.Generator().manual_seed(seed * 1000 + shard)

    def values(like: Tensor) -> Tensor:
        found = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        special = torch.tensor(SPECIAL, dtype=torch.float64)
        chosen = torch.randint(0, 3 * len(SPECIAL), like.shape, generator=generator)
        picked = special[chosen.clamp(max=len(SPECIAL) - 1)]
        return torch.where(chosen < len(SPECIAL), picked, found).to(like.dtype)

    every = {name: values(p) for name, p in model.named_parameters()}
    left = {name for name in ("some", "again") if not (seed + shard) % 3}  # by these shards
    gradients = {n: v for i, (n, v) in enumerate(every.items()) if (shard, i) not in absent}
    return BlockSum(
        shards=range(shard, shard + 1),
        loss=0.1 * shard - 1 / (shard + 3),
        gradients=gradients,
        buffers={
            "mean": values(model.mean),
            "some": values(model.some) if "some" in left else model.some,
            "again": values(model.again) if "again" in left else model.again,
            "count": torch.tensor(4),
        },
        changed=frozenset({"mean", "count"} | left),
    )


def by_ranks(size: int, count: int, model: Model, *given: Any) -> list[Any]:
    """The total as each rank has it, and the bytes that it sent."""

    def act(ranks: Ranks) -> tuple[BlockSum, int]:
        mine = shards_of(ranks.rank, ranks.size, count)
        with Sums(count) as sums:
            for shard in mine:
                sums.push(result(model, shard, *given))
            own = sums.finish()
        assert [item.shards for item in own] == blocks(mine, count)
        return RankReduction(ranks, model).total(own, count), ranks.bytes_sent

    return as_ranks(size, act)


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits, with one NaN: which bits a NaN has depends on the processor."""
    nan = torch.full((), float("nan")).to(tensor.dtype)
    plain = torch.where(tensor.isnan(), nan, tensor) if tensor.is_floating_point() else tensor
    return plain.reshape(-1).view(torch.uint8)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 5),
    more=st.integers(0, 9),
    shapes=st.lists(SHAPES, min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16]),
    data=st.data(),
)
def test_the_sum_is_the_trees_bit_for_bit(size, more, shapes, dtype, data) -> None:
    count, seed = size + more, data.draw(st.integers(0, 2**31))
    places = st.tuples(st.integers(0, count - 1), st.integers(0, len(shapes) - 1))
    absent = data.draw(st.sets(places, max_size=count * len(shapes)))
    model, kept = Model(shapes, dtype), reduction.BUCKET_BYTES
    expected = joined([result(model, shard, absent, seed) for shard in range(count)], count)
    reduction.BUCKET_BYTES = data.draw(st.sampled_from([8, 64, 1 << 20]))
    try:
        found = by_ranks(size, count, model, absent, seed)
    finally:
        reduction.BUCKET_BYTES = kept
    for whole, _ in found:
        assert whole.shards == range(count)
        assert whole.loss.hex() == expected.loss.hex()
        assert whole.gradients.keys() == expected.gradients.keys()
        for name, tensor in expected.gradients.items():
            assert whole.gradients[name].shape == tensor.shape
            assert torch.equal(bits(whole.gradients[name]), bits(tensor)), name
        for name, tensor in expected.buffers.items():
            assert torch.equal(bits(whole.buffers[name]), bits(tensor)), name
        assert whole.changed == expected.changed


@pytest.mark.parametrize(("size", "count"), [(2, 2), (2, 8), (4, 4), (4, 8), (3, 3), (5, 5)])
def test_as_many_bytes_as_a_ring_all_reduce(size: int, count: int) -> None:
    model = Model([(700, 300), (11,)], torch.float32)
    ring = 2 * (size - 1) / size * 4 * sum(p.numel() for p in model.parameters())
    for _, sent in by_ranks(size, count, model, set(), 1):
        assert sent <= 1.05 * ring


@pytest.mark.parametrize(("size", "count"), [(3, 8), (5, 7), (4, 6)])
def test_bytes_of_ranks_that_hold_several_blocks(size: int, count: int) -> None:
    model = Model([(700, 300)], torch.float32)
    vector = 4 * 700 * 300
    for rank, (_, sent) in enumerate(by_ranks(size, count, model, set(), 1)):
        held = len(blocks(shards_of(rank, size, count), count))
        assert sent <= 1.02 * (held + 1) * (size - 1) / size * vector
        assert sent >= 0.98 * (held + 1) * (size - 1) / size * vector


def test_a_gradient_that_two_parameters_share_is_added_once_for_each(monkeypatch) -> None:
    monkeypatch.setattr(
        reduction, "BUCKET_BYTES", 16
    )  # the first is added before the second is read
    model = Model([(64,), (64,)], torch.float32)

    def act(ranks: Ranks) -> BlockSum:
        shared = torch.arange(64.0)  # autograd may give two parameters views of one memory
        own = BlockSum(
            shards=range(ranks.rank, ranks.rank + 1),
            loss=0.0,
            gradients={"p0": shared.view(64), "p1": shared.view(64)},
            buffers={"mean": torch.zeros(3), "count": torch.tensor(1)},
            changed=frozenset(),
        )
        return RankReduction(ranks, model).total([own], 2)

    for whole in as_ranks(2, act):
        for name in ("p0", "p1"):
            assert whole.gradients[name].tolist() == [2.0 * i for i in range(64)]


def test_an_integer_buffer_that_differs_is_named_on_every_rank() -> None:
    model = Model([(3,)], torch.float32)

    def act(ranks: Ranks) -> BlockSum:
        own = result(model, ranks.rank, set(), 1)
        own.buffers["count"] = torch.tensor(ranks.rank // 2)
        return RankReduction(ranks, model).total([own], 3)

    for error in as_ranks(3, act):
        assert isinstance(error, JobError)
        assert "buffer count is not the same after every shard" in str(error)


@given(st.integers(1, 40), st.integers(0, 60))
def test_ranks_share_the_shards_out_evenly(size: int, more: int) -> None:
    count = size + more
    held = [shards_of(rank, size, count) for rank in range(size)]
    assert [shard for mine in held for shard in mine] == list(range(count))
    assert max(map(len, held)) - min(map(len, held)) <= 1
