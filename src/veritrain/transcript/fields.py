"""Strict checks of single fields, used by every record when it is built and when it is read.

Each check returns nothing or the value in its type, and raises `UsageError` that names the field,
what was expected and what was found. `Record` turns that into a `TranscriptError` with the file
when the bytes came from someone else, and `hostile_fields` into a `FieldError`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from veritrain.encoding import DIGEST_BYTES, same
from veritrain.errors import FieldError, UsageError

_SHOWN_CHARS = 80
_NOTHING = object()  # where a map has no such entry
_NAMED_DIFFERENCES = 8  # a hostile map can have thousands
_EQUAL_HASHES = 64  # keys of a map that may share one


def shown(value: object) -> str:
    """A short form of a hostile value that is safe to print: ASCII, no control characters."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, list | tuple | dict):
        return (  # pyright: ignore[reportUnknownArgumentType]
            f"{type(value).__name__} of {len(value)}"
        )
    text = ascii(value[:_SHOWN_CHARS] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def wrong(name: str, expected: str, value: object) -> UsageError:
    """The error of one field."""
    return UsageError(f"field {name}: expected {expected}, got {shown(value)}")


@contextmanager
def hostile_fields() -> Generator[None]:
    """Where the fields that are checked are another party's, a wrong one is not the caller's
    misuse.

    Raises:
        FieldError: in the place of a `UsageError`.
    """
    try:
        yield
    except UsageError as error:
        raise FieldError(str(error)) from None


def differences(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """Each entry in which two maps differ, also in maps that they hold, as text for people:
    `config: rate: expected 0.1, got 0.2`. Only the first few are named, then how many are left."""
    found = _differing("", expected, got)
    texts = [f"{name}expected {left}, got {right}" for name, left, right in found]
    left = len(texts) - _NAMED_DIFFERENCES
    return [*texts[:_NAMED_DIFFERENCES], f"and {left} more"] if left > 0 else texts


def _differing(
    prefix: str, expected: Mapping[str, Any], got: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for name in sorted(expected.keys() | got.keys()):
        place = f"{prefix}{_plain(name)}: "
        left, right = expected.get(name, _NOTHING), got.get(name, _NOTHING)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differing(place, left, right)
        elif _NOTHING in (left, right) or not same(left, right):
            found.append((place, _text(left), _text(right)))
    return found


def _plain(name: str) -> str:
    return name if re.fullmatch(r"[\w./ -]{1,80}", name, re.ASCII) else shown(name)


def _text(value: object) -> str:
    if value is _NOTHING:
        return "nothing"
    return value[:DIGEST_BYTES].hex() if isinstance(value, bytes) else shown(value)


def check_names(record: str, names: Iterable[str], expected: Iterable[str]) -> None:
    """Check that a record has exactly the expected fields."""
    present, wanted = set(names), set(expected)
    if present - wanted:
        raise UsageError(f"{record}: unknown field {shown(min(present - wanted))}")
    if wanted - present:
        raise UsageError(f"{record}: field {min(wanted - present)} is missing")


def check_integer(name: str, value: object, low: int, high: int) -> None:
    """Check for an integer from `low` to `high`, both included; a boolean is not one."""
    if type(value) is not int or not low <= value <= high:
        raise wrong(name, f"an integer from {low} to {high}", value)


def check_text(name: str, value: object, limit: int) -> None:
    """Check for 1 to `limit` code points of valid Unicode (no lone surrogates)."""
    if type(value) is not str or not 0 < len(value) <= limit or not _is_unicode(value):
        raise wrong(name, f"text of 1 to {limit} characters", value)


def check_bytes(name: str, value: object, size: int) -> None:
    """Check for a byte string of exactly `size` bytes."""
    if type(value) is not bytes or len(value) != size:
        raise wrong(name, f"a byte string of {size} bytes", value)


def check_hashes(name: str, keys: Iterable[Any]) -> None:
    """Check that a map of these keys can be made in time: each of many keys with one hash is
    compared with all others, and numbers with one hash are easily found. A text has none that
    others could foresee."""
    try:
        shared = max(Counter(map(hash, keys)).values(), default=0)
    except TypeError:
        raise wrong(name, "keys that can be hashed", keys) from None
    if shared > _EQUAL_HASHES:
        raise UsageError(f"field {name}: {shared} keys share one hash")


def check_digest(name: str, value: object) -> None:
    """Check for a digest: 32 bytes."""
    check_bytes(name, value, DIGEST_BYTES)


def check_optional_digest(name: str, value: object) -> None:
    """Check for a digest or None."""
    if value is not None:
        check_digest(name, value)


def check_finite(name: str, value: object) -> None:
    """Check for a finite float."""
    if type(value) is not float or not math.isfinite(value):
        raise wrong(name, "a finite float", value)


def _is_unicode(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
