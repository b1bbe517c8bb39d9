"""The roster: the public keys of the parties of a run, a round or a dispute, in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

from veritrain.encoding import Value
from veritrain.errors import UsageError, VerificationError
from veritrain.parties.envelope import SignedEnvelope
from veritrain.transcript import fields as check
from veritrain.transcript.record import Record
from veritrain.transcript.records import PUBLIC_KEY_BYTES

MAX_PARTIES = 1 << 16
_MAX_EPOCH = 2**53


@dataclass(frozen=True, kw_only=True)
class Roster(Record):
    """Who takes part. The place of a key in `keys` is the number of its party.

    Attributes:
        epoch: counts the rosters of one run: a party that is excluded is missing in the next one.
        keys: Ed25519 public keys, no two the same.
    """

    type_name: ClassVar[str] = "roster"
    max_bytes: ClassVar[int] = MAX_PARTIES * (PUBLIC_KEY_BYTES + 2) + 64
    max_items: ClassVar[int | None] = MAX_PARTIES + 16

    epoch: int
    keys: tuple[bytes, ...]

    def __post_init__(self) -> None:
        check.check_integer("epoch", self.epoch, 0, _MAX_EPOCH)
        if type(self.keys) is not tuple or not 0 < len(self.keys) <= MAX_PARTIES:
            raise check.wrong("keys", f"1 to {MAX_PARTIES} keys", self.keys)
        for key in self.keys:
            check.check_bytes("keys", key, PUBLIC_KEY_BYTES)
        if len(set(self.keys)) != len(self.keys):
            raise UsageError("field keys: two parties have one key")

    def to_value(self) -> dict[str, Value]:
        """The record as a map of its fields and its type."""
        return {**super().to_value(), "keys": list(self.keys)}

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """See `Record.from_value`."""
        taken = cls._take(value)
        if not isinstance(taken["keys"], list):
            raise check.wrong("keys", "an array", taken["keys"])
        return cls(epoch=taken["epoch"], keys=tuple(taken["keys"]))

    def signer(self, signed: SignedEnvelope, domain: str, candidates: Iterable[int]) -> int | None:
        """The number of the candidate who signed in `domain`; None if none of them did.

        The signature decides. The sender that an envelope names is only a claim.
        """
        for number in candidates:
            try:
                signed.verify(self.keys[number], domain)
            except VerificationError:
                continue
            return number
        return None
