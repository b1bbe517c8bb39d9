"""The form of a record: kinds, dtypes and shapes without the values, as a short text for people.

It is read off the canonical form that `veritrain.job.data` makes of a record, so that a reader who
has no more than a record's digest and form can say whether another record differs in its form or in
its values alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import cast

from veritrain.encoding import Value, digest_value
from veritrain.transcript.fields import shown

MAX_FORM_CHARS = 240
_HASH_CHARS = 8
_DRAWS = "draws random numbers: "


def form_of(canonical: Value, *, draws: bool) -> str:
    """`(tensor float32 [8], int)` for example, of 1 to `MAX_FORM_CHARS` characters.

    Where a form is longer it is cut short, with a digest of the whole at its end.

    Args:
        canonical: what `veritrain.job.data.canonical` made of a record.
        draws: does fetching the record draw random numbers?
    """
    text = (_DRAWS if draws else "") + _form(canonical)
    if len(text) <= MAX_FORM_CHARS:
        return text
    mark = f"… #{digest_value('form', text).hex()[:_HASH_CHARS]}"
    return text[: MAX_FORM_CHARS - len(mark)] + mark


def _form(value: Value) -> str:
    if not isinstance(value, list):
        return "None" if value is None else type(value).__name__
    kind = str(value[0])
    if kind in ("tensor", "array"):
        return f"{kind} {value[1]} {value[2]}"
    if kind == "image":
        return f"image {value[1]} {value[2]}"
    if kind == "tuple":
        return f"({_joined(map(_form, value[1:]))})"
    if kind == "list":
        return f"[{_joined(map(_form, value[1:]))}]"
    if kind == "namedtuple":
        names = cast("list[str]", value[1])
        fields = (f"{name}={_form(item)}" for name, item in zip(names, value[2:], strict=True))
        return f"({_joined(fields)})"
    if kind == "dict":
        items = (cast("list[Value]", item) for item in value[1:])
        return f"{{{_joined(f'{_key(key)}: {_form(item)}' for key, item in items)}}}"
    return kind  # int, float


def _key(canonical: Value) -> str:
    return shown(canonical) if isinstance(canonical, str) else _form(canonical)


def _joined(parts: Iterator[str]) -> str:
    """`int, float x 3`: equal neighbours are counted."""
    counted = ((part, sum(1 for _ in same)) for part, same in groupby(parts))
    return ", ".join(part if count == 1 else f"{part} x {count}" for part, count in counted)
