"""Results: what came of an entry. The judge computes an operator again from its operands, whole."""

from __future__ import annotations

from typing import cast

from veritrain.encoding import Value, encode
from veritrain.errors import InconclusiveError, UsageError
from veritrain.protocols.dispute.judge import Ruling
from veritrain.protocols.dispute.judging.judged_case import JudgedCase, against, require_openable
from veritrain.replay.trace.entry_bodies import (
    EntryBody,
    OperatorBody,
    OutcomeBody,
    StateBody,
    tree_after,
)
from veritrain.replay.trace.openings import opened_cells, opened_log
from veritrain.replay.trace.recompute import recompute, state_tensor
from veritrain.replay.trace.requests import OpenLog, OpenOperands
from veritrain.transcript import merkle
from veritrain.transcript.fields import differences, shown
from veritrain.transcript.records import TensorEntry


def false_result(judged: JudgedCase) -> Ruling | None:
    """What the entry says afterwards is what comes of its call, or of the state."""
    body = judged.bodies[0]
    name: str = body.kind
    if isinstance(body, OperatorBody):
        name, expected = body.call.operator, _of_operator(judged, body)
    elif isinstance(body, StateBody):
        expected = _of_state(judged, body)
    else:
        expected = _of_outcome(judged, cast(OutcomeBody, body))

    def problem(claim: EntryBody) -> str | None:
        value = claim.to_value()
        got = {field: value.get(field) for field in expected}
        return "; ".join(differences(expected, got)) if encode(got) != encode(expected) else None

    case = judged.case
    return against(
        judged.bodies, problem, f"result of {name}, entry {case.index} of step {case.step}"
    )


def _of_operator(judged: JudgedCase, body: OperatorBody) -> dict[str, Value]:
    case, operands = judged.case, body.operands
    require_openable(body.call.operator, operands.num_bytes)
    rounding = case.trainer.rounding if operands.log is not None else None
    contents, log = judged.opened(
        OpenOperands(log=rounding is not None),
        lambda detail: (opened_cells(detail, operands.reads), opened_log(detail, rounding)),
    )
    found = recompute(judged.arithmetic, case.step, body, contents, log)
    absent = dict.fromkeys(("results", "writes", "drawn", "logged", "refused"))
    return {**absent, **({"refused": True} if found is None else found.to_value())}


def _of_state(judged: JudgedCase, body: StateBody) -> dict[str, Value]:
    """The tensor that the cell holds, and the tree with it."""
    tensor, view = body.tensor, body.view
    if view is not None:
        (read,) = body.operands.reads
        if view.fills(read.size):
            tensor = TensorEntry(
                name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, digest=read.digest
            )
        else:
            require_openable(f"tensor {shown(tensor.name)}", read.size)
            contents = judged.opened(
                OpenOperands(log=False), lambda detail: opened_cells(detail, [read])
            )
            tensor = state_tensor(tensor.name, view, contents[read.cell])
    frontier = _tree_before(judged)
    frontier.append(tensor.to_bytes())
    return {"tensor": tensor.to_value(), "peaks": list(frontier.peaks)}


def _of_outcome(judged: JudgedCase, body: OutcomeBody) -> dict[str, Value]:
    refused = False
    rounding = body.rounding
    if rounding is not None:
        log = judged.opened(OpenLog(), lambda detail: opened_log(detail, rounding))
        refused = len(log or b"") != body.log
    return {"state": _tree_before(judged).root(), "refused": refused}


def _tree_before(judged: JudgedCase) -> merkle.Frontier:
    """The tree over the state's tensors up to the agreed entry."""
    try:
        return merkle.Frontier.resumed(*tree_after(judged.previous_body))
    except UsageError as error:
        raise InconclusiveError(f"the agreed entry has a tree of another form: {error}") from None
