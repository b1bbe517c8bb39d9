"""The structure of the next entry of a step: the job's own Python says it, led by the entries that
are agreed.

The *structure* of an entry is the part that follows from the job's code and the entries before
without computing anything (docs/disputes.md, section 2).

The step runs with real tensors whose values nobody computes. Each operator's results are laid out
as its agreed entry says, and numbers that Python reads are the recorded ones. So the calls are
those of the step itself, up to the first one that is not agreed: the answer. A job that looks at
values in any other way (through numpy, for example) cannot be followed, and nothing is concluded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_map_only

from veritrain.encoding import Digest, Value, encode
from veritrain.errors import InconclusiveError, JobError
from veritrain.job.data import Batch
from veritrain.job.state import HYPER, SCHEDULER, capture
from veritrain.job.step import Program, run_step
from veritrain.numerics.keys import generators
from veritrain.numerics.patches.replaced import Replacement, replaced
from veritrain.numerics.profile import Exact
from veritrain.numerics.watched import Compute, Watched
from veritrain.replay.trace import calls
from veritrain.replay.trace.calls import TracedCall
from veritrain.replay.trace.cells import Cells, CellView, cell_digest, fill, is_short
from veritrain.replay.trace.entry_bodies import (
    Constant,
    Effects,
    EntryBody,
    FromBatch,
    InputsBody,
    MetCell,
    Operands,
    OperatorBody,
    OutcomeBody,
    StateBody,
)
from veritrain.replay.trace.tracer import Origins, rounds_state
from veritrain.transcript import TensorEntry
from veritrain.transcript.tensors import entry

Structure: TypeAlias = dict[str, Value]

UNKNOWN = (0x00, 0x5A)  # bytes of values that nobody computes: code that acts upon them shows
_MOST_BYTES = 1 << 31  # of one cell; the referee holds those that are alive
_READERS = ("numpy", "tolist", "__array__", "data_ptr")


class CannotFollowError(InconclusiveError):
    """The job's Python does something that agreed entries do not lead to."""


def structure_of(body: EntryBody) -> Structure:
    """The part of an entry's body that follows from the job and the entries before."""
    match body:
        case OperatorBody():
            return {"kind": body.kind, **_of_operands(body.operands), **body.call.to_value()}
        case StateBody():
            return {
                "kind": body.kind,
                **_of_operands(body.operands),
                **_of_state(body.view, body.place, body.tensor),
            }
        case InputsBody():
            return {"kind": body.kind, "batch": body.batch, "rounding": body.rounding}
        case OutcomeBody():
            given: Structure = {"batch": body.batch, "rounding": body.rounding}
            return {"kind": body.kind, "loss": body.loss, **given}


def _of_operands(operands: Operands) -> Structure:
    sizes = [(read.cell, read.size) for read in operands.reads]  # a hostile row may be there twice
    return _memory(operands.met, operands.cells, sizes)


def _memory(met: Sequence[MetCell], cells: int, sizes: Iterable[tuple[int, int]]) -> Structure:
    reads: list[Value] = [[cell, size] for cell, size in sizes]
    return {"met": [cell.to_value() for cell in met], "cells": cells, "reads": reads}


def _of_state(view: CellView | None, place: int, tensor: TensorEntry) -> Structure:
    known: Structure = {"name": tensor.name, "dtype": tensor.dtype, "shape": [*tensor.shape]}
    if view is None:  # of a text of the state, which the code makes
        return {"view": None, "place": place, "tensor": {**known, "digest": tensor.digest}}
    return {"view": view.to_value(), "place": place, "tensor": known}


@dataclass(frozen=True, kw_only=True)
class NextEntry:
    """What the job does after the agreed entries.

    Attributes:
        structure: of the entry.
        constants: digests of the constants that the entry meets, by cell.
    """

    structure: Structure
    constants: Mapping[int, Digest]


def next_structure(
    programs: Sequence[Program], step: int, batch: Batch, agreed: Sequence[EntryBody]
) -> NextEntry:
    """What the job does after the agreed entries.

    Args:
        programs: one for each of `UNKNOWN`, with a state before the step in which unknown values
            have those bytes.
        step: which.
        batch: of the step.
        agreed: bodies of the entries from 0 on.

    Raises:
        CannotFollowError: the job does something else than what is agreed, or acts upon unknown
            values.
        JobError, NumericsError: the job's code fails.
    """
    found = [
        _followed(program, step, tree_map_only(Tensor, torch.clone, batch), agreed, unknown)
        for program, unknown in zip(programs, UNKNOWN, strict=True)
    ]
    first = found[0]
    for other in found:
        same = encode(other.structure) == encode(first.structure)
        if not same or other.constants != first.constants:
            raise CannotFollowError("the job acts upon values past PyTorch's operators")
    return first


def _followed(
    program: Program, step: int, batch: Batch, agreed: Sequence[EntryBody], unknown: int
) -> NextEntry:
    plain = program.profile
    if not isinstance(plain, Exact):
        raise CannotFollowError(f"{plain.name} numerics have no traces")
    follower = _Follower(
        Origins(capture(program), batch), agreed, rounds_state=rounds_state(plain), unknown=unknown
    )
    watched = replace(program, profile=Watched(plain, follower))
    try:
        with follower.no_hidden_reads():
            loss = run_step(watched, step, batch)
        follower.finish(capture(program), loss)
    except _FoundNext as found:
        return found.entry
    except JobError as error:  # the job's code was left by it
        cause = error.__cause__
        if isinstance(cause, _FoundNext):
            return cause.entry
        if isinstance(cause, CannotFollowError):
            raise cause from None
        raise
    raise CannotFollowError("the step is over before the agreed entries are")


class _FoundNext(BaseException):  # no `except Exception` of the job's stops it
    """The entry that was looked for."""

    def __init__(self, entry: NextEntry) -> None:
        super().__init__()
        self.entry = entry


class _Follower:
    """Leads a step by agreed entries; a `Watcher`."""

    def __init__(
        self, origins: Origins, agreed: Sequence[EntryBody], *, rounds_state: bool, unknown: int
    ) -> None:
        self._origins = origins
        self._agreed = agreed
        self._rounds_state = rounds_state
        self._unknown = unknown
        self._constants: dict[int, Digest] = {}  # by cell, of the last entry
        self._cells = Cells()
        self._index = 1  # entry 0 has the inputs
        self._short: dict[int, Digest] = {}  # of cells whose bytes the follower knows
        self._written: set[int | None] = set()
        self._reading = False  # by this class itself

    def operator(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], compute: Compute
    ) -> Any:
        """See `Watcher.operator`."""
        if calls.is_view(func):
            return compute(func, args, kwargs)
        result = None
        for some, named in calls.pieces(func, args, kwargs):
            memory = self._met(list(calls.tensors_in([some, named])))
            call = TracedCall.of(func, some, named, self._view)
            agreed = self._next({"kind": "operator", **memory, **call.to_value()})
            if not isinstance(agreed, OperatorBody) or agreed.effects is None:
                raise CannotFollowError(f"entry {self._index - 1} ends the step")
            result = self._results(func, some, named, agreed.call, agreed.effects)
        return result

    def round_state(
        self, tensors: Iterable[Tensor], round_state: Callable[[Iterable[Tensor]], None]
    ) -> None:
        """See `Watcher.round_state`."""
        if self._rounds_state:
            for tensor in self._origins.ordered(tensors, self._cells):
                memory = self._met([tensor])
                call = TracedCall.of_rounding(tensor, self._view)
                self._next({"kind": "operator", **memory, **call.to_value()})

    def finish(self, state: Mapping[str, Tensor], loss: float) -> None:
        """The entries after the last operator."""
        for place, name in enumerate(sorted(state)):
            is_text = name in (HYPER, SCHEDULER)
            memory = self._met([] if is_text else [state[name]])
            view = None if is_text else self._view(state[name])
            tensor = _of_state(view, place, entry(name, state[name]))
            self._next({"kind": "state", **memory, **tensor})
        inputs = self._agreed[0]
        if isinstance(inputs, InputsBody):
            given: Structure = {"batch": inputs.batch, "rounding": inputs.rounding}
            self._next({"kind": "outcome", "loss": loss, **given})

    def no_hidden_reads(self) -> AbstractContextManager[None]:
        """Refuse code that reads values past the operators, since nobody computes them."""

        def guarded(name: str) -> Replacement:
            def make(original: Callable[..., Any]) -> Callable[..., Any]:
                def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
                    if not self._reading and not self._is_known(tensor):
                        raise CannotFollowError(f"the job reads values by Tensor.{name}")
                    return original(tensor, *args, **kwargs)

                return read

            return Replacement(Tensor, name, make)

        return replaced(guarded(name) for name in _READERS)

    def _met(self, tensors: list[Tensor]) -> Structure:
        """What an entry says of the cells of these tensors, without what they hold."""
        self._constants = {}
        met: list[MetCell] = []
        for tensor in tensors:
            number, size = self._cells.number(tensor), tensor.untyped_storage().nbytes()
            if number is None:
                number, origin = self._cells.add(tensor), self._origins.of(tensor)
            elif is_short(tensor) and self._short.get(number) != self._digest(tensor):
                origin = Constant()  # written past the operators
            else:
                continue
            met.append(MetCell(cell=number, size=size, origin=origin))
            is_constant = isinstance(origin, Constant)
            if is_short(tensor) or is_constant:
                self._short[number] = self._digest(tensor)
            if is_constant:
                self._constants[number] = self._short[number]
        sizes = {self._cells[x]: x.untyped_storage().nbytes() for x in tensors}
        return _memory(met, len(self._cells), sorted(sizes.items()))

    def _next(self, structure: Structure) -> EntryBody:
        """The agreed body of the entry that was just described, or the end."""
        if self._index == len(self._agreed):
            raise _FoundNext(NextEntry(structure=structure, constants=self._constants))
        agreed = self._agreed[self._index]
        self._index += 1
        if structure_of(agreed) != structure or not self._has_constants(agreed):
            raise CannotFollowError(f"entry {self._index - 1} is not what the job does next here")
        return agreed

    def _has_constants(self, agreed: EntryBody) -> bool:
        """Does the agreed entry read the constants that the job's code has?"""
        if not self._constants:
            return True
        if not isinstance(agreed, (OperatorBody, StateBody)):
            return False
        reads = {read.cell: read.digest for read in agreed.operands.reads}
        return all(reads[cell] == found for cell, found in self._constants.items())

    def _results(
        self,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call: TracedCall,
        effects: Effects,
    ) -> Any:
        """Results as the entry lays them out."""
        tensors = calls.tensors_in([args, kwargs])
        storages = {self._cells.number(x): x.untyped_storage() for x in tensors}
        sizes = {write.cell: write.size for write in effects.writes}
        if isinstance(call.draw, int) and isinstance(effects.drawn, int):
            generators.set_state(effects.drawn)  # a generator of the job's has its state already

        def to_tensor(found: CellView) -> Tensor:
            if found.cell not in storages:
                if found.cell not in sizes:
                    raise CannotFollowError(f"entry {self._index - 1} makes a cell and writes none")
                if sizes[found.cell] > _MOST_BYTES:
                    raise InconclusiveError(
                        f"{func}: {sizes[found.cell]} bytes are too many to hold"
                    )
                data = torch.full((sizes[found.cell],), self._unknown, dtype=torch.uint8)
                storages[found.cell] = data.untyped_storage()
            return found.tensor(storages[found.cell])

        results = calls.filled(effects.results, to_tensor)
        for write in effects.writes:
            self._written.add(write.cell)
            if write.content is not None:
                storage = storages.get(write.cell)
                if storage is None or storage.nbytes() != len(write.content):
                    raise CannotFollowError(
                        f"entry {self._index - 1} writes a cell that it has not"
                    )
                fill(storage, write.content)
                self._short[write.cell] = write.digest
        for tensor in calls.tensors_in(results):
            if self._cells.number(tensor) is None:
                self._cells.add(tensor)
        if isinstance(results, Tensor):
            argument = calls.returned_argument(func, args, kwargs)
            return results if argument is None else argument
        is_single = len(func._schema.returns) == 1  # pyright: ignore[reportPrivateUsage]
        return results if is_single or not isinstance(results, list) else tuple(results)

    def _is_known(self, tensor: Tensor) -> bool:
        """Whether the bytes of its cell are the true ones: it is short, or of the batch and was
        never written."""
        number = self._cells.number(tensor)
        is_of_batch = isinstance(self._origins.of(tensor), FromBatch)
        return number in self._short or (number not in self._written and is_of_batch)

    def _view(self, tensor: Tensor) -> CellView:
        return CellView.of(tensor, self._cells[tensor])

    def _digest(self, tensor: Tensor) -> Digest:
        self._reading = True
        try:
            return cell_digest(tensor)
        finally:
            self._reading = False
