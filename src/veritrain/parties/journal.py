"""The journal of a party: what it signed, kept before it is sent.

Two different envelopes for one slot convict the party that signed them, even by mistake. So a
signature goes through the journal: it is stored before it leaves, and the same slot has the same
bytes for ever, also after the process was killed.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import ClassVar

from veritrain.errors import VerificationError
from veritrain.parties.envelope import ENVELOPE_BYTES, SignedEnvelope
from veritrain.parties.equivocation import EquivocationError
from veritrain.transcript import fields as check
from veritrain.transcript.record import Record

_FRAME_BYTES = 1 << 17  # a question, and what is round both


@dataclass(frozen=True, kw_only=True)
class JournalEntry(Record):
    """A signed envelope, and the signed question that it answers; empty where nobody asked."""

    type_name: ClassVar[str] = "kept reply"
    max_bytes: ClassVar[int] = ENVELOPE_BYTES + _FRAME_BYTES
    max_items: ClassVar[int | None] = 16

    question: bytes
    answer: bytes

    def __post_init__(self) -> None:
        for name in ("question", "answer"):
            if type(getattr(self, name)) is not bytes:
                raise check.wrong(name, "a byte string", getattr(self, name))


class Journal:
    """What one party signed in one context, by number of the slot."""

    def __init__(
        self, entries: MutableMapping[int, JournalEntry], *, in_order: bool = True
    ) -> None:
        """Go on with what was signed before.

        Args:
            entries: an entry must be durable when its assignment returns. A party that starts again
                hands in the same. A dict will do for a party that never starts again.
            in_order: slots are filled in rising order, as those of a dispute are. A worker whose
                tasks end in any order has False here.
        """
        self._entries = entries
        self._in_order = in_order

    def sign_once(
        self, number: int, question: SignedEnvelope | None, make: Callable[[], bytes]
    ) -> bytes:
        """The signed envelope for a slot: the one that was signed before, or what `make` returns.

        Args:
            number: of the slot, from 0.
            question: what is answered; its signature was checked. None where nobody asked.
            make: signs. What it raises leaves the slot empty.

        Raises:
            EquivocationError: another question was answered in this slot.
            VerificationError: a later slot is filled, and slots are filled in order.
        """
        kept = self._entries.get(number)
        if kept is not None:
            if question is None:
                return kept.answer
            before = SignedEnvelope.from_bytes(kept.question, where="kept question")
            if before.message != question.message:
                raise EquivocationError(
                    "two different questions are signed with one number",
                    (kept.question, question.to_bytes()),
                )
            return kept.answer
        if self._in_order and number <= max(self._entries, default=-1):
            raise VerificationError(f"slot {number} comes after a later one")
        answer = make()
        asked = b"" if question is None else question.to_bytes()
        self._entries[number] = JournalEntry(question=asked, answer=answer)
        return answer
