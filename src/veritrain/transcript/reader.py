"""Reading a transcript that someone else wrote.

`Transcript.open` parses every record strictly and within `LIMITS`; what it returns is well formed
and nothing more. Each `verify_*` method then checks one group of claims and raises at the first
false one. A caller who has run `open`, `verify_signatures`, `verify_chain`, `verify_carried` and
`verify_checkpoint` for every step has covered every bit of every file of the run. Whether the steps
are those of the job is for `replay.auditor` to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO

from veritrain.encoding import Digest, digest, digest_parts
from veritrain.errors import TranscriptError, UsageError, VerificationError
from veritrain.transcript import files
from veritrain.transcript.carried import Records, Sources
from veritrain.transcript.fields import shown
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.merkle import Frontier
from veritrain.transcript.packs import pack_layout
from veritrain.transcript.records import (
    Checkpoint,
    Header,
    Leaf,
    SignedHead,
    TensorEntry,
    check_equal,
    decode_segment,
    state_root,
)
from veritrain.transcript.signing import verify_signature
from veritrain.transcript.store import Store
from veritrain.transcript.stores import open_store

if TYPE_CHECKING:
    from torch import Tensor

_READ_BYTES = 1 << 20  # of a content at once, to hash it

Check = Callable[[tuple[TensorEntry, ...]], None]  # of a state's entries; what it raises is raised


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a content is, for errors."""

    step: int  # whose state it belongs to
    pack: int
    name: str  # of a tensor

    def __str__(self) -> str:
        return f"step {self.step}: tensor {shown(self.name)} in {files.pack_path(self.pack)}"


class _Contents:
    """The first pack that holds each content, over the checkpoints in their order.

    Every manifest is read once for it. It takes about 150 bytes for each content, not twice what
    the manifests have.
    """

    def __init__(self) -> None:
        self.checkpoints = 0  # how many are here
        self._first: dict[bytes, int] = {}

    def add(self, checkpoint: Checkpoint) -> None:
        """The next checkpoint."""
        for entry, pack in zip(checkpoint.tensors, checkpoint.packs, strict=True):
            if pack == checkpoint.step:
                self._first.setdefault(self._key(entry), pack)
        self.checkpoints += 1

    def first_pack(self, entry: TensorEntry) -> int | None:
        """Its step; None where no pack so far holds the content in this size."""
        return self._first.get(self._key(entry))

    @staticmethod
    def _key(entry: TensorEntry) -> bytes:
        return entry.digest + entry.num_bytes.to_bytes(8, "little")


@dataclass(frozen=True, kw_only=True, eq=False)
class Transcript:
    """The records of a run as found. `heads[i]` covers the steps up to `checkpoint_steps[i]`."""

    location: str
    header: Header
    heads: tuple[SignedHead, ...]  # none in a run that was interrupted before its first commit
    leaves: tuple[Leaf, ...]  # leaf i is step i
    checkpoint_steps: tuple[int, ...]
    carried: tuple[str, ...]  # of `files.CARRIED`, those that are there
    leftovers: tuple[str, ...]  # files of an interrupted commit; covered by nothing
    segments: tuple[Digest, ...] = field(repr=False)  # digest of each segment file as found
    _store: Store = field(repr=False)
    _verified_packs: set[int] = field(repr=False, default_factory=set[int])
    _contents: _Contents = field(repr=False, default_factory=lambda: _Contents())

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Transcript:
        """Read all records of the run at a local path, HTTP address or fsspec URL; no tensor is
        read.

        Raises:
            TranscriptError: a file that is missing, does not belong there, is too large, or is
                not a well-formed record; names the file and the place.
            UsageError: no driver for this kind of URL.
        """
        store = open_store(url)
        found = files.survey(store.list())
        header = Header.from_bytes(
            store.read(files.HEADER, LIMITS.header_bytes), where=files.HEADER
        )
        heads = tuple(_read_head(store, step) for step in found.head_steps)
        leaves: list[Leaf] = []
        segments: list[Digest] = []
        for step in found.head_steps:
            data = store.read(files.segment_path(step), LIMITS.record_bytes)
            segments.append(digest("segment", data))
            leaves += _read_segment(data, len(leaves), step)
            _read_checkpoint(store, step)
        _check_logs(leaves, found.log_steps)
        return cls(
            location=store.location,
            header=header,
            heads=heads,
            leaves=tuple(leaves),
            checkpoint_steps=found.head_steps,
            carried=found.carried,
            leftovers=found.leftovers,
            segments=tuple(segments),
            _store=store,
        )

    def verify_signatures(self) -> None:
        """Check that the header's key signed every head.

        Raises:
            VerificationError: there is no head, or a signature is not by that key.
        """
        self._require_heads()
        for signed in self.heads:
            data = signed.head.to_bytes()
            try:
                verify_signature(self.header.public_key, "head", data, signed.signature)
            except VerificationError as error:
                raise VerificationError(f"step {signed.head.step}: {error}") from None

    def verify_chain(self) -> None:
        """Check that header, leaves and heads form one chain.

        For each head in turn:
          1. it belongs to this header's run;
          2. it follows the head before;
          3. its segment file is the one it names;
          4. each leaf of the segment follows the leaf before, the first one the header;
          5. the Merkle root of all leaves so far is the one it names.

        Raises:
            VerificationError: names the step, expected and got.
        """
        self._require_heads()
        previous_head: Digest | None = None
        previous_leaf = self.header.digest
        frontier = Frontier()
        for signed, segment in zip(self.heads, self.segments, strict=True):
            head = signed.head
            check_equal(f"step {head.step}: run of the head", self.header.digest, head.run)  # 1
            if head.previous != previous_head:  # 2
                raise VerificationError(
                    f"step {head.step}: previous head: expected {_hex(previous_head)}, "
                    f"got {_hex(head.previous)}"
                )
            check_equal(f"step {head.step}: segment", head.segment, segment)  # 3
            for leaf in self.leaves[frontier.size : head.size]:
                what = f"step {leaf.step}: previous leaf"
                check_equal(what, previous_leaf, leaf.previous)  # 4
                previous_leaf = leaf.digest
                frontier.append(leaf.to_bytes())
            check_equal(f"step {head.step}: root of the leaves", head.root, frontier.root())  # 5
            previous_head = head.digest

    def verify_carried(self) -> None:
        """Check that the sources and records that the run carries are those of its header.

        Raises:
            TranscriptError: a file is unreadable, too large or malformed.
            VerificationError: names the file and what differs.
        """
        self.sources()
        self.records()

    def sources(self) -> dict[str, bytes] | None:
        """The job's source files by name, if the run carries them; each is the header's.

        Raises:
            As `verify_carried`.
        """
        if files.SOURCES not in self.carried:
            return None
        data = self._store.read(files.SOURCES, LIMITS.sources_bytes)
        carried = Sources.from_bytes(data, where=files.SOURCES)
        carried.check(self.header)
        return carried.files

    def records(self) -> Records | None:
        """Digests and forms of the data set's records, if the run carries them; they are the
        header's.

        Raises:
            As `verify_carried`.
        """
        if files.RECORDS not in self.carried:
            return None
        data = self._store.read(files.RECORDS, LIMITS.records_bytes)
        carried = Records.from_bytes(data, where=files.RECORDS)
        carried.check(self.header)
        return carried

    def checkpoint(self, step: int) -> Checkpoint:
        """The manifest of a checkpoint; it is the one that the head of `step` names.

        Raises:
            UsageError: there is no checkpoint at this step.
            TranscriptError, VerificationError: the file is not the one the head names.
        """
        if step not in self._places:
            raise UsageError(f"step {step} has no checkpoint")
        head = self.heads[self._places[step]].head
        checkpoint = _read_checkpoint(self._store, step)
        check_equal(f"step {step}: checkpoint", head.checkpoint, checkpoint.digest)
        return checkpoint

    def rounding_log(self, step: int) -> bytes | None:
        """The rounding log of a step, where its leaf names one.

        Raises:
            TranscriptError: the file is unreadable or too large.
            VerificationError: it is not the one that the leaf names.
        """
        expected = self.leaves[step].rounding
        if expected is None:
            return None
        path = files.log_path(step)
        data = self._store.read(path, LIMITS.rounding_bytes)
        check_equal(f"step {step}: rounding log", expected, digest("rounding log", data))
        return data

    def verify_checkpoint(
        self, step: int, *, packs: bool = True, check: Check | None = None
    ) -> None:
        """Check that a checkpoint is whole and stores the state of its leaf.

          1. the manifest is the one that the head names;
          2. the state root of its entries is the one in the leaf;
          3. for each tensor it refers to the first pack that holds its content;
          4. these packs and its own are byte for byte what their manifests say.

        A pack is read once per opened transcript, a MiB at a time; without `packs` none is, and the
        last check is left out. The contents of a pack can be gigabytes of zeros in a small, sparse
        file, and all are hashed: a caller who knows what the state may be says so by `check`.

        Args:
            step: of a checkpoint.
            packs: whether packs are read.
            check: as for `load_state`.

        Raises:
            UsageError: there is no checkpoint at this step.
            TranscriptError: a pack is missing, unreadable or of another size.
            VerificationError: names the step and the tensor, expected and got.
        """
        checkpoint = self._sound_checkpoint(step)  # 1, 2
        if check is not None:
            check(checkpoint.tensors)
        self._check_places(checkpoint)  # 3
        for pack in (step, *_by_pack(checkpoint)) if packs else ():  # 4
            self._verify_pack(pack)

    def load_state(
        self, step: int, *, check: Check | None = None, prefix: str = ""
    ) -> dict[str, Tensor]:
        """The state after `step`: new CPU tensors, each verified as it was read.

        Memory is taken for a content that was found in a pack, whole, and for no other. But a
        content can be gigabytes of zeros in a small, sparse file: a caller who knows what the
        state may be says so by `check`.

        Args:
            step: of a checkpoint.
            check: is shown the state's entries (names, dtypes, shapes), sorted by name, before
                anything of a pack is read; what it raises is raised.
            prefix: read the tensors whose names begin so, and no other.

        Raises:
            UsageError: there is no checkpoint at this step.
            TranscriptError: a pack is missing, unreadable or of another size, or there is no
                memory for one of its tensors.
            VerificationError: names the step and the tensor, expected and got.
        """
        checkpoint = self._sound_checkpoint(step)
        if check is not None:
            check(checkpoint.tensors)
        state: dict[str, Tensor] = {}
        for pack, held in _by_pack(checkpoint).items():
            entries = [entry for entry in held if entry.name.startswith(prefix)]
            if not entries:
                continue
            if pack not in self._places:
                raise _not_held(checkpoint, entries[0], pack, is_there=False)
            with self._open_pack(self.checkpoint(pack)) as (file, spans):
                read: dict[Digest, Tensor] = {}  # each content once
                for entry in entries:
                    place = _Place(step=step, pack=pack, name=entry.name)
                    offset, size = spans.get(entry.digest, (0, -1))
                    if size != entry.num_bytes:
                        raise _not_held(checkpoint, entry, pack)
                    if entry.digest in read:
                        state[entry.name] = _copied(read[entry.digest], entry, place)
                        continue
                    if pack not in self._verified_packs:
                        _check_content(file, offset, entry, place)
                    state[entry.name] = _read_tensor(file, offset, entry, place)
                    read[entry.digest] = state[entry.name]
        names = (entry.name for entry in checkpoint.tensors)
        return {name: state[name] for name in names if name in state}

    @property
    def is_far(self) -> bool:
        """Is reading from where the run lies so dear that nothing should be read without need?"""
        return self._store.is_far

    def total_bytes(self) -> int:
        """The sizes of all files of the run, as the place where it lies states them.

        Raises:
            TranscriptError: the folder cannot be listed.
        """
        return self._store.total_bytes()

    @cached_property
    def _places(self) -> dict[int, int]:
        """Step of a checkpoint: its place among the heads."""
        return {step: place for place, step in enumerate(self.checkpoint_steps)}

    def _require_heads(self) -> None:
        if not self.heads:
            raise VerificationError(
                f"{self.location} has no signed head: there is nothing to check"
            )

    def _sound_checkpoint(self, step: int) -> Checkpoint:
        checkpoint = self.checkpoint(step)
        expected, got = self.leaves[step].state, state_root(checkpoint.tensors)
        check_equal(f"step {step}: state of the checkpoint", expected, got)
        return checkpoint

    def _check_places(self, checkpoint: Checkpoint) -> None:
        """Check that `checkpoint` refers, for each tensor, to the first pack that is said to hold
        it.

        So no content is stored, and hashed, twice.
        """
        known = self._contents
        for step in self.checkpoint_steps[known.checkpoints : self._places[checkpoint.step] + 1]:
            known.add(checkpoint if step == checkpoint.step else self.checkpoint(step))
        for entry, pack in zip(checkpoint.tensors, checkpoint.packs, strict=True):
            first = known.first_pack(entry)
            if first is not None and first < pack:
                raise VerificationError(
                    f"step {checkpoint.step}: tensor {shown(entry.name)}: the pack of step {first} "
                    f"is the first that holds its content: expected {first}, got {pack}"
                )
            if first != pack:
                raise _not_held(checkpoint, entry, pack, is_there=pack in self._places)

    def _verify_pack(self, step: int) -> None:
        if step in self._verified_packs:
            return
        checkpoint = self.checkpoint(step)
        own = zip(checkpoint.tensors, checkpoint.packs, strict=True)
        stored = [entry for entry, pack in own if pack == step]
        distinct = {entry.digest: entry for entry in reversed(stored)}
        with self._open_pack(checkpoint) as (file, spans):
            for entry in sorted(distinct.values(), key=lambda entry: entry.name):
                place = _Place(step=step, pack=step, name=entry.name)
                _check_content(file, spans[entry.digest][0], entry, place)
        self._verified_packs.add(step)

    @contextmanager
    def _open_pack(
        self, checkpoint: Checkpoint
    ) -> Generator[tuple[BinaryIO, Mapping[Digest, tuple[int, int]]]]:
        """A pack whose size and header are those that its manifest allows."""
        step = checkpoint.step
        path = files.pack_path(step)
        layout = pack_layout(checkpoint.stored_sizes())
        with self._store.open_file(path, layout.total_bytes) as file:
            header = file.read(len(layout.header))
            if header != layout.header:
                place = _first_difference(layout.header, header)
                raise VerificationError(
                    f"step {step}: {path}: the header is not the one that the manifest "
                    f"prescribes, from byte {place} on: expected "
                    f"{layout.header[place : place + 16]!a}, "
                    f"got {header[place : place + 16]!a}"
                )
            yield file, layout.spans


def _read_head(store: Store, step: int) -> SignedHead:
    path = files.signature_path(step)
    signed = SignedHead.from_bytes(store.read(path, LIMITS.signature_bytes), where=path)
    if signed.head.step != step:
        raise TranscriptError(path, f"size: expected {step + 1}, got {signed.head.size}")
    return signed


def _read_segment(data: bytes, first: int, last: int) -> tuple[Leaf, ...]:
    path = files.segment_path(last)
    if last >= LIMITS.leaves:
        raise TranscriptError(path, f"expected steps below {LIMITS.leaves}")
    leaves = decode_segment(data, where=path)
    if len(leaves) != last + 1 - first:
        raise TranscriptError(path, f"expected {last + 1 - first} leaves, got {len(leaves)}")
    for step, leaf in enumerate(leaves, first):
        if leaf.step != step:
            raise TranscriptError(path, f"expected the leaf of step {step}, got {leaf.step}")
    return leaves


def _check_logs(leaves: Sequence[Leaf], found: Sequence[int]) -> None:
    """Check that there is a rounding log for each leaf that names one, and no other."""
    expected = {leaf.step for leaf in leaves if leaf.rounding is not None}
    for step in sorted(expected.symmetric_difference(found)):
        problem = "missing" if step in expected else "no leaf names this file"
        raise TranscriptError(files.log_path(step), problem)


def _read_checkpoint(store: Store, step: int) -> Checkpoint:
    path = files.manifest_path(step)
    checkpoint = Checkpoint.from_bytes(store.read(path, LIMITS.record_bytes), where=path)
    if checkpoint.step != step:
        raise TranscriptError(path, f"step: expected {step}, got {checkpoint.step}")
    return checkpoint


def _by_pack(checkpoint: Checkpoint) -> dict[int, list[TensorEntry]]:
    groups: dict[int, list[TensorEntry]] = {}
    for entry, pack in zip(checkpoint.tensors, checkpoint.packs, strict=True):
        groups.setdefault(pack, []).append(entry)
    return groups


def _not_held(
    checkpoint: Checkpoint, entry: TensorEntry, pack: int, *, is_there: bool = True
) -> VerificationError:
    what = f"step {checkpoint.step}: tensor {shown(entry.name)}: "
    if not is_there:
        problem = f"there is no checkpoint at step {pack}, whose pack should hold it"
        return VerificationError(what + problem)
    return VerificationError(
        f"{what}the pack of step {pack} should hold {entry.digest.hex()} "
        f"({entry.num_bytes} bytes) and does not"
    )


def _check_content(file: BinaryIO, offset: int, entry: TensorEntry, place: _Place) -> None:
    """Check the digest of one content of a pack, a part at a time."""
    file.seek(offset)
    got = digest_parts("tensor", _parts(file, entry.num_bytes, place))
    check_equal(str(place), entry.digest, got)


def _parts(file: BinaryIO, size: int, place: _Place) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(size, _READ_BYTES)))
    for left in range(size, 0, -_READ_BYTES):
        part = buffer[: min(left, _READ_BYTES)]
        _fill(file, part, place)
        yield part


def _read_tensor(file: BinaryIO, offset: int, entry: TensorEntry, place: _Place) -> Tensor:
    """A new tensor of one content of a pack, its digest checked."""
    tensor, into = _empty(entry, place)
    file.seek(offset)
    _fill(file, into, place)
    check_equal(str(place), entry.digest, digest("tensor", into))
    _require_truth(entry, into, place)
    return tensor


def _copied(read: Tensor, entry: TensorEntry, place: _Place) -> Tensor:
    """A new tensor of the content that was read, and hashed, as `read`."""
    from veritrain.transcript import tensors  # torch: records are read without it

    tensor, into = _empty(entry, place)
    into[:] = tensors.content(read)
    _require_truth(entry, into, place)
    return tensor


def _empty(entry: TensorEntry, place: _Place) -> tuple[Tensor, memoryview]:
    from veritrain.transcript import tensors  # torch: records are read without it

    try:
        return tensors.empty(entry)
    except (MemoryError, RuntimeError):  # torch's allocator raises the latter
        problem = f"tensor {shown(place.name)}: no memory for its {entry.num_bytes} bytes"
        raise TranscriptError(files.pack_path(place.pack), problem) from None


def _require_truth(entry: TensorEntry, content: memoryview, place: _Place) -> None:
    from veritrain.transcript import tensors  # torch: records are read without it

    try:
        tensors.require_truth(entry, content)
    except UsageError as error:
        problem = f"tensor {shown(place.name)}: {error}"
        raise TranscriptError(files.pack_path(place.pack), problem) from None


def _fill(file: BinaryIO, into: memoryview, place: _Place) -> None:
    done = 0
    while done < len(into) and (count := file.readinto(into[done:])):  # pyright: ignore
        done += count
    if done < len(into):
        raise TranscriptError(files.pack_path(place.pack), "became shorter while it was read")


def _first_difference(expected: bytes, got: bytes) -> int:
    pairs = enumerate(zip(expected, got, strict=False))
    return next((index for index, (left, right) in pairs if left != right), len(got))


def _hex(value: Digest | None) -> str:
    return value.hex() if value else "none"
