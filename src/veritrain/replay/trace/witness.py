"""What a party of a dispute knows: its leaves, and what replays of the disputed step show.

Trainer and challenger use the same code; they differ in their leaves alone. A dispute takes two replays at most:
one for the trace, from the checkpoint before, and one of the step itself for what the judge wants opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any, Protocol, cast

from torch import Tensor

from veritrain.encoding import Digest, Value, digest
from veritrain.errors import InconclusiveError, JobError, UsageError
from veritrain.job.data import Batches, batch_digest
from veritrain.job.job import Job
from veritrain.job.state import capture, require_fit, restore
from veritrain.job.step import Program, run_step
from veritrain.numerics.logged.rounding import Following
from veritrain.protocols.dispute.claims import Entries
from veritrain.protocols.dispute.messages import Opening, TraceClaim
from veritrain.replay.segments import start_of
from veritrain.replay.trace.entry import TraceEntry
from veritrain.replay.trace.openings import (
    cells_opening,
    groups_opening,
    prefix_opening,
    records_opening,
    state_opening,
    tile_opening,
)
from veritrain.replay.trace.recorder import Before, Recorder, initial_trace, trace
from veritrain.replay.trace.tiles import tile
from veritrain.transcript import Leaf, TensorEntry, Transcript, state_entries, state_root

_ALONE = nullcontext()


class Traces(Protocol):
    """Where a party keeps the traces that it computed."""

    def get(self, step: int) -> Sequence[bytes] | None:
        """The entries of the trace of a step, if they are here."""
        ...

    def keep(self, step: int, entries: Sequence[bytes]) -> None:
        """Keep them, if there is room."""
        ...


class Witness:
    """Answers for one side of a dispute; `Claims` of a `Party`.

    Args:
        job: the party's own.
        transcript: the run in dispute.
        leaves: encoded; those under the challenged head for its trainer, up to the challenge's for a challenger.
        traces: where what it computed is kept; None for in memory alone.
        replaying: is held while the job computes; what is at hand is opened without it. Reentrant.
    """

    def __init__(
        self,
        job: Job,
        transcript: Transcript,
        leaves: Sequence[bytes],
        *,
        traces: Traces | None = None,
        replaying: AbstractContextManager[Any, Any] = _ALONE,
    ) -> None:
        self._job = job
        self._transcript = transcript
        self._traces = traces
        self._replaying = replaying
        self._leaves = Entries(leaves)
        self._replays: dict[int, _StepReplay] = {}  # of one step at most

    def own_leaf(self, step: int) -> Leaf:
        """The leaf that this party's own computation of a step comes to, after the run's leaf before it.
        Where the step's rounding log cannot be followed, the party decides its roundings itself.

        Raises:
            InconclusiveError: the state before is not the run's here.
            NumericsError, UsageError: the step comes to nothing that a leaf can hold.
        """
        with self._replaying:
            return self._replay(step).own_leaf()

    def with_leaves(self, leaves: Sequence[bytes]) -> Witness:
        """The same party with other leaves; what it replayed is not replayed again."""
        made = Witness(
            self._job, self._transcript, leaves, traces=self._traces, replaying=self._replaying
        )
        made._replays = self._replays
        return made

    @property
    def leaves(self) -> Entries:
        """What the party is bound to."""
        return self._leaves

    def leaf(self, index: int) -> Opening:
        """See `Claims.leaf`."""
        return self._leaves.opening(index)

    def trace(self, step: int) -> TraceClaim:
        """See `Claims.trace`."""
        return self._replay(step).entries.claim()

    def operator(self, step: int, index: int) -> Opening:
        """See `Claims.operator`."""
        return self._replay(step).entries.opening(index)

    def detail(self, step: int, index: int, what: Value) -> Value:
        """See `Claims.detail`.

        Raises:
            UsageError: nothing that can be opened.
        """
        if not isinstance(what, dict) or not isinstance(what.get("open"), str):
            raise UsageError("the judge asks for nothing that can be opened")
        with self._replaying:
            return self._replay(step).open(index, what)

    def _replay(self, step: int) -> _StepReplay:
        if step not in self._replays:
            self._replays.clear()
            self._replays[step] = _StepReplay(
                self._job, self._transcript, step, self._traces, self._replaying
            )
        return self._replays[step]


class _StepReplay:
    """One step of a run, replayed when it is asked for."""

    def __init__(
        self,
        job: Job,
        transcript: Transcript,
        step: int,
        traces: Traces | None,
        replaying: AbstractContextManager[Any, Any],
    ) -> None:
        self._job = job
        self._transcript = transcript
        self._step = step
        self._traces = traces
        self._replaying = replaying
        self._kept: dict[int, Recorder] = {}  # of one entry at most
        self._entries: Entries | None = None
        self._found: Sequence[bytes] | None = None

    # No cached properties here: in Python 3.11 those of all instances share one lock, which a replay would hold.
    @property
    def entries(self) -> Entries:
        """The trace."""
        if self._entries is None:
            self._entries = Entries(self._encoded)
        return self._entries

    @property
    def _encoded(self) -> Sequence[bytes]:
        if self._found is None:
            self._found = self._kept_or_computed()
        return self._found

    def _kept_or_computed(self) -> Sequence[bytes]:
        kept = None if self._traces is None else self._traces.get(self._step)
        if kept is not None:
            return kept
        with self._replaying:
            made = self._computed()
        if self._traces is not None:
            self._traces.keep(self._step, made)
        return made

    def _computed(self) -> Sequence[bytes]:
        if self._step == 0:
            return initial_trace(Program.build(self._job), self._transcript.header.digest)
        return tuple(self._trace(None).entries)

    def own_leaf(self) -> Leaf:
        """See `Witness.own_leaf`."""
        end = TraceEntry.from_bytes(self._encoded[-1], where="own entry").body
        if end["kind"] != "outcome" or end["refused"]:
            return self._recorded()[0]
        names = ("state", "batch", "loss", "rounding")
        found = {name: cast("Any", end[name]) for name in names}
        return Leaf(step=self._step, previous=self._previous, **found)

    def _recorded(self) -> tuple[Leaf, bytes | None]:
        """The step as a trainer records it, and its rounding log."""
        program = Program.build(self._job)
        restore(program, self._state)
        batch = self._batches[self._step]
        found = batch_digest(batch)
        rounding = program.recording()
        loss = run_step(program, self._step, batch, rounding)
        log = None if rounding is None else rounding.finish()
        state = state_root(state_entries(capture(program)))
        leaf = Leaf(
            step=self._step,
            previous=self._previous,
            state=state,
            batch=found,
            loss=loss,
            rounding=_log_digest(log),
        )
        return leaf, log

    @property
    def _previous(self) -> Digest:
        """What the step's leaf follows."""
        transcript = self._transcript
        return transcript.leaves[self._step - 1].digest if self._step else transcript.header.digest

    def open(self, index: int, what: dict[str, Value]) -> Value:
        """What the judge asks for, of an entry."""
        kind = what["open"]
        if kind == "records":
            return _or_none(partial(records_opening, self._batches, self._step))
        if kind == "prefix":
            state = state_opening(self._tensors, self._state)
            batch = self._batches[self._step]
            return _or_none(partial(prefix_opening, self._encoded[:index], state, batch))
        if kind == "state":
            names = cast("list[Value]", what.get("names"))
            return state_opening(self._tensors, self._state, [str(name) for name in names])
        if kind == "entries":
            return {"entries": list(self._encoded[_number(what, "from") : index])}
        if kind == "log":
            return {"log": self._log}
        if kind == "operands":
            return cells_opening(self._keep(index).operands, self._log if what.get("log") else None)
        if kind == "groups":
            content = self._keep(index).results[_number(what, "cell")]
            return groups_opening(content, _number(what, "chunks"))
        if kind == "tile":
            return self._tile(
                index, _number(what, "cell"), _number(what, "start"), _number(what, "stop")
            )
        raise UsageError("the judge asks for nothing that can be opened")

    def _tile(self, index: int, cell: int, start: int, stop: int) -> Value:
        kept = self._keep(index)
        body = TraceEntry.from_bytes(self._encoded[index], where="own entry").body
        part = tile(body, cell, start, stop)
        if part is None:
            raise UsageError("the judge asks for a part where there are none")
        return tile_opening(part, kept.results[cell], kept.operands)

    def _keep(self, index: int) -> Recorder:
        if index not in self._kept:
            self._kept.clear()
            self._kept[index] = self._trace(index)
        return self._kept[index]

    def _trace(self, kept: int | None) -> Recorder:
        program = Program.build(self._job)
        restore(program, self._state)
        leaf = self._transcript.leaves[self._step]
        before = Before(
            step=self._step,
            previous=leaf.previous,
            state=state_root(self._tensors),
            rounding=_log_digest(self._log),
        )
        following = cast("Following | None", program.following(self._log))
        return trace(program, before, self._batches[self._step], following, kept)

    @cached_property
    def _batches(self) -> Batches:
        return Batches(self._job)

    @cached_property
    def _log(self) -> bytes | None:
        """The run's; the party's own where the run's leaf names none and should. None where it should not."""
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
        if start > 0:
            restore(
                program, self._transcript.load_state(start, check=partial(require_fit, program))
            )
        for step in range(start + 1, before + 1):
            rounding = program.following(self._transcript.rounding_log(step))
            run_step(program, step, self._batches[step], rounding)
        state = {name: tensor.clone() for name, tensor in capture(program).items()}
        if state_root(state_entries(state)) != self._transcript.leaves[before].state:
            raise InconclusiveError(f"step {before} does not come to the state of its leaf here")
        return state


def _log_digest(log: bytes | None) -> Digest | None:
    return None if log is None else digest("rounding log", log)


def _number(what: dict[str, Value], name: str) -> int:
    value = what.get(name)
    if type(value) is not int or value < 0:
        raise UsageError(f"the judge asks for {name} {value!r}")
    return value


def _or_none(make: Callable[[], Value]) -> Value:
    """An opening, or null where the job's values cannot be given away as bytes."""
    try:
        return make()
    except JobError:
        return None
