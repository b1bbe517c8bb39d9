"""What anybody checks without the parties: a dispute is played again from its evidence, and a
trainer that signed two histories of one run is found out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields

from veritrain.encoding import Digest
from veritrain.errors import InconclusiveError, VerificationError
from veritrain.protocols.dispute.challenge import DisputeTerms, open_challenge, open_head
from veritrain.protocols.dispute.dispute_evidence import Bundle, DisputeEvidence
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.dispute_state import DisputeState
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Judge, Ruling
from veritrain.protocols.dispute.verdict import DisputeVerdict, unseal
from veritrain.transcript.record import check_equal
from veritrain.transcript.records import Header
from veritrain.transcript.signing import verify_signature

_KNOWN_BEFORE_JUDGE = ("run", "dispute", "root", "step", "index")
_COMPARED = tuple(field.name for field in fields(DisputeVerdict) if field.name != "reason")


def check_bundle(
    data: bytes, *, judge: Judge, referees: Collection[bytes], run: Digest | None = None
) -> DisputeVerdict:
    """The verdict in a bundle, after the dispute was played again and ended the same way.

    The caller names the public keys of the referees that it trusts, and the run that it means. The
    referee's word is needed for one thing: that a deadline passed (`DisputeVerdict.timed_out`).
    `reason` is the text that was found here: another version may have another text.

    Raises:
        TranscriptError: malformed bytes.
        VerificationError: a referee that is not trusted, another run, or a verdict that does not
            follow from the evidence.
        InconclusiveError: the judge here could not decide, whatever the referee's judge did.
    """
    # 1. The bundle is well formed, and its verdict signed by a trusted referee.
    bundle = Bundle.from_bytes(data, where="dispute bundle")
    evidence = bundle.evidence
    if evidence.referee not in referees:
        raise VerificationError("the bundle is of a referee that is not trusted")
    sealed = unseal(bundle.verdict, evidence.referee)
    # 2. The verdict is about this evidence.
    check_equal("evidence", sealed.evidence, evidence.digest)
    # 3. The same questions and events lead to what the verdict is about.
    watched = _WatchedJudge(judge)
    verdict = _played_again(evidence, watched, run)
    _require_equal(verdict, sealed, _KNOWN_BEFORE_JUDGE)
    # 4. A judge that decides nothing shows nothing. The events after its failure were not replayed.
    if watched.has_failed:
        _require_signed(evidence)
        raise InconclusiveError(f"the judge could not decide here: {verdict.reason}")
    # 5. They lead to the same end. Where an event of the evidence had no effect, it is missing in
    # the evidence that was collected here, so the digests of the two differ.
    _require_equal(verdict, sealed, _COMPARED)
    return verdict


def terms_of(evidence: DisputeEvidence, run: Digest | None = None) -> DisputeTerms:
    """Who is against whom over what, in `run` if given.

    Raises:
        TranscriptError: malformed bytes.
        VerificationError: no challenge that opens a dispute, or another run.
    """
    first = evidence.events[0] if evidence.events else None
    if not isinstance(first, bytes):
        raise VerificationError("evidence: expected a challenge first")
    return open_challenge(first, referee=evidence.referee, run=run)


def _require_equal(verdict: DisputeVerdict, sealed: DisputeVerdict, names: Sequence[str]) -> None:
    for name in names:
        expected, got = getattr(verdict, name), getattr(sealed, name)
        if expected != got:
            raise VerificationError(f"verdict: {name}: expected {expected}, got {got}")


def _require_signed(evidence: DisputeEvidence) -> None:
    """Check that every message is of a party."""
    terms = terms_of(evidence)
    events = [event for event in evidence.events[1:] if isinstance(event, bytes)]
    for place, event in enumerate(events, 1):
        try:
            terms.from_party(event, limit=LIMITS.detail_bytes)
        except VerificationError:
            raise VerificationError(f"evidence: message {place} is not signed by a party") from None


def _played_again(evidence: DisputeEvidence, judge: Judge, run: Digest | None) -> DisputeVerdict:
    state = DisputeState(
        terms=terms_of(evidence, run),
        signer=_SignedBefore(evidence),
        judge=judge,
    )
    for event in evidence.events[1:]:
        if isinstance(event, bytes):
            state.receive(event)
        elif event == state.number and state.verdict is None:
            state.expire()
    if state.verdict is None:
        raise VerificationError("evidence: ends before the dispute does")
    return state.verdict


class _WatchedJudge:
    """A judge, and whether it failed to decide."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.has_failed = False

    def next(self, case: Case, answered: Sequence[Answered]) -> Ruling | Ask:
        """See `Judge.next`."""
        try:
            return self._judge.next(case, answered)
        except Exception:
            self.has_failed = True
            raise


class _SignedBefore:
    """Signs again what the referee signed, in the same order, and nothing else."""

    def __init__(self, evidence: DisputeEvidence) -> None:
        self.public_key = evidence.referee
        self._left: Iterator[bytes] = iter(evidence.questions)

    def sign(self, domain: str, data: bytes) -> bytes:
        signature = next(self._left, None)
        if signature is None:
            raise VerificationError("evidence: a question is missing")
        verify_signature(self.public_key, domain, data, signature)
        return signature


def check_forked_heads(first: bytes, second: bytes, header: bytes) -> int:
    """Check a proof that the trainer of a run signed two histories of one length, and return it.

    Raises:
        TranscriptError: malformed bytes.
        VerificationError: not both signed by the run's key, of two lengths, or of one root.
    """
    run = Header.from_bytes(header, where="header")
    heads = [open_head(data, run, where="signed head") for data in (first, second)]
    if heads[0].size != heads[1].size:
        raise VerificationError(
            f"heads of {heads[0].size} and {heads[1].size} leaves do not contradict each other"
        )
    if heads[0].root == heads[1].root:
        raise VerificationError("both heads have one root")
    return heads[0].size
