"""The records of a transcript: plain frozen data, each with one canonical byte form.

A record that exists is well formed: every field is checked when it is built, by the program or from
bytes. Records judge nothing beyond themselves; what they claim is checked by `reader`. The fields
and bytes are specified in docs/format.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from veritrain.encoding import Digest, Value, decode, encode
from veritrain.errors import TranscriptError, UsageError
from veritrain.transcript import fields as check
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.record import MAX_STEP, Record, check_equal
from veritrain.transcript.states import DTYPE_BYTES, Checkpoint, TensorEntry, state_root

__all__ = [
    "DTYPE_BYTES",
    "FORMAT_VERSION",
    "PUBLIC_KEY_BYTES",
    "Checkpoint",
    "Head",
    "Header",
    "Leaf",
    "SignedHead",
    "TensorEntry",
    "check_equal",
    "decode_segment",
    "encode_segment",
    "state_root",
]

FORMAT_VERSION = 1
PUBLIC_KEY_BYTES = 32  # Ed25519, RFC 8032
SIGNATURE_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class Header(Record):
    """What a run is about: the job, the data and who signs. Its digest identifies the run."""

    type_name: ClassVar[str] = "header"
    max_bytes: ClassVar[int] = LIMITS.header_bytes

    numerics: str
    numerics_version: int
    job: dict[str, Value]
    dataset_root: Digest
    dataset_count: int  # records
    environment: dict[str, str]  # distribution name: version
    public_key: bytes  # Ed25519, raw

    def __post_init__(self) -> None:
        check.check_text("numerics", self.numerics, LIMITS.name_chars)
        check.check_integer("numerics_version", self.numerics_version, 0, 2**32 - 1)
        if type(self.job) is not dict:
            raise check.wrong("job", "a map", self.job)
        check.check_digest("dataset_root", self.dataset_root)
        check.check_integer("dataset_count", self.dataset_count, 1, 2**53)
        if type(self.environment) is not dict:
            raise check.wrong("environment", "a map", self.environment)
        for name, version in self.environment.items():
            check.check_text("environment", name, LIMITS.name_chars)
            check.check_text(f"environment {check.shown(name)}", version, LIMITS.name_chars)
        check.check_bytes("public_key", self.public_key, PUBLIC_KEY_BYTES)
        try:
            self.to_bytes()
        except (TypeError, ValueError) as error:
            raise UsageError(f"field job: {error}") from error

    def to_value(self) -> dict[str, Value]:
        """The fields and the version of the format."""
        return {"format": FORMAT_VERSION, **super().to_value()}

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """See `Record.from_value`; another format version is refused first, by its number."""
        version = value.get("format") if isinstance(value, dict) else None
        if type(version) is int and version != FORMAT_VERSION:
            raise UsageError(
                f"format version {version}; this software reads version {FORMAT_VERSION}"
            )
        taken = cls._take(value, "format")
        check.check_integer("format", version, FORMAT_VERSION, FORMAT_VERSION)  # not `true`
        return cls(**taken)


@dataclass(frozen=True, kw_only=True)
class Leaf(Record):
    """One step: the state after it and what led there. Leaf 0 is the initial state."""

    type_name: ClassVar[str] = "leaf"
    max_bytes: ClassVar[int] = 256

    step: int
    state: Digest  # state root after the step
    batch: Digest | None
    loss: float | None
    rounding: Digest | None  # of the step's rounding log, where the numerics have one
    previous: Digest  # of the leaf before; of the header for leaf 0

    def __post_init__(self) -> None:
        check.check_integer("step", self.step, 0, MAX_STEP)
        check.check_digest("state", self.state)
        check.check_optional_digest("rounding", self.rounding)
        check.check_digest("previous", self.previous)
        if self.step > 0:
            check.check_digest("batch", self.batch)
            check.check_finite("loss", self.loss)
        elif self.batch is not None:
            raise check.wrong("batch", "nothing at step 0", self.batch)
        elif self.loss is not None:
            raise check.wrong("loss", "nothing at step 0", self.loss)


@dataclass(frozen=True, kw_only=True)
class Head(Record):
    """The commitment to everything up to a step; what the trainer signs."""

    type_name: ClassVar[str] = "head"
    max_bytes: ClassVar[int] = LIMITS.signature_bytes

    run: Digest  # of the header
    size: int  # leaves, step + 1
    root: Digest  # Merkle root of the leaves
    segment: Digest  # of the file with the leaves since the head before
    checkpoint: Digest  # of the manifest of the last step
    previous: Digest | None  # of the head before

    def __post_init__(self) -> None:
        check.check_digest("run", self.run)
        check.check_integer("size", self.size, 1, MAX_STEP + 1)
        check.check_digest("root", self.root)
        check.check_digest("segment", self.segment)
        check.check_digest("checkpoint", self.checkpoint)
        check.check_optional_digest("previous", self.previous)

    @property
    def step(self) -> int:
        """The last step that the head covers."""
        return self.size - 1


@dataclass(frozen=True, kw_only=True)
class SignedHead(Record):
    """A head with the trainer's Ed25519 signature."""

    type_name: ClassVar[str] = "signed head"
    max_bytes: ClassVar[int] = LIMITS.signature_bytes

    head: Head
    signature: bytes

    def __post_init__(self) -> None:
        check.check_bytes("signature", self.signature, SIGNATURE_BYTES)

    def to_value(self) -> dict[str, Value]:
        """The record as a map of its fields and its type."""
        head = self.head.to_value()
        return {"type": self.type_name, "head": head, "signature": self.signature}

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """See `Record.from_value`."""
        taken = cls._take(value)
        return cls(head=Head.from_value(taken["head"]), signature=taken["signature"])


def encode_segment(leaves: Sequence[Leaf]) -> bytes:
    """The bytes of a segment file: an array of leaf records.

    Raises:
        UsageError: no leaf, or more than a reader would accept.
    """
    if not 0 < len(leaves) <= LIMITS.leaves_per_segment:
        raise UsageError(
            f"steps between two commits: expected 1 to {LIMITS.leaves_per_segment}, "
            f"got {len(leaves)}"
        )
    return encode([leaf.to_value() for leaf in leaves])


def decode_segment(data: bytes, *, where: str) -> tuple[Leaf, ...]:
    """Read a segment file.

    Raises:
        TranscriptError: not a canonical array of valid leaf records.
    """
    value = decode(data, where=where)
    if not isinstance(value, list) or not 0 < len(value) <= LIMITS.leaves_per_segment:
        raise TranscriptError(
            where,
            f"expected an array of 1 to {LIMITS.leaves_per_segment}, got {check.shown(value)}",
        )
    leaves: list[Leaf] = []
    for index, item in enumerate(value):
        try:
            leaves.append(Leaf.from_value(item))
        except UsageError as error:
            raise TranscriptError(where, f"entry {index}: {error}") from None
    return tuple(leaves)
