"""What all records share: a type name, canonical bytes and a strict reader of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Self

from veritrain.encoding import Digest, Value, decode, digest, encode
from veritrain.errors import TranscriptError, UsageError, VerificationError
from veritrain.transcript import fields as check

MAX_STEP = 10**12 - 1  # file names have 12 digits


@dataclass(frozen=True, kw_only=True)
class Record:
    """A frozen record; its fields are checked whenever one is made."""

    type_name: ClassVar[str]
    max_bytes: ClassVar[int]
    max_items: ClassVar[int | None] = None  # values in it, where `max_bytes` is large

    def to_value(self) -> dict[str, Value]:
        """The record as a map of its fields and its type."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"type": self.type_name, **values}

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """The record of a decoded map.

        Raises:
            UsageError: not a map, or a field is missing, unknown or wrong. `from_bytes` makes a
                `TranscriptError` of it.
        """
        return cls(**cls._take(value))

    def to_bytes(self) -> bytes:
        """Canonical bytes.

        Raises:
            UsageError: the record is larger than a reader would accept.
        """
        data = encode(self.to_value())
        if len(data) > self.max_bytes:
            raise UsageError(
                f"{self.type_name} record: expected at most {self.max_bytes} bytes, got {len(data)}"
            )
        return data

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str, max_items: int | None = None) -> Self:
        """Read bytes that someone else wrote; `where` names them in errors. A reader that does not
        know who wrote them yet may take fewer values than the record has room for: `max_items`.

        Raises:
            TranscriptError: not the canonical bytes of a valid record of this type.
        """
        if len(data) > cls.max_bytes:
            raise TranscriptError(
                where, f"expected at most {cls.max_bytes} bytes, got at least {len(data)}"
            )
        try:
            items = cls.max_items if max_items is None else max_items
            return cls.from_value(decode(data, where=where, max_items=items))
        except UsageError as error:
            raise TranscriptError(where, str(error)) from None

    @cached_property
    def digest(self) -> Digest:
        """Digest of the canonical bytes in the domain of the record's type."""
        return digest(self.type_name, self.to_bytes())

    @classmethod
    def _take(cls, value: Value, *extra: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise check.wrong("(whole record)", "a map", value)
        if value.get("type") != cls.type_name:
            raise check.wrong("type", repr(cls.type_name), value.get("type"))
        names = [field.name for field in fields(cls)]
        check.check_names(f"{cls.type_name} record", value, ["type", *names, *extra])
        return {name: value[name] for name in names}


def check_equal(what: str, expected: Digest, got: Digest) -> None:
    """Check one claimed digest.

    Raises:
        VerificationError: they differ; the message has both.
    """
    if expected != got:
        raise VerificationError(f"{what}: expected {expected.hex()}, got {got.hex()}")
