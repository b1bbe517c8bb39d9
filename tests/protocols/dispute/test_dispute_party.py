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
from veritrain.errors import (
    FieldError,
    TranscriptError,
    UsageError,
    VerificationError,
    VeritrainError,
)
from veritrain.parties.equivocation import EquivocationError, check_equivocation
from veritrain.parties.journal import Journal, JournalEntry
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.messages import (
    PARTIES,
    DetailOf,
    LeafAt,
    Message,
    MessageKind,
    Opening,
    OperatorAt,
    Question,
    Role,
    Topic,
)
from veritrain.protocols.dispute.party import Claims, DisputeParty

TRAINER, CHALLENGER = PARTIES
REFEREE = SIGNERS[Role.REFEREE]
RUN, OTHER = Run(header(), 4, (Lie(2, 0),)), Run(header(), 4)
CHALLENGE = challenge(RUN, OTHER)
TERMS = opened(CHALLENGE)


class LongEntry:
    """Claims whose entry has more bytes than an answer may."""

    def __init__(self, claims: RunClaims) -> None:
        self._claims = claims
        self.leaf, self.trace, self.detail = claims.leaf, claims.trace, claims.detail

    def operator(self, step: int, index: int) -> Opening:
        return replace(self._claims.operator(step, index), entry=bytes(LIMITS.entry_bytes))


def make_party(entries: dict[int, JournalEntry], claims: Claims | None = None) -> DisputeParty:
    return DisputeParty(
        role=TRAINER,
        signer=SIGNERS[TRAINER],
        terms=TERMS,
        claims=claims or RunClaims(RUN),
        journal=Journal(entries),
    )


def question(number: int, topic: Topic | None = None) -> Message:
    asked = Question(of=PARTIES, topic=topic or LeafAt(index=number % 3))
    return Message(
        run=TERMS.run,
        dispute=TERMS.dispute,
        sender=Role.REFEREE,
        number=number,
        kind=MessageKind.QUESTION,
        body=asked.to_value(),
    )


def sent(message: Message) -> bytes:
    return message.signed(REFEREE).to_bytes()


def test_the_same_question_has_the_same_answer_also_after_a_restart() -> None:
    entries: dict[int, JournalEntry] = {}
    answers = [make_party(entries).answer(sent(question(number))) for number in (1, 2, 5)]
    again = [make_party(entries).answer(sent(question(number))) for number in (1, 2, 5)]
    assert answers == again
    assert [make_party(entries).resign(sent(question(1)))] == answers[:1]


def test_another_question_with_a_used_number_is_kept_as_proof() -> None:
    party = make_party({})
    party.answer(sent(question(1)))
    with pytest.raises(EquivocationError, match="two different questions") as caught:
        party.answer(sent(question(1, LeafAt(index=0))))
    slot = check_equivocation(*caught.value.pair, key=REFEREE.public_key, of=Message)
    assert (slot.sender, slot.number) == ("referee", 1)


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
        sent(replace(question(1), kind=MessageKind.ANSWER)),
        sent(replace(question(1), body={})),
        sent(
            replace(question(1), body=Question(of=(CHALLENGER,), topic=LeafAt(index=1)).to_value())
        ),
        sent(replace(question(1), number=0)),
        sent(replace(question(1), body={"more": bytes(LIMITS.question_bytes)})),
    ],
)
def test_what_is_no_question_to_it_is_not_answered(data: bytes) -> None:
    entries: dict[int, JournalEntry] = {}
    with pytest.raises(VeritrainError):
        make_party(entries).answer(data)
    assert entries == {}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ask": "everything", "of": ["trainer"]},
        {"ask": "leaf", "of": ["trainer"], "index": -1},
        {"ask": "leaf", "of": ["referee"], "index": 1},
        {"ask": "leaf", "of": "trainer", "index": 1},
        {"ask": "leaf", "of": ["trainer"], "index": 1, "more": None},
        {"ask": "trace", "of": ["trainer"], "step": "1"},
        {"ask": "operator", "of": ["trainer"], "step": 1},
        {"ask": "detail", "of": ["trainer"], "step": 1, "index": 1, "what": bytes(1 << 15)},
    ],
)
def test_a_malformed_question_of_the_referee_is_not_this_partys_misuse(body) -> None:
    """The caller of `answer` did nothing wrong, so it is no `UsageError`."""
    entries: dict[int, JournalEntry] = {}
    for reply in (make_party(entries).answer, make_party(entries).resign):
        with pytest.raises(TranscriptError):
            reply(sent(replace(question(1), body=body)))
    assert entries == {}


def test_what_cannot_be_opened_leaves_the_number_free() -> None:
    entries: dict[int, JournalEntry] = {}
    party = make_party(entries)
    with pytest.raises(FieldError, match="leaf 99 of 5"):
        party.answer(sent(question(1, LeafAt(index=99))))
    assert entries == {}
    assert message_in(party.resign(sent(question(1, LeafAt(index=99))))).kind is MessageKind.RESIGN


@pytest.mark.parametrize("detail", [bytes(LIMITS.detail_bytes), [None] * LIMITS.message_items])
def test_a_detail_that_a_referee_could_not_read_is_null(detail: Value) -> None:
    asked = sent(question(1, DetailOf(step=0, index=0, what=None)))
    answer = make_party({}, FalseDetail(RunClaims(RUN), detail)).answer(asked)
    assert answer == make_party({}, FalseDetail(RunClaims(RUN), None)).answer(asked)


def test_it_signs_nothing_that_a_referee_could_not_read() -> None:
    entries: dict[int, JournalEntry] = {}
    party = make_party(entries, LongEntry(RunClaims(RUN)))
    with pytest.raises(UsageError):
        party.answer(sent(question(1, OperatorAt(step=0, index=0))))
    assert entries == {}


def test_leaves_of_another_head_are_not_signed() -> None:
    party = make_party({}, RunClaims(Run(header(), 7, (Lie(2, 0),))))
    with pytest.raises(VerificationError):
        party.answer(sent(question(1)))


def test_each_role_has_its_key() -> None:
    with pytest.raises(UsageError, match="the challenger's"):
        DisputeParty(
            role=CHALLENGER,
            signer=SIGNERS[TRAINER],
            terms=TERMS,
            claims=RunClaims(OTHER),
            journal=Journal({}),
        )


def test_a_restart_in_every_round_changes_nothing() -> None:
    claims = dict(zip(PARTIES, (RunClaims(RUN), RunClaims(OTHER)), strict=True))
    entries: dict[Role, dict[int, JournalEntry]] = {role: {} for role in PARTIES}
    referee = referee_for(ToyJudge())
    referee.receive(CHALLENGE, 0)
    while referee.verdict is None:
        for role in PARTIES:
            asked = referee.question(role)
            for _ in range(2 if asked else 0):
                own = DisputeParty(
                    role=role,
                    signer=SIGNERS[role],
                    terms=TERMS,
                    claims=claims[role],
                    journal=Journal(entries[role]),
                )
                referee.receive(own.answer(asked or b""), 0)
    assert referee.verdict.loser.value == "trainer"
