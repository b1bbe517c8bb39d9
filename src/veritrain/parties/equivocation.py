"""Equivocation: one party signed two different envelopes for one slot.

An honest party never makes such a pair. So the pair is a proof by itself and needs no referee.
"""

from __future__ import annotations

from veritrain.errors import VerificationError
from veritrain.parties.envelope import Envelope, SignedEnvelope, Slot


class EquivocationError(VerificationError):
    """Another party signed two different envelopes for one slot.

    Attributes:
        pair: both of them, for `check_equivocation`.
    """

    def __init__(self, problem: str, pair: tuple[bytes, bytes]) -> None:
        super().__init__(problem)
        self.pair = pair


def check_equivocation(first: bytes, second: bytes, *, key: bytes, of: type[Envelope]) -> Slot:
    """Check a proof that the owner of `key` signed two different envelopes for one slot.

    Args:
        first, second: signed envelopes.
        key: public key.
        of: the protocol's envelope.

    Returns:
        The slot.

    Raises:
        TranscriptError: malformed bytes.
        VerificationError: not both signed by the key, not of one slot, or the same envelope.
    """
    slots: list[Slot] = []
    messages: list[bytes] = []
    for data, where in ((first, "first envelope"), (second, "second envelope")):
        signed = SignedEnvelope.from_bytes(data, where=where)
        signed.verify(key, of.type_name)
        slots.append(signed.opened(of, where=where).slot)
        messages.append(signed.message)
    if slots[0] != slots[1]:
        raise VerificationError("the two envelopes are not of one slot")
    if messages[0] == messages[1]:
        raise VerificationError("the two envelopes are the same")
    return slots[0]
