"""Bodies of trace entries, read strictly: what a party wrote is of the one form or it is false.

inputs    what the step starts from: entry 0, and no other
operator  a call: its structure, what it reads, what it wrote; `refused` where the rounding log did not lead on
state     one tensor of the state after the step, in the order of names
outcome   loss and state: the final entry
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from veritrain.encoding import Value
from veritrain.errors import UsageError
from veritrain.replay.trace import calls
from veritrain.replay.trace.cells import View
from veritrain.replay.trace.entry import MAX_ENTRIES, TraceEntry
from veritrain.transcript import fields as check
from veritrain.transcript.records import TensorEntry

_MAX = 2**53
_KEY_BYTES = 8  # what an operator draws from a generator that the job seeded
_BEGUN = ("kind", "met", "cells", "reads", "log")
_FIELDS: dict[str, tuple[str, ...]] = {
    "inputs": ("kind", "state", "batch", "rounding"),
    "operator": (
        *_BEGUN, "operator", "draw", "arguments", "named", "results", "writes", "drawn", "logged",
    ),
    "refused": (*_BEGUN, "operator", "draw", "arguments", "named", "refused"),
    "state": (*_BEGUN, "view", "place", "tensor", "peaks"),
    "outcome": ("kind", "loss", "batch", "rounding", "log", "refused", "state"),
}  # fmt: skip


def check_entry(entry: TraceEntry) -> None:
    """Check that an entry is of the one form, and in a place where its kind may be.

    Raises:
        UsageError: names the field.
    """
    body = entry.body
    kind = body.get("kind")
    if kind not in ("inputs", "operator", "state", "outcome"):
        raise check.wrong("kind", "inputs, operator, state or outcome", kind)
    form = "refused" if kind == "operator" and "refused" in body else str(kind)
    check.check_names(f"{form} entry", body, _FIELDS[form])
    if (form == "inputs") != (entry.index == 0):
        raise UsageError(f"entry {entry.index} of kind {kind}")
    if entry.final != (form in ("refused", "outcome")):
        raise UsageError(f"{kind} entry whose final is {entry.final}")
    for name, value in body.items():
        _CHECKS[name](name, value)


def peaks_of(entry: TraceEntry | None) -> tuple[int, list[bytes]]:
    """Tensors of the state up to an entry, and the peaks of their tree (`merkle.Frontier`)."""
    if entry is None or entry.body["kind"] != "state":
        return 0, []
    return cast(int, entry.body["place"]) + 1, cast("list[bytes]", entry.body["peaks"])


def position_after(entry: TraceEntry) -> Value:
    """Where the rounding log is read on after an entry."""
    body = entry.body
    if body["kind"] == "inputs":
        return None if body["rounding"] is None else 0
    return body["logged"] if "logged" in body else body["log"]


def rows(body: Mapping[str, Value], name: str) -> list[list[Any]]:
    """The rows of `met`, `reads` or `writes`."""
    return cast("list[list[Any]]", body[name])


def _kind(name: str, value: Value) -> None:
    check.check_text(name, value, 16)


def _operator(name: str, value: Value) -> None:
    check.check_text(name, value, 256)


def _natural(name: str, value: Value) -> None:
    check.check_integer(name, value, 0, _MAX)


def _optional_natural(name: str, value: Value) -> None:
    if value is not None:
        _natural(name, value)


def _draw(name: str, value: Value) -> None:
    if type(value) is not bytes:
        _natural(name, value)
    elif len(value) not in (0, _KEY_BYTES):
        raise check.wrong(name, f"0 or {_KEY_BYTES} bytes", value)


def _list(name: str, value: Value) -> None:
    if type(value) is not list:
        raise check.wrong(name, "an array", value)


def _map(name: str, value: Value) -> None:
    if type(value) is not dict:
        raise check.wrong(name, "a map", value)


def _call(name: str, value: Value) -> None:
    """What an operator takes or makes."""
    try:
        calls.unplain(value, _no_tensor)
    except ValueError as error:
        raise UsageError(f"field {name}: {error}") from None


def _arguments(name: str, value: Value) -> None:
    _list(name, value)
    _call(name, value)


def _named(name: str, value: Value) -> None:
    _map(name, value)
    for argument in cast("dict[str, Value]", value).values():
        _call(name, argument)


def _view(name: str, value: Value) -> None:
    if value is not None:
        _call(name, {"view": value})


def _no_tensor(view: View) -> Tensor:
    return torch.empty(0)


def _true_or_false(name: str, value: Value) -> None:
    if type(value) is not bool:
        raise check.wrong(name, "a boolean", value)


def _rows(name: str, value: Value, *columns: Any) -> None:
    _list(name, value)
    for row in cast("list[Value]", value):
        _list(name, row)
        if len(cast("list[Value]", row)) != len(columns):
            raise check.wrong(name, f"rows of {len(columns)}", row)
        for column, cell in zip(columns, cast("list[Value]", row), strict=True):
            column(name, cell)


def _index(name: str, value: Value) -> None:
    check.check_integer(name, value, 0, MAX_ENTRIES - 1)


def _optional_bytes(name: str, value: Value) -> None:
    if value is not None and type(value) is not bytes:
        raise check.wrong(name, "bytes or null", value)


def _loss(name: str, value: Value) -> None:
    if value is not None:  # as at step 0
        check.check_finite(name, value)


def _met(name: str, value: Value) -> None:
    _rows(name, value, _natural, _natural, _list)


def _reads(name: str, value: Value) -> None:
    _rows(name, value, _natural, _natural, _index, check.check_digest)


def _writes(name: str, value: Value) -> None:
    _rows(name, value, _natural, _natural, check.check_digest, _optional_bytes)


def _peaks(name: str, value: Value) -> None:
    _list(name, value)
    for peak in cast("list[Value]", value):
        check.check_digest(name, peak)


def _tensor(name: str, value: Value) -> None:
    TensorEntry.from_value(value)


_CHECKS: dict[str, Any] = {
    "kind": _kind, "met": _met, "cells": _natural, "reads": _reads, "log": _optional_natural,
    "state": check.check_digest, "batch": check.check_optional_digest,
    "rounding": check.check_optional_digest, "operator": _operator,
    "draw": _draw, "arguments": _arguments, "named": _named, "results": _call, "writes": _writes,
    "drawn": _draw, "logged": _optional_natural, "refused": _true_or_false, "view": _view,
    "place": _natural, "tensor": _tensor, "peaks": _peaks, "loss": _loss,
}  # fmt: skip
