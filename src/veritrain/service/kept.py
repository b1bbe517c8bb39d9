"""What the parties of disputes keep on disk, so that a crash makes none of them say two different things.

A shelf is a folder with a folder for each dispute, named by its digest. A file is written once, is on the disk
when writing returns, and is read back strictly. One process at a time uses a shelf.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, NoReturn, Self

from veritrain.encoding import Digest, Value
from veritrain.errors import TranscriptError, UsageError, VeritrainError
from veritrain.protocols.dispute.claims import Entries
from veritrain.protocols.dispute.limits import LIMITS
from veritrain.protocols.dispute.messages import (
    Question,
    SignedMessage,
    TraceClaim,
    TraceOf,
    read_reply,
)
from veritrain.protocols.dispute.party import Reply
from veritrain.replay.trace.entry import MAX_ENTRIES
from veritrain.transcript import fields as check
from veritrain.transcript.record import MAX_STEP, Record
from veritrain.transcript.store import TEMPORARY_PREFIX, AlreadyWrittenError, LocalStore

_CHALLENGE = "challenge"
_TRACE = "trace"
_NUMBERED = re.compile(r"(reply|message)-([0-9]{4})", re.ASCII)
_DISPUTE = re.compile("[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class KeptReply(Record):
    """A question and the answer to it, as they lie on the disk."""

    type_name: ClassVar[str] = "kept reply"
    max_bytes: ClassVar[int] = LIMITS.question_bytes + LIMITS.detail_bytes + 256
    max_items: ClassVar[int | None] = 16

    question: bytes
    answer: bytes

    def __post_init__(self) -> None:
        for name in ("question", "answer"):
            if type(getattr(self, name)) is not bytes:
                raise check.wrong(name, "a byte string", getattr(self, name))


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


class Shelf:
    """The folder of a party, for this process alone as long as the object lives."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, if it is not there.

        Raises:
            UsageError: another process has it, or it cannot be written.
        """
        self.folder = folder
        self._store = LocalStore(folder)
        self._store.lock()

    def disputes(self) -> list[Digest]:
        """Those that have a folder, sorted."""
        names = sorted(entry.name for entry in self.folder.iterdir() if entry.is_dir())
        return [bytes.fromhex(name) for name in names if _DISPUTE.fullmatch(name)]

    def is_decided(self, dispute: Digest) -> bool:
        """Is the bundle of the dispute here, with which it is over?"""
        return (self.folder / f"{dispute.hex()}.bundle").exists()

    def docket(self, dispute: Digest) -> Docket:
        """The folder of a dispute; it need not be there yet."""
        return Docket(self.folder / dispute.hex())

    def write(self, name: str, data: bytes) -> bool:
        """Keep a file beside the disputes; the one that is there stays, if it is the same. Is it new?

        Raises:
            UsageError: it cannot be written, or is there and differs.
        """
        return _write(self._store, name, data)

    def read(self, name: str, limit: int) -> bytes | None:
        """A file beside the disputes; None if there is none.

        Raises:
            TranscriptError: unreadable or too large.
        """
        return self._store.read(name, limit) if (self.folder / name).exists() else None

    def open(self, name: str) -> BinaryIO | None:
        """A file beside the disputes, for reading; None if there is none.

        Raises:
            TranscriptError: unreadable.
        """
        return self._store.open_plain(name) if (self.folder / name).exists() else None


class Docket:
    """What is kept of one dispute."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = LocalStore(folder)

    @property
    def is_empty(self) -> bool:
        """Is the dispute not known here?"""
        return not (self._folder / _CHALLENGE).exists()

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
        _write(self._store, _CHALLENGE, challenge)

    def replies(self) -> KeptReplies:
        """What was answered."""
        return KeptReplies(self._store, self._numbers("reply"))

    def traces(self, replies: KeptReplies) -> KeptTraces:
        """What was computed, see `KeptTraces`; `replies` are those of this dispute."""
        return KeptTraces(self._store, replies)

    def forget_trace(self) -> None:
        """Delete the trace, if there is one.

        Raises:
            UsageError: it cannot be deleted.
        """
        if (self._folder / _TRACE).exists():
            self._store.delete(_TRACE)

    def messages(self) -> list[bytes]:
        """The messages that counted, in their order.

        Raises:
            TranscriptError: one is missing, or unreadable.
        """
        count = len(self._numbers("message"))
        return [
            self._store.read(_name("message", number), LIMITS.detail_bytes)
            for number in range(1, count + 1)
        ]

    def add_message(self, number: int, message: bytes) -> None:
        """Keep message `number`, counted from 1.

        Raises:
            UsageError: it cannot be written.
        """
        _write(self._store, _name("message", number), message)

    def keep_conflict(self, pair: tuple[bytes, bytes]) -> Path:
        """Keep two questions that convict the referee who signed both, and say where.

        Raises:
            UsageError: they cannot be written.
        """
        for name, message in zip(("equivocation-1", "equivocation-2"), pair, strict=True):
            with suppress(AlreadyWrittenError):  # one pair proves it
                self._store.write(name, (message,))
        return self._folder

    def clear(self) -> None:
        """Delete it all.

        Raises:
            UsageError: it cannot be deleted.
        """
        for path in self._store.list():
            self._store.delete(path)
        with suppress(OSError):
            self._folder.rmdir()

    def _numbers(self, kind: str) -> list[int]:
        """Numbers of the files of a kind; what an interrupted write left is deleted."""
        found: list[int] = []
        for path in self._store.list():
            match = _NUMBERED.fullmatch(path)
            if match is not None and match[1] == kind:
                found.append(int(match[2]))
            elif path.startswith(TEMPORARY_PREFIX):
                self._store.delete(path)
        return found


class KeptReplies(MutableMapping[int, Reply]):
    """Replies by number, each durable when its assignment returns, and kept for ever."""

    def __init__(self, store: LocalStore, numbers: list[int]) -> None:
        self._store = store
        self._numbers = set(numbers)

    def __getitem__(self, number: int) -> Reply:
        if number not in self._numbers:
            raise KeyError(number)
        name = _name("reply", number)
        kept = KeptReply.from_bytes(self._store.read(name, KeptReply.max_bytes), where=name)
        return Reply(question=kept.question, answer=kept.answer)

    def __setitem__(self, number: int, reply: Reply) -> None:
        kept = KeptReply(question=reply.question, answer=reply.answer)
        self._store.write(_name("reply", number), (kept.to_bytes(),))
        self._numbers.add(number)

    def __delitem__(self, number: int) -> NoReturn:
        raise UsageError("a reply is kept for ever")

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._numbers))

    def __len__(self) -> int:
        return len(self._numbers)


class KeptTraces:
    """The trace of the disputed step, so that it need not be computed again; see `Traces`. It is taken for the trace
    only where a reply that was signed commits to just this one."""

    def __init__(self, store: LocalStore, replies: Mapping[int, Reply]) -> None:
        self._store = store
        self._replies = replies

    def get(self, step: int) -> Sequence[bytes] | None:
        """See `Traces.get`; what cannot be used is not here."""
        try:
            claim = _claim(self._replies, step)
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


def _claim(replies: Mapping[int, Reply], step: int) -> TraceClaim | None:
    """What was signed about the trace of a step.

    Raises:
        VeritrainError: a reply that cannot be read, or no answer.
    """
    for reply in replies.values():
        asked = SignedMessage.from_bytes(reply.question, where="kept question").opened(
            where="kept question"
        )
        topic = Question.from_value(asked.body).topic
        if isinstance(topic, TraceOf) and topic.step == step:
            signed = SignedMessage.from_bytes(reply.answer, where="kept answer")
            return read_reply(signed.opened(where="kept answer").body, TraceClaim)[1]
    return None


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:04d}"


def _write(store: LocalStore, name: str, data: bytes) -> bool:
    try:
        store.write(name, (data,))
    except AlreadyWrittenError:
        if not _holds(store, name, data):
            raise
        return False
    return True


def _holds(store: LocalStore, name: str, data: bytes) -> bool:
    try:
        return store.read(name, len(data)) == data
    except TranscriptError:  # longer, for example
        return False
