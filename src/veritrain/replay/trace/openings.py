"""Openings of entries, cells and logs: what a party shows of its trace for the judge.

Each form has a function that makes it, for a party that has it all, and one that reads it. A reader
takes the bytes as hostile: it checks every part against what both parties signed. The readers of
fields at the end serve the other two rooms too: `state_openings` and `record_openings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from veritrain.encoding import Digest, Value, digest
from veritrain.errors import (
    FieldError,
    InconclusiveError,
    TranscriptError,
    UsageError,
    VerificationError,
    VeritrainError,
)
from veritrain.replay.trace.entry import TraceEntry
from veritrain.replay.trace.entry_bodies import EntryBody, ReadCell, WrittenCell, read_body
from veritrain.replay.trace.tiles import Tile, clipped
from veritrain.transcript.slices import (
    Opened,
    Slices,
    SliceTree,
    opened_size,
    verify,
    verify_groups,
)


class FalseOpeningError(VeritrainError):
    """What a party opened is not what it should be: that party loses."""


def opened_entries(detail: Value, first: int, last: TraceEntry) -> tuple[EntryBody, ...]:
    """Bodies of the entries from `first` to the agreed `last`, which are its chain.

    From the last one back each is hashed before it is read, since a body of empty arrays takes a
    hundred times its bytes. So entries that are not the agreed ones are never read.

    Raises:
        FalseOpeningError: they are not its chain.
        InconclusiveError: an entry to which both parties agreed is malformed.
    """
    (given,) = fields_of(detail, "entries")
    encoded = [bytes_of(data) for data in list_of(given)]
    if not encoded or len(encoded) != last.index + 1 - first:
        raise FalseOpeningError(f"expected the entries {first} to {last.index}")
    wanted = last.digest
    bodies: list[EntryBody] = []
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
        bodies.append(agreed_body(entry))
    return tuple(reversed(bodies))


def agreed_body(entry: TraceEntry) -> EntryBody:
    """The body of an entry to which both parties agreed.

    Raises:
        InconclusiveError: it is malformed, so neither party tells the truth.
    """
    try:
        return read_body(entry)
    except FieldError as error:
        raise InconclusiveError(
            f"entry {entry.index}, which is agreed, is malformed: {error}"
        ) from None


def cells_opening(contents: Mapping[int, bytes], log: bytes | None) -> Value:
    """The contents of an operator's operands, and the step's rounding log where it has one."""
    cells: list[Value] = [[cell, data] for cell, data in sorted(contents.items())]
    return {"cells": cells, "log": log}


def opened_cells(detail: Value, reads: Sequence[ReadCell]) -> dict[int, bytes]:
    """The contents of the cells that an entry reads.

    Raises:
        FalseOpeningError: a cell is missing, or its content has another digest.
    """
    cells, _ = fields_of(detail, "cells", "log")
    given = [pair_of(row) for row in list_of(cells)]
    if [cell for cell, _ in given] != [read.cell for read in reads]:
        raise FalseOpeningError("other cells than the operator reads")
    contents: dict[int, bytes] = {}
    for read, (_, data) in zip(reads, given, strict=True):
        contents[read.cell] = bytes_of(data)
        if digest("tensor", contents[read.cell]) != read.digest:
            raise FalseOpeningError(f"the content of cell {read.cell} is another")
    return contents


def groups_opening(content: bytes, chunks: int) -> Value:
    """Digests of the groups of chunks of a written cell."""
    return {"groups": list(SliceTree("tensor", content).groups(chunks))}


def opened_groups(detail: Value, written: WrittenCell, chunks: int) -> list[Digest]:
    """The groups of a cell that an entry wrote.

    Raises:
        FalseOpeningError: they do not lead to the digest of the entry.
    """
    (given,) = fields_of(detail, "groups")
    groups = [bytes_of(group) for group in list_of(given)]
    try:
        verify_groups("tensor", written.digest, written.size, chunks, groups)
    except VerificationError as error:
        raise FalseOpeningError(str(error)) from None
    return groups


def tile_opening(tile: Tile, result: bytes, operands: Mapping[int, bytes]) -> Value:
    """A part of a written cell, and the parts of the operands that decide it."""
    cells: list[Value] = []
    for cell, ranges in sorted(tile.ranges().items()):
        inside = clipped(ranges, len(operands[cell]))
        cells.append([cell, SliceTree("tensor", operands[cell]).open(inside).to_value()])
    part = SliceTree("tensor", result).open([(tile.start, tile.stop)])
    return {"result": part.to_value(), "cells": cells}


def tile_size(tile: Tile, size: int, totals: Mapping[int, int]) -> tuple[int, int]:
    """Bytes, and CBOR values, of what `tile_opening` makes at most.

    Args:
        tile: the part.
        size: bytes of the written cell.
        totals: bytes of each cell that the operator reads.
    """
    spans = {cell: clipped(ranges, totals[cell]) for cell, ranges in tile.ranges().items()}
    sizes = [opened_size(totals[cell], ranges) for cell, ranges in spans.items()]
    sizes.append(opened_size(size, [(tile.start, tile.stop)]))
    return sum(n for n, _ in sizes), sum(n for _, n in sizes)


def opened_part(detail: Value, written: WrittenCell, tile: Tile) -> bytes:
    """The part of a written cell, as its party has it.

    Raises:
        FalseOpeningError: it is not of the entry's digest.
    """
    result, _ = fields_of(detail, "result", "cells")
    opened = _verified(result, written.size, written.digest, [(tile.start, tile.stop)])
    return bytes(opened.read(tile.start, tile.stop))


def opened_operands(detail: Value, reads: Sequence[ReadCell], tile: Tile) -> dict[int, Opened]:
    """The parts of operands that decide a tile.

    Raises:
        FalseOpeningError: a part is missing, or is not of the entry's digest.
    """
    _, cells = fields_of(detail, "result", "cells")
    given = [pair_of(row) for row in list_of(cells)]
    needed = sorted(tile.ranges().items())
    if [cell for cell, _ in given] != [cell for cell, _ in needed]:
        raise FalseOpeningError("other cells than the tile needs")
    known = {read.cell: (read.size, read.digest) for read in reads}
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
    except (FieldError, UsageError, VerificationError) as error:
        raise FalseOpeningError(str(error)) from None
    return opened


def opened_log(detail: Value, expected: Digest | None) -> bytes | None:
    """The step's rounding log; None where the numerics have none.

    Raises:
        FalseOpeningError: it is another one.
    """
    if expected is None:
        return None
    log = bytes_of(map_of(detail).get("log"))
    if digest("rounding log", log) != expected:
        raise FalseOpeningError("another rounding log than the leaf's")
    return log


def fields_of(value: Value, *names: str) -> list[Value]:
    """The values of a map that has just these fields."""
    found = map_of(value)
    if sorted(found) != sorted(names):
        raise FalseOpeningError(f"expected the fields {', '.join(names)}")
    return [found[name] for name in names]


def map_of(value: Value) -> dict[str, Value]:
    """The map that a value is."""
    if not isinstance(value, dict):
        raise FalseOpeningError("expected a map")
    return value


def list_of(value: Value) -> list[Value]:
    """The array that a value is."""
    if not isinstance(value, list):
        raise FalseOpeningError("expected an array")
    return value


def pair_of(value: Value) -> tuple[Value, Value]:
    """The array of two that a value is."""
    items = list_of(value)
    if len(items) != 2:
        raise FalseOpeningError("expected a pair")
    return items[0], items[1]


def bytes_of(value: Value) -> bytes:
    """The byte string that a value is."""
    if not isinstance(value, bytes):
        raise FalseOpeningError("expected bytes")
    return value
