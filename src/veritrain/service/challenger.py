"""The challenger's side of a dispute at a referee's service: brings the challenge, answers, fetches the verdict."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from veritrain.encoding import Digest
from veritrain.errors import InconclusiveError, TranscriptError, UsageError, VeritrainError
from veritrain.protocols.dispute.challenge import open_challenge
from veritrain.protocols.dispute.claims import Commitment
from veritrain.protocols.dispute.evidence import Bundle
from veritrain.protocols.dispute.limits import LIMITS
from veritrain.protocols.dispute.messages import Role
from veritrain.protocols.dispute.party import Party
from veritrain.service.kept import Docket, Shelf
from veritrain.service.peer import Answer, Peer, UnansweredError
from veritrain.transcript.record import check_equal

_SMALL_BYTES = 1 << 16  # of an answer that holds no message
_WAIT_SECONDS = 1  # for a question, before a look for the verdict
_PATIENCE_SECONDS = 900.0  # with a referee that cannot be reached
_PAUSE_SECONDS = 1.0
_AGAIN_SECONDS = 30.0  # until an answer that had no effect is sent once more
_HEX = re.compile("[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class About:
    """What a referee says of itself: its public key, and the run that it hears disputes about."""

    key: bytes
    run: bytes


class CourtAt:
    """A referee's service."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def about(self) -> About:
        """Who the referee is.

        Raises:
            VeritrainError: it cannot be reached, or is none.
        """
        fields = _json(_expect(self._peer.get("/referee", _SMALL_BYTES), 200), "key", "run")
        return About(key=bytes.fromhex(fields["key"]), run=bytes.fromhex(fields["run"]))

    def open(self, challenge: bytes) -> bytes:
        """Bring a challenge, and learn which dispute it opened.

        Raises:
            VeritrainError: the referee cannot be reached, or does not take it.
        """
        answer = self._peer.post("/disputes", challenge, _SMALL_BYTES)
        if answer.status == 422:
            raise UsageError(
                "the referee does not take this challenge: another run, or not from you"
            )
        return bytes.fromhex(_json(_expect(answer, 201), "dispute")["dispute"])

    def question(self, dispute: bytes, seconds: int) -> bytes | None:
        """The next question, if there is one within `seconds`."""
        path = f"/disputes/{dispute.hex()}/questions/challenger?wait={seconds}"
        answer = self._peer.get(path, max(LIMITS.question_bytes, _SMALL_BYTES))
        return None if answer.status == 204 else _expect(answer, 200)

    def send(self, dispute: bytes, message: bytes) -> None:
        """Bring a signed message."""
        path = f"/disputes/{dispute.hex()}/messages"
        _expect(self._peer.post(path, message, _SMALL_BYTES), 202)

    def is_over(self, dispute: bytes) -> bool:
        """Is there a verdict?"""
        path = f"/disputes/{dispute.hex()}/verdict"
        return self._peer.get(path, LIMITS.verdict_bytes).status == 200

    def evidence(self, dispute: bytes) -> bytes:
        """The bundle of a dispute that is over."""
        return _expect(self._peer.get(f"/disputes/{dispute.hex()}/evidence", Bundle.max_bytes), 200)


def unfinished(
    shelf: Shelf, *, run: Digest, referee: bytes, challenger: bytes, leaves: Commitment
) -> Docket | None:
    """The dispute about just this which was begun and has no bundle yet.

    Args:
        shelf: the challenger's.
        run: digest of its header.
        referee, challenger: public keys.
        leaves: what the challenger claims.
    """
    for dispute in shelf.disputes():
        docket = shelf.docket(dispute)
        if docket.is_empty or shelf.is_decided(dispute):
            continue
        try:
            contest = open_challenge(docket.challenge, referee=referee, run=run)
        except VeritrainError:  # before another referee, or about another run
            continue
        claim = (contest.keys[Role.CHALLENGER], contest.leaves[Role.CHALLENGER])
        if claim == (challenger, leaves):
            return docket
    return None


def contend(
    court: CourtAt, challenge: bytes, party: Party, dispute: bytes, report: Callable[[str], None]
) -> bytes:
    """Lead a dispute to its end.

    Args:
        court: the referee.
        challenge: signed; brought again, it goes on with the dispute that it opened.
        party: answers for the challenger.
        dispute: the digest that identifies it.
        report: is told what goes on, for people.

    Returns:
        The bundle, which nobody has checked yet.

    Raises:
        UsageError: the referee does not take the challenge, or cannot be reached any more.
        VeritrainError: an answer that cannot be given.
    """
    check_equal("dispute at the referee", dispute, court.open(challenge))
    report(f"dispute {dispute.hex()} is open; keep this running until its verdict")
    asked: bytes | None = None
    reached = sent = time.monotonic()
    while True:
        try:
            question = court.question(dispute, _WAIT_SECONDS)
            if question is None and court.is_over(dispute):
                return court.evidence(dispute)
            reached = time.monotonic()
            if question is None:
                continue
            if question != asked or time.monotonic() - sent > _AGAIN_SECONDS:
                court.send(dispute, _answer(party, question))
                asked, sent = question, time.monotonic()
            else:  # the answer is being heard
                time.sleep(_PAUSE_SECONDS / 5)
        except UnansweredError:
            if time.monotonic() - reached > _PATIENCE_SECONDS:
                raise
            asked = None
            time.sleep(_PAUSE_SECONDS)


def _answer(party: Party, question: bytes) -> bytes:
    """Raises InconclusiveError: there is none; the referee will take the silence for what it is."""
    try:
        return party.answer(question)
    except UnansweredError:
        raise
    except VeritrainError as error:
        raise InconclusiveError(f"a question of the referee cannot be answered: {error}") from error


def _expect(answer: Answer, status: int) -> bytes:
    """The body of an answer with this status.

    Raises:
        UnansweredError: it has another one.
    """
    if answer.status != status:
        raise UnansweredError(f"the referee answers with status {answer.status}")
    return answer.body


def _json(body: bytes, *names: str) -> dict[str, str]:
    """Digests in hexadecimal digits, by name.

    Raises:
        TranscriptError: anything else.
    """
    try:
        value = json.loads(body)
        found = {name: value[name] for name in names}
    except (ValueError, TypeError, KeyError, RecursionError):
        found = {}
    for name in names:
        if not isinstance(found.get(name), str) or not _HEX.fullmatch(found[name]):
            raise TranscriptError("answer of the referee", f"expected 64 digits as {name}")
    return found
