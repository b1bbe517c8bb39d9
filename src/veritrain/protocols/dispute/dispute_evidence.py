"""What a referee keeps of a dispute, so that anyone can play it again: see `offline_check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from veritrain.encoding import Value
from veritrain.parties.evidence import Evidence
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.transcript import fields as check
from veritrain.transcript.record import Record
from veritrain.transcript.records import PUBLIC_KEY_BYTES, SIGNATURE_BYTES


@dataclass(frozen=True, kw_only=True)
class DisputeEvidence(Evidence):
    """Everything that the verdict follows from; the first event is the challenge.

    Attributes:
        referee: public key.
        questions: the referee's signatures of its questions 1, 2, ... What was asked follows from
            the events before.
    """

    type_name: ClassVar[str] = "dispute evidence"
    max_bytes: ClassVar[int] = LIMITS.evidence_bytes
    max_items: ClassVar[int | None] = 8 * LIMITS.events
    max_events: ClassVar[int] = LIMITS.events
    max_slot: ClassVar[int] = LIMITS.number

    referee: bytes
    questions: tuple[bytes, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check.check_bytes("referee", self.referee, PUBLIC_KEY_BYTES)
        if len(self.questions) > LIMITS.number:
            raise check.wrong("questions", f"at most {LIMITS.number}", self.questions)
        for signature in self.questions:
            check.check_bytes("questions", signature, SIGNATURE_BYTES)

    def to_value(self) -> dict[str, Value]:
        """The record as a map of its fields and its type."""
        return {**super().to_value(), "questions": list(self.questions)}

    @classmethod
    def _take(cls, value: Value, *extra: str) -> dict[str, Any]:
        taken = super()._take(value, *extra)
        if not isinstance(taken["questions"], list):
            raise check.wrong("questions", "an array", taken["questions"])
        return {**taken, "questions": tuple(taken["questions"])}


@dataclass(frozen=True, kw_only=True)
class Bundle(Record):
    """The evidence with the signed verdict: the file that a referee hands out."""

    type_name: ClassVar[str] = "dispute bundle"
    max_bytes: ClassVar[int] = LIMITS.evidence_bytes + 2 * LIMITS.verdict_bytes
    max_items: ClassVar[int | None] = 9 * LIMITS.events

    evidence: DisputeEvidence
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
        return cls(evidence=DisputeEvidence.from_value(taken["evidence"]), verdict=taken["verdict"])
