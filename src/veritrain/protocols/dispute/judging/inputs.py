"""Inputs: entry 0 against the agreed leaf, and against the batch that the seed chooses from the
records."""

from __future__ import annotations

from typing import cast

from veritrain.encoding import Value
from veritrain.errors import InconclusiveError
from veritrain.protocols.dispute.judge import Ruling
from veritrain.protocols.dispute.judging.judged_case import JudgedCase, against, decided
from veritrain.protocols.dispute.messages import PARTIES
from veritrain.replay.trace.entry_bodies import InputsBody
from veritrain.replay.trace.record_openings import opened_records
from veritrain.replay.trace.requests import OpenRecords
from veritrain.transcript.fields import differences

_MOST_RECORDS = 1 << 27  # of a data set whose order is made again; each takes 8 bytes and more


def false_inputs(judged: JudgedCase) -> Ruling | None:
    """Entry 0 has the state of the agreed leaf, the trainer's rounding log and the prescribed
    batch."""
    case = judged.case
    if case.index != 0:
        return None
    claims = cast("tuple[InputsBody, InputsBody]", judged.bodies)  # as entry 0 is
    begins = [(claim.state, claim.rounding) for claim in claims]
    if begins[0] == begins[1] and case.header.dataset_count > _MOST_RECORDS:
        count = case.header.dataset_count
        raise InconclusiveError(f"{count} records are too many to put in order")
    expected: dict[str, Value] = {
        "state": judged.before.state,
        "rounding": case.trainer.rounding,
    }

    def problem(claim: InputsBody) -> str | None:
        got: dict[str, Value] = {"state": claim.state, "rounding": claim.rounding}
        return "; ".join(differences(expected, got)) if got != expected else None

    return against(claims, problem, "inputs of the step") or _false_batch(judged, claims)


def _false_batch(judged: JudgedCase, claims: tuple[InputsBody, InputsBody]) -> Ruling:
    case = judged.case
    batch = judged.opened(
        OpenRecords(),
        lambda detail: opened_records(judged.job, case.header, case.step, detail),
        PARTIES,
    )
    if all(claim.batch != batch for claim in claims) and judged.job.collate is not None:
        raise InconclusiveError("collate makes neither party's batch of the records here")

    def problem(claim: InputsBody) -> str | None:
        return f"expected {batch.hex()}" if claim.batch != batch else None

    return decided(claims, problem, "batch")
