"""What comes next in a step, found without computing it: the job's own Python, led by entries that are agreed.

The step runs with real tensors whose values nobody computes: each operator's results are laid out as its agreed
entry says, and numbers that Python reads are the recorded ones. So the calls are those of the step itself, up to
the first one that is not agreed, which is the answer. A job that looks at values in any other way (through numpy,
say) cannot be followed, and nothing is concluded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

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
from veritrain.numerics.profile import FLOAT32_BITS, Exact, Logged
from veritrain.numerics.watched import Compute, Watched
from veritrain.replay.trace import calls
from veritrain.replay.trace.bodies import rows
from veritrain.replay.trace.cells import Cells, View, cell_digest, fill, is_short, view
from veritrain.replay.trace.entry import TraceEntry
from veritrain.replay.trace.recorder import Origins
from veritrain.transcript.tensors import entry

_STRUCTURE = (
    "kind", "operator", "draw", "arguments", "named", "met", "cells", "view", "place", "loss", "batch",
    "rounding",
)  # fmt: skip
UNKNOWN = (0x00, 0x5A)  # bytes of values that nobody computes: whoever acts upon them shows
_MOST_BYTES = 1 << 31  # of one cell; the referee holds those that are alive
_READERS = ("numpy", "tolist", "__array__", "data_ptr")


class CannotFollowError(InconclusiveError):
    """The job's Python does something that agreed entries do not lead to."""


def structure_of(body: Mapping[str, Value]) -> dict[str, Value]:
    """The part of an entry's body that follows from the job and the entries before."""
    found = {name: body[name] for name in _STRUCTURE if name in body}
    reads = body.get("reads")
    if isinstance(reads, list):
        found["reads"] = [read[:2] if isinstance(read, list) else None for read in reads]
    tensor = body.get("tensor")
    if isinstance(tensor, dict):
        known = ("name", "dtype", "shape") + (() if found.get("view") is not None else ("digest",))
        found["tensor"] = {name: tensor.get(name) for name in known}
    return found


def next_structure(
    programs: Sequence[Program], step: int, batch: Batch, agreed: Sequence[TraceEntry]
) -> tuple[dict[str, Value], dict[int, Digest]]:
    """The structure of the entry after the agreed ones, and the digests of the constants that it meets.

    Args:
        programs: one for each of `UNKNOWN`, with a state before the step in which unknown values have those bytes.
        step: which.
        batch: of the step.
        agreed: entries from 0 on.

    Raises:
        CannotFollowError: the job does something else than what is agreed, or acts upon unknown values.
        JobError, NumericsError: the job's code fails.
    """
    found = [
        _followed(program, step, tree_map_only(Tensor, torch.clone, batch), agreed, unknown)
        for program, unknown in zip(programs, UNKNOWN, strict=True)
    ]
    if any(encode(other[0]) != encode(found[0][0]) or other[1] != found[0][1] for other in found):
        raise CannotFollowError("the job acts upon values past PyTorch's operators")
    return found[0]


def _followed(
    program: Program, step: int, batch: Batch, agreed: Sequence[TraceEntry], unknown: int
) -> tuple[dict[str, Value], dict[int, Digest]]:
    plain = program.profile
    if not isinstance(plain, Exact):
        raise CannotFollowError(f"{plain.name} numerics have no traces")
    settles = isinstance(plain, Logged) and plain.bits < FLOAT32_BITS
    origins = Origins(capture(program), batch)
    follower = _Follower(origins, agreed, settles=settles, unknown=unknown)
    watched = replace(program, profile=Watched(plain, follower))
    try:
        with follower.no_hidden_reads():
            loss = run_step(watched, step, batch)
        follower.finish(capture(program), loss)
    except _Found as found:
        return found.structure, follower.constants
    except JobError as error:  # the job's code was left by it
        cause = error.__cause__
        if isinstance(cause, _Found):
            return cause.structure, follower.constants
        if isinstance(cause, CannotFollowError):
            raise cause from None
        raise
    raise CannotFollowError("the step is over before the agreed entries are")


class _Found(BaseException):  # no `except Exception` of the job's stops it
    """The entry that was looked for."""

    def __init__(self, structure: dict[str, Value]) -> None:
        super().__init__()
        self.structure = structure


class _Follower:
    """Leads a step by agreed entries; a `Watcher`."""

    def __init__(
        self, origins: Origins, agreed: Sequence[TraceEntry], *, settles: bool, unknown: int
    ) -> None:
        self.constants: dict[int, Digest] = {}  # by cell, of the last entry
        self._origins = origins
        self._agreed = agreed
        self._settles = settles
        self._unknown = unknown
        self._cells = Cells()
        self._index = 1  # entry 0 has the inputs
        self._short: dict[int, Digest] = {}  # of cells whose bytes are known here
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
            tensors = list(calls.tensors_in([some, named]))
            body = self._begin(tensors)
            body |= calls.described(func, some, named, self._seen)
            agreed = self._next(body)
            result = self._results(func, some, named, agreed)
        return result

    def round_state(
        self, tensors: Iterable[Tensor], round_state: Callable[[Iterable[Tensor]], None]
    ) -> None:
        """See `Watcher.round_state`."""
        if self._settles:
            for tensor in self._origins.ordered(tensors, self._cells):
                self._next({**self._begin([tensor]), **calls.settling(tensor, self._seen)})

    def finish(self, state: Mapping[str, Tensor], loss: float) -> None:
        """The entries after the last operator."""
        for place, name in enumerate(sorted(state)):
            body: dict[str, Value] = {**self._begin([]), "view": None}
            if name not in (HYPER, SCHEDULER):
                body = {**self._begin([state[name]]), "view": self._seen(state[name])}
            found = entry(name, state[name]).to_value()
            self._next({**body, "kind": "state", "place": place, "tensor": found})
        given = {name: self._agreed[0].body.get(name) for name in ("batch", "rounding")}
        self._next({"kind": "outcome", "loss": loss, **given})

    @contextmanager
    def no_hidden_reads(self) -> Generator[None]:
        """Values are not computed: whoever reads them past the operators must not get any."""
        originals = {name: getattr(Tensor, name) for name in _READERS}

        def guarded(name: str) -> Callable[..., Any]:
            def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
                if not self._reading and not self._is_known(tensor):
                    raise CannotFollowError(f"the job reads values by Tensor.{name}")
                return originals[name](tensor, *args, **kwargs)

            return read

        try:
            for name in _READERS:
                setattr(Tensor, name, guarded(name))
            yield
        finally:
            for name, original in originals.items():
                setattr(Tensor, name, original)

    def _begin(self, tensors: list[Tensor]) -> dict[str, Value]:
        self.constants = {}
        met: list[list[Value]] = []
        for tensor in tensors:
            number, size = self._cells.number(tensor), tensor.untyped_storage().nbytes()
            if number is None:
                number = self._cells.add(tensor)
                met.append([number, size, self._origins.of(tensor)])
            elif is_short(tensor) and self._short.get(number) != self._digest(tensor):
                met.append([number, size, ["constant"]])  # written past the operators
            else:
                continue
            if is_short(tensor) or met[-1][2] == ["constant"]:
                self._short[number] = self._digest(tensor)
            if met[-1][2] == ["constant"]:
                self.constants[number] = self._short[number]
        sizes = {self._cells.number(x): x.untyped_storage().nbytes() for x in tensors}
        reads: list[Value] = [[n, sizes[n]] for n in sorted(n for n in sizes if n is not None)]
        return {"kind": "operator", "met": [*met], "cells": len(self._cells), "reads": reads}

    def _next(self, body: dict[str, Value]) -> dict[str, Value]:
        """The agreed body of the call that was just described, or the end."""
        structure = structure_of(body)
        if self._index == len(self._agreed):
            raise _Found(structure)
        agreed = self._agreed[self._index].body
        self._index += 1
        if structure_of(agreed) != structure or not self._are_constants(agreed):
            raise CannotFollowError(f"entry {self._index - 1} is not what the job does next here")
        return agreed

    def _are_constants(self, agreed: dict[str, Value]) -> bool:
        reads = {read[0]: read[3] for read in rows(agreed, "reads")} if self.constants else {}
        return all(reads[number] == found for number, found in self.constants.items())

    def _results(
        self,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        agreed: dict[str, Value],
    ) -> Any:
        """Results as the entry lays them out."""
        tensors = calls.tensors_in([args, kwargs])
        storages = {self._cells.number(x): x.untyped_storage() for x in tensors}
        sizes: dict[int, int] = {write[0]: write[1] for write in rows(agreed, "writes")}
        if isinstance(agreed["draw"], int) and isinstance(drawn := agreed["drawn"], int):
            generators.set_state(drawn)  # a generator of the job's has its state already

        def to_tensor(found: View) -> Tensor:
            if found.cell not in storages:
                if sizes[found.cell] > _MOST_BYTES:
                    raise InconclusiveError(
                        f"{func}: {sizes[found.cell]} bytes are too many to hold"
                    )
                data = torch.full((sizes[found.cell],), self._unknown, dtype=torch.uint8)
                storages[found.cell] = data.untyped_storage()
            return found.of(storages[found.cell])

        results = calls.unplain(agreed["results"], to_tensor)
        for number, _, found, short in rows(agreed, "writes"):
            self._written.add(number)
            if short is not None:
                fill(storages[number], short)
                self._short[number] = found
        for tensor in calls.tensors_in(results):
            if self._cells.number(tensor) is None:
                self._cells.add(tensor)
        if isinstance(results, Tensor):
            argument = calls.returned_argument(func, args, kwargs)
            return results if argument is None else argument
        is_single = len(func._schema.returns) == 1  # pyright: ignore[reportPrivateUsage]
        return results if is_single or not isinstance(results, list) else tuple(results)

    def _is_known(self, tensor: Tensor) -> bool:
        """Whether the bytes of its cell are the true ones here: short, or of the batch and never written."""
        number = self._cells.number(tensor)
        origin = self._origins.of(tensor)
        return number in self._short or (number not in self._written and origin[0] == "batch")

    def _seen(self, tensor: Tensor) -> Value:
        return view(tensor, self._cells[tensor])

    def _digest(self, tensor: Tensor) -> Digest:
        self._reading = True
        try:
            return cell_digest(tensor)
        finally:
            self._reading = False
