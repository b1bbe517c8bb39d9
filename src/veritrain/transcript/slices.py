"""Parts of a content, opened against the digest that the transcript has of it anyway.

Contract: `encoding.digest` is the root of a Merkle tree over chunks of 1,024 bytes (`chaining`
names the paper). `SliceTree` opens byte ranges of a content; `verify` accepts them exactly when
they lead to the digest. `docs/format.md` section 10 has the bytes.

What is proven. For one pair of digest and total, no byte can be opened with two values, but by a
collision of BLAKE3. So where the digest is that of a content of `total` bytes, what is opened is
that content's. That it has `total` bytes is proven only where the last chunk is opened, whose
number and size are hashed. The total comes from elsewhere: dtype and shape of a signed tensor
entry.

Chaining values need numba, which loads on first use: slices can be built and read without it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from veritrain.encoding import CHUNK_BYTES, DIGEST_BYTES, Digest, Value
from veritrain.errors import UsageError, VerificationError
from veritrain.transcript import fields as check
from veritrain.transcript.record import Record, check_equal

if TYPE_CHECKING:
    from veritrain.transcript.chaining import Mode, Numbers, Words

__all__ = ["CHUNK_BYTES", "Opened", "SliceTree", "Slices", "opened_size", "verify", "verify_groups"]

Run: TypeAlias = tuple[int, int]  # number of the first chunk, how many chunks

_NODE, _RUN, _FRAME = DIGEST_BYTES + 2, 19, 128  # bytes that these take in a record, at most
MAX_TOTAL = 2**63 - 1  # bytes; the work depends on what is opened, hardly on this
MAX_SLICES_BYTES = 1 << 24  # of the encoded record; hostile ones take 100 times that to decode


@dataclass(frozen=True, kw_only=True)
class Slices(Record):
    """Some chunks of a content, and the chaining values that lead from them to its digest."""

    type_name: ClassVar[str] = "slices"
    max_bytes: ClassVar[int] = MAX_SLICES_BYTES

    total: int  # bytes of the whole content
    runs: tuple[Run, ...]  # of opened chunks, rising, with a gap between any two
    data: bytes  # of these chunks, one after the other
    proof: tuple[Digest, ...]  # of the largest subtrees without an opened chunk, left to right

    def __post_init__(self) -> None:
        check.check_integer("total", self.total, 0, MAX_TOTAL)
        if type(self.data) is not bytes:
            raise check.wrong("data", "a byte string", self.data)
        self._check_runs()
        for node in self.proof:
            check.check_digest("proof", node)

    def to_value(self) -> dict[str, Value]:
        """The record as a map of its fields and its type."""
        runs: list[Value] = [[first, count] for first, count in self.runs]
        return {**super().to_value(), "runs": runs, "proof": list(self.proof)}

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """See `Record.from_value`."""
        taken: dict[str, Any] = cls._take(value)
        for name in ("runs", "proof"):
            if type(taken[name]) is not list:
                raise check.wrong(name, "an array", taken[name])
        taken["runs"] = tuple(_run(item) for item in taken["runs"])
        taken["proof"] = tuple(taken["proof"])
        return cls(**taken)

    def _check_runs(self) -> None:
        most = _num_chunks(
            len(self.data)
        )  # each run brings a byte at least, if the content has one
        if not 0 < len(self.runs) <= most:
            raise check.wrong("runs", f"1 to {most} runs", self.runs)
        stop, num_bytes = -1, 0
        for first, count in self.runs:
            check.check_integer("first chunk of a run", first, stop + 1, self._num_chunks - 1)
            check.check_integer("chunks of a run", count, 1, self._num_chunks - first)
            stop = first + count
            num_bytes += min(stop * CHUNK_BYTES, self.total) - first * CHUNK_BYTES
        if len(self.data) != num_bytes:
            raise check.wrong("data", f"{num_bytes} bytes", self.data)

    @property
    def _num_chunks(self) -> int:
        return _num_chunks(self.total)


class SliceTree:
    """The tree over one content, for those who have all of it. Takes a sixteenth of its memory."""

    def __init__(self, domain: str, data: bytes | memoryview) -> None:
        """Hash `data`, contiguous bytes that must not change while the tree is used."""
        from veritrain.transcript import chaining  # loads numba

        self._data = _bytes(data)
        self._levels = chaining.levels(chaining.mode(domain), self._data)
        self.total = self._data.size
        self.digest: Digest = _digests(self._levels[-1])[0]  # equals `encoding.digest`

    def groups(self, chunks: int) -> list[Digest]:
        """Values of the groups of `chunks` chunks; the last group may be shorter.

        Groups begin at multiples of `chunks`. A group that holds the whole content is the root, and
        its value is the digest.

        Raises:
            UsageError: `chunks` is not a power of two.
        """
        level = min(_level(chunks), len(self._levels) - 1)
        return _digests(self._levels[level])

    def open(self, ranges: Iterable[tuple[int, int]]) -> Slices:
        """Slices with the bytes [start, stop) of each range, which may overlap or be empty.

        Where no range holds a byte, the last chunk is opened: slices prove something, always. What
        is too large for one record can be opened in several.

        Raises:
            UsageError: a range that is not inside the content.
        """
        runs = _runs(ranges, self.total)
        plan = _plan(_num_chunks(self.total), _numbers(runs))
        nodes = [values[level.missing] for values, level in zip(self._levels, plan, strict=False)]
        proof = np.concatenate(nodes)[_order(plan)] if nodes else self._levels[0][:0]
        data = b"".join(
            self._data[first * CHUNK_BYTES : (first + count) * CHUNK_BYTES].tobytes()
            for first, count in runs
        )
        return Slices(total=self.total, runs=runs, data=data, proof=tuple(_digests(proof)))


def opened_size(total: int, ranges: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The most bytes, and CBOR values, that `SliceTree.open(ranges)` of a content of `total` bytes
    comes to.

    Raises:
        UsageError: a range that is not inside the content.
    """
    runs = _runs(ranges, total)
    plan = _plan(_num_chunks(total), _numbers(runs))
    num_nodes = sum(len(level.missing) for level in plan)
    num_bytes = CHUNK_BYTES * sum(count for _, count in runs) + _NODE * num_nodes + _RUN * len(runs)
    return num_bytes + _FRAME, num_nodes + 3 * len(runs) + 16


class Opened:
    """Bytes that lead to the digest; `verify` makes it, and nothing else should."""

    def __init__(self, slices: Slices) -> None:
        self.total = slices.total
        self._data = memoryview(slices.data)
        sizes = [count * CHUNK_BYTES for _, count in slices.runs]
        self._starts = [first * CHUNK_BYTES for first, _ in slices.runs]
        self._stops = [
            min(start + size, self.total) for start, size in zip(self._starts, sizes, strict=True)
        ]
        # Where the run is in `data`; all chunks before the last run's last one are whole.
        self._places = [0, *np.cumsum(sizes[:-1], dtype=np.int64).tolist()]

    def read(self, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of the content.

        Raises:
            VerificationError: they are not all inside the content and opened.
        """
        if not 0 <= start <= stop <= self.total:
            raise VerificationError(
                f"slices: bytes {start} to {stop} are outside a content of {self.total}"
            )
        if start == stop:
            return self._data[:0]
        run = bisect_right(self._starts, start) - 1
        if run < 0 or stop > self._stops[run]:  # between any two runs a chunk is missing
            raise VerificationError(f"slices: bytes {start} to {stop} are not all opened")
        begin = self._places[run] + start - self._starts[run]
        return self._data[begin : begin + stop - start]


def verify(domain: str, digest: Digest, total: int, slices: Slices) -> Opened:
    """Check that `slices` are of the content with this digest and this total (bytes).

    The checks, and what the caller must still do:
        1. the total is the expected one, which the caller knows from elsewhere;
        2. the proof has a node for each subtree without an opened chunk, and no other;
        3. chunks and proof lead to the digest.

    Raises:
        VerificationError: one of them fails.
    """
    from veritrain.transcript import chaining  # loads numba

    # 1.
    if slices.total != total:
        raise VerificationError(f"slices: expected a total of {total} bytes, got {slices.total}")
    # 2.
    size, numbers = _num_chunks(total), _numbers(slices.runs)
    plan = _plan(size, numbers)
    expected = sum(len(level.missing) for level in plan)
    if len(slices.proof) != expected:
        raise VerificationError(
            f"slices: proof has wrong size: expected {expected}, got {len(slices.proof)}"
        )
    # 3.
    mode = chaining.mode(domain)
    values = chaining.chunk_values(mode, _bytes(slices.data), numbers, is_root=size == 1)
    root = _climb(mode, size, values, plan, _values(slices.proof))
    check_equal("digest of slices", digest, _digests(root)[0])
    return Opened(slices)


def verify_groups(
    domain: str, digest: Digest, total: int, chunks: int, groups: Sequence[Digest]
) -> None:
    """Check a list as `SliceTree.groups(chunks)` returns it for a content of `total` bytes.

    A single group holds the whole content, and its value is the digest itself. The number of groups
    must be the one that follows from `total`; that `total` is true is not proven by it.

    Raises:
        UsageError: `chunks` is not a power of two, or the total is out of range.
        VerificationError: a wrong number of groups, or they do not lead to the digest.
    """
    from veritrain.transcript import chaining  # loads numba

    check.check_integer("total", total, 0, MAX_TOTAL)
    expected = -(-_num_chunks(total) >> _level(chunks))
    if len(groups) != expected:
        raise VerificationError(f"groups: expected {expected} values, got {len(groups)}")
    for group in groups:
        if len(group) != DIGEST_BYTES:
            raise VerificationError(
                f"groups: expected values of {DIGEST_BYTES} bytes, got {len(group)}"
            )
    values, mode = _values(groups), chaining.mode(domain)
    while len(values) > 1:
        values = chaining.parent_values(mode, values, is_root=len(values) == 2)
    check_equal("digest of groups", digest, _digests(values)[0])


class _Level(NamedTuple):
    """The nodes of one level that are hashed into the level above, in their order."""

    known: NDArray[np.bool_]  # those above an opened chunk; the others are from the proof
    missing: Numbers  # the numbers of the others


def _plan(size: int, known: Numbers) -> list[_Level]:
    """What the levels of a tree of `size` chunks need when the chunks `known` are opened."""
    plan: list[_Level] = []
    while size > 1:
        parents = known >> 1
        parents = parents[np.diff(parents, prepend=-1) > 0]
        children = (2 * parents[:, None] + np.arange(2)).reshape(-1)
        children = children[children < size]  # the last node may have no partner and moves up
        is_known = np.zeros(len(children), np.bool_)
        is_known[np.searchsorted(children, known)] = True
        plan.append(_Level(is_known, children[~is_known]))
        known, size = parents, (size + 1) // 2
    return plan


def _order(plan: Sequence[_Level]) -> Numbers:
    """Where in the nodes listed level by level are those that come first, second, ... from the
    left."""
    starts = [level.missing << depth for depth, level in enumerate(plan)]  # first chunk of each
    return np.argsort(np.concatenate(starts))


def _climb(mode: Mode, size: int, values: Words, plan: Sequence[_Level], proof: Words) -> Words:
    """The root's value, from those of the opened chunks and a proof of the right size."""
    from veritrain.transcript import chaining  # loads numba

    if not plan:
        return values
    by_level = np.empty_like(proof)
    by_level[_order(plan)] = proof
    ends = np.cumsum([len(level.missing) for level in plan])
    for level, nodes in zip(plan, np.split(by_level, ends[:-1]), strict=True):
        children = np.empty((len(level.known), values.shape[1]), np.uint32)
        children[level.known] = values
        children[~level.known] = nodes
        values = chaining.parent_values(mode, children, is_root=size == 2)
        size = (size + 1) // 2
    return values


def _runs(ranges: Iterable[tuple[int, int]], total: int) -> tuple[Run, ...]:
    """The chunks that hold these bytes."""
    spans: list[tuple[int, int]] = []  # first chunk, the one after the last
    for start, stop in ranges:
        if not 0 <= start <= stop <= total:
            raise UsageError(f"range {start} to {stop} is outside a content of {total} bytes")
        if start < stop:
            spans.append((start // CHUNK_BYTES, _num_chunks(stop)))
    last = _num_chunks(total)
    spans = sorted(spans) or [(last - 1, last)]
    runs: list[Run] = []
    first, end = spans[0]
    for start, stop in spans[1:]:
        if start > end:
            runs.append((first, end - first))
            first = start
        end = max(end, stop)
    return (*runs, (first, end - first))


def _run(value: object) -> Run:
    if type(value) is not list or len(cast(list[Any], value)) != 2:
        raise check.wrong("runs", "arrays of two integers", value)
    first, count = cast(list[int], value)  # checked as integers by the record
    return first, count


def _numbers(runs: Sequence[Run]) -> Numbers:
    """The numbers of all chunks of the runs."""
    firsts, counts = np.array(runs, np.int64).T
    before = np.cumsum(counts) - counts
    return np.repeat(firsts - before, counts) + np.arange(counts.sum())


def _num_chunks(total: int) -> int:
    """Chunks of a content of `total` bytes; an empty one has one empty chunk."""
    return max(1, -(-total // CHUNK_BYTES))


def _level(chunks: int) -> int:
    """The level whose nodes are groups of `chunks` chunks; 0 is that of the chunks."""
    if chunks < 1 or chunks & (chunks - 1):
        raise UsageError(f"groups: expected a power of two of chunks, got {chunks}")
    return chunks.bit_length() - 1


def _bytes(data: bytes | memoryview) -> NDArray[np.uint8]:
    # numpy and memoryview refuse to reinterpret some empty buffers
    return np.frombuffer(data if len(data) else b"", np.uint8)


def _values(digests: Sequence[Digest]) -> Words:
    return np.frombuffer(b"".join(digests), "<u4").astype(np.uint32).reshape(-1, DIGEST_BYTES // 4)


def _digests(values: Words) -> list[Digest]:
    data = values.astype("<u4").tobytes()
    return [data[start : start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES)]
