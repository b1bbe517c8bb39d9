"""One operator, computed again from its operands: the referee's last word.

The call runs under the job's numerics with the tracer that makes traces. So it comes to the part of
an entry that a trace would have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch._ops import OpOverload

from veritrain.encoding import DIGEST_BYTES
from veritrain.errors import (
    InconclusiveError,
    TranscriptError,
    UnsupportedOperatorError,
    VerificationError,
)
from veritrain.numerics.keys import generators
from veritrain.numerics.logged.rounding import Following
from veritrain.numerics.profile import Exact, resolve
from veritrain.numerics.rules import lookup
from veritrain.numerics.watched import Watched
from veritrain.replay.trace import calls
from veritrain.replay.trace.arithmetic import Arithmetic
from veritrain.replay.trace.calls import ROUNDING
from veritrain.replay.trace.cells import CellView, fill, whole
from veritrain.replay.trace.entry_bodies import Effects, Operands, OperatorBody
from veritrain.replay.trace.shapes import require_affordable
from veritrain.replay.trace.tiles import Tile, clipped
from veritrain.replay.trace.tracer import Origins, Tracer
from veritrain.transcript.records import TensorEntry
from veritrain.transcript.slices import Opened
from veritrain.transcript.tensors import entry

_OPERATOR = re.compile(r"aten\.([A-Za-z0-9_]{1,80})\.([A-Za-z0-9_]{1,80})")

_MOST_RESERVED = 1 << 34  # bytes of a cell of which parts are opened; the others are never touched
Contents = Mapping[int, bytes]  # by cell


def recompute(
    arithmetic: Arithmetic,
    step: int,
    body: OperatorBody,
    contents: Contents,
    log: bytes | None,
) -> Effects | None:
    """What comes of a call; None where the rounding log does not lead on.

    Args:
        arithmetic: of the run's job.
        step: of the trace.
        body: of the entry; its call and its operands are agreed.
        contents: of the cells that it reads.
        log: the step's rounding log.

    Raises:
        InconclusiveError: this machine cannot say, or the call has no meaning.
    """
    plain = _definite(arithmetic)
    storages = {cell: _storage(data) for cell, data in contents.items()}
    following = cast("Following | None", plain.following(arithmetic.thresholds, log))
    if following is not None and body.operands.log is not None:
        following.seek(body.operands.log)
    tracer = _tracer(body.operands, storages, following)
    watched = Watched(plain, tracer)

    def to_tensor(view: CellView) -> Tensor:
        if view.cell not in storages:
            raise InconclusiveError("an argument in a cell that is not read")
        return view.tensor(storages[view.cell])

    args, kwargs = body.call.with_tensors(to_tensor)
    func = None if body.call.operator == ROUNDING else operator_named(body.call.operator)
    if func is not None:
        require_affordable(func, args, kwargs)
    with (
        watched.active(seed=arithmetic.seed, purpose="step", step=step, rounding=following),
        generators.resumed(body.call.draw),
    ):
        try:
            if func is None:
                watched.round_state(args)
            else:
                func(*args, **kwargs)
        except (TranscriptError, VerificationError):
            pass  # the entry says so
    if not isinstance(tracer.last, OperatorBody):
        raise InconclusiveError(f"{func}: a trace has no entry of this call")
    return tracer.last.effects


def _tracer(
    operands: Operands, storages: Mapping[int, torch.UntypedStorage], log: Following | None
) -> Tracer:
    """A tracer that has come to the call."""
    tracer = Tracer(bytes(DIGEST_BYTES), Origins({}, ()), rounds_state=True, log=log)
    for read in operands.reads:
        tracer.know(read, whole(storages[read.cell]))
    tracer.begin_at(operands.cells)
    return tracer


def recompute_tile(
    arithmetic: Arithmetic,
    step: int,
    body: OperatorBody,
    tile: Tile,
    opened: Mapping[int, Opened],
) -> bytes:
    """Bytes of a tile, from the opened parts of its operands.

    Raises:
        InconclusiveError: this machine cannot say, or the call has no meaning.
        VerificationError: a part is not opened.
    """
    plain = _definite(arithmetic)
    func = operator_named(body.call.operator)
    named = {name: calls.filled(value, _no_view) for name, value in body.call.named.items()}
    require_affordable(func, tile.bare_arguments(), named)
    storages = {cell: _sparse(opened[cell], ranges) for cell, ranges in tile.ranges().items()}
    args = tile.arguments(storages)
    with plain.active(seed=arithmetic.seed, purpose="step", step=step):
        results = func(*args, **named)
    return tile.content(results, args)


def state_tensor(name: str, view: CellView, content: bytes) -> TensorEntry:
    """The entry of a state's tensor, from the content of its cell.

    Raises:
        InconclusiveError: the view does not fit into the cell.
    """
    return entry(name, view.tensor(_storage(content)))


def operator_named(name: str) -> OpOverload:
    """The operator that an entry calls.

    Raises:
        InconclusiveError: there is none of that name, or it has no rule.
    """
    match = _OPERATOR.fullmatch(name)
    packet = None if match is None else getattr(torch.ops.aten, match[1], None)
    func = None if match is None else getattr(packet, match[2], None)
    if not isinstance(func, OpOverload):
        raise InconclusiveError(f"no operator: {name!a}")
    try:
        lookup(func)
    except UnsupportedOperatorError as error:
        raise InconclusiveError(f"no operator with a rule: {error}") from None
    return func


def _storage(data: bytes) -> torch.UntypedStorage:
    """A cell with this content."""
    storage = torch.UntypedStorage(len(data))
    fill(storage, data)
    return storage


def _definite(arithmetic: Arithmetic) -> Exact:
    plain = resolve(arithmetic.numerics)
    if not isinstance(plain, Exact):
        raise InconclusiveError(f"{plain.name} numerics have no definite results")
    return plain


def _sparse(opened: Opened, ranges: Sequence[tuple[int, int]]) -> torch.UntypedStorage:
    """A cell of which only these ranges are there; memory that nobody touches costs nothing."""
    if opened.total > _MOST_RESERVED:
        raise InconclusiveError(f"a cell of {opened.total} bytes is too large to compute with")
    storage = torch.UntypedStorage(opened.total)
    content = whole(storage).numpy().data
    for start, stop in clipped(ranges, opened.total):
        content[start:stop] = opened.read(start, stop)
    return storage


def _no_view(view: CellView) -> Tensor:
    raise InconclusiveError("a tensor among named arguments")
