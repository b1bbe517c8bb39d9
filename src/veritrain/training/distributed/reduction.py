"""The sum over all shards, added by all ranks together.

Each rank holds the sums of some blocks of the tree of `veritrain.job.shards`. Their tensors, one
after another, are one long vector; and each rank *owns* a range of it. For its range a rank
receives every block's part, adds them as the tree says and gives the result to all others: a
reduce-scatter and an all-gather. The order of the additions is that of the tree, so no bit depends
on the number of ranks.

A rank that holds b blocks sends (b + 1) (N - 1) / N times the vector's bytes, among N ranks. b is 1
where N is a power of two that divides the number of shards, or is that number: then it is what a
ring all-reduce sends. The vector is worked through in buckets, so the memory that is taken does not
grow with it; while one bucket is added, the next one travels. What lies in one tensor is sent from
there and received there.
"""

from __future__ import annotations

import operator
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)

from veritrain.encoding import DIGEST_BYTES, digest
from veritrain.errors import JobError
from veritrain.job.shards import BlockSum, blocks, buffer_sum, cut
from veritrain.training.distributed.ranks import Ranks
from veritrain.transcript import tensors

BUCKET_BYTES = 4 << 20
_SCATTER, _GATHER = 1, 2  # tags of the two halves of an exchange

T = TypeVar("T")


def shards_of(rank: int, size: int, count: int) -> range:
    """The shards, of `count`, that a rank of `size` computes; no rank has two more than another."""
    return range(rank * count // size, (rank + 1) * count // size)


class RankReduction:
    """A `Reduction` over all ranks.

    Args:
        ranks: who takes part.
        model: whose gradients and buffers are added.
    """

    def __init__(self, ranks: Ranks, model: nn.Module) -> None:
        self._ranks = ranks
        self._parameters = dict(model.named_parameters())
        self._buffers = dict(model.named_buffers(remove_duplicate=False))  # as `ModelBefore`

    def mine(self, count: int) -> range:
        """See `Reduction.mine`."""
        return shards_of(self._ranks.rank, self._ranks.size, count)

    def total(self, sums: Sequence[BlockSum], count: int) -> BlockSum:
        """See `Reduction.total`. The sums that it is given are used up.

        Raises:
            JobError: a buffer of integers is not the same in all shards; names it.
            LostRankError: a rank is gone.
        """
        size = self._ranks.size
        held = [blocks(shards_of(rank, size, count), count) for rank in range(size)]
        with _disable_current_modes():  # what follows moves numbers, and adds them as IEEE does
            outline = self._outline(sums, held)
            names = [name for name in self._buffers if name in outline.changed]
            self._require_equal([n for n in names if not self._is_added(n)], sums, held)
            names = [name for name in names if self._is_added(name)]
            gradients = [name for name in self._parameters if name in outline.gradients]
            whole = self._added(gradients, names, sums, held)
        return BlockSum(
            shards=range(count),
            loss=by_tree(range(count), outline.losses, operator.add),
            gradients=dict(zip(gradients, whole, strict=False)),
            buffers={**sums[0].buffers, **dict(zip(names, whole[len(gradients) :], strict=True))},
            changed=outline.changed,
        )

    def _is_added(self, name: str) -> bool:
        return self._buffers[name].is_floating_point()

    def _outline(self, sums: Sequence[BlockSum], held: list[list[range]]) -> _Outline:
        """What the sums of all ranks hold: each tells a loss and two sets of names for a block."""
        parameters, buffers = list(self._parameters), list(self._buffers)
        own = [
            struct.pack("<d", item.loss)
            + _bits(item.gradients.keys(), parameters)
            + _bits(item.changed, buffers)
            for item in sums
        ]
        size = len(own[0])
        room = size * max(map(len, held))
        losses: dict[range, float] = {}
        present, changed = bytes(len(_bits((), parameters))), bytes(len(_bits((), buffers)))
        for rank, text in enumerate(self._ranks.gather(b"".join(own).ljust(room, b"\0"))):
            for index, block in enumerate(held[rank]):
                item = text[index * size : (index + 1) * size]
                (losses[block],) = struct.unpack("<d", item[:8])
                present = _either(present, item[8 : 8 + len(present)])
                changed = _either(changed, item[8 + len(present) :])
        return _Outline(
            losses=losses,
            gradients=frozenset(_names(present, parameters)),
            changed=frozenset(_names(changed, buffers)),
        )

    def _require_equal(
        self, names: list[str], sums: Sequence[BlockSum], held: list[list[range]]
    ) -> None:
        """Check that buffers without a mean are the same in all blocks.

        Raises:
            JobError: one is not; names it.
        """
        if not names:
            return
        own = [digest("tensor", tensors.content(item.buffers[n])) for item in sums for n in names]
        room = DIGEST_BYTES * len(names) * max(map(len, held))
        found = self._ranks.gather(b"".join(own).ljust(room, b"\0"))
        for rank, text in enumerate(found):
            for index in range(len(held[rank]) * len(names)):
                name = names[index % len(names)]
                place = slice(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES)
                if text[place] != found[0][DIGEST_BYTES * (index % len(names)) :][:DIGEST_BYTES]:
                    raise JobError(
                        f"shards: buffer {name} is not the same after every shard, and it has no "
                        "mean; make it a floating-point buffer, or compute it from what all shards "
                        "have"
                    )

    def _added(
        self,
        gradients: list[str],
        buffers: list[str],
        sums: Sequence[BlockSum],
        held: list[list[range]],
    ) -> list[Tensor]:
        """The sums over all blocks of these gradients, then of these buffers."""
        models = [self._parameters[n].detach() for n in gradients]
        models += [self._buffers[n] for n in buffers]
        rows = [
            [
                *(_own(item, name) for name in gradients),
                *(_own_buffer(item, name) for name in buffers),
            ]
            for item in sums
        ]
        whole: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(model.dtype for model in models):
            chosen = [index for index, model in enumerate(models) if model.dtype is dtype]
            some = [models[index] for index in chosen]
            vectors = [_Vector([_taken(row, index) for index in chosen], some) for row in rows]
            vector = _VectorSum(self._ranks, held, vectors).run()
            whole.update(zip(chosen, vector.tensors(some), strict=True))
        return [whole[index] for index in range(len(models))]


@dataclass(frozen=True, kw_only=True)
class _Outline:
    """What the sums of all blocks hold."""

    losses: Mapping[range, float]
    gradients: frozenset[str]  # parameters for which at least one shard has a gradient
    changed: frozenset[str]  # buffers that at least one shard changed


class _Vector:
    """Tensors of one dtype, one after another, as one long vector. None stands for zeros.

    Args:
        found: the tensors, contiguous; they are written to.
        models: their shapes.
    """

    def __init__(self, found: list[Tensor | None], models: Sequence[Tensor]) -> None:
        self.dtype = models[0].dtype
        self._ends = list(accumulate(model.numel() for model in models))
        self._rows: list[Tensor | None] = []
        for index, tensor in enumerate(found):
            found[index] = None
            self._rows.append(None if tensor is None else tensor.view(-1))

    @property
    def size(self) -> int:
        """Elements of all tensors together."""
        return self._ends[-1]

    def window(self, start: int, stop: int) -> Tensor | None:
        """A range of elements as it lies in memory, where it lies in one tensor."""
        index = bisect_right(self._ends, start)
        row = self._rows[index] if stop > start else None
        if row is None or stop > self._ends[index]:
            return None
        begin = self._ends[index] - len(row)
        return row[start - begin : stop - begin]

    def read(self, start: int, stop: int, into: Tensor) -> None:
        """Copy a range of elements."""
        for index, first, piece in self._pieces(start, stop, into):
            row = self._rows[index]
            if row is None:
                piece.zero_()
            else:
                piece.copy_(row[first : first + len(piece)])

    def write(self, start: int, values: Tensor) -> None:
        """Overwrite a range of elements; a window of this vector is there already."""
        for index, first, piece in self._pieces(start, start + len(values), values):
            row = self._rows[index]
            if row is None:
                begin = self._ends[index - 1] if index else 0
                row = self._rows[index] = values.new_zeros(self._ends[index] - begin)
            place = row[first : first + len(piece)]
            if place.data_ptr() != piece.data_ptr():
                place.copy_(piece)

    def tensors(self, models: Sequence[Tensor]) -> list[Tensor]:
        """The tensors, in the shapes and memory formats of these."""
        result: list[Tensor] = []
        for row, model in zip(self._rows, models, strict=True):
            tensor = (row if row is not None else model.new_empty(0)).view(model.shape)
            result.append(
                tensor if model.is_contiguous() else torch.empty_like(model).copy_(tensor)
            )
        return result

    def _pieces(self, start: int, stop: int, values: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """A range, cut where tensors end: number of the tensor, first element in it, its values."""
        index, at = bisect_right(self._ends, start), start
        while at < stop:
            end = min(stop, self._ends[index])
            begin = self._ends[index - 1] if index else 0
            yield index, at - begin, values[at - start : end - start]
            index, at = index + 1, end


class _VectorSum:
    """Adds one vector over all ranks; the result lies in the vector of this rank's first block."""

    def __init__(self, ranks: Ranks, held: list[list[range]], vectors: list[_Vector]) -> None:
        self._ranks = ranks
        self._held = held
        self._root = range(held[-1][-1].stop)
        self._vectors = vectors

    def run(self) -> _Vector:
        """Work through all buckets."""
        whole = self._vectors[0]
        step = max(self._ranks.size, BUCKET_BYTES // whole.dtype.itemsize)
        added: _Bucket | None = None
        gathered: _Bucket | None = None
        starts = [
            *range(0, whole.size, step),
            None,
            None,
        ]  # two rounds more, for those on their way
        for start in starts:
            begun = None
            if start is not None:
                begun = self._scatter(start, min(start + step, whole.size))
            if gathered is not None:
                self._finish(gathered)
            gathered = self._gather(added) if added is not None else None
            added = begun
        return whole

    def _scatter(self, start: int, stop: int) -> _Bucket:
        """Begin to send every rank its range of the bucket, of all blocks that this rank holds."""
        ranks = self._ranks
        ends = [start + (stop - start) * k // ranks.size for k in range(ranks.size + 1)]
        ranges = [range(low, high) for low, high in pairwise(ends)]
        sent = {rank: self._rows_of(part) for rank, part in enumerate(ranges)}
        own = len(ranges[ranks.rank])
        received = {rank: self._new(len(self._held[rank]), own) for rank in ranks.others}
        works = ranks.begin_exchange(sent, received, _SCATTER)
        received[ranks.rank] = sent[ranks.rank]
        return _Bucket(ranges=ranges, sent=sent, received=received, works=works)

    def _gather(self, bucket: _Bucket) -> _Bucket:
        """Add the range that this rank owns, and begin to send it to all."""
        ranks = self._ranks
        ranks.finish_exchange(bucket.works)
        leaves = {
            block: row
            for rank, rows in bucket.received.items()
            for block, row in zip(self._held[rank], rows, strict=True)
        }
        own = by_tree(self._root, leaves, lambda left, right: torch.add(left, right, out=left))
        sent = dict.fromkeys(ranks.others, own)
        received = {rank: self._place_of(bucket.ranges[rank]) for rank in ranks.others}
        works = ranks.begin_exchange(sent, received, _GATHER)
        received[ranks.rank] = own
        return _Bucket(ranges=bucket.ranges, sent=sent, received=received, works=works)

    def _finish(self, bucket: _Bucket) -> None:
        """Put the sums of a bucket into the result."""
        self._ranks.finish_exchange(bucket.works)
        for rank, values in bucket.received.items():
            self._vectors[0].write(bucket.ranges[rank].start, values)

    def _rows_of(self, part: range) -> Tensor:
        """What this rank has of a range: a row for each of its blocks. It is copied only if need
        be."""
        if len(self._vectors) == 1:
            found = self._vectors[0].window(part.start, part.stop)
            if found is not None:
                return found.unsqueeze(0)
        rows = self._new(len(self._vectors), len(part))
        for vector, row in zip(self._vectors, rows, strict=True):
            vector.read(part.start, part.stop, row)
        return rows

    def _place_of(self, part: range) -> Tensor:
        """Where the sum of a range can be received: in the result, where it lies in one tensor."""
        found = self._vectors[0].window(part.start, part.stop)
        return found if found is not None else self._new(len(part))

    def _new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._vectors[0].dtype, device=self._ranks.device)


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """A part of the vector that is on its way; `ranges` are those that the ranks own."""

    ranges: list[range]
    sent: Mapping[int, Tensor]  # by rank
    received: dict[int, Tensor]  # by rank, this one too
    works: list[Any]


def by_tree(node: range, sums: Mapping[range, T], plus: Callable[[T, T], T]) -> T:
    """The sum of a node of the tree, from those of blocks that cover it."""
    found = sums.get(node)
    if found is not None:
        return found
    left, right = map(partial(by_tree, sums=sums, plus=plus), cut(node))
    return plus(left, right)


def _taken(row: list[Tensor | None], index: int) -> Tensor | None:
    tensor, row[index] = row[index], None
    return tensor


def _own(item: BlockSum, name: str) -> Tensor | None:
    """Take a gradient out of a sum, contiguous, in memory that nothing else uses.

    Autograd may give one memory to the gradients of two parameters. A sum of shards is new.
    """
    tensor = item.gradients.pop(name, None)
    if tensor is None or (len(item.shards) > 1 and tensor.is_contiguous()):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _own_buffer(item: BlockSum, name: str) -> Tensor:
    """What a sum counts with for a buffer, contiguous, in memory that nothing else uses: the step
    still needs what it started from."""
    return buffer_sum(item, name).clone(memory_format=torch.contiguous_format)


def _bits(names: Any, every: list[str]) -> bytes:
    """One bit for each of all names, whether it is among these."""
    value = sum(1 << index for index, name in enumerate(every) if name in names)
    return value.to_bytes((len(every) + 7) // 8, "little")


def _names(bits: bytes, every: list[str]) -> list[str]:
    value = int.from_bytes(bits, "little")
    return [name for index, name in enumerate(every) if value >> index & 1]


def _either(one: bytes, other: bytes) -> bytes:
    return bytes(a | b for a, b in zip(one, other, strict=True))
