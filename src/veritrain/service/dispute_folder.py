"""The folders in which trainer, challenger and referee keep their disputes.

A `DisputeArchive` holds a `DisputeFolder` for each dispute. Beside them lie the bundles and
verdicts of disputes that are over: `ID.bundle`, `ID.verdict.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Self

from veritrain.encoding import Digest, Value
from veritrain.errors import UsageError, VeritrainError
from veritrain.parties.envelope import SignedEnvelope
from veritrain.parties.journal import JournalEntry
from veritrain.parties.party_folder import ContextFolder, PartyFolder
from veritrain.protocols.dispute.claims import Entries
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.messages import Message, Question, TraceClaim, TraceOf, read_reply
from veritrain.replay.trace.entry import MAX_ENTRIES
from veritrain.transcript import fields as check
from veritrain.transcript.record import MAX_STEP, Record
from veritrain.transcript.store import LocalStore

_CHALLENGE = "challenge"
_TRACE = "trace"


class DisputeArchive(PartyFolder):
    """All disputes of a party."""

    def dispute(self, dispute: Digest) -> DisputeFolder:
        """The folder of a dispute; it need not be there yet."""
        return DisputeFolder(self.folder / dispute.hex())

    def is_decided(self, dispute: Digest) -> bool:
        """Is the bundle of the dispute here, with which it is over?"""
        return self.has(bundle_name(dispute))


def bundle_name(dispute: Digest) -> str:
    """The file with the evidence and the verdict of a dispute that is over."""
    return f"{dispute.hex()}.bundle"


def verdict_name(dispute: Digest) -> str:
    """The file with its verdict alone."""
    return f"{dispute.hex()}.verdict.json"


class DisputeFolder(ContextFolder):
    """What a party keeps of one dispute: its challenge, messages, journal and trace."""

    @property
    def is_empty(self) -> bool:
        """Is the dispute not known here?"""
        return not (self.folder / _CHALLENGE).exists()

    @property
    def challenge(self) -> bytes:
        """The signed challenge.

        Raises:
            TranscriptError: there is none, or it is too large.
        """
        return self._store.read(_CHALLENGE, LIMITS.challenge_bytes)

    def begin(self, challenge: bytes) -> None:
        """Keep the challenge, if it is not kept yet.

        Raises:
            UsageError: it cannot be written, or there is another one.
        """
        self._keep(_CHALLENGE, challenge)

    def traces(self, entries: Mapping[int, JournalEntry]) -> KeptTraces:
        """The trace that was computed, if any; `entries` are those of this dispute's journal."""
        return KeptTraces(self._store, entries)

    def forget_trace(self) -> None:
        """Delete the trace, if there is one.

        Raises:
            UsageError: it cannot be deleted.
        """
        if (self.folder / _TRACE).exists():
            self._store.delete(_TRACE)


@dataclass(frozen=True, kw_only=True)
class KeptTrace(Record):
    """The trace of a step, as it lies on the disk."""

    type_name: ClassVar[str] = "kept trace"
    max_bytes: ClassVar[int] = 1 << 28
    max_items: ClassVar[int | None] = MAX_ENTRIES + 16

    step: int
    entries: tuple[bytes, ...]

    def __post_init__(self) -> None:
        check.check_integer("step", self.step, 0, MAX_STEP)
        if not self.entries or any(type(entry) is not bytes for entry in self.entries):
            raise check.wrong("entries", "byte strings", self.entries)

    def to_value(self) -> dict[str, Value]:
        """The record as a map of its fields and its type."""
        return {**super().to_value(), "entries": list(self.entries)}

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """See `Record.from_value`."""
        taken = cls._take(value)
        if not isinstance(taken["entries"], list):
            raise check.wrong("entries", "an array", taken["entries"])
        return cls(step=taken["step"], entries=tuple(taken["entries"]))


class KeptTraces:
    """Keeps the trace of the disputed step, so that it need not be computed again; see `Traces`.

    The file counts as the trace only where the party signed an answer that commits to it.
    """

    def __init__(self, store: LocalStore, entries: Mapping[int, JournalEntry]) -> None:
        self._store = store
        self._entries = entries

    def get(self, step: int) -> Sequence[bytes] | None:
        """See `Traces.get`; what cannot be used is not here."""
        try:
            claim = _claim(self._entries, step)
            if claim is None:
                return None
            data = self._store.read(_TRACE, KeptTrace.max_bytes)
            kept = KeptTrace.from_bytes(data, where=_TRACE)
        except VeritrainError:
            return None
        found = Entries(kept.entries).commitment
        is_it = (kept.step, found.size, found.root) == (step, claim.size, claim.root)
        return kept.entries if is_it else None

    def keep(self, step: int, entries: Sequence[bytes]) -> None:
        """See `Traces.keep`: on the disk when it returns, in the place of another one."""
        with suppress(UsageError):  # too large, a full disk: it is computed again if need be
            data = KeptTrace(step=step, entries=tuple(entries)).to_bytes()
            with suppress(UsageError):  # there is none
                self._store.delete(_TRACE)
            self._store.write(_TRACE, (data,))


def _claim(entries: Mapping[int, JournalEntry], step: int) -> TraceClaim | None:
    """What was signed about the trace of a step.

    Raises:
        VeritrainError: a reply that cannot be read, or no answer.
    """
    for entry in entries.values():
        where = "kept question"
        asked = SignedEnvelope.from_bytes(entry.question, where=where).opened(Message, where=where)
        topic = Question.from_value(asked.body).topic
        if isinstance(topic, TraceOf) and topic.step == step:
            where = "kept answer"
            answer = SignedEnvelope.from_bytes(entry.answer, where=where).opened(
                Message, where=where
            )
            return read_reply(answer.body, TraceClaim)[1]
    return None
