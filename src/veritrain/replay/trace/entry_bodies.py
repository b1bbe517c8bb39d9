"""Bodies of trace entries as records (docs/disputes.md, section 2).

`InputsBody`    what the step starts from: entry 0, and no other
`OperatorBody`  a call: what it reads and, unless the rounding log did not lead on, what came of it
`StateBody`     one tensor of the state after the step, in the order of names
`OutcomeBody`   loss and state: the final entry

`read_body` is the only reader of a body that another party wrote. A record that it returns is of
the one form, so nothing behind it looks at a field's type again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, TypeVar, cast

from veritrain.encoding import Digest, Value, digest
from veritrain.errors import FieldError, UsageError
from veritrain.numerics.keys import generators
from veritrain.replay.trace.calls import Argument, TracedCall, argument_value, read_argument
from veritrain.replay.trace.cells import CellView
from veritrain.replay.trace.entry import MAX_ENTRIES, TraceEntry
from veritrain.transcript import fields as check
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.records import TensorEntry

_MOST = 2**53  # of a number of bytes or cells
_OPERATOR_CHARS = 256

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class FromState:
    """A cell comes from a tensor of the state before the step."""

    name: str

    def to_value(self) -> list[Value]:
        """The form in an entry."""
        return ["state", self.name]


@dataclass(frozen=True, kw_only=True)
class FromBatch:
    """A cell comes from a tensor of the batch."""

    place: int  # among the tensors of the batch, in their order

    def to_value(self) -> list[Value]:
        """The form in an entry."""
        return ["batch", self.place]


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A cell comes from the job's code, or was written past the operators."""

    def to_value(self) -> list[Value]:
        """The form in an entry."""
        return ["constant"]


Origin: TypeAlias = FromState | FromBatch | Constant


@dataclass(frozen=True, kw_only=True)
class MetCell:
    """A cell that the step meets for the first time."""

    cell: int
    size: int  # bytes
    origin: Origin

    def to_value(self) -> Value:
        """The row in an entry."""
        return [self.cell, self.size, self.origin.to_value()]


@dataclass(frozen=True, kw_only=True)
class LastWrite:
    """The entry that wrote or met a cell last, and the digest of what the cell has held since."""

    index: int
    digest: Digest


@dataclass(frozen=True, kw_only=True)
class ReadCell:
    """A cell among the arguments, as it is before the operator runs."""

    cell: int
    size: int  # bytes
    last: LastWrite

    @property
    def digest(self) -> Digest:
        """The digest of what the cell holds."""
        return self.last.digest

    def to_value(self) -> Value:
        """The row in an entry."""
        return [self.cell, self.size, self.last.index, self.last.digest]


@dataclass(frozen=True, kw_only=True)
class WrittenCell:
    """A cell that an operator wrote, as it is afterwards."""

    cell: int
    size: int  # bytes
    digest: Digest
    content: bytes | None  # of a short cell, see `cells.is_short`; its digest is `digest`

    def to_value(self) -> Value:
        """The row in an entry."""
        return [self.cell, self.size, self.digest, self.content]


@dataclass(frozen=True, kw_only=True)
class Operands:
    """What an entry says of memory and the rounding log before its operator runs."""

    met: tuple[MetCell, ...]
    cells: int  # the number that the next cell gets
    reads: tuple[ReadCell, ...]
    log: int | None  # byte of the rounding log at which reading goes on

    @property
    def num_bytes(self) -> int:
        """Bytes of all cells that are read."""
        return sum(read.size for read in self.reads)

    def sizes(self) -> dict[int, int]:
        """Bytes of each cell that is read."""
        return {read.cell: read.size for read in self.reads}

    def to_value(self) -> dict[str, Value]:
        """The fields that an entry has for it."""
        return {
            "met": [met.to_value() for met in self.met],
            "cells": self.cells,
            "reads": [read.to_value() for read in self.reads],
            "log": self.log,
        }


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What came of a call."""

    results: Argument
    writes: tuple[WrittenCell, ...]
    drawn: generators.State  # what the next operator's random numbers follow from
    logged: int | None  # byte of the rounding log at which reading goes on

    def to_value(self) -> dict[str, Value]:
        """The fields that an entry has for it."""
        return {
            "results": argument_value(self.results),
            "writes": [write.to_value() for write in self.writes],
            "drawn": self.drawn,
            "logged": self.logged,
        }


@dataclass(frozen=True, kw_only=True)
class InputsBody:
    """What the step starts from."""

    kind: ClassVar[str] = "inputs"

    state: Digest
    batch: Digest | None
    rounding: Digest | None

    def to_value(self) -> dict[str, Value]:
        """The body as a map."""
        return {
            "kind": self.kind, "state": self.state, "batch": self.batch, "rounding": self.rounding
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OperatorBody:
    """A call; `effects` is None where the rounding log did not lead on, and the entry the last
    one."""

    kind: ClassVar[str] = "operator"

    operands: Operands
    call: TracedCall
    effects: Effects | None

    def to_value(self) -> dict[str, Value]:
        """The body as a map."""
        effects = {"refused": True} if self.effects is None else self.effects.to_value()
        return {"kind": self.kind, **self.operands.to_value(), **self.call.to_value(), **effects}


@dataclass(frozen=True, kw_only=True)
class StateBody:
    """One tensor of the state after the step."""

    kind: ClassVar[str] = "state"

    operands: Operands
    view: CellView | None  # None for the two texts of a state
    place: int
    tensor: TensorEntry
    peaks: tuple[Digest, ...]  # of the tree over the tensors so far, see `merkle.Frontier`

    def to_value(self) -> dict[str, Value]:
        """The body as a map."""
        return {
            "kind": self.kind, **self.operands.to_value(),
            "view": None if self.view is None else self.view.to_value(),
            "place": self.place, "tensor": self.tensor.to_value(), "peaks": [*self.peaks],
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OutcomeBody:
    """Loss and state after the step."""

    kind: ClassVar[str] = "outcome"

    loss: float | None  # None at step 0
    batch: Digest | None
    rounding: Digest | None
    log: int | None
    refused: bool  # something follows in the rounding log
    state: Digest

    def to_value(self) -> dict[str, Value]:
        """The body as a map."""
        return {
            "kind": self.kind, "loss": self.loss, "batch": self.batch, "rounding": self.rounding,
            "log": self.log, "refused": self.refused, "state": self.state,
        }  # fmt: skip


EntryBody: TypeAlias = InputsBody | OperatorBody | StateBody | OutcomeBody


def is_final(body: EntryBody) -> bool:
    """Whether a trace ends with an entry of this body."""
    refused = isinstance(body, OperatorBody) and body.effects is None
    return refused or isinstance(body, OutcomeBody)


def position_before(body: EntryBody) -> int | None:
    """Where the rounding log is read on before an entry."""
    if isinstance(body, (OperatorBody, StateBody)):
        return body.operands.log
    return body.log if isinstance(body, OutcomeBody) else None


def position_after(body: EntryBody) -> int | None:
    """Where the rounding log is read on after an entry."""
    if isinstance(body, InputsBody):
        return None if body.rounding is None else 0
    if isinstance(body, OperatorBody) and body.effects is not None:
        return body.effects.logged
    return position_before(body)


def tree_after(body: EntryBody) -> tuple[int, list[Digest]]:
    """How many tensors of the state there are up to an entry, and the peaks of their tree."""
    return (body.place + 1, [*body.peaks]) if isinstance(body, StateBody) else (0, [])


def read_body(entry: TraceEntry) -> EntryBody:
    """The body of an entry, which another party may have written.

    Raises:
        FieldError: it is not of the one form, or in a place where its kind may not be; names the
            field.
    """
    try:
        body = _READERS[_form(entry.body)](entry.body)
    except UsageError as error:  # of the checks that callers' own values have too
        raise FieldError(str(error)) from None
    if isinstance(body, InputsBody) != (entry.index == 0):
        raise FieldError(f"entry {entry.index} of kind {body.kind}")
    if entry.final != is_final(body):
        raise FieldError(f"{body.kind} entry whose final is {entry.final}")
    return body


_OPERANDS = ("kind", "met", "cells", "reads", "log")
_CALL = (*_OPERANDS, "operator", "draw", "arguments", "named")
_FIELDS: dict[str, tuple[str, ...]] = {
    "inputs": ("kind", "state", "batch", "rounding"),
    "operator": (*_CALL, "results", "writes", "drawn", "logged"),
    "refused": (*_CALL, "refused"),
    "state": (*_OPERANDS, "view", "place", "tensor", "peaks"),
    "outcome": ("kind", "loss", "batch", "rounding", "log", "refused", "state"),
}


def _form(fields: dict[str, Value]) -> str:
    """The form that a body says it has; just its fields are there."""
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in ("inputs", "operator", "state", "outcome"):
        raise check.wrong("kind", "inputs, operator, state or outcome", kind)
    form = "refused" if kind == "operator" and "refused" in fields else kind
    check.check_names(f"{form} entry", fields, _FIELDS[form])
    return form


def _inputs(fields: dict[str, Value]) -> InputsBody:
    return InputsBody(
        state=_digest("state", fields["state"]),
        batch=_optional(_digest, "batch", fields["batch"]),
        rounding=_optional(_digest, "rounding", fields["rounding"]),
    )


def _operator(fields: dict[str, Value]) -> OperatorBody:
    effects = Effects(
        results=_argument("results", fields["results"]),
        writes=_rows(_written, "writes", fields["writes"], 4),
        drawn=_draw("drawn", fields["drawn"]),
        logged=_optional(_natural, "logged", fields["logged"]),
    )
    operands = _operands(fields)
    if (operands.log is None) != (effects.logged is None):
        expected = "null, as log" if operands.log is None else "a number, as log"
        raise check.wrong("logged", expected, effects.logged)
    return OperatorBody(operands=operands, call=_call(fields), effects=effects)


def _refused(fields: dict[str, Value]) -> OperatorBody:
    if fields["refused"] is not True:
        raise check.wrong("refused", "true", fields["refused"])
    operands = _operands(fields)
    if operands.log is None:  # only a rounding log can fail to lead on
        raise FieldError("field refused: there is no rounding log")
    return OperatorBody(operands=operands, call=_call(fields), effects=None)


def _state(fields: dict[str, Value]) -> StateBody:
    return StateBody(
        operands=_operands(fields),
        view=_optional(_view, "view", fields["view"]),
        place=_natural("place", fields["place"]),
        tensor=TensorEntry.from_value(fields["tensor"]),
        peaks=tuple(_digest("peaks", peak) for peak in _list("peaks", fields["peaks"])),
    )


def _outcome(fields: dict[str, Value]) -> OutcomeBody:
    loss, refused = fields["loss"], fields["refused"]
    if loss is not None:  # as at step 0
        check.check_finite("loss", loss)
    if type(refused) is not bool:
        raise check.wrong("refused", "a boolean", refused)
    return OutcomeBody(
        loss=cast("float | None", loss),
        batch=_optional(_digest, "batch", fields["batch"]),
        rounding=_optional(_digest, "rounding", fields["rounding"]),
        log=_optional(_natural, "log", fields["log"]),
        refused=refused,
        state=_digest("state", fields["state"]),
    )


_READERS: dict[str, Callable[[dict[str, Value]], EntryBody]] = {
    "inputs": _inputs,
    "operator": _operator,
    "refused": _refused,
    "state": _state,
    "outcome": _outcome,
}


def _operands(fields: dict[str, Value]) -> Operands:
    return Operands(
        met=_rows(_met, "met", fields["met"], 3),
        cells=_natural("cells", fields["cells"]),
        reads=_rows(_read, "reads", fields["reads"], 4),
        log=_optional(_natural, "log", fields["log"]),
    )


def _call(fields: dict[str, Value]) -> TracedCall:
    operator, named = fields["operator"], fields["named"]
    check.check_text("operator", operator, _OPERATOR_CHARS)
    if type(named) is not dict:
        raise check.wrong("named", "a map", named)
    return TracedCall(
        operator=cast(str, operator),
        draw=_draw("draw", fields["draw"]),
        arguments=tuple(
            _argument("arguments", value) for value in _list("arguments", fields["arguments"])
        ),
        named={name: _argument("named", value) for name, value in named.items()},
    )


def _met(name: str, row: list[Value]) -> MetCell:
    cell, size, origin = row
    return MetCell(cell=_natural(name, cell), size=_natural(name, size), origin=_origin(origin))


def _origin(value: Value) -> Origin:
    match value:
        case ["state", str(name)]:
            check.check_text("met", name, LIMITS.name_chars)
            return FromState(name=name)
        case ["batch", place]:
            return FromBatch(place=_natural("met", place))
        case ["constant"]:
            return Constant()
        case _:
            raise check.wrong("met", "an origin", value)


def _read(name: str, row: list[Value]) -> ReadCell:
    cell, size, last, held = row
    check.check_integer(name, last, 0, MAX_ENTRIES - 1)
    return ReadCell(
        cell=_natural(name, cell),
        size=_natural(name, size),
        last=LastWrite(index=cast(int, last), digest=_digest(name, held)),
    )


def _written(name: str, row: list[Value]) -> WrittenCell:
    cell, size, held, content = row
    if content is not None and type(content) is not bytes:
        raise check.wrong(name, "bytes or null", content)
    made = WrittenCell(
        cell=_natural(name, cell),
        size=_natural(name, size),
        digest=_digest(name, held),
        content=content,
    )
    if content is not None and (len(content) != size or digest("tensor", content) != held):
        raise FieldError(
            f"field {name}: the content of cell {made.cell} has another size or digest"
        )
    return made


def _rows(
    read: Callable[[str, list[Value]], _T], name: str, value: Value, width: int
) -> tuple[_T, ...]:
    found: list[_T] = []
    for item in _list(name, value):
        row = _list(name, item)
        if len(row) != width:
            raise check.wrong(name, f"rows of {width}", row)
        found.append(read(name, row))
    return tuple(found)


def _optional(read: Callable[[str, Value], _T], name: str, value: Value) -> _T | None:
    return None if value is None else read(name, value)


def _list(name: str, value: Value) -> list[Value]:
    if not isinstance(value, list):
        raise check.wrong(name, "an array", value)
    return value


def _natural(name: str, value: Value) -> int:
    check.check_integer(name, value, 0, _MOST)
    return cast(int, value)


def _digest(name: str, value: Value) -> Digest:
    check.check_digest(name, value)
    return cast(Digest, value)


def _draw(name: str, value: Value) -> generators.State:
    if not isinstance(value, bytes):
        return _natural(name, value)
    if len(value) not in (0, generators.SEED_BYTES):
        raise check.wrong(name, f"0 or {generators.SEED_BYTES} bytes", value)
    return value


def _argument(name: str, value: Value) -> Argument:
    try:
        return read_argument(value)
    except FieldError as error:
        raise FieldError(f"field {name}: {error}") from None


def _view(name: str, value: Value) -> CellView:
    try:
        return CellView.from_value(value)
    except FieldError as error:
        raise FieldError(f"field {name}: {error}") from None
