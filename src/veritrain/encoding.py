"""One canonical byte encoding and one digest for everything that is hashed or signed.

Values are deterministic CBOR (RFC 8949 section 4.2.1) restricted to: null, booleans, integers of at
most 64 bits, finite or infinite 64-bit floats, text, byte strings, arrays, and maps with text keys.
`decode` accepts exactly the byte strings that `encode` produces, so one value has one encoding and
one encoding one value. It is written here for this subset alone: a general decoder gives meaning to
tags (shared values, back references, bignums), through which a few bytes become any amount of work.

A digest is BLAKE3 in key-derivation mode; its context string separates the domains, so that a leaf
can never be mistaken for a header.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import TypeAlias

import blake3
import cbor2

from veritrain.errors import TranscriptError

Value: TypeAlias = "bool | int | float | str | bytes | list[Value] | dict[str, Value] | None"
Digest: TypeAlias = bytes

DIGEST_BYTES = 32
CHUNK_BYTES = 1024  # BLAKE3 is a tree over chunks of this size
CONTEXT = "veritrain v1 "  # what every context string of a digest begins with
MAX_DEPTH = 16  # nested arrays and maps; the deepest record of the format has 5
_THREADED_HASH_BYTES = 1 << 20  # below this, starting threads costs more than it saves
_NOT_CANONICAL = "not a canonical CBOR record"

# Major types, RFC 8949 section 3.1; in initial bytes, the upper three bits.
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_CONSTANTS: dict[int, bool | None] = {0xF4: False, 0xF5: True, 0xF6: None}
_HALF, _SINGLE, _DOUBLE = struct.Struct(">e"), struct.Struct(">f"), struct.Struct(">d")
_FLOATS = {0xF9: (_HALF, None), 0xFA: (_SINGLE, _HALF), 0xFB: (_DOUBLE, _SINGLE)}  # and shorter


def encode(value: Value) -> bytes:
    """Return the canonical bytes of `value`.

    Raises:
        TypeError: the value holds a type outside the subset above.
        ValueError: an integer of more than 64 bits, a NaN, or too deep a nesting.
    """
    _check(value, 0)
    return cbor2.dumps(value, canonical=True)


def same(left: Value, right: Value) -> bool:
    """Are they one value, by their canonical bytes? 1, 1.0 and True are three, 0.0 and -0.0 are
    two.

    Raises:
        TypeError, ValueError: as `encode`.
    """
    return encode(left) == encode(right)


def decode(data: bytes, *, where: str, max_items: int | None = None) -> Value:
    """Read canonical bytes written by someone else; `where` names them in errors.

    The caller bounds `len(data)` before it reads them; the time and memory used here are
    proportional to that. An empty array takes a byte there and a hundred here, so where bytes are
    allowed to be many, `max_items` bounds the number of values that are built from them.

    Raises:
        TranscriptError: not CBOR, not in the subset, not the canonical encoding, or more values.
    """
    try:
        if max_items is not None:
            _refuse_more(data, max_items)
        value, end = _item(data, 0, 0)
    except IndexError:
        raise TranscriptError(where, f"{_NOT_CANONICAL}: cut off") from None
    except ValueError as error:
        raise TranscriptError(where, f"{_NOT_CANONICAL}: {error}") from None
    if end != len(data):
        raise TranscriptError(where, f"{_NOT_CANONICAL}: bytes after its end at {end}")
    return value


def digest(domain: str, data: bytes | memoryview) -> Digest:
    """BLAKE3 of `data` in the domain `domain` (for example "leaf"): 32 bytes."""
    threads = blake3.blake3.AUTO if len(data) >= _THREADED_HASH_BYTES else 1
    hasher = blake3.blake3(derive_key_context=CONTEXT + domain, max_threads=threads)
    return hasher.update(data).digest()


def digest_parts(domain: str, parts: Iterable[memoryview]) -> Digest:
    """`digest` of data that come in parts, best of a MiB or more; none is kept."""
    hasher = blake3.blake3(derive_key_context=CONTEXT + domain, max_threads=blake3.blake3.AUTO)
    for part in parts:
        hasher.update(part)
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


def _refuse_more(data: bytes, max_items: int) -> None:
    """Count the heads of values one after another; what is malformed is left to `_item`."""
    place = count = 0
    while place < len(data):
        count += 1
        if count > max_items:
            raise ValueError(f"more than {max_items} values")
        initial = data[place]
        major, argument = initial >> 5, initial & 31
        place += 1
        if major >= _TAG:
            place += _FLOATS[initial][0].size if initial in _FLOATS else 0
            continue
        if argument >= 24:
            argument, place = _long_argument(data, place - 1)
        if major in (_BYTES, _TEXT):
            place += argument


def _item(data: bytes, place: int, depth: int) -> tuple[Value, int]:
    """The value that begins at `place`, and where it ends. IndexError: the data end before it."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} at byte {place}")
    initial = data[place]
    major, argument = initial >> 5, initial & 31
    if major >= _TAG:
        return _constant_or_float(data, place)
    begin = place + 1
    if argument >= 24:
        argument, begin = _long_argument(data, place)
    if major == _UNSIGNED:
        return argument, begin
    if major == _NEGATIVE:
        if argument >= 2**63:
            raise ValueError(f"integer of more than 64 bits at byte {place}")
        return -1 - argument, begin
    # What is claimed must be there before anything is taken for it; an entry has at least a byte.
    if argument > len(data) - begin:
        raise ValueError(f"claims {argument} bytes or entries at byte {place}, more than follow")
    if major == _BYTES:
        return data[begin : begin + argument], begin + argument
    if major == _TEXT:
        return _text(data[begin : begin + argument], place), begin + argument
    if major == _ARRAY:
        return _array(data, begin, argument, depth + 1)
    return _map(data, begin, argument, depth + 1)


def _long_argument(data: bytes, place: int) -> tuple[int, int]:
    """The argument of 1, 2, 4 or 8 bytes after an initial byte, and where it ends."""
    code = data[place] & 31
    if code > 27:
        raise ValueError(f"indefinite or reserved length at byte {place}")
    size = 1 << (code - 24)
    begin = place + 1
    end = begin + size
    data[end - 1]  # IndexError where it is cut off
    argument = int.from_bytes(data[begin:end], "big")
    if argument < (24 if size == 1 else 1 << (4 * size)):
        raise ValueError(f"integer not in its shortest form at byte {place}")
    return argument, end


def _text(encoded: bytes, place: int) -> str:
    try:
        return encoded.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"text that is not UTF-8 at byte {place}") from None


def _array(data: bytes, place: int, count: int, depth: int) -> tuple[list[Value], int]:
    items: list[Value] = []
    for _ in range(count):
        item, place = _item(data, place, depth)
        items.append(item)
    return items, place


def _map(data: bytes, place: int, count: int, depth: int) -> tuple[dict[str, Value], int]:
    entries: dict[str, Value] = {}
    previous = b""
    for _ in range(count):
        begin = place
        if data[begin] >> 5 != _TEXT:
            raise ValueError(f"map key that is not text at byte {begin}")
        key, place = _item(data, begin, depth)
        encoded = data[begin:place]
        if encoded <= previous:  # RFC 8949 section 4.2.1: sorted by their encoded bytes
            raise ValueError(f"map keys not in strictly rising order at byte {begin}")
        previous = encoded
        entries[str(key)], place = _item(data, place, depth)
    return entries, place


def _constant_or_float(data: bytes, place: int) -> tuple[bool | float | None, int]:
    initial = data[place]
    if initial in _CONSTANTS:
        return _CONSTANTS[initial], place + 1
    if initial not in _FLOATS:
        raise ValueError(f"tag or simple value at byte {place}")
    form, shorter = _FLOATS[initial]
    end = place + 1 + form.size
    data[end - 1]  # IndexError where it is cut off
    value = float(form.unpack_from(data, place + 1)[0])
    if math.isnan(value):
        raise ValueError(f"NaN at byte {place}")
    if shorter is not None and _fits(value, shorter):
        raise ValueError(f"float not in its shortest form at byte {place}")
    return value, end


def _fits(value: float, form: struct.Struct) -> bool:
    """Does this format keep the value? (An infinity it does.)"""
    try:
        return bool(form.unpack(form.pack(value))[0] == value)
    except OverflowError:
        return False
