"""Writing a transcript: leaves as they come, and commits that make them visible.

A commit writes the pack, the manifest, the segment and last the signed head, each durable before
the next: at any moment of a crash the run is exactly what its signed heads say. No file holds a
time or anything else that is not determined by the job, the key and the commit points, so a resumed
run has the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from types import TracebackType
from typing import Self

from torch import Tensor

from veritrain.encoding import Digest, digest, same
from veritrain.errors import TranscriptError, UsageError
from veritrain.transcript import files, tensors
from veritrain.transcript.carried import Records, Sources
from veritrain.transcript.fields import differences, shown
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.merkle import Frontier
from veritrain.transcript.packs import PackLayout, pack_layout
from veritrain.transcript.reader import Transcript
from veritrain.transcript.records import (
    Checkpoint,
    Head,
    Header,
    Leaf,
    SignedHead,
    TensorEntry,
    encode_segment,
    state_root,
)
from veritrain.transcript.signing import Signer
from veritrain.transcript.store import AlreadyWrittenError, Store
from veritrain.transcript.stores import open_store


class TranscriptWriter:
    """The one writer of a run; made by `create` or `resume`, and to be closed.

    A local run folder is locked until then: a second writer is refused.
    """

    def __init__(
        self,
        store: Store,
        header: Header,
        signer: Signer,
        carried: Sequence[Sources | Records] = (),
    ) -> None:
        if signer.public_key != header.public_key:
            raise _other_key()
        for record in carried:
            record.check(header)
        self._carried = {record.type_name: record.to_bytes() for record in carried}
        self._store = store
        self._header = header
        self._signer = signer
        self._frontier = Frontier()
        self._pending: list[Leaf] = []
        self._previous: Digest = header.digest  # what the next leaf follows
        self._last_head: Head | None = None
        self._packs: dict[Digest, int] = {}  # content: step of the pack that holds it
        self._closed = False
        self._unfinished: list[str] = []  # files of a commit of this writer that did not end

    @classmethod
    def examine(cls, url: str | os.PathLike[str], signer: Signer, *, resume: bool) -> int:
        """What `create` or `resume` would find, for those who want to know before they work on a
        header.

        Returns:
            The last committed step of the run to resume; -1 where a run would begin.

        Raises:
            UsageError: the folder is being written, cannot be written, or holds something that
                cannot be replaced; the run to resume was signed by another key.
            TranscriptError: the folder to resume is not a well-formed run.
        """
        store = open_store(url)
        store.require_writable()
        paths = [path for path in store.list() if not files.is_temporary(path)]
        if not resume:
            _require_replaceable(store, paths)
        if not resume or not paths:
            return -1
        transcript = Transcript.open(url)
        if transcript.header.public_key != signer.public_key and files.has_step(paths):
            raise _other_key()
        return transcript.heads[-1].head.step if transcript.heads else -1

    @classmethod
    def create(
        cls,
        url: str | os.PathLike[str],
        header: Header,
        signer: Signer,
        carried: Sequence[Sources | Records] = (),
    ) -> TranscriptWriter:
        """Begin a run in a new or empty folder, or in the place of a run without a step; `carried`
        is what the run carries beside.

        Raises:
            UsageError: the folder holds files already, is being written, cannot be written, or
                the key is not the header's.
            VerificationError: `carried` is not what the header says.
        """
        writer = cls(open_store(url), header, signer, carried)
        with writer._locked():
            writer._begin()
        return writer

    def _begin(self) -> None:
        """Write the header and what is carried. A run without a step, of a start that failed, gives
        way."""
        store = self._store
        found = store.list()
        _require_replaceable(store, [path for path in found if not files.is_temporary(path)])
        for path in sorted(
            found, key=lambda path: path == files.HEADER
        ):  # without it, none can read
            store.delete(path)
        store.write(files.HEADER, [self._header.to_bytes()])
        self._carry(())

    def _carry(self, present: Collection[str]) -> None:
        """Make what the run carries complete, of which `present` lies there; before its first
        commit only."""
        for path in files.CARRIED:
            if path in present and path not in self._carried:
                self._store.delete(path)
            elif path in self._carried and path not in present:
                self._store.write(path, [self._carried[path]])

    @classmethod
    def resume(
        cls,
        url: str | os.PathLike[str],
        header: Header,
        signer: Signer,
        carried: Sequence[Sources | Records] = (),
    ) -> TranscriptWriter:
        """Continue a run after its last signed head, or begin it if nothing was written yet.

        Checks every signature, the whole chain, what is carried and the last checkpoint; then
        deletes the leftovers of an interrupted commit. From the first commit on a run carries what
        it carried
        then: `carried` is for a run that has none yet.

        Raises:
            UsageError: `header` is not the header of the run, and the run has a step; the key is
                not the header's; or another writer is at work.
            TranscriptError: the folder is not a well-formed run.
            VerificationError: the run is not what its heads say.
        """
        writer = cls(open_store(url), header, signer, carried)
        with writer._locked():
            paths = writer._store.list()
            if all(map(files.is_temporary, paths)):
                writer._begin()
                return writer
            transcript = Transcript.open(url)
            if transcript.header.digest != header.digest and not files.has_step(paths):
                writer._begin()
            else:
                writer._continue(transcript)
        return writer

    def _continue(self, transcript: Transcript) -> None:
        _check_same_header(transcript.header, self._header)
        transcript.verify_carried()
        if not transcript.heads:
            self._carry(transcript.carried)
        else:
            transcript.verify_signatures()
            transcript.verify_chain()
            transcript.verify_checkpoint(transcript.checkpoint_steps[-1])
        self._adopt(transcript)
        for path in transcript.leftovers:
            self._store.delete(path)

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Take the lock, and keep it unless the block fails."""
        self._store.lock()
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write the run; what was not committed is not part of it."""
        self._closed = True
        self._store.unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def last_step(self) -> int:
        """The last committed step, -1 when there is none yet."""
        return self._last_head.step if self._last_head else -1

    @property
    def next_step(self) -> int:
        """The step that the next `append` records."""
        return self._frontier.size

    @property
    def last_head(self) -> Head | None:
        """The last commitment, None when there is none yet."""
        return self._last_head

    def append(
        self,
        *,
        state: Digest,
        batch: Digest | None,
        loss: float | None,
        rounding: bytes | None = None,
    ) -> Leaf:
        """Record the next step; it becomes part of the run with the next `commit`.

        Args:
            state: state root after the step. batch: its digest; None at step 0, as `loss`.
            rounding: the step's rounding log, which is written at once.

        Raises:
            UsageError: a value that this step cannot have, too many steps without a commit, or a
                log that is too long or cannot be written.
        """
        if len(self._pending) >= LIMITS.leaves_per_segment or self.next_step >= LIMITS.leaves:
            raise UsageError(
                f"step {self.next_step}: a run has at most {LIMITS.leaves} steps and a commit at "
                f"least every {LIMITS.leaves_per_segment}"
            )
        leaf = Leaf(
            step=self.next_step,
            state=state,
            batch=batch,
            loss=loss,
            rounding=None if rounding is None else digest("rounding log", rounding),
            previous=self._previous,
        )
        if rounding is not None:
            self._write_log(leaf.step, rounding)
        self._pending.append(leaf)
        self._frontier.append(leaf.to_bytes())
        self._previous = leaf.digest
        return leaf

    def _write_log(self, step: int, log: bytes) -> None:
        if self._closed:
            raise UsageError("the writer is closed; resume the run")
        if len(log) > LIMITS.rounding_bytes:
            raise UsageError(
                f"step {step}: a rounding log of {len(log)} bytes, expected at most "
                f"{LIMITS.rounding_bytes}; calibrate the thresholds (veritrain calibrate)"
            )
        self._store.write(files.log_path(step), [log])

    def commit(self, state: Mapping[str, Tensor], entries: tuple[TensorEntry, ...]) -> Head:
        """Store the state of the last step and sign everything up to it.

        `entries` are those of `state`. Returns when all is durable. After an error (a full disk,
        an interrupt) nothing of this commit counts and it may be tried again.

        Raises:
            UsageError: no step since the last commit, `state` or `entries` are not what the last
                leaf recorded, a file exists already (of another writer) or cannot be written, or
                the writer is closed.
        """
        if self._closed:
            raise UsageError("the writer is closed; resume the run")
        if not self._pending:
            raise UsageError(f"step {self.last_step} is committed already")
        step = self._pending[-1].step
        _check_state(step, self._pending[-1], state, entries)
        checkpoint = self._checkpoint(step, entries)
        manifest = checkpoint.to_bytes()
        segment = encode_segment(self._pending)
        head = Head(
            run=self._header.digest,
            size=step + 1,
            root=self._frontier.root(),
            segment=digest("segment", segment),
            checkpoint=checkpoint.digest,
            previous=self._last_head.digest if self._last_head else None,
        )
        signed = SignedHead(head=head, signature=self._signer.sign("head", head.to_bytes()))
        layout = pack_layout(checkpoint.stored_sizes())
        if not self._is_committed(signed):
            self._delete_unfinished()
            self._write(files.pack_path(step), _pack_parts(layout, state, checkpoint))
            self._write(files.manifest_path(step), [manifest])
            self._write(files.segment_path(step), [segment])
            self._write(files.signature_path(step), [signed.to_bytes()])
        self._unfinished = []
        self._last_head = head
        self._pending = []
        self._packs.update(dict.fromkeys(layout.spans, step))
        return head

    def _adopt(self, transcript: Transcript) -> None:
        for leaf in transcript.leaves:
            self._frontier.append(leaf.to_bytes())
            self._previous = leaf.digest
        if transcript.heads:
            self._last_head = transcript.heads[-1].head
        for step in transcript.checkpoint_steps:
            stored = transcript.checkpoint(step).stored_sizes()
            self._packs.update(dict.fromkeys(stored, step))

    def _checkpoint(self, step: int, entries: tuple[TensorEntry, ...]) -> Checkpoint:
        ordered = tuple(sorted(entries, key=lambda entry: entry.name))
        packs = tuple(self._packs.get(entry.digest, step) for entry in ordered)
        return Checkpoint(step=step, tensors=ordered, packs=packs)

    def _write(self, path: str, parts: Iterable[bytes | memoryview]) -> None:
        self._unfinished.append(path)  # before: an interrupt can come just after the file appeared
        try:
            self._store.write(path, parts)
        except AlreadyWrittenError:
            self._unfinished.remove(path)  # someone else's
            raise

    def _is_committed(self, signed: SignedHead) -> bool:
        """Did an earlier attempt, which failed after its last write, sign this already?"""
        path = files.signature_path(signed.head.step)
        if path not in self._unfinished or path not in self._store.list():
            return False
        if self._store.read(path, LIMITS.signature_bytes) != signed.to_bytes():
            raise UsageError(f"{path}: was written by someone else; resume the run")
        return True

    def _delete_unfinished(self) -> None:
        """Delete what this writer's last attempt left; no signed head covers it."""
        present = set(self._store.list()) if self._unfinished else ()
        for path in tuple(reversed(self._unfinished)):
            if path in present:
                self._store.delete(path)
            self._unfinished.remove(path)


def _other_key() -> UsageError:
    return UsageError(
        "the key that signs is not the one in the header; load the key the run began with"
    )


def _require_replaceable(store: Store, paths: Sequence[str]) -> None:
    """Check that nothing is lost if these files of a folder go: none, or those of a run without a
    step.

    Raises:
        UsageError: they are something else.
    """
    try:
        is_run = not files.has_step(paths)
    except TranscriptError:
        is_run = False
    if paths and not is_run:
        raise UsageError(
            f"{store.location} holds files already ({shown(paths[0])}); resume that run (--resume)"
            " or choose another folder"
        )


def _check_same_header(stored: Header, given: Header) -> None:
    for field in fields(Header):
        expected, got = getattr(stored, field.name), getattr(given, field.name)
        if not same(expected, got):
            name = field.name
            texts = differences({name: expected}, {name: got})
            different = "; ".join(text.removeprefix(f"{name}: ") for text in texts)
            raise UsageError(f"cannot resume: {name} is not what the run began with: {different}")


def _check_state(
    step: int, leaf: Leaf, state: Mapping[str, Tensor], entries: tuple[TensorEntry, ...]
) -> None:
    root = state_root(entries)
    if root != leaf.state:
        raise UsageError(
            f"step {step}: the state to commit is not the recorded one: "
            f"expected {leaf.state.hex()}, got {root.hex()}"
        )
    if set(state) != {entry.name for entry in entries}:
        raise UsageError(f"step {step}: the entries are not those of the state")


def _pack_parts(
    layout: PackLayout, state: Mapping[str, Tensor], checkpoint: Checkpoint
) -> Iterator[bytes | memoryview]:
    """The bytes of the pack; every content is hashed again as it is written, so that a tensor
    that changed since its entry was made is never committed under the old digest."""
    names = {entry.digest: entry.name for entry in reversed(checkpoint.tensors)}
    yield layout.header
    for expected in layout.spans:
        data = tensors.content(state[names[expected]])
        got = digest("tensor", data)
        if got != expected:
            raise UsageError(
                f"step {checkpoint.step}: tensor {shown(names[expected])} changed while it was "
                f"committed: expected {expected.hex()}, got {got.hex()}"
            )
        yield data
