"""The trace of a step: replay it, look at every operator, and chain what was seen.

docs/disputes.md, section 2, specifies what entries say. A tracer keeps nothing but digests, so that
a trace takes as much memory as the step; `kept` names one entry whose operands and results it keeps
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from veritrain.encoding import Digest, digest
from veritrain.errors import TranscriptError, UsageError, VerificationError
from veritrain.job.data import Batch, batch_digest, owned
from veritrain.job.state import HYPER, SCHEDULER, capture
from veritrain.job.step import Program, run_step
from veritrain.numerics.keys import generators
from veritrain.numerics.logged.rounding import Following
from veritrain.numerics.profile import FLOAT32_BITS, Exact, Logged
from veritrain.numerics.watched import Compute, Watched
from veritrain.replay.trace import calls
from veritrain.replay.trace.calls import TracedCall
from veritrain.replay.trace.cells import (
    Cells,
    CellView,
    cell_bytes,
    cell_digest,
    is_short,
    tight,
)
from veritrain.replay.trace.entry import TraceEntry
from veritrain.replay.trace.entry_bodies import (
    Constant,
    Effects,
    EntryBody,
    FromBatch,
    FromState,
    InputsBody,
    LastWrite,
    MetCell,
    Operands,
    OperatorBody,
    Origin,
    OutcomeBody,
    ReadCell,
    StateBody,
    WrittenCell,
    is_final,
)
from veritrain.transcript import TensorEntry, merkle
from veritrain.transcript.tensors import entry

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
            self._know(tensor, FromBatch(place=place))
        for name in sorted(state.keys() - set(_TEXTS), reverse=True):
            self._know(state[name], FromState(name=name))  # of tied ones the first name stays
        self._alive = [*state.values(), batch]  # so that no other cell gets their addresses

    def of(self, tensor: Tensor) -> Origin:
        """The origin of a cell that is met for the first time."""
        return self._known.get(tensor.untyped_storage()._cdata, Constant())  # pyright: ignore

    def ordered(self, tensors: Iterable[Tensor], cells: Cells) -> list[Tensor]:
        """Tensors in an order that does not follow an optimiser's map: first those of cells that
        were met, by number, then the others by origin."""

        def key(tensor: Tensor) -> tuple[int, list[str]]:
            number = cells.number(tensor)
            if number is not None:
                return number, []
            return len(cells), [str(part) for part in self.of(tensor).to_value()]

        return sorted(tensors, key=key)

    def _know(self, tensor: Tensor, origin: Origin) -> None:
        self._known[tensor.untyped_storage()._cdata] = origin  # pyright: ignore


class Tracer:
    """Makes entries of what a step does; a `Watcher` of `numerics.watched`.

    Attributes:
        entries: encoded, so far.
        last: the body of the last entry.
        operands: contents of the cells that the kept entry reads, before it.
        results: contents of the cells that the kept entry writes, after it.
    """

    def __init__(
        self,
        previous: Digest,
        origins: Origins,
        *,
        rounds_state: bool = False,
        log: Following | None = None,
        kept: int | None = None,
    ) -> None:
        """Before the first entry.

        Args:
            previous: what the first entry follows.
            origins: of the cells that the step meets.
            rounds_state: do the numerics round the state after the step? Then these are entries
                too.
            log: follows the step's rounding log, where the numerics have one.
            kept: the entry whose operands and results are kept.
        """
        self.entries: list[bytes] = []
        self.last: EntryBody | None = None
        self.operands: dict[int, bytes] = {}
        self.results: dict[int, bytes] = {}
        self._previous = previous
        self._origins = origins
        self._rounds_state = rounds_state
        self._log = log
        self._kept = kept
        self._cells = Cells()
        self._known: dict[int, LastWrite] = {}  # by cell

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
        if not self._rounds_state:
            round_state(tensors)
            return
        for tensor in self._origins.ordered(tensors, self._cells):
            operands = self._met([tensor])
            call = TracedCall.of_rounding(tensor, self._view)
            round_state([tensor])
            self._add_operator(operands, call, None, [tensor])

    def know(self, read: ReadCell, tensor: Tensor) -> None:
        """Take a cell from an entry instead of meeting it."""
        self._cells.add(tensor, read.cell)
        self._known[read.cell] = read.last

    def begin_at(self, cell: int) -> None:
        """Give the next cell this number."""
        self._cells.skip_to(cell)

    def add(self, body: EntryBody) -> None:
        """Chain one more entry."""
        made = TraceEntry(
            index=self._index, previous=self._previous, final=is_final(body), body=body.to_value()
        )
        self.last = body
        self.entries.append(made.to_bytes())
        self._previous = digest(made.type_name, self.entries[-1])

    def add_state(self, state: Mapping[str, Tensor]) -> Digest:
        """Chain the entries of the state after the step; its root."""
        frontier = merkle.Frontier()
        for name in sorted(state):
            is_text = name in _TEXTS
            operands = self._met([] if is_text else [state[name]])
            tensor: TensorEntry = entry(name, state[name])
            place = frontier.size
            frontier.append(tensor.to_bytes())
            self.add(
                StateBody(
                    operands=operands,
                    view=None if is_text else self._view(state[name]),
                    place=place,
                    tensor=tensor,
                    peaks=tuple(frontier.peaks),
                )
            )
        return frontier.root()

    @property
    def position(self) -> int | None:
        """Bytes of the rounding log that were read."""
        return None if self._log is None else self._log.position

    @property
    def _index(self) -> int:
        return len(self.entries)

    def _call(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], compute: Compute
    ) -> Any:
        operands = self._met(list(calls.tensors_in([args, kwargs])))
        call = TracedCall.of(func, args, kwargs, self._view)
        try:
            found = compute(func, args, kwargs)
        except (TranscriptError, VerificationError):  # the rounding log does not lead on
            self.add(OperatorBody(operands=operands, call=call, effects=None))
            raise
        results = calls.mapped(found, self._own)
        written = list(calls.written_tensors(func, args, kwargs))
        self._add_operator(operands, call, results, written)
        return results

    def _met(self, tensors: list[Tensor]) -> Operands:
        """What an entry says of the cells of these tensors before its operator runs."""
        met: list[MetCell] = []
        for tensor in tensors:
            number, size = self._cells.number(tensor), tensor.untyped_storage().nbytes()
            found = None
            if number is None:
                number, origin = self._cells.add(tensor), self._origins.of(tensor)
            elif self._known[number].digest != (found := cell_digest(tensor)):
                origin = Constant()  # written past the operators
            else:
                continue
            met.append(MetCell(cell=number, size=size, origin=origin))
            self._known[number] = LastWrite(
                index=self._index, digest=cell_digest(tensor) if found is None else found
            )
        numbers = self._numbers(tensors)
        if self._index == self._kept:
            self.operands = {number: bytes(cell_bytes(x)) for number, x in numbers.items()}
        reads = tuple(
            ReadCell(cell=number, size=x.untyped_storage().nbytes(), last=self._known[number])
            for number, x in numbers.items()
        )
        return Operands(met=tuple(met), cells=len(self._cells), reads=reads, log=self.position)

    def _add_operator(
        self, operands: Operands, call: TracedCall, results: Any, written: list[Tensor]
    ) -> None:
        """Chain the entry of an operator that ran; cells of results that are new are written
        too."""
        for tensor in calls.tensors_in(results):
            if self._cells.number(tensor) is None:
                self._cells.add(tensor)
                written.append(tensor)
        writes: list[WrittenCell] = []
        for number, tensor in self._numbers(written).items():
            self._known[number] = LastWrite(index=self._index, digest=cell_digest(tensor))
            writes.append(
                WrittenCell(
                    cell=number,
                    size=tensor.untyped_storage().nbytes(),
                    digest=self._known[number].digest,
                    content=bytes(cell_bytes(tensor)) if is_short(tensor) else None,
                )
            )
            if self._index == self._kept:
                self.results[number] = bytes(cell_bytes(tensor))
        effects = Effects(
            results=calls.described(results, self._view),
            writes=tuple(writes),
            drawn=generators.state(),
            logged=self.position,
        )
        self.add(OperatorBody(operands=operands, call=call, effects=effects))

    def _numbers(self, tensors: list[Tensor]) -> dict[int, Tensor]:
        """The cells of these tensors, sorted."""
        numbered = {self._cells.number(tensor): tensor for tensor in tensors}
        return {number: numbered[number] for number in sorted(n for n in numbered if n is not None)}

    def _view(self, tensor: Tensor) -> CellView:
        return CellView.of(tensor, self._cells[tensor])

    def _own(self, result: Tensor) -> Tensor:
        """A result in a cell of its own, if it is not an argument."""
        return result if self._cells.number(result) is not None else tight(result)


def rounds_state(profile: Exact) -> bool:
    """Do these numerics round the state after a step, by an operator that traces show?"""
    return isinstance(profile, Logged) and profile.bits < FLOAT32_BITS


def trace(
    program: Program,
    before: Before,
    batch: Batch,
    rounding: Following | None = None,
    kept: int | None = None,
) -> Tracer:
    """Do the step after `before` and make its trace.

    Args:
        program: in the state before the step.
        before: what the step starts from.
        batch: of the step.
        rounding: follows the step's log, where the numerics have one.
        kept: the entry whose operands and results the tracer keeps.

    Raises:
        UsageError: `native` numerics, or a program that is not on the CPU.
        NumericsError, JobError: as `run_step`.
    """
    plain = program.profile
    if not isinstance(plain, Exact) or program.device.type != "cpu":
        raise UsageError("only steps under exact or logged numerics on the CPU can be traced")
    own = owned(batch)
    tracer = Tracer(
        before.previous,
        Origins(capture(program), own),
        rounds_state=rounds_state(plain),
        log=rounding,
        kept=kept,
    )
    found = batch_digest(own, program.job.shards)
    inputs = InputsBody(state=before.state, batch=found, rounding=before.rounding)
    tracer.add(inputs)
    watched = replace(program, profile=Watched(plain, tracer))
    try:
        loss = run_step(watched, before.step, own, rounding)
    except (TranscriptError, VerificationError):
        return tracer  # its last entry says so
    state = tracer.add_state(capture(program))
    tracer.add(
        OutcomeBody(
            loss=loss,
            batch=inputs.batch,
            rounding=inputs.rounding,
            log=tracer.position,
            refused=not _is_over(rounding),
            state=state,
        )
    )
    return tracer


def initial_trace(program: Program, run: Digest) -> tuple[bytes, ...]:
    """The entries of step 0: the state of a program that was just built, in a run of that
    header."""
    tracer = Tracer(run, Origins({}, ()))
    tracer.add(InputsBody(state=run, batch=None, rounding=None))
    state = tracer.add_state(capture(program))
    tracer.add(
        OutcomeBody(loss=None, batch=None, rounding=None, log=None, refused=False, state=state)
    )
    return tuple(tracer.entries)


def _is_over(rounding: Following | None) -> bool:
    """Whether nothing follows in the log."""
    try:
        if rounding is not None:
            rounding.finish()
    except (TranscriptError, VerificationError):
        return False
    return True
