"""Every bound on what is read in a dispute, in one place, with its unit.

Each is checked before memory is taken; a writer keeps the same bounds. What a party may send
depends on what it was asked last: anything larger is dropped before it is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from veritrain.replay.trace.entry import TraceEntry
from veritrain.transcript.limits import LIMITS as TRANSCRIPT

_FRAME = 1 << 13  # bytes round an entry: proof, digests, names, signature


@dataclass(frozen=True, kw_only=True)
class DisputeLimits:
    """Bounds on one dispute; `LIMITS` holds the values of version 1."""

    challenge_bytes: int = TRANSCRIPT.header_bytes + TRANSCRIPT.signature_bytes + _FRAME
    question_bytes: int = 1 << 16
    leaf_bytes: int = _FRAME  # an answer with a leaf
    entry_bytes: int = TraceEntry.max_bytes + _FRAME  # an answer with an entry of a trace
    detail_bytes: int = (
        3 << 26
    )  # an answer with what the judge wants opened: a rounding log, and operands
    message_items: int = 1 << 20  # CBOR values in one message; each takes about 100 bytes to hold
    what_bytes: int = 1 << 15  # what a judge asks for
    details: int = 2  # questions of the judge
    number: int = 1 << 10  # of the last question; there are at most 68
    proof_nodes: int = 64
    events: int = 1 << 10  # of one dispute
    evidence_bytes: int = 13 << 26  # four details, and 64 MiB for everything else
    verdict_bytes: int = 1 << 16
    reason_chars: int = 1024


LIMITS = DisputeLimits()
