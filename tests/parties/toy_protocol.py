"""A protocol of two lines: a caller asks numbered questions, a listener repeats each in capitals.

How to use it: `envelope(number, text)` is unsigned, `signed(signer, ...)` are its signed bytes, and
`key(n)` is party n's key. It shows what a protocol of its own needs: an `Envelope` with a `slot`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from veritrain.encoding import Digest
from veritrain.parties.envelope import Envelope, SignedEnvelope, Slot
from veritrain.transcript.signing import Signer


@dataclass(frozen=True, kw_only=True)
class ToyEnvelope(Envelope):
    type_name: ClassVar[str] = "toy envelope"
    max_bytes: ClassVar[int] = 1000

    round: Digest
    sender: str
    number: int
    text: str

    @property
    def slot(self) -> Slot:
        return Slot(context=self.round, sender=self.sender, number=self.number)


@dataclass(frozen=True, kw_only=True)
class OtherEnvelope(ToyEnvelope):
    type_name: ClassVar[str] = "other envelope"


def key(number: int) -> Signer:
    return Signer(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


def envelope(number: int = 1, text: str = "hello", sender: str = "caller") -> ToyEnvelope:
    return ToyEnvelope(round=bytes(32), sender=sender, number=number, text=text)


def signed(signer: Signer, number: int = 1, text: str = "hello") -> SignedEnvelope:
    return envelope(number, text).signed(signer)
