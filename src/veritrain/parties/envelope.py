"""Envelopes: the bytes that one party signs for one slot.

A signed envelope holds the envelope as bytes. So a reader checks the signature before it reads
anything in them, and bytes that make no sense still belong to the party that signed them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, TypeVar

from veritrain.encoding import Digest
from veritrain.errors import TranscriptError
from veritrain.transcript import fields as check
from veritrain.transcript.record import Record
from veritrain.transcript.records import SIGNATURE_BYTES
from veritrain.transcript.signing import verify_signature

ENVELOPE_BYTES = 3 << 26  # of one signed envelope, in every protocol; a protocol may bound more


class Signs(Protocol):
    """A key that can sign: a `Signer`."""

    public_key: bytes

    def sign(self, domain: str, data: bytes) -> bytes:
        """The signature of `data` in `domain`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where an envelope belongs. A party signs one envelope for one slot.

    Attributes:
        context: digest of what the envelope is about: a dispute, or a round of a run.
        sender: the name that the envelope gives to the party that signs it.
        number: of the question or phase.
    """

    context: Digest
    sender: str
    number: int


class Envelope(Record, ABC):
    """A record that a party signs. Each protocol has its own one, with its own fields.

    `type_name` is the domain of the signature, so no envelope can be moved to another protocol.
    """

    @property
    @abstractmethod
    def slot(self) -> Slot:
        """Where it belongs."""

    def signed(self, signer: Signs) -> SignedEnvelope:
        """This envelope with `signer`'s signature.

        Raises:
            UsageError: larger than a reader would accept.
        """
        data = self.to_bytes()
        return SignedEnvelope(message=data, signature=signer.sign(self.type_name, data))


E = TypeVar("E", bound=Envelope)


@dataclass(frozen=True, kw_only=True)
class SignedEnvelope(Record):
    """The bytes of an envelope with a signature. Nobody has checked either yet."""

    type_name: ClassVar[str] = "signed message"
    max_bytes: ClassVar[int] = ENVELOPE_BYTES
    max_items: ClassVar[int | None] = 16

    message: bytes
    signature: bytes

    def __post_init__(self) -> None:
        if type(self.message) is not bytes:
            raise check.wrong("message", "a byte string", self.message)
        check.check_bytes("signature", self.signature, SIGNATURE_BYTES)

    @classmethod
    def read(cls, data: bytes, *, limit: int, where: str) -> Self:
        """`from_bytes` of at most `limit` bytes.

        Raises:
            TranscriptError: too large, or not the canonical bytes of a signed envelope.
        """
        if len(data) > limit:
            raise TranscriptError(where, f"expected at most {limit} bytes, got {len(data)}")
        return cls.from_bytes(data, where=where)

    def verify(self, public_key: bytes, domain: str) -> None:
        """Check the signature.

        Raises:
            VerificationError: it is not one of the envelope by this key.
        """
        verify_signature(public_key, domain, self.message, self.signature)

    def opened(self, of: type[E], *, where: str, max_items: int | None = None) -> E:
        """The envelope, of at most `max_items` CBOR values if that is less than `of` allows.

        Raises:
            TranscriptError: the bytes are not an envelope of this protocol.
        """
        return of.from_bytes(self.message, where=where, max_items=max_items)
