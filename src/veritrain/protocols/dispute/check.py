"""For everyone who was not there: a dispute played again from its evidence, and proofs of
double-dealing that need no dispute at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields

from veritrain.encoding import Digest
from veritrain.errors import InconclusiveError, VerificationError
from veritrain.protocols.dispute.challenge import Contest, open_challenge
from veritrain.protocols.dispute.evidence import Bundle, Evidence
from veritrain.protocols.dispute.hearing import Hearing
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Judge, Ruling
from veritrain.protocols.dispute.messages import PARTIES, Message, Role, SignedMessage
from veritrain.protocols.dispute.verdict import Verdict, unseal
from veritrain.transcript.record import check_equal
from veritrain.transcript.records import Head, Header, SignedHead
from veritrain.transcript.signing import verify_signature

_SETTLED = ("run", "dispute", "root", "step", "index")  # before a judge is asked
_COMPARED = tuple(field.name for field in fields(Verdict) if field.name != "reason")


def check(
    data: bytes, *, judge: Judge, referees: Collection[bytes], run: Digest | None = None
) -> Verdict:
    """The verdict in a bundle, after the dispute was played again and ended the same way.

    The caller names the public keys of referees whose word it takes, and the run that it means. The
    referee's word is needed for one thing: that a deadline passed (`Verdict.timed_out`). `reason` is
    as it is found here: the referee's text may be that of another version.

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
    watched = _Watched(judge)
    verdict = _played_again(evidence, watched, run)
    _require_equal(verdict, sealed, _SETTLED)
    # 4. A judge that says nothing shows nothing: what follows in the evidence is not replayed then.
    if watched.has_failed:
        _require_signed(evidence)
        raise InconclusiveError(f"the judge could not decide here: {verdict.reason}")
    # 5. They lead to the same end. What had no effect is missing in the evidence of the hearing
    # here, so the digest of the evidence differs.
    _require_equal(verdict, sealed, _COMPARED)
    return verdict


def contest_of(evidence: Evidence, run: Digest | None = None) -> Contest:
    """Who is against whom over what, in `run` if given.

    Raises:
        TranscriptError: malformed bytes.
        VerificationError: no challenge that opens a dispute, or another run.
    """
    return open_challenge(_challenge(evidence), referee=evidence.referee, run=run)


def _challenge(evidence: Evidence) -> bytes:
    first = evidence.events[0] if evidence.events else None
    if not isinstance(first, bytes):
        raise VerificationError("evidence: expected a challenge first")
    return first


def _require_equal(verdict: Verdict, sealed: Verdict, names: Sequence[str]) -> None:
    for name in names:
        expected, got = getattr(verdict, name), getattr(sealed, name)
        if expected != got:
            raise VerificationError(f"verdict: {name}: expected {expected}, got {got}")


def _require_signed(evidence: Evidence) -> None:
    """Check that every message is of a party."""
    keys = contest_of(evidence).keys
    events = [event for event in evidence.events[1:] if isinstance(event, bytes)]
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


def _played_again(evidence: Evidence, judge: Judge, run: Digest | None) -> Verdict:
    contest = contest_of(evidence, run)
    signer = _Recorded(evidence)
    hearing = Hearing(challenge=_challenge(evidence), contest=contest, signer=signer, judge=judge)
    for event in evidence.events[1:]:
        if isinstance(event, bytes):
            hearing.hear(event)
        elif event == hearing.number and hearing.verdict is None:
            hearing.expire()
    if hearing.verdict is None:
        raise VerificationError("evidence: ends before the dispute does")
    return hearing.verdict


class _Watched:
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


class _Recorded:
    """Signs again what the referee signed, in the same order and nothing else."""

    def __init__(self, evidence: Evidence) -> None:
        self.public_key = evidence.referee
        self._left: Iterator[bytes] = iter(evidence.questions)

    def sign(self, domain: str, data: bytes) -> bytes:
        signature = next(self._left, None)
        if signature is None:
            raise VerificationError("evidence: a question is missing")
        verify_signature(self.public_key, domain, data, signature)
        return signature


@dataclass(frozen=True, kw_only=True)
class Equivocation:
    """Two different messages that one key signed with one number in one dispute."""

    dispute: Digest
    sender: Role
    number: int


def check_equivocation(first: bytes, second: bytes, *, key: bytes) -> Equivocation:
    """Check a proof that the owner of `key` said two different things in one place.

    An honest trainer, challenger or referee never makes such a pair; so it needs no referee.

    Raises:
        TranscriptError: malformed bytes.
        VerificationError: not both signed by the key, not of one place, or the same message.
    """
    signed = [
        SignedMessage.from_bytes(data, where=where)
        for data, where in ((first, "first message"), (second, "second message"))
    ]
    for one in signed:
        one.verify(key)
    messages = [one.opened(where="signed message") for one in signed]
    places = [_place(message) for message in messages]
    if places[0] != places[1]:
        raise VerificationError("the two messages are not of one place in one dispute")
    if signed[0].message == signed[1].message:
        raise VerificationError("the two messages are the same")
    return places[0]


def check_forked_heads(first: bytes, second: bytes, header: bytes) -> int:
    """Check a proof that the trainer of a run signed two histories of one length, and return it.

    Raises:
        TranscriptError: malformed bytes.
        VerificationError: not both signed by the run's key, of two lengths, or of one root.
    """
    run = Header.from_bytes(header, where="header")
    heads = [_head(data, run) for data in (first, second)]
    if heads[0].size != heads[1].size:
        raise VerificationError(
            f"heads of {heads[0].size} and {heads[1].size} leaves do not contradict each other"
        )
    if heads[0].root == heads[1].root:
        raise VerificationError("both heads have one root")
    return heads[0].size


def _place(message: Message) -> Equivocation:
    return Equivocation(dispute=message.dispute, sender=message.sender, number=message.number)


def _head(data: bytes, header: Header) -> Head:
    signed = SignedHead.from_bytes(data, where="signed head")
    verify_signature(header.public_key, Head.type_name, signed.head.to_bytes(), signed.signature)
    check_equal("run of the head", header.digest, signed.head.run)
    return signed.head
