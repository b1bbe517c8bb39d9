"""What a referee keeps of a dispute, so that anyone can play it again: see `check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self, TypeAlias

from veritrain.encoding import Value
from veritrain.protocols.dispute.limits import LIMITS
from veritrain.transcript import fields as check
from veritrain.transcript.record import Record
from veritrain.transcript.records import PUBLIC_KEY_BYTES, SIGNATURE_BYTES

Event: TypeAlias = bytes | int  # a signed message that counted; the number that timed out


@dataclass(frozen=True, kw_only=True)
class Evidence(Record):
    """Everything that the verdict follows from.

    Attributes:
        referee: public key.
        questions: the referee's signatures of its questions 1, 2, ... What was asked follows from
            the events before.
        events: in the order in which the referee took them.
    """

    type_name: ClassVar[str] = "dispute evidence"
    max_bytes: ClassVar[int] = LIMITS.evidence_bytes
    max_items: ClassVar[int | None] = 8 * LIMITS.events

    referee: bytes
    questions: tuple[bytes, ...]
    events: tuple[Event, ...]

    def __post_init__(self) -> None:
        check.check_bytes("referee", self.referee, PUBLIC_KEY_BYTES)
        if len(self.questions) > LIMITS.number:
            raise check.wrong("questions", f"at most {LIMITS.number}", self.questions)
        for signature in self.questions:
            check.check_bytes("questions", signature, SIGNATURE_BYTES)
        if len(self.events) > LIMITS.events:
            raise check.wrong("events", f"at most {LIMITS.events}", self.events)
        for event in self.events:
            if type(event) is not bytes:
                check.check_integer("timeout", event, 1, LIMITS.number)

    def to_value(self) -> dict[str, Value]:
        """The record as a map of its fields and its type."""
        events: list[Value] = [
            {"message": event} if isinstance(event, bytes) else {"timeout": event}
            for event in self.events
        ]
        return {**super().to_value(), "questions": list(self.questions), "events": events}

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """See `Record.from_value`."""
        taken = cls._take(value)
        for name in ("questions", "events"):
            if not isinstance(taken[name], list):
                raise check.wrong(name, "an array", taken[name])
        return cls(
            referee=taken["referee"],
            questions=tuple(taken["questions"]),
            events=tuple(_event(item) for item in taken["events"]),
        )


@dataclass(frozen=True, kw_only=True)
class Bundle(Record):
    """The evidence with the signed verdict: the file that a referee hands out."""

    type_name: ClassVar[str] = "dispute bundle"
    max_bytes: ClassVar[int] = LIMITS.evidence_bytes + 2 * LIMITS.verdict_bytes
    max_items: ClassVar[int | None] = 9 * LIMITS.events

    evidence: Evidence
    verdict: bytes  # DSSE envelope

    def __post_init__(self) -> None:
        if type(self.verdict) is not bytes:
            raise check.wrong("verdict", "a byte string", self.verdict)

    def to_value(self) -> dict[str, Value]:
        """The record as a map of its fields and its type."""
        return {**super().to_value(), "evidence": self.evidence.to_value()}

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """See `Record.from_value`."""
        taken = cls._take(value)
        return cls(evidence=Evidence.from_value(taken["evidence"]), verdict=taken["verdict"])


def _event(value: Value) -> Event:
    if isinstance(value, dict) and len(value) == 1:
        message, timeout = value.get("message"), value.get("timeout")
        if type(message) is bytes:
            return message
        if type(timeout) is int:
            return timeout
    raise check.wrong("events", "a message or a timeout", value)
