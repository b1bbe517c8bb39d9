"""Requests: what a judge wants opened of an entry (docs/disputes.md, "What the judge looks at").

A judge makes them, and `read_request` reads them for the party that is asked: the bytes are the
referee's, so they are hostile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from veritrain.encoding import Value
from veritrain.errors import FieldError
from veritrain.transcript.fields import shown

_MOST = 2**63 - 1  # of a number


@dataclass(frozen=True, kw_only=True)
class OpenRecords:
    """The records of the step's batch, with their proofs."""

    def to_value(self) -> Value:
        """The request as a map."""
        return {"open": "records"}


@dataclass(frozen=True, kw_only=True)
class OpenPrefix:
    """All entries before, names and shapes of the state before, and the batch."""

    def to_value(self) -> Value:
        """The request as a map."""
        return {"open": "prefix"}


@dataclass(frozen=True, kw_only=True)
class OpenState:
    """Names and shapes of the state before the step, and the contents of these tensors."""

    names: tuple[str, ...] = ()

    def to_value(self) -> Value:
        """The request as a map."""
        return {"open": "state", "names": [*self.names]}


@dataclass(frozen=True, kw_only=True)
class OpenEntries:
    """The entries from `first` to the one before."""

    first: int

    def to_value(self) -> Value:
        """The request as a map."""
        return {"open": "entries", "from": self.first}


@dataclass(frozen=True, kw_only=True)
class OpenLog:
    """The step's rounding log."""

    def to_value(self) -> Value:
        """The request as a map."""
        return {"open": "log"}


@dataclass(frozen=True, kw_only=True)
class OpenOperands:
    """All cells that the entry reads, and the rounding log where `log` says so."""

    log: bool

    def to_value(self) -> Value:
        """The request as a map."""
        return {"open": "operands", "log": self.log}


@dataclass(frozen=True, kw_only=True)
class OpenGroups:
    """Digests of a written cell's groups of so many chunks."""

    cell: int
    chunks: int

    def to_value(self) -> Value:
        """The request as a map."""
        return {"open": "groups", "cell": self.cell, "chunks": self.chunks}


@dataclass(frozen=True, kw_only=True)
class OpenTile:
    """Bytes [start, stop) of a written cell, and the parts of the operands that decide them."""

    cell: int
    start: int
    stop: int

    def to_value(self) -> Value:
        """The request as a map."""
        return {"open": "tile", "cell": self.cell, "start": self.start, "stop": self.stop}


Request: TypeAlias = (
    OpenRecords
    | OpenPrefix
    | OpenState
    | OpenEntries
    | OpenLog
    | OpenOperands
    | OpenGroups
    | OpenTile
)


def read_request(value: Value) -> Request:
    """The request that a referee signed.

    Raises:
        FieldError: it asks for nothing that can be opened.
    """
    if not isinstance(value, dict):
        raise FieldError("the judge asks for nothing that can be opened")
    kind = value.get("open")
    match {name: item for name, item in value.items() if name != "open"}:
        case {} as rest if not rest and kind in ("records", "prefix", "log"):
            return {"records": OpenRecords, "prefix": OpenPrefix, "log": OpenLog}[str(kind)]()
        case {"names": list(names), **rest} if not rest and kind == "state":
            return OpenState(names=tuple(_text(name) for name in names))
        case {"from": first, **rest} if not rest and kind == "entries":
            return OpenEntries(first=_natural("from", first))
        case {"log": bool(log), **rest} if not rest and kind == "operands":
            return OpenOperands(log=log)
        case {"cell": cell, "chunks": chunks, **rest} if not rest and kind == "groups":
            return OpenGroups(cell=_natural("cell", cell), chunks=_natural("chunks", chunks))
        case {"cell": cell, "start": start, "stop": stop, **rest} if not rest and kind == "tile":
            return OpenTile(
                cell=_natural("cell", cell),
                start=_natural("start", start),
                stop=_natural("stop", stop),
            )
        case _:
            raise FieldError(f"the judge asks for nothing that can be opened: {shown(kind)}")


def _natural(name: str, value: Value) -> int:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise FieldError(f"the judge asks for {name} {shown(value)}")
    return value


def _text(value: Value) -> str:
    if not isinstance(value, str):
        raise FieldError(f"the judge asks for a tensor named {shown(value)}")
    return value
