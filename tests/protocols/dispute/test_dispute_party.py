"""An honest party signs one answer for each question, and nothing for anyone else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.protocols.dispute.simulator import referee_for
from tests.protocols.dispute.toy import (
    SIGNERS,
    STRANGER,
    Lie,
    Run,
    RunClaims,
    ToyJudge,
    challenge,
    header,
    opened,
)
from veritrain.adversaries.disputants import FalseDetail, message_in
from veritrain.encoding import Value
from veritrain.errors import UsageError, VerificationError, VeritrainError
from veritrain.protocols.dispute.check import check_equivocation
from veritrain.protocols.dispute.limits import LIMITS
from veritrain.protocols.dispute.messages import (
    PARTIES,
    DetailOf,
    Kind,
    LeafAt,
    Message,
    Opening,
    OperatorAt,
    Question,
    Role,
    Topic,
)
from veritrain.protocols.dispute.party import Claims, Party, Reply

TRAINER, CHALLENGER = PARTIES
REFEREE = SIGNERS[Role.REFEREE]
RUN, OTHER = Run(header(), 4, (Lie(2, 0),)), Run(header(), 4)
CHALLENGE = challenge(RUN, OTHER)
CONTEST = opened(CHALLENGE)


class LongEntry:
    """Claims whose entry has more bytes than an answer may."""

    def __init__(self, claims: RunClaims) -> None:
        self._claims = claims
        self.leaf, self.trace, self.detail = claims.leaf, claims.trace, claims.detail

    def operator(self, step: int, index: int) -> Opening:
        return replace(self._claims.operator(step, index), entry=bytes(LIMITS.entry_bytes))


def make_party(replies: dict[int, Reply], claims: Claims | None = None) -> Party:
    return Party(
        role=TRAINER,
        signer=SIGNERS[TRAINER],
        contest=CONTEST,
        claims=claims or RunClaims(RUN),
        replies=replies,
    )


def question(number: int, topic: Topic | None = None) -> Message:
    asked = Question(of=PARTIES, topic=topic or LeafAt(index=number % 3))
    return Message(
        run=CONTEST.run,
        dispute=CONTEST.dispute,
        sender=Role.REFEREE,
        number=number,
        kind=Kind.QUESTION,
        body=asked.to_value(),
    )


def sent(message: Message) -> bytes:
    return message.signed(REFEREE).to_bytes()


def test_the_same_question_has_the_same_answer_also_after_a_restart() -> None:
    replies: dict[int, Reply] = {}
    answers = [make_party(replies).answer(sent(question(number))) for number in (1, 2, 5)]
    again = [make_party(replies).answer(sent(question(number))) for number in (1, 2, 5)]
    assert answers == again
    assert [make_party(replies).resign(sent(question(1)))] == answers[:1]


def test_another_question_with_a_used_number_is_kept_as_proof() -> None:
    party = make_party({})
    party.answer(sent(question(1)))
    with pytest.raises(VerificationError, match="two different questions"):
        party.answer(sent(question(1, LeafAt(index=0))))
    ((first, second),) = party.conflicts
    proof = check_equivocation(first, second, key=REFEREE.public_key)
    assert (proof.sender, proof.number) == (Role.REFEREE, 1)


def test_numbers_rise() -> None:
    party = make_party({})
    party.answer(sent(question(4)))
    with pytest.raises(VerificationError, match="after a later one"):
        party.answer(sent(question(3)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        question(1).signed(STRANGER).to_bytes(),
        question(1).signed(SIGNERS[CHALLENGER]).to_bytes(),
        sent(replace(question(1), run=bytes(32))),
        sent(replace(question(1), dispute=bytes(32))),
        sent(replace(question(1), sender=CHALLENGER)),
        sent(replace(question(1), kind=Kind.ANSWER)),
        sent(replace(question(1), body={})),
        sent(
            replace(question(1), body=Question(of=(CHALLENGER,), topic=LeafAt(index=1)).to_value())
        ),
        sent(replace(question(1), number=0)),
        sent(replace(question(1), body={"more": bytes(LIMITS.question_bytes)})),
    ],
)
def test_what_is_no_question_to_it_is_not_answered(data: bytes) -> None:
    replies: dict[int, Reply] = {}
    with pytest.raises(VeritrainError):
        make_party(replies).answer(data)
    assert replies == {}


def test_what_cannot_be_opened_leaves_the_number_free() -> None:
    replies: dict[int, Reply] = {}
    party = make_party(replies)
    with pytest.raises(UsageError):
        party.answer(sent(question(1, LeafAt(index=99))))
    assert replies == {}
    assert message_in(party.resign(sent(question(1, LeafAt(index=99))))).kind is Kind.RESIGN


@pytest.mark.parametrize("detail", [bytes(LIMITS.detail_bytes), [None] * LIMITS.message_items])
def test_a_detail_that_a_referee_could_not_read_is_null(detail: Value) -> None:
    asked = sent(question(1, DetailOf(step=0, index=0, what=None)))
    answer = make_party({}, FalseDetail(RunClaims(RUN), detail)).answer(asked)
    assert answer == make_party({}, FalseDetail(RunClaims(RUN), None)).answer(asked)


def test_it_signs_nothing_that_a_referee_could_not_read() -> None:
    replies: dict[int, Reply] = {}
    party = make_party(replies, LongEntry(RunClaims(RUN)))
    with pytest.raises(UsageError):
        party.answer(sent(question(1, OperatorAt(step=0, index=0))))
    assert replies == {}


def test_leaves_of_another_head_are_not_signed() -> None:
    party = make_party({}, RunClaims(Run(header(), 7, (Lie(2, 0),))))
    with pytest.raises(VerificationError):
        party.answer(sent(question(1)))


def test_each_role_has_its_key() -> None:
    with pytest.raises(UsageError, match="the challenger's"):
        Party(
            role=CHALLENGER,
            signer=SIGNERS[TRAINER],
            contest=CONTEST,
            claims=RunClaims(OTHER),
            replies={},
        )


def test_a_restart_in_every_round_changes_nothing() -> None:
    claims = dict(zip(PARTIES, (RunClaims(RUN), RunClaims(OTHER)), strict=True))
    replies: dict[Role, dict[int, Reply]] = {role: {} for role in PARTIES}
    referee = referee_for(ToyJudge())
    referee.receive(CHALLENGE, 0)
    while referee.verdict is None:
        for role in PARTIES:
            asked = referee.question(role)
            for _ in range(2 if asked else 0):
                own = Party(
                    role=role,
                    signer=SIGNERS[role],
                    contest=CONTEST,
                    claims=claims[role],
                    replies=replies[role],
                )
                referee.receive(own.answer(asked or b""), 0)
    assert referee.verdict.loser.value == "trainer"
