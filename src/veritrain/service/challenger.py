"""The challenger's side of a dispute at a referee's service.

It brings the challenge, answers the referee's questions and fetches the verdict.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from veritrain.encoding import Digest
from veritrain.errors import InconclusiveError, UsageError, VeritrainError
from veritrain.net.http_client import HttpClient, UnansweredError
from veritrain.parties.equivocation import EquivocationError
from veritrain.protocols.dispute.challenge import open_challenge
from veritrain.protocols.dispute.claims import Commitment
from veritrain.protocols.dispute.dispute_evidence import Bundle
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.messages import Role
from veritrain.protocols.dispute.party import DisputeParty
from veritrain.service.dispute_folder import DisputeArchive, DisputeFolder
from veritrain.transcript.record import check_equal

_SMALL_BYTES = 1 << 16  # of an answer that holds no message
_WAIT_SECONDS = 1  # for a question, before a look for the verdict
_PATIENCE_SECONDS = 900.0  # with a referee that cannot be reached
_PAUSE_SECONDS = 1.0
_AGAIN_SECONDS = 30.0  # until an answer that had no effect is sent once more
_WHO = "the referee"
_HEX = re.compile("[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class RefereeInfo:
    """Who a referee says it is: its public key, and the run that it decides disputes about."""

    key: bytes
    run: bytes


class RefereeClient:
    """A referee's service."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    def about(self) -> RefereeInfo:
        """Who the referee is.

        Raises:
            VeritrainError: it cannot be reached, or is none.
        """
        answer = self._client.get("/referee", _SMALL_BYTES)
        answer.expect(200, _WHO)
        key, run = answer.text("key", _HEX), answer.text("run", _HEX)
        return RefereeInfo(key=bytes.fromhex(key), run=bytes.fromhex(run))

    def open(self, challenge: bytes) -> bytes:
        """Bring a challenge, and learn which dispute it opened.

        Raises:
            VeritrainError: the referee cannot be reached, or does not take it.
        """
        answer = self._client.post("/disputes", challenge, _SMALL_BYTES)
        if answer.status == 422:
            raise UsageError(
                "the referee does not take this challenge: another run, or not from you"
            )
        answer.expect(201, _WHO)
        return bytes.fromhex(answer.text("dispute", _HEX))

    def question(self, dispute: bytes, seconds: int) -> bytes | None:
        """The next question, if there is one within `seconds`."""
        path = f"/disputes/{dispute.hex()}/questions/challenger?wait={seconds}"
        answer = self._client.get(path, max(LIMITS.question_bytes, _SMALL_BYTES))
        return None if answer.status == 204 else answer.expect(200, _WHO)

    def send(self, dispute: bytes, message: bytes) -> None:
        """Bring a signed message."""
        path = f"/disputes/{dispute.hex()}/messages"
        self._client.post(path, message, _SMALL_BYTES).expect(202, _WHO)

    def is_over(self, dispute: bytes) -> bool:
        """Is there a verdict?"""
        path = f"/disputes/{dispute.hex()}/verdict"
        return self._client.get(path, LIMITS.verdict_bytes).status == 200

    def evidence(self, dispute: bytes) -> bytes:
        """The bundle of a dispute that is over."""
        path = f"/disputes/{dispute.hex()}/evidence"
        return self._client.get(path, Bundle.max_bytes).expect(200, _WHO)


def unfinished(
    archive: DisputeArchive, *, run: Digest, referee: bytes, challenger: bytes, leaves: Commitment
) -> DisputeFolder | None:
    """The folder of the dispute with these terms that was begun and has no bundle yet.

    Args:
        archive: the challenger's.
        run: digest of its header.
        referee, challenger: public keys.
        leaves: what the challenger claims.
    """
    for dispute in archive.contexts():
        folder = archive.dispute(dispute)
        if folder.is_empty or archive.is_decided(dispute):
            continue
        try:
            terms = open_challenge(folder.challenge, referee=referee, run=run)
        except VeritrainError:  # before another referee, or about another run
            continue
        claim = (terms.key(Role.CHALLENGER), terms.leaves[Role.CHALLENGER])
        if claim == (challenger, leaves):
            return folder
    return None


def lead_dispute(
    referee: RefereeClient,
    folder: DisputeFolder,
    party: DisputeParty,
    dispute: bytes,
    report: Callable[[str], None],
) -> bytes:
    """Lead a dispute to its end.

    Args:
        referee: decides the dispute.
        folder: has the challenge, which goes on with the dispute that it opened. Takes the proof if
            the referee signs two questions with one number.
        party: answers for the challenger.
        dispute: the digest that identifies it.
        report: is told what goes on, for people.

    Returns:
        The bundle, which nobody has checked yet.

    Raises:
        UsageError: the referee does not take the challenge, or cannot be reached any more.
        VeritrainError: an answer that cannot be given.
    """
    check_equal("dispute at the referee", dispute, referee.open(folder.challenge))
    report(f"dispute {dispute.hex()} is open; keep this running until its verdict")
    asked: bytes | None = None
    reached = sent = time.monotonic()
    while True:
        try:
            question = referee.question(dispute, _WAIT_SECONDS)
            if question is None and referee.is_over(dispute):
                return referee.evidence(dispute)
            reached = time.monotonic()
            if question is None:
                continue
            if question != asked or time.monotonic() - sent > _AGAIN_SECONDS:
                referee.send(dispute, _answer(party, folder, question))
                asked, sent = question, time.monotonic()
            else:  # the referee has not looked at the answer yet
                time.sleep(_PAUSE_SECONDS / 5)
        except UnansweredError:
            if time.monotonic() - reached > _PATIENCE_SECONDS:
                raise
            asked = None
            time.sleep(_PAUSE_SECONDS)


def _answer(party: DisputeParty, folder: DisputeFolder, question: bytes) -> bytes:
    """The answer to a question.

    Raises:
        InconclusiveError: there is none. This party will lose by silence. If the referee signed
            another question with the same number, both are kept.
        UsageError: they cannot be written.
    """
    try:
        return party.answer(question)
    except UnansweredError:
        raise
    except EquivocationError as error:
        place = folder.keep_equivocation(error.pair)
        raise InconclusiveError(
            f"the referee signed two questions with one number: proof in {place}"
        ) from error
    except VeritrainError as error:
        raise InconclusiveError(f"a question of the referee cannot be answered: {error}") from error
