"""One canonical byte encoding and one digest for everything that is hashed or signed.

Values are deterministic CBOR (RFC 8949 section 4.2.1) restricted to: null, booleans, integers of at
most 64 bits, finite or infinite 64-bit floats, text, byte strings, arrays, and maps with text keys.
`decode` accepts exactly the byte strings that `encode` produces: it re-encodes what it read and
compares, so one value has one encoding and one encoding one value.

A digest is BLAKE3 in key-derivation mode; its context string separates the domains, so that a leaf
can never be mistaken for a header.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import blake3
import cbor2

from veritrain.errors import TranscriptError

Value: TypeAlias = "bool | int | float | str | bytes | list[Value] | dict[str, Value] | None"
Digest: TypeAlias = bytes

DIGEST_BYTES = 32
MAX_DEPTH = 16  # nested arrays and maps; the deepest record of the format has 5
_THREADED_HASH_BYTES = 1 << 20  # below this, starting threads costs more than it saves


def encode(value: Value) -> bytes:
    """Return the canonical bytes of `value`.

    Raises:
        TypeError: the value holds a type outside the subset above.
        ValueError: an integer of more than 64 bits, a NaN, or too deep a nesting.
    """
    _check(value, 0)
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, *, where: str) -> Value:
    """Read canonical bytes written by someone else; `where` names them in errors.

    The caller bounds `len(data)` before it reads them; memory used here is proportional to that.

    Raises:
        TranscriptError: not CBOR, not in the subset, or not the canonical encoding.
    """
    try:
        value = cbor2.loads(data)
        _check(value, 0)
        again = cbor2.dumps(value, canonical=True)
    except Exception as error:  # the parser's own errors are of many types
        raise TranscriptError(where, "not a canonical CBOR record") from error
    if again != data:
        raise TranscriptError(where, "not in canonical form")
    return value  # type: ignore[no-any-return]


def digest(domain: str, data: bytes | memoryview) -> Digest:
    """BLAKE3 of `data` in the domain `domain` (for example "leaf"): 32 bytes."""
    hasher = blake3.blake3(derive_key_context=f"veritrain v1 {domain}")
    if len(data) >= _THREADED_HASH_BYTES:
        hasher = blake3.blake3(
            derive_key_context=f"veritrain v1 {domain}", max_threads=blake3.blake3.AUTO
        )
    hasher.update(data)
    return hasher.digest()


def digest_value(domain: str, value: Value) -> Digest:
    """Digest of a value's canonical bytes."""
    return digest(domain, encode(value))


def _check(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if value is None or type(value) in (bool, str, bytes):
        return
    if type(value) is int:
        if not -(2**63) <= value < 2**64:
            raise ValueError("integer of more than 64 bits")
    elif type(value) is float:
        if math.isnan(value):
            raise ValueError("NaN has no canonical form")
    elif type(value) is list:
        for item in value:
            _check(item, depth + 1)
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"map key of type {type(key).__name__}, expected text")
            _check(item, depth + 1)
    else:
        raise TypeError(f"{type(value).__name__} has no canonical form")
