"""Conditional and partial requests, RFC 9110 sections 13 and 14, without I/O.

A file has one strong entity tag and no date. A request for one range gets that range. A request for
several ranges, for a malformed one or for units other than bytes gets the whole file, which section
14.2 allows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_RANGE = re.compile(
    r"bytes=[ \t,]*(?:([0-9]+)-([0-9]*)|-([0-9]+))[ \t,]*", re.ASCII | re.IGNORECASE
)
_MANY = 10**18  # more bytes than a file has

Fields = Sequence[tuple[bytes, bytes]]  # names in lower case and values, as they came


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The answer: with status 200 and 206 the bytes from `start` on, up to but without `stop`."""

    status: int  # 200, 206, 304, 412 or 416
    start: int = 0
    stop: int = 0


def select(method: str, fields: Fields, tag: str, size: int) -> Selection:
    """What a GET or HEAD request asks for of a file with this entity tag and `size` in bytes.

    In the order of RFC 9110 section 13.2.2:
      1. If-Match: 412 where no tag is the file's;
      2. If-None-Match: 304 where one is;
      3. Range, where If-Range names this file or is missing: 206, or 416 for bytes beyond it.
    """
    wanted = _value(fields, b"if-match")
    if wanted is not None and not _matches(wanted, tag, weak=False):  # 1
        return Selection(status=412)
    known = _value(fields, b"if-none-match")
    if known is not None and _matches(known, tag, weak=True):  # 2
        return Selection(status=304)
    text = _value(fields, b"range")
    if method != "GET" or text is None or _value(fields, b"if-range") not in (None, tag):
        return Selection(status=200, stop=size)
    return _part(text, size)  # 3


def _part(text: str, size: int) -> Selection:
    whole = Selection(status=200, stop=size)
    match = _RANGE.fullmatch(text)
    if match is None:
        return whole
    first, last, suffix = match.groups()
    if suffix is not None:
        length = min(_number(suffix), size)
        if length == 0:
            return whole if size == 0 and _number(suffix) else Selection(status=416)
        return Selection(status=206, start=size - length, stop=size)
    start, stop = _number(first), (_number(last) if last else _MANY) + 1
    if stop <= start:
        return whole
    if start >= size:
        return Selection(status=416)
    return Selection(status=206, start=start, stop=min(stop, size))


def _number(digits: str) -> int:
    """Its value, or `_MANY` where it is more."""
    digits = digits.lstrip("0")
    return _MANY if len(digits) > 18 else int(digits or "0")


def _value(fields: Fields, name: bytes) -> str | None:
    """The value of a field; of repeated ones all of them, as section 5.3 joins them."""
    values = [value.decode("latin-1").strip() for key, value in fields if key == name]
    return ", ".join(values) if values else None


def _matches(text: str, tag: str, *, weak: bool) -> bool:
    if text == "*":
        return True
    tags: list[tuple[str, str]] = _TAG.findall(text)
    return any(value == tag and (weak or not prefix) for prefix, value in tags)
