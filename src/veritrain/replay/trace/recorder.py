"""The trace of a step: replay it with an eye on every operator, and chain what was seen.

What the entries say is specified in docs/disputes.md, section 2. Nothing is kept but digests, so that a trace
takes as much memory as the step; `kept` names one entry whose operands and results are kept whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from veritrain.encoding import Digest, Value, digest
from veritrain.errors import TranscriptError, UsageError, VerificationError
from veritrain.job.data import Batch, batch_digest, owned
from veritrain.job.state import HYPER, SCHEDULER, capture
from veritrain.job.step import Program, run_step
from veritrain.numerics.keys import generators
from veritrain.numerics.logged.rounding import Following
from veritrain.numerics.profile import FLOAT32_BITS, Exact, Logged
from veritrain.numerics.watched import Compute, Watched
from veritrain.replay.trace import calls
from veritrain.replay.trace.cells import Cells, cell_bytes, cell_digest, is_short, tight, view
from veritrain.replay.trace.entry import TraceEntry
from veritrain.transcript import TensorEntry, merkle
from veritrain.transcript.tensors import entry

Origin = list[Value]

_TEXTS = (HYPER, SCHEDULER)


@dataclass(frozen=True, kw_only=True)
class Before:
    """What a step starts from, as both sides of a dispute know it."""

    step: int
    previous: Digest  # of the leaf before
    state: Digest  # root of the state before
    rounding: Digest | None = None  # of the step's rounding log


class Origins:
    """Where cells come from that no operator of the step made: the state before, and the batch."""

    def __init__(self, state: Mapping[str, Tensor], batch: Batch) -> None:
        self._known: dict[int, Origin] = {}
        for place, tensor in enumerate(calls.tensors_in(batch)):
            self._know(tensor, ["batch", place])
        for name in sorted(state.keys() - set(_TEXTS), reverse=True):
            self._know(state[name], ["state", name])  # of tied ones the first name stays
        self._alive = [*state.values(), batch]  # so that no other cell gets their addresses

    def of(self, tensor: Tensor) -> Origin:
        """The origin of a cell that is met for the first time."""
        return self._known.get(tensor.untyped_storage()._cdata, ["constant"])  # pyright: ignore

    def ordered(self, tensors: Iterable[Tensor], cells: Cells) -> list[Tensor]:
        """Those that were met in their order, then the others by origin: not that of an optimiser's map."""

        def key(tensor: Tensor) -> tuple[int, list[str]]:
            number = cells.number(tensor)
            return (
                (len(cells), [str(x) for x in self.of(tensor)]) if number is None else (number, [])
            )

        return sorted(tensors, key=key)

    def _know(self, tensor: Tensor, origin: Origin) -> None:
        self._known[tensor.untyped_storage()._cdata] = origin  # pyright: ignore


class Recorder:
    """Makes entries of what a step does; a `Watcher` of `numerics.watched`.

    Attributes:
        entries: encoded, so far.
        operands: contents of the cells that the kept entry reads, before it.
        results: contents of the cells that it writes, after it.
    """

    def __init__(
        self,
        previous: Digest,
        origins: Origins,
        *,
        settles: bool = False,
        log: Following | None = None,
        kept: int | None = None,
    ) -> None:
        self.entries: list[bytes] = []
        self.operands: dict[int, bytes] = {}
        self.results: dict[int, bytes] = {}
        self._previous = previous
        self._origins = origins
        self._settles = settles
        self._log = log
        self._kept = kept
        self._cells = Cells()
        self._known: dict[int, tuple[int, Digest]] = {}  # cell: entry that wrote it last, digest

    def operator(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], compute: Compute
    ) -> Any:
        """See `Watcher.operator`."""
        if calls.is_view(func):
            return compute(func, args, kwargs)
        result = None
        for some, named in calls.pieces(func, args, kwargs):
            result = self._call(func, some, named, compute)
        return result

    def round_state(
        self, tensors: Iterable[Tensor], round_state: Callable[[Iterable[Tensor]], None]
    ) -> None:
        """See `Watcher.round_state`."""
        if not self._settles:
            round_state(tensors)
            return
        for tensor in self._origins.ordered(tensors, self._cells):
            body, seen = self._begin([tensor])
            round_state([tensor])
            self._end({**body, **calls.settling(tensor, seen)}, None, [tensor])

    def know(self, cell: int, tensor: Tensor, last: int, found: Digest) -> None:
        """Take a cell from an entry instead of meeting it."""
        self._cells.add(tensor, cell)
        self._known[cell] = (last, found)

    def begin_at(self, cell: int) -> None:
        """Give the next cell this number."""
        self._cells.skip_to(cell)

    def last_body(self) -> dict[str, Value]:
        """The body of the entry that was made last."""
        return TraceEntry.from_bytes(self.entries[-1], where="own entry").body

    def add(self, body: dict[str, Value], *, final: bool = False) -> None:
        """Chain one more entry."""
        made = TraceEntry(index=self._index, previous=self._previous, final=final, body=body)
        self.entries.append(made.to_bytes())
        self._previous = digest(made.type_name, self.entries[-1])

    def state_tensor(self, name: str, tensor: Tensor, frontier: merkle.Frontier) -> TensorEntry:
        """Chain the entry of one tensor of the state after the step."""
        found = entry(name, tensor)
        body, seen = self._begin([] if name in _TEXTS else [tensor])
        body["view"] = None if name in _TEXTS else seen(tensor)
        body |= {"kind": "state", "place": frontier.size, "tensor": found.to_value()}
        frontier.append(found.to_bytes())
        self.add({**body, "peaks": list(frontier.peaks)})
        return found

    @property
    def _index(self) -> int:
        return len(self.entries)

    def _call(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], compute: Compute
    ) -> Any:
        body, seen = self._begin(list(calls.tensors_in([args, kwargs])))
        body |= calls.described(func, args, kwargs, seen)
        try:
            found = compute(func, args, kwargs)
        except (TranscriptError, VerificationError):  # the rounding log does not lead on
            self.add({**body, "refused": True}, final=True)
            raise
        results = calls.mapped(found, self._own)
        self._end(body, results, list(calls.written_tensors(func, args, kwargs)))
        return results

    def _begin(self, tensors: list[Tensor]) -> tuple[dict[str, Value], calls.ToValue]:
        """The part of an entry that is known before its operator runs; how its tensors are described."""
        met: list[Value] = []
        for tensor in tensors:
            number, size = self._cells.number(tensor), tensor.untyped_storage().nbytes()
            if number is None:
                number = self._cells.add(tensor)
                met.append([number, size, self._origins.of(tensor)])
                self._known[number] = (self._index, cell_digest(tensor))
            elif self._known[number][1] != (found := cell_digest(tensor)):
                met.append([number, size, ["constant"]])  # written past the operators
                self._known[number] = (self._index, found)
        numbers = self._numbers(tensors)
        if self._index == self._kept:
            self.operands = {number: bytes(cell_bytes(x)) for number, x in numbers.items()}
        reads: list[Value] = [
            [number, x.untyped_storage().nbytes(), *self._known[number]]
            for number, x in numbers.items()
        ]
        body: dict[str, Value] = {"kind": "operator", "met": met, "cells": len(self._cells)}
        return {**body, "reads": reads, "log": self.position}, self._seen

    def _end(self, body: dict[str, Value], results: Any, written: list[Tensor]) -> None:
        """Chain an entry after its operator ran."""
        made = list(calls.tensors_in(results))
        for tensor in made:
            if self._cells.number(tensor) is None:
                self._cells.add(tensor)
                written.append(tensor)
        writes: list[Value] = []
        for number, tensor in self._numbers(written).items():
            self._known[number] = (self._index, cell_digest(tensor))
            size = tensor.untyped_storage().nbytes()
            short = bytes(cell_bytes(tensor)) if is_short(tensor) else None
            writes.append([number, size, self._known[number][1], short])
            if self._index == self._kept:
                self.results[number] = bytes(cell_bytes(tensor))
        found: dict[str, Value] = {"results": calls.plain(results, self._seen), "writes": writes}
        self.add({**body, **found, "drawn": generators.state(), "logged": self.position})

    @property
    def position(self) -> int | None:
        """Bytes of the rounding log that were read."""
        return None if self._log is None else self._log.position

    def _numbers(self, tensors: list[Tensor]) -> dict[int, Tensor]:
        """The cells of these tensors, sorted."""
        numbered = {self._cells.number(tensor): tensor for tensor in tensors}
        return {number: numbered[number] for number in sorted(n for n in numbered if n is not None)}

    def _seen(self, tensor: Tensor) -> Value:
        return view(tensor, self._cells[tensor])

    def _own(self, result: Tensor) -> Tensor:
        """A result in a cell of its own, if it is not an argument."""
        return result if self._cells.number(result) is not None else tight(result)


def trace(
    program: Program,
    before: Before,
    batch: Batch,
    rounding: Following | None = None,
    kept: int | None = None,
) -> Recorder:
    """Do the step after `before` and make its trace.

    Args:
        program: in the state before the step.
        before: what the step starts from.
        batch: of the step.
        rounding: follows the step's log, where the numerics have one.
        kept: the entry whose operands and results the recorder keeps.

    Raises:
        UsageError: `native` numerics, or a program that is not on the CPU.
        NumericsError, JobError: as `run_step`.
    """
    plain = program.profile
    if not isinstance(plain, Exact) or program.device.type != "cpu":
        raise UsageError("only steps under exact or logged numerics on the CPU can be traced")
    own = owned(batch)
    origins = Origins(capture(program), own)
    settles = isinstance(plain, Logged) and plain.bits < FLOAT32_BITS
    recorder = Recorder(before.previous, origins, settles=settles, log=rounding, kept=kept)
    given: dict[str, Value] = {"batch": batch_digest(own), "rounding": before.rounding}
    recorder.add({"kind": "inputs", "state": before.state, **given})
    try:
        loss = run_step(
            replace(program, profile=Watched(plain, recorder)), before.step, own, rounding
        )
    except (TranscriptError, VerificationError):
        return recorder  # its last entry says so
    state, frontier = capture(program), merkle.Frontier()
    for name in sorted(state):
        recorder.state_tensor(name, state[name], frontier)
    end: dict[str, Value] = {"log": recorder.position, "refused": not _is_over(rounding)}
    recorder.add(
        {"kind": "outcome", "loss": loss, **given, **end, "state": frontier.root()}, final=True
    )
    return recorder


def initial_trace(program: Program, run: Digest) -> tuple[bytes, ...]:
    """The entries of step 0: the state of a program that was just built, in a run of that header."""
    recorder = Recorder(run, Origins({}, ()))
    given: dict[str, Value] = {"batch": None, "rounding": None}
    recorder.add({"kind": "inputs", "state": run, **given})
    state, frontier = capture(program), merkle.Frontier()
    for name in sorted(state):
        recorder.state_tensor(name, state[name], frontier)
    end: dict[str, Value] = {"log": None, "refused": False, "state": frontier.root()}
    recorder.add({"kind": "outcome", "loss": None, **given, **end}, final=True)
    return tuple(recorder.entries)


def _is_over(rounding: Following | None) -> bool:
    """Whether nothing follows in the log."""
    try:
        if rounding is not None:
            rounding.finish()
    except (TranscriptError, VerificationError):
        return False
    return True
