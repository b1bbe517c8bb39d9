"""The records that describe a state: one entry per tensor, and the manifest of a stored state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, ClassVar, Self, cast

from veritrain.encoding import DIGEST_BYTES, Digest, Value, encode
from veritrain.errors import UsageError
from veritrain.transcript import fields as check
from veritrain.transcript import merkle
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.record import MAX_STEP, Record

# Bytes per element of every dtype that a state may hold, by PyTorch's name for it.
DTYPE_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "uint16": 2,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "uint32": 4,
    "int32": 4,
    "float32": 4,
    "uint64": 8,
    "int64": 8,
    "float64": 8,
}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """What a state says of one tensor; `digest` covers its little-endian C-order bytes."""

    type_name: ClassVar[str] = "tensor"

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: Digest

    def __post_init__(self) -> None:
        check.check_text("name", self.name, LIMITS.name_chars)
        if self.dtype not in DTYPE_BYTES:
            raise check.wrong(f"dtype of {check.shown(self.name)}", "a known dtype", self.dtype)
        if len(self.shape) > LIMITS.dimensions:
            raise check.wrong("shape", f"at most {LIMITS.dimensions} axes", self.shape)
        for size in self.shape:
            check.check_integer(f"shape of {check.shown(self.name)}", size, 0, 2**63 - 1)
        if prod(size or 1 for size in self.shape) >= 2**63:  # strides would overflow, even if empty
            raise UsageError(f"shape of {check.shown(self.name)}: too large")
        check.check_digest("digest", self.digest)

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's content."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]

    def to_value(self) -> dict[str, Value]:
        """The entry as a map of its fields and its type."""
        return {
            "type": self.type_name,
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "digest": self.digest,
        }

    def to_bytes(self) -> bytes:
        """Canonical bytes, the entry of the state's Merkle tree."""
        # Computed for every tensor at every step, so all but the digest is remembered: the
        # canonical order of keys puts `digest`, the longest one, last.
        return _entry_prefix(self.name, self.dtype, self.shape) + self.digest

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """The entry of a decoded map.

        Raises:
            UsageError: not a map, or a field is missing, unknown or wrong.
        """
        if not isinstance(value, dict):
            raise check.wrong("tensors", "maps", value)
        check.check_names("tensor entry", value, ("type", "name", "dtype", "shape", "digest"))
        taken = cast(dict[str, Any], value)
        if taken["type"] != cls.type_name:
            raise check.wrong("type", repr(cls.type_name), taken["type"])
        if type(taken["dtype"]) is not str:
            raise check.wrong("dtype", "text", taken["dtype"])
        if type(taken["shape"]) is not list:
            raise check.wrong("shape", "an array", taken["shape"])
        shape = tuple(cast(list[int], taken["shape"]))
        return cls(name=taken["name"], dtype=taken["dtype"], shape=shape, digest=taken["digest"])


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """The manifest of a stored state: its tensors and, for each, the pack that holds it.

    `packs[i]` is the step of the checkpoint whose pack holds the content of `tensors[i]`.
    """

    type_name: ClassVar[str] = "checkpoint"
    max_bytes: ClassVar[int] = LIMITS.record_bytes

    step: int
    tensors: tuple[TensorEntry, ...]  # strictly sorted by name
    packs: tuple[int, ...]

    def __post_init__(self) -> None:
        check.check_integer("step", self.step, 0, MAX_STEP)
        if not 0 < len(self.tensors) <= LIMITS.tensors:
            raise check.wrong("tensors", f"1 to {LIMITS.tensors} entries", self.tensors)
        if len(self.packs) != len(self.tensors):
            raise UsageError(f"packs: expected {len(self.tensors)} steps, got {len(self.packs)}")
        for entry, after in pairwise(self.tensors):
            if not entry.name < after.name:
                raise UsageError(
                    f"tensors: {check.shown(after.name)} after {check.shown(entry.name)}, "
                    "expected names in strictly rising order"
                )
        self._check_contents()

    def stored_sizes(self) -> dict[Digest, int]:
        """Digest and size (bytes) of every content in this checkpoint's own pack."""
        pairs = zip(self.tensors, self.packs, strict=True)
        return {entry.digest: entry.num_bytes for entry, pack in pairs if pack == self.step}

    def to_value(self) -> dict[str, Value]:
        """The record as a map of its fields and its type."""
        tensors: list[Value] = [entry.to_value() for entry in self.tensors]
        packs: list[Value] = list(self.packs)
        return {"type": self.type_name, "step": self.step, "tensors": tensors, "packs": packs}

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """See `Record.from_value`."""
        taken = cls._take(value)
        for name in ("tensors", "packs"):
            if type(taken[name]) is not list:
                raise check.wrong(name, "an array", taken[name])
        tensors = tuple(TensorEntry.from_value(entry) for entry in taken["tensors"])
        return cls(step=taken["step"], tensors=tensors, packs=tuple(taken["packs"]))

    def _check_contents(self) -> None:
        """One digest means one size and lies in one pack; the state is of a bounded size."""
        total = sum(entry.num_bytes for entry in self.tensors)
        if total > LIMITS.state_bytes:
            raise UsageError(
                f"tensors: expected a state of at most {LIMITS.state_bytes} bytes, got {total}"
            )
        seen: dict[Digest, tuple[int, int]] = {}
        for entry, pack in zip(self.tensors, self.packs, strict=True):
            check.check_integer("packs", pack, 0, self.step)
            place = (entry.num_bytes, pack)
            if seen.setdefault(entry.digest, place) != place:
                raise UsageError(
                    f"tensor {check.shown(entry.name)}: its digest stands for {seen[entry.digest]} "
                    f"(bytes, pack) and for {place}"
                )


def state_root(entries: Iterable[TensorEntry]) -> Digest:
    """Digest of a state: Merkle root over its encoded entries, sorted by name.

    Raises:
        UsageError: no entry, or a name twice.
    """
    ordered = sorted(entries, key=lambda entry: entry.name)
    if not ordered:
        raise UsageError("a state without tensors has no digest")
    for entry, after in pairwise(ordered):
        if entry.name == after.name:
            raise UsageError(f"tensor {check.shown(entry.name)} is in the state twice")
    return merkle.root([entry.to_bytes() for entry in ordered])


@lru_cache(maxsize=1 << 16)
def _entry_prefix(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    blank = TensorEntry(name=name, dtype=dtype, shape=shape, digest=bytes(DIGEST_BYTES))
    return encode(blank.to_value())[:-DIGEST_BYTES]
