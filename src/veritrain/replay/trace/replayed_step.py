"""One step of a run, replayed by a party of a dispute: its trace, and what a judge may want opened
of it.

It takes two replays at most: one for the trace, from the checkpoint before, and one of the step
itself for what the judge wants opened of one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any, Protocol, cast

from torch import Tensor

from veritrain.encoding import Digest, Value, digest
from veritrain.errors import FieldError, InconclusiveError, JobError
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.state import capture, restore
from veritrain.job.step import Program
from veritrain.numerics.logged.rounding import Following
from veritrain.replay.redone import redo_step, restore_stored, start_of
from veritrain.replay.trace.entry import TraceEntry
from veritrain.replay.trace.entry_bodies import (
    Effects,
    EntryBody,
    OperatorBody,
    OutcomeBody,
    read_body,
)
from veritrain.replay.trace.openings import cells_opening, groups_opening, tile_opening
from veritrain.replay.trace.record_openings import records_opening
from veritrain.replay.trace.requests import (
    OpenEntries,
    OpenGroups,
    OpenLog,
    OpenOperands,
    OpenPrefix,
    OpenRecords,
    OpenState,
    OpenTile,
    Request,
)
from veritrain.replay.trace.state_openings import prefix_opening, state_opening
from veritrain.replay.trace.tiles import tile
from veritrain.replay.trace.tracer import Before, Tracer, initial_trace, trace
from veritrain.transcript import Leaf, TensorEntry, Transcript, state_entries, state_root

ALONE = nullcontext()


class Traces(Protocol):
    """Where a party keeps the traces that it computed."""

    def get(self, step: int) -> Sequence[bytes] | None:
        """The entries of the trace of a step; None where they are not kept."""
        ...

    def keep(self, step: int, entries: Sequence[bytes]) -> None:
        """Keep them, if there is room."""
        ...


class ReplayedStep:
    """One step of a run. Nothing is computed before it is asked for.

    Args:
        job: the party's own.
        transcript: the run.
        step: one of its leaves.
        traces: where the entries are kept; None for in memory alone.
        replaying: is held while the job computes the trace.
    """

    def __init__(
        self,
        job: Job,
        transcript: Transcript,
        step: int,
        traces: Traces | None = None,
        replaying: AbstractContextManager[Any, Any] = ALONE,
    ) -> None:
        self._job = job
        self._transcript = transcript
        self._step = step
        self._traces = traces
        self._replaying = replaying
        self._kept: dict[int, Tracer] = {}  # of one entry at most
        self._entries: Sequence[bytes] | None = None

    # No cached property for what a replay makes: in Python 3.11 the cached properties of all
    # instances share one lock, which the replay would hold.
    @property
    def entries(self) -> Sequence[bytes]:
        """The encoded entries of the trace."""
        if self._entries is None:
            kept = None if self._traces is None else self._traces.get(self._step)
            if kept is None:
                with self._replaying:
                    kept = self._computed()
                if self._traces is not None:
                    self._traces.keep(self._step, kept)
            self._entries = kept
        return self._entries

    def own_leaf(self) -> Leaf:
        """The leaf that this computation of the step comes to, after the run's leaf before it.

        Where the step's rounding log cannot be followed, this side decides its roundings itself.

        Raises:
            InconclusiveError: this computation of the state before is not the run's.
            NumericsError, UsageError: the step comes to nothing that a leaf can hold.
        """
        end = self._body(len(self.entries) - 1)
        if not isinstance(end, OutcomeBody) or end.refused:
            return self._recorded()[0]
        return Leaf(
            step=self._step,
            previous=self._previous,
            state=end.state,
            batch=end.batch,
            loss=end.loss,
            rounding=end.rounding,
        )

    def open(self, index: int, request: Request) -> Value:
        """What a judge wants opened of an entry; None where the job cannot give it away as bytes.

        Raises:
            FieldError: the entry has nothing of that kind.
        """
        if self._step == 0 or index >= len(self.entries):
            raise FieldError(f"step {self._step} opens nothing of an entry {index}")
        match request:
            case OpenRecords():
                return _or_none(partial(records_opening, self._batches, self._step))
            case OpenPrefix():
                state = state_opening(self._tensors, self._state)
                batch = self._batches[self._step]
                return _or_none(partial(prefix_opening, self.entries[:index], state, batch))
            case OpenState(names=names):
                return state_opening(self._tensors, self._state, names)
            case OpenEntries(first=first):
                return {"entries": list(self.entries[first:index])}
            case OpenLog():
                return {"log": self._log}
            case OpenOperands(log=log):
                return cells_opening(self._keep(index).operands, self._log if log else None)
            case OpenGroups(cell=cell, chunks=chunks):
                if chunks < 1 or chunks & (chunks - 1):
                    raise FieldError(f"groups of {chunks} chunks, which is no power of two")
                return groups_opening(self._written(index, cell), chunks)
            case OpenTile():
                return self._tile(index, request)

    def _tile(self, index: int, request: OpenTile) -> Value:
        content = self._written(index, request.cell)
        if not 0 <= request.start < request.stop <= len(content):
            raise FieldError(f"bytes {request.start} to {request.stop} of {len(content)}")
        body = cast(OperatorBody, self._body(index))  # it wrote a cell
        part = tile(body, request.cell, request.start, request.stop)
        if part is None:
            raise FieldError("a part of an operator that has none")
        return tile_opening(part, content, self._keep(index).operands)

    def _written(self, index: int, cell: int) -> bytes:
        """What an entry left in a cell that it wrote."""
        body = self._body(index)
        effects: Effects | None = body.effects if isinstance(body, OperatorBody) else None
        if effects is None or all(write.cell != cell for write in effects.writes):
            raise FieldError(f"entry {index} writes no cell {cell}")
        return self._keep(index).results[cell]

    def _body(self, index: int) -> EntryBody:
        return read_body(TraceEntry.from_bytes(self.entries[index], where="own entry"))

    def _computed(self) -> Sequence[bytes]:
        if self._step == 0:
            return initial_trace(Program.build(self._job), self._transcript.header.digest)
        return tuple(self._trace(None).entries)

    def _keep(self, index: int) -> Tracer:
        """A replay that kept the operands and results of an entry."""
        if index not in self._kept:
            self._kept.clear()
            self._kept[index] = self._trace(index)
        return self._kept[index]

    def _trace(self, kept: int | None) -> Tracer:
        program = Program.build(self._job)
        restore(program, self._state)
        before = Before(
            step=self._step,
            previous=self._transcript.leaves[self._step].previous,
            state=state_root(self._tensors),
            rounding=_log_digest(self._log),
        )
        following = cast("Following | None", program.following(self._log))
        return trace(program, before, self._batches[self._step], following, kept)

    def _recorded(self) -> tuple[Leaf, bytes | None]:
        """The step as a trainer records it, and its rounding log."""
        program = Program.build(self._job)
        restore(program, self._state)
        rounding = program.recording()
        redone = redo_step(program, self._batches, self._step, rounding)
        log = None if rounding is None else rounding.finish()
        state = state_root(state_entries(capture(program)))
        leaf = Leaf(
            step=self._step,
            previous=self._previous,
            state=state,
            batch=redone.batch,
            loss=redone.loss,
            rounding=_log_digest(log),
        )
        return leaf, log

    @property
    def _previous(self) -> Digest:
        """What the step's leaf follows."""
        transcript = self._transcript
        return transcript.leaves[self._step - 1].digest if self._step else transcript.header.digest

    @cached_property
    def _batches(self) -> Batches:
        return Batches(self._job)

    @cached_property
    def _log(self) -> bytes | None:
        """The run's rounding log of the step; this side's own where the run's leaf names none and
        should."""
        if self._step == 0 or not self._batches.profile.has_log:
            return None
        log = self._transcript.rounding_log(self._step)
        return log if log is not None else self._recorded()[1]

    @cached_property
    def _tensors(self) -> tuple[TensorEntry, ...]:
        return state_entries(self._state)

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        """The state before the step, from the last checkpoint before it.

        Raises:
            InconclusiveError: it is not the one that the run says.
        """
        program, before = Program.build(self._job), self._step - 1
        start = start_of(self._step, self._job.checkpoint_every)
        restore_stored(program, self._transcript, start)
        for step in range(start + 1, before + 1):
            rounding = program.following(self._transcript.rounding_log(step))
            redo_step(program, self._batches, step, rounding)
        state = {name: tensor.clone() for name, tensor in capture(program).items()}
        if state_root(state_entries(state)) != self._transcript.leaves[before].state:
            raise InconclusiveError(f"step {before} does not come to the state of its leaf here")
        return state


def _log_digest(log: bytes | None) -> Digest | None:
    return None if log is None else digest("rounding log", log)


def _or_none(make: Callable[[], Value]) -> Value:
    """An opening, or null where the job's values cannot be given away as bytes."""
    try:
        return make()
    except JobError:
        return None
