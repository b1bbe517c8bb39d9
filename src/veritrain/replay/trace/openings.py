"""What a party opens for the judge, read as hostile: every part is checked against what both parties signed.

Each form has a function that makes it, for whoever has it all, and one that checks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from veritrain.encoding import Digest, Value, digest, encode
from veritrain.errors import (
    InconclusiveError,
    JobError,
    TranscriptError,
    UsageError,
    VerificationError,
    VeritrainError,
)
from veritrain.job.data import RANDOM_RECORD, RECORD, Batch, Batches, batch_digest, canonical
from veritrain.job.job import Job
from veritrain.job.state import HYPER, SCHEDULER, require_fit, restore
from veritrain.job.step import Program
from veritrain.replay.trace.cells import is_short_content
from veritrain.replay.trace.entry import TraceEntry
from veritrain.replay.trace.packing import pack, unpack
from veritrain.replay.trace.tiles import Tile, clipped
from veritrain.transcript import TensorEntry, merkle, state_root
from veritrain.transcript.fields import shown
from veritrain.transcript.records import Header
from veritrain.transcript.slices import Opened, Slices, Tree, opened_size, verify, verify_groups
from veritrain.transcript.tensors import DTYPES, content, require_truth


class FalseOpeningError(VeritrainError):
    """What was opened is not what it should be: its signer loses."""


@dataclass(frozen=True, kw_only=True)
class StateBefore:
    """The state that a step starts from: what all its tensors are called, and some of their contents."""

    tensors: tuple[TensorEntry, ...]
    contents: Mapping[str, bytes]

    @classmethod
    def opened(cls, detail: Value, root: Digest) -> StateBefore:
        """Check what `state_opening` made.

        Raises:
            FalseOpeningError: it is not the state of that root.
        """
        tensors_, contents = _fields(detail, "state", "contents")
        try:
            tensors = tuple(TensorEntry.from_value(item) for item in _list(tensors_))
            found = state_root(tensors)
        except UsageError as error:
            raise FalseOpeningError(f"state: {error}") from None
        if found != root:
            raise FalseOpeningError("state: not the one of the agreed leaf")
        known = {tensor.name: tensor for tensor in tensors}
        given = _map(contents)
        for name, data in given.items():
            tensor = known.get(name)
            if tensor is None or type(data) is not bytes or len(data) != tensor.num_bytes:
                raise FalseOpeningError(f"state: the content of {shown(name)} is another")
            if digest("tensor", data) != tensor.digest:
                raise FalseOpeningError(f"state: the content of {shown(name)} is another")
        for tensor in tensors:
            if _must_be_open(tensor) and tensor.name not in given:
                raise FalseOpeningError(f"state: the content of {shown(tensor.name)} is missing")
        return cls(tensors=tensors, contents=cast("Mapping[str, bytes]", given))

    def restore(self, program: Program, unknown: int = 0) -> None:
        """Put the state into a program; the bytes of tensors whose contents are not known are `unknown`.

        Raises:
            FalseOpeningError: it does not fit the job.
        """
        try:
            require_fit(program, self.tensors)
            state = {tensor.name: self._tensor(tensor, unknown) for tensor in self.tensors}
            restore(program, state)
        except (TranscriptError, UsageError) as error:
            raise FalseOpeningError(f"state: {error}") from None

    @cached_property
    def _known(self) -> dict[Digest, bytes]:
        """Contents by digest: tied tensors have one."""
        names = {tensor.name: tensor.digest for tensor in self.tensors}
        return {names[name]: data for name, data in self.contents.items()}

    def _tensor(self, tensor: TensorEntry, unknown: int) -> Tensor:
        dtype = DTYPES[tensor.dtype]
        data = self._known.get(tensor.digest)
        if data:
            require_truth(tensor, data)
            return torch.frombuffer(bytearray(data), dtype=dtype).reshape(tensor.shape)
        return (
            torch.full((tensor.num_bytes,), unknown, dtype=torch.uint8)
            .view(dtype)
            .reshape(tensor.shape)
        )


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """A step up to an entry: its entries, the state before it and its batch."""

    entries: tuple[TraceEntry, ...]
    state: StateBefore
    batch: Batch

    @classmethod
    def opened(cls, detail: Value, root: Digest, last: TraceEntry) -> Prefix:
        """Check what `prefix_opening` made.

        Raises:
            FalseOpeningError: it does not lead from the state of that root to the last agreed entry.
        """
        entries_, state, packed = _fields(detail, "entries", "state", "batch")
        entries = opened_entries({"entries": entries_}, 0, last)
        try:
            batch = tuple(_batch(packed))
            found = batch_digest(batch)
        except (UsageError, JobError) as error:
            raise FalseOpeningError(f"batch: {error}") from None
        if found != entries[0].body.get("batch"):
            raise FalseOpeningError("batch: not the agreed one")
        return cls(entries=entries, state=StateBefore.opened(state, root), batch=batch)


def _must_be_open(tensor: TensorEntry) -> bool:
    """Whether the job's Python may look at its values: see `is_short`."""
    is_text = tensor.name in (HYPER, SCHEDULER)
    return is_text or is_short_content(tensor.num_bytes, DTYPES[tensor.dtype])


def state_opening(
    tensors: Sequence[TensorEntry], state: Mapping[str, Tensor], also: Sequence[str] = ()
) -> Value:
    """What all tensors are called, and those contents that the job's Python may look at."""
    contents: dict[str, Value] = {
        tensor.name: bytes(content(state[tensor.name]))
        for tensor in tensors
        if tensor.name in also or _must_be_open(tensor)
    }
    return {"state": [tensor.to_value() for tensor in tensors], "contents": contents}


def prefix_opening(entries: Sequence[bytes], state: Value, batch: Batch) -> Value:
    """See `Prefix`."""
    return {"entries": list(entries), "state": state, "batch": [pack(micro) for micro in batch]}


def opened_entries(detail: Value, first: int, last: TraceEntry) -> tuple[TraceEntry, ...]:
    """Entries from `first` to the agreed `last`, that are its chain.

    From the last one back each is hashed before it is read: a body of empty arrays takes a hundred times its
    bytes, and whoever opens others than the agreed ones has none of them read.

    Raises:
        FalseOpeningError: they are not.
    """
    (given,) = _fields(detail, "entries")
    encoded = [_bytes(data) for data in _list(given)]
    if not encoded or len(encoded) != last.index + 1 - first:
        raise FalseOpeningError(f"expected the entries {first} to {last.index}")
    wanted = last.digest
    entries: list[TraceEntry] = []
    for index, data in zip(range(last.index, first - 1, -1), reversed(encoded), strict=True):
        if digest(TraceEntry.type_name, data) != wanted:
            raise FalseOpeningError(f"entry {index} is not the one of the chain")
        try:
            entry = TraceEntry.from_bytes(data, where=f"opened entry {index}")
        except TranscriptError as error:
            raise FalseOpeningError(str(error)) from None
        if entry.index != index:
            raise FalseOpeningError(f"expected the entries {first} to {last.index}")
        wanted = entry.previous
        entries.append(entry)
    return tuple(reversed(entries))


def cells_opening(contents: Mapping[int, bytes], log: bytes | None) -> Value:
    """The contents of an operator's operands, and the step's rounding log where it has one."""
    cells: list[Value] = [[cell, data] for cell, data in sorted(contents.items())]
    return {"cells": cells, "log": log}


def opened_cells(detail: Value, reads: Sequence[Sequence[Any]]) -> dict[int, bytes]:
    """The contents of the cells that an entry reads.

    Raises:
        FalseOpeningError: a cell is missing, or its content has another digest.
    """
    cells, _ = _fields(detail, "cells", "log")
    given = [_pair(row) for row in _list(cells)]
    if [cell for cell, _ in given] != [row[0] for row in reads]:
        raise FalseOpeningError("other cells than the operator reads")
    contents: dict[int, bytes] = {}
    for (cell, *_, expected), (_, data) in zip(reads, given, strict=True):
        contents[cell] = _bytes(data)
        if digest("tensor", contents[cell]) != expected:
            raise FalseOpeningError(f"the content of cell {cell} is another")
    return contents


def groups_opening(content: bytes, chunks: int) -> Value:
    """Digests of the groups of chunks of a written cell."""
    return {"groups": list(Tree("tensor", content).groups(chunks))}


def opened_groups(detail: Value, row: Sequence[Any], chunks: int) -> list[Digest]:
    """The groups of a cell that an entry wrote.

    Raises:
        FalseOpeningError: they do not lead to the digest of the entry.
    """
    (given,) = _fields(detail, "groups")
    groups = [_bytes(group) for group in _list(given)]
    _, size, expected, _ = row
    try:
        verify_groups("tensor", expected, size, chunks, groups)
    except VerificationError as error:
        raise FalseOpeningError(str(error)) from None
    return groups


def tile_opening(tile: Tile, result: bytes, operands: Mapping[int, bytes]) -> Value:
    """A part of a written cell, and the parts of the operands that decide it."""
    cells: list[Value] = []
    for cell, ranges in sorted(tile.ranges().items()):
        inside = clipped(ranges, len(operands[cell]))
        cells.append([cell, Tree("tensor", operands[cell]).open(inside).to_value()])
    part = Tree("tensor", result).open([(tile.start, tile.stop)])
    return {"result": part.to_value(), "cells": cells}


def tile_size(tile: Tile, size: int, reads: Sequence[Sequence[Any]]) -> tuple[int, int]:
    """Bytes, and CBOR values, of what `tile_opening` makes at most; `size` is the written cell's."""
    totals = {row[0]: row[1] for row in reads}
    spans = {cell: clipped(ranges, totals[cell]) for cell, ranges in tile.ranges().items()}
    sizes = [opened_size(totals[cell], ranges) for cell, ranges in spans.items()]
    sizes.append(opened_size(size, [(tile.start, tile.stop)]))
    return sum(n for n, _ in sizes), sum(n for _, n in sizes)


def opened_part(detail: Value, row: Sequence[Any], tile: Tile) -> bytes:
    """The part of a written cell, as its party has it.

    Raises:
        FalseOpeningError: it is not of the entry's digest.
    """
    result, _ = _fields(detail, "result", "cells")
    _, size, expected, _ = row
    return bytes(
        _verified(result, size, expected, [(tile.start, tile.stop)]).read(tile.start, tile.stop)
    )


def opened_operands(detail: Value, reads: Sequence[Sequence[Any]], tile: Tile) -> dict[int, Opened]:
    """The parts of operands that decide a tile.

    Raises:
        FalseOpeningError: a part is missing, or is not of the entry's digest.
    """
    _, cells = _fields(detail, "result", "cells")
    given = [_pair(row) for row in _list(cells)]
    needed = sorted(tile.ranges().items())
    if [cell for cell, _ in given] != [cell for cell, _ in needed]:
        raise FalseOpeningError("other cells than the tile needs")
    known = {row[0]: (row[1], row[3]) for row in reads}
    return {
        cell: _verified(slices, *known[cell], ranges)
        for (cell, ranges), (_, slices) in zip(needed, given, strict=True)
    }


def _verified(
    value: Value, size: int, expected: Digest, ranges: Sequence[tuple[int, int]]
) -> Opened:
    """Slices that lead to a digest and have these ranges."""
    try:
        opened = verify("tensor", expected, size, Slices.from_value(value))
        for start, stop in clipped(ranges, size):
            opened.read(start, stop)
    except (UsageError, VerificationError) as error:
        raise FalseOpeningError(str(error)) from None
    return opened


def opened_log(detail: Value, expected: Digest | None) -> bytes | None:
    """The step's rounding log; None where the numerics have none.

    Raises:
        FalseOpeningError: it is another one.
    """
    if expected is None:
        return None
    log = _bytes(_map(detail).get("log"))
    if digest("rounding log", log) != expected:
        raise FalseOpeningError("another rounding log than the leaf's")
    return log


def records_opening(batches: Batches, step: int) -> Value:
    """The records of a step's batch, each with its proof in the data set's tree.

    Raises:
        JobError: the records cannot be given away as bytes.
    """
    digests = list(batches.record_digests(range(batches.count)))
    tree = merkle.Tree(digests)
    rows: list[Value] = []
    for index in batches.indices(step):
        rows.append([pack(batches.record(index)), list(tree.proof(index))])
    return {"records": rows}


def opened_records(job: Job, header: Header, step: int, detail: Value) -> Digest:
    """Digest of the batch that the opened records make.

    Raises:
        FalseOpeningError: they are not the committed ones that the seed chooses.
        InconclusiveError: a record draws random numbers: in the batch it has other values.
        JobError: the job's own code fails.
    """
    (rows,) = _fields(detail, "records")
    opened = _OpenedRecords(header.dataset_count)
    batches = Batches(replace(job, dataset=opened))
    indices = batches.indices(step)
    items = _list(rows)
    if len(items) != len(indices):
        raise FalseOpeningError(f"expected {len(indices)} records, got {len(items)}")
    drawing: list[int] = []
    for index, row in zip(indices, items, strict=True):
        try:
            opened.records[index], drew = _committed(row, index, header)
        except (UsageError, VerificationError) as error:
            raise FalseOpeningError(f"record {index}: {error}") from None
        drawing += [index] * drew
    if drawing:
        raise InconclusiveError(
            f"record {drawing[0]} of the batch draws random numbers, which only the data set's own code makes"
        )
    return batch_digest(batches[step])


def _committed(row: Value, index: int, header: Header) -> tuple[Any, bool]:
    """A record of the data set that the header commits to, and whether it draws random numbers.

    Raises:
        UsageError: it is malformed.
        VerificationError: it is another one.
    """
    packed, proof = _pair(row)
    record = unpack(packed)
    nodes = [_bytes(node) for node in _list(proof)]
    try:
        value = encode(canonical(record, "record"))
    except ValueError as error:  # nested deeper than a canonical value
        raise UsageError(str(error)) from None

    def verify_as(domain: str) -> None:
        found = digest(domain, value)
        merkle.verify_inclusion(found, index, header.dataset_count, nodes, header.dataset_root)

    try:
        verify_as(RECORD)
    except VerificationError:
        verify_as(RANDOM_RECORD)
        return record, True
    return record, False


class _OpenedRecords:
    """A data set of which only the opened records are here."""

    def __init__(self, count: int) -> None:
        self.records: dict[int, Any] = {}
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self.records[index]


def _batch(packed: Value) -> list[Any]:
    return [unpack(micro) for micro in _list(packed)]


def _fields(value: Value, *names: str) -> list[Value]:
    found = _map(value)
    if sorted(found) != sorted(names):
        raise FalseOpeningError(f"expected the fields {', '.join(names)}")
    return [found[name] for name in names]


def _map(value: Value) -> dict[str, Value]:
    if not isinstance(value, dict):
        raise FalseOpeningError("expected a map")
    return value


def _list(value: Value) -> list[Value]:
    if not isinstance(value, list):
        raise FalseOpeningError("expected an array")
    return value


def _pair(value: Value) -> tuple[Value, Value]:
    items = _list(value)
    if len(items) != 2:
        raise FalseOpeningError("expected a pair")
    return items[0], items[1]


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise FalseOpeningError("expected bytes")
    return value
