"""Structure: what the job does next, by its own code."""

from __future__ import annotations

from veritrain.encoding import Value, encode
from veritrain.job.step import Program
from veritrain.protocols.dispute.judge import Ruling
from veritrain.protocols.dispute.judging.judged_case import JudgedCase, against
from veritrain.protocols.dispute.messages import PARTIES
from veritrain.replay.trace.requests import OpenPrefix
from veritrain.replay.trace.state_openings import Prefix
from veritrain.replay.trace.structure import (
    UNKNOWN,
    NextEntry,
    Structure,
    next_structure,
    structure_of,
)
from veritrain.transcript.fields import differences


def false_structure(judged: JudgedCase) -> Ruling | None:
    """The structure of the entry is that of what the job does next."""
    claims = [structure_of(body) for body in judged.bodies]
    if encode(claims[0]) == encode(claims[1]):
        return None
    expected = next_entry(judged).structure

    def problem(claim: Structure) -> str | None:
        if encode(claim) == encode(expected):
            return None
        return "; ".join(differences(expected, claim)) or "a call of another form"

    return against(claims, problem, f"entry {judged.case.index} is not what the job does next")


def next_entry(judged: JudgedCase) -> NextEntry:
    """What the job does after the agreed entries."""
    programs = [Program.build(judged.job) for _ in UNKNOWN]

    def read(detail: Value) -> Prefix:
        opened = _prefix(judged, detail)
        for program, unknown in zip(programs, UNKNOWN, strict=True):
            opened.state.restore(program, unknown)
        return opened

    found = judged.opened(OpenPrefix(), read, PARTIES)
    return next_structure(programs, judged.case.step, found.batch, found.entries)


def prefix(judged: JudgedCase) -> Prefix:
    """The step up to the agreed entry."""
    return judged.opened(OpenPrefix(), lambda detail: _prefix(judged, detail), PARTIES)


def _prefix(judged: JudgedCase, detail: Value) -> Prefix:
    shards = judged.arithmetic.shards
    return Prefix.opened(detail, judged.before.state, judged.previous, shards)
