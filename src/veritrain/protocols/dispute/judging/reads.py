"""Reads: which entry wrote a cell last, and what the cell holds. Also where the rounding log is
read on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor

from veritrain.encoding import Digest, Value
from veritrain.errors import InconclusiveError
from veritrain.job.state import capture
from veritrain.job.step import Program
from veritrain.protocols.dispute.judge import Ruling
from veritrain.protocols.dispute.judging.judged_case import (
    JudgedCase,
    against,
    decided,
    require_openable,
)
from veritrain.protocols.dispute.judging.next_call import next_entry, prefix
from veritrain.protocols.dispute.messages import PARTIES
from veritrain.replay.trace import calls
from veritrain.replay.trace.cells import cell_digest, tight
from veritrain.replay.trace.entry_bodies import (
    EntryBody,
    FromBatch,
    FromState,
    InputsBody,
    LastWrite,
    MetCell,
    Operands,
    OperatorBody,
    OutcomeBody,
    position_after,
    position_before,
)
from veritrain.replay.trace.openings import FalseOpeningError, opened_entries
from veritrain.replay.trace.requests import OpenEntries, OpenState
from veritrain.replay.trace.state_openings import StateBefore
from veritrain.transcript.fields import shown

_OPTIMIZER = "optimizer/"


def false_read(judged: JudgedCase) -> Ruling | None:
    """Each cell that is read was written last by the entry that the reader names."""
    bodies = judged.bodies
    if any(isinstance(body, (InputsBody, OutcomeBody)) for body in bodies):
        return None
    ours, theirs = (_operands(body) for body in bodies)
    for own, other in zip(ours.reads, theirs.reads, strict=True):
        if own != other:
            return _ruling_on_cell(judged, own.cell, ours.met, (own.last, other.last))
    return None


def false_position(judged: JudgedCase) -> Ruling | None:
    """The rounding log is read on where the entry before ended."""
    expected = position_after(judged.previous_body)

    def problem(body: EntryBody) -> str | None:
        got = position_before(body)
        return f"expected {expected}, got {shown(got)}" if got != expected else None

    return against(judged.bodies, problem, "place in the rounding log")


def _operands(body: EntryBody) -> Operands:
    return cast(OperatorBody, body).operands  # a state's body has them too


def _ruling_on_cell(
    judged: JudgedCase, cell: int, met: Sequence[MetCell], claims: tuple[LastWrite, LastWrite]
) -> Ruling:
    index = cast(int, judged.case.index)
    found = next((row for row in reversed(met) if row.cell == cell), None)
    if found is not None:
        truth = LastWrite(index=index, digest=_content_of_met(judged, found))
    else:
        ruling = against(
            claims,
            lambda claim: None if 0 < claim.index < index else "no such entry",
            f"cell {cell}",
        )
        if ruling is not None:
            return ruling
        first = min(claim.index for claim in claims)
        bodies = judged.opened(
            OpenEntries(first=first),
            lambda detail: opened_entries(detail, first, judged.previous),
            PARTIES,
        )
        truth = _last_write(bodies, first, cell)

    def problem(claim: LastWrite) -> str | None:
        return None if claim == truth else "another entry wrote it last, or something else"

    return decided(claims, problem, f"cell {cell}")


def _last_write(bodies: Sequence[EntryBody], first: int, cell: int) -> LastWrite | None:
    """The last of these entries that wrote or met a cell, and the content's digest.

    Args:
        bodies: of consecutive entries.
        first: the index of the first one.
        cell: which.
    """
    for index, body in reversed([*enumerate(bodies, first)]):
        if isinstance(body, (InputsBody, OutcomeBody)):
            continue
        if isinstance(body, OperatorBody) and body.effects is not None:
            for write in reversed(body.effects.writes):
                if write.cell == cell:
                    return LastWrite(index=index, digest=write.digest)
        if any(met.cell == cell for met in body.operands.met):
            for read in reversed(body.operands.reads):
                if read.cell == cell:
                    return LastWrite(index=index, digest=read.digest)
    return None


def _content_of_met(judged: JudgedCase, met: MetCell) -> Digest:
    """The content of a cell that no operator made."""
    origin = met.origin
    if isinstance(origin, FromState):
        return _content_of_state(judged, origin.name, met.size)
    if isinstance(origin, FromBatch):
        tensors = [*calls.tensors_in(prefix(judged).batch)]
        if origin.place >= len(tensors):
            raise InconclusiveError(f"the batch has no tensor {origin.place}")
        return cell_digest(tight(tensors[origin.place]))
    constants = next_entry(judged).constants
    if met.cell not in constants:
        raise InconclusiveError(f"the job has no constant in cell {met.cell}")
    return constants[met.cell]


def _content_of_state(judged: JudgedCase, name: str, size: int) -> Digest:
    """The digest of a cell that holds a tensor of the state before, laid out as the model has
    it."""
    program = Program.build(judged.job)
    layout = capture(program)
    names = _sharing(layout, name)
    full = next((n for n in names if _fills_its_cell(layout, n)), None)
    if full is not None:
        return _content_of_tensor(judged, full, size)
    require_openable(f"tensor {shown(name)}", sum(layout[n].nbytes for n in names))

    def read(detail: Value) -> StateBefore:
        state = StateBefore.opened(detail, judged.before.state)
        for needed in names:
            if needed not in state.contents:
                raise FalseOpeningError(f"the content of {shown(needed)} is missing")
        state.restore(program)
        return state

    judged.opened(OpenState(names=tuple(names)), read, PARTIES)
    tensor = capture(program).get(name)
    if tensor is None or tensor.untyped_storage().nbytes() != size:
        raise InconclusiveError(f"tensor {shown(name)} shares its memory with others")
    return cell_digest(tensor)


def _content_of_tensor(judged: JudgedCase, name: str, size: int) -> Digest:
    """The digest of a cell that a tensor fills: the digest of the tensor."""
    state = judged.opened(
        OpenState(), lambda detail: StateBefore.opened(detail, judged.before.state), PARTIES
    )
    found = next((tensor for tensor in state.tensors if tensor.name == name), None)
    if found is None or found.num_bytes != size:
        raise InconclusiveError(f"the state has no tensor {shown(name)} of {size} bytes")
    return found.digest


def _sharing(layout: Mapping[str, Tensor], name: str) -> list[str]:
    """The tensors of a state in one cell with this one; an optimiser's have cells of their own.

    Raises:
        InconclusiveError: there is no such tensor.
    """
    if name.startswith(_OPTIMIZER):
        return [name]
    own = {n: x.untyped_storage().data_ptr() for n, x in layout.items()}
    if name not in own:
        raise InconclusiveError(f"the job's state has no tensor {shown(name)}")
    return [n for n in sorted(own) if own[n] == own[name] and not n.startswith(_OPTIMIZER)]


def _fills_its_cell(layout: Mapping[str, Tensor], name: str) -> bool:
    """Whether the tensor is all of its cell, in C order, as those of an optimiser are
    (`state.restore`)."""
    if name.startswith(_OPTIMIZER):
        return True
    tensor = layout[name]
    return tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()
