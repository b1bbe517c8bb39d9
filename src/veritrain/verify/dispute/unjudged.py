"""What someone without the job can check of a bundle: all but the recomputed operator."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NoReturn

from veritrain.encoding import Digest
from veritrain.errors import InconclusiveError, VerificationError
from veritrain.verify.dispute.challenge import open_challenge
from veritrain.verify.dispute.check import check
from veritrain.verify.dispute.evidence import Bundle, Evidence
from veritrain.verify.dispute.judge import Answered, Case
from veritrain.verify.dispute.messages import PARTIES, SignedMessage
from veritrain.verify.dispute.verdict import Verdict


def check_unjudged(
    data: bytes, *, referees: Collection[bytes], run: Digest | None = None
) -> Verdict:
    """The verdict in a bundle, where it follows without a judge: somebody resigned, was silent, said two
    things, or sent what breaks a rule. Arguments are those of `check`.

    Raises:
        TranscriptError: malformed bytes.
        VerificationError: as `check`.
        InconclusiveError: the verdict is the referee's, and the dispute went as it should up to where a
            judge is needed; what the judge found was not recomputed.
    """
    judge = _Absent()
    try:
        return check(data, judge=judge, referees=referees, run=run)
    except (VerificationError, InconclusiveError):
        if not judge.was_asked:
            raise
    _require_signed(Bundle.from_bytes(data, where="dispute bundle").evidence)
    raise InconclusiveError(
        "signatures and the order of the dispute are right; the last question, what one operator "
        "comes to, was not recomputed: that needs the job"
    )


def _require_signed(evidence: Evidence) -> None:
    """Check that every message is of a party; those after the judge's first question were not replayed."""
    challenge, *events = (event for event in evidence.events if isinstance(event, bytes))
    keys = open_challenge(challenge, referee=evidence.referee).keys
    for place, event in enumerate(events, 1):
        signed = SignedMessage.from_bytes(event, where=f"message {place}")
        if not any(_is_by(signed, keys[role]) for role in PARTIES):
            raise VerificationError(f"evidence: message {place} is not signed by a party")


def _is_by(signed: SignedMessage, key: bytes) -> bool:
    try:
        signed.verify(key)
    except VerificationError:
        return False
    return True


class _Absent:
    """A judge that cannot say anything, and remembers that it was needed."""

    def __init__(self) -> None:
        self.was_asked = False

    def next(self, case: Case, answered: Sequence[Answered]) -> NoReturn:
        self.was_asked = True
        raise InconclusiveError("there is no judge here")
