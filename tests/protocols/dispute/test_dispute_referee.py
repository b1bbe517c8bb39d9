"""What the referee takes, drops and punishes, one message at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from tests.protocols.dispute.simulator import DEADLINES, decide, referee_for
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
    party,
    signed_head,
)
from veritrain.adversaries import disputants as cheat
from veritrain.adversaries.disputants import message_in
from veritrain.errors import InconclusiveError, UsageError, VerificationError, VeritrainError
from veritrain.parties.envelope import SignedEnvelope
from veritrain.protocols.dispute.challenge import Challenge, make_challenge, open_challenge
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.dispute_state import DisputeState
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Judge, Loser, Ruling
from veritrain.protocols.dispute.messages import PARTIES, Message, MessageKind, Role
from veritrain.protocols.dispute.party import DisputeParty
from veritrain.protocols.dispute.referee import Deadlines, Referee
from veritrain.protocols.dispute.verdict import Conclusion
from veritrain.transcript.records import Head, SignedHead

TRAINER, CHALLENGER = PARTIES
JOB = header()
FALSE, TRUE = Run(JOB, 4, (Lie(2, 0),)), Run(JOB, 4)
ROUNDS = 7  # of their dispute: three leaves, the trace, an operator, two details


class Table:
    """A dispute of a lying trainer and an honest challenger, moved by hand."""

    def __init__(self, judge: Judge | None = None, deadlines: Deadlines = DEADLINES) -> None:
        self.challenge = challenge(FALSE, TRUE)
        terms = opened(self.challenge)
        self.parties: dict[Role, DisputeParty] = {
            role: party(role, terms, RunClaims(run))
            for role, run in zip(PARTIES, (FALSE, TRUE), strict=True)
        }
        self.referee: Referee = referee_for(judge or ToyJudge(), deadlines)
        self.referee.receive(self.challenge, 0)

    def answer(self, role: Role) -> bytes:
        question = self.referee.question(role)
        assert question is not None
        return self.parties[role].answer(question)

    def move(self, rounds: int, now: float = 0) -> None:
        """Let both answer so many questions."""
        for _ in range(rounds):
            asked = [role for role in PARTIES if self.referee.question(role) is not None]
            for answer in [self.answer(role) for role in asked]:
                self.referee.receive(answer, now)

    def loser(self) -> Loser | None:
        return None if self.referee.verdict is None else self.referee.verdict.loser


def signed(message: Message, role: Role) -> bytes:
    return message.signed(SIGNERS[role]).to_bytes()


# Bytes without effect.


def test_without_a_challenge_nothing_happens() -> None:
    referee = referee_for(ToyJudge())
    for data in (b"", b"junk", Table().answer(TRAINER)):
        referee.receive(data, 1)
    referee.tick(10**9)
    assert (referee.question(TRAINER), referee.deadline, referee.verdict) == (None, None, None)
    assert referee.events == ()
    with pytest.raises(UsageError, match="not over"):
        referee.bundle()


def test_there_is_no_bundle_before_the_end() -> None:
    with pytest.raises(UsageError, match="not over"):
        Table().referee.bundle()


def test_what_is_over_does_not_expire() -> None:
    data = challenge(FALSE, TRUE)
    state = DisputeState(terms=opened(data), signer=SIGNERS[Role.REFEREE], judge=ToyJudge())
    state.expire()
    assert state.verdict is not None
    assert state.verdict.loser is Loser.TRAINER
    with pytest.raises(UsageError, match="no question"):
        state.expire()


def test_a_challenge_of_another_run_opens_nothing() -> None:
    other = Referee(
        signer=SIGNERS[Role.REFEREE], judge=ToyJudge(), deadlines=DEADLINES, now=0, run=bytes(32)
    )
    other.receive(challenge(FALSE, TRUE), 0)
    assert other.question(TRAINER) is None


@pytest.mark.parametrize("rounds", range(ROUNDS))
def test_what_no_party_signed_changes_nothing(rounds: int) -> None:
    table = Table()
    table.move(rounds)
    events = table.referee.events
    question = table.referee.question(TRAINER)
    true = table.answer(TRAINER)
    forged = message_in(true).signed(STRANGER).to_bytes()
    for data in (b"", b"\xa0", question, forged, true[:-1], true + b"\x00"):
        assert data is not None
        table.referee.receive(data, 0)
    for place in range(0, len(true), 7):
        broken = bytearray(true)
        broken[place] ^= 1
        table.referee.receive(bytes(broken), 0)
    assert (table.referee.events, table.loser()) == (events, None)


def test_messages_of_another_dispute_count_for_nothing() -> None:
    table = Table()
    for message in (
        cheat.other_dispute(message_in(table.answer(TRAINER))),
        replace(message_in(table.challenge), dispute=bytes(32)),
    ):
        table.referee.receive(signed(message, TRAINER), 0)
    assert (len(table.referee.events), table.loser()) == (1, None)


def test_repetitions_are_ignored_however_late() -> None:
    table = Table()
    first = table.answer(TRAINER)
    sent = [table.challenge]
    for _ in range(5):
        sent += [table.answer(role) for role in PARTIES if table.referee.question(role)]
        table.move(1)
        for data in sent:
            table.referee.receive(data, 0)
    assert first in table.referee.events
    assert len(table.referee.events) == len(set(sent))
    assert table.loser() is None


# Faults.


@pytest.mark.parametrize("rounds", range(ROUNDS))
@pytest.mark.parametrize("role", PARTIES)
@pytest.mark.parametrize(
    "change",
    [
        cheat.wrong_number,
        cheat.wrong_question,
        cheat.wrong_kind,
        cheat.other_content,
        cheat.wrong_size,
        lambda message: replace(message, run=bytes(32)),
        lambda message: replace(message, sender=Role.REFEREE),
        lambda message: replace(message, kind=MessageKind.RESIGN),
        lambda message: replace(message, body={}),
    ],
)
def test_whoever_signs_what_no_honest_party_would_loses(rounds, role, change) -> None:
    table = Table()
    table.move(rounds)
    if table.referee.question(role) is None:
        return
    table.referee.receive(signed(change(message_in(table.answer(role))), role), 0)
    assert table.loser() is Loser.of(role)
    assert table.referee.verdict is not None
    assert not table.referee.verdict.timed_out


def mutated(data: bytes, random: Random) -> bytes:
    """A few bytes changed, cut out or put in."""
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(data) + 1)
        new = random.randbytes(random.randint(0, 2))
        data = data[:place] + new + data[place + random.randint(0, 2) :]
    return data


@pytest.mark.parametrize("rounds", range(ROUNDS))
@pytest.mark.parametrize("role", PARTIES)
def test_whatever_a_party_signs_the_other_one_does_not_lose(rounds: int, role: Role) -> None:
    random = Random(rounds)
    for _ in range(25):
        table = Table()
        table.move(rounds)
        if table.referee.question(role) is None:
            return
        data = mutated(message_in(table.answer(role)).to_bytes(), random)
        signature = SIGNERS[role].sign(Message.type_name, data)
        table.referee.receive(SignedEnvelope(message=data, signature=signature).to_bytes(), 0)
        assert table.loser() in (None, Loser.of(role))


@pytest.mark.parametrize("role", PARTIES)
def test_signed_garbage_loses(role: Role) -> None:
    table = Table()
    (data,) = cheat.signed_garbage(SIGNERS[role], b"\xff\x00")(b"")
    table.referee.receive(data, 0)
    assert table.loser() is Loser.of(role)


def test_who_was_not_asked_must_not_answer() -> None:
    table = Table()
    message = message_in(table.answer(TRAINER))
    table.referee.receive(signed(replace(message, sender=CHALLENGER), CHALLENGER), 0)
    assert table.loser() is Loser.CHALLENGER


@pytest.mark.parametrize("late", range(1, ROUNDS))
def test_two_answers_to_one_question_lose_however_late(late: int) -> None:
    table = Table()
    first = table.answer(TRAINER)
    table.move(late)
    false = replace(message_in(first), body={**message_in(first).body, "entry": b""})
    table.referee.receive(signed(false, TRAINER), 0)
    assert table.loser() is Loser.TRAINER
    reason = table.referee.verdict.reason
    assert reason == "message 1 of the trainer: there are two different ones with this number"


def test_an_answer_that_has_another_signature_is_no_second_answer() -> None:
    """An Ed25519 key can sign one message in many ways; a repetition is one by its message."""
    table = Table()
    table.move(1)
    message = message_in(table.referee.events[1])
    table.referee.receive(message.signed(STRANGER).to_bytes(), 0)
    assert table.loser() is None


def test_after_the_verdict_nothing_changes() -> None:
    table = Table()
    table.referee.receive(table.parties[TRAINER].resign(table.referee.question(TRAINER)), 0)
    verdict = table.referee.verdict
    table.referee.receive(cheat.signed_garbage(SIGNERS[CHALLENGER], b"")(b"")[0], 1)
    table.referee.tick(10**9)
    assert table.referee.verdict == verdict
    assert table.referee.question(CHALLENGER) is None


# Deadlines.


@pytest.mark.parametrize(
    ("rounds", "limit"), [(0, 10), (2, 10), (3, 1000), (4, 10), (5, 1000), (6, 1000)]
)
def test_each_question_has_its_deadline(rounds: int, limit: int) -> None:
    table = Table(deadlines=Deadlines(memory=10, replay=1000))
    table.move(rounds, now=5)
    now = 5 if rounds else 0
    assert table.referee.deadline == now + limit
    table.referee.tick(now + limit - 0.5)
    assert table.loser() is None
    late = {role: table.answer(role) for role in PARTIES if table.referee.question(role)}
    for data in late.values():
        table.referee.receive(data, now + limit)
    assert table.loser() is Loser.of(*late)
    assert table.referee.verdict.timed_out
    assert table.referee.deadline is None


@pytest.mark.parametrize("role", PARTIES)
def test_whoever_answered_in_time_does_not_lose_by_the_other_one(role: Role) -> None:
    table = Table()
    table.move(1)
    table.referee.receive(table.answer(role), 0)
    table.referee.tick(10**9)
    other = CHALLENGER if role is TRAINER else TRAINER
    assert table.loser() is Loser.of(other)


def test_an_answer_of_one_gives_no_more_time_to_the_other() -> None:
    table = Table()
    table.move(1)
    deadline = table.referee.deadline
    table.referee.receive(table.answer(TRAINER), 50)
    assert table.referee.deadline == deadline


@pytest.mark.parametrize("now", [-1.0, float("nan")])
def test_time_does_not_go_back(now: float) -> None:
    with pytest.raises(UsageError, match="time"):
        referee_for(ToyJudge()).tick(now)


def test_a_deadline_begins_when_the_question_is_shown_for_the_first_time() -> None:
    table = Table(deadlines=Deadlines(memory=10, replay=1000))
    for now in (7, 8):
        table.referee.shown(now)
        assert table.referee.deadline == 17
    table.referee.receive(table.answer(TRAINER), 5)  # it came before, and waited
    assert table.referee.deadline == 15
    with pytest.raises(UsageError, match="time"):
        table.referee.shown(4)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_deadline_is_after_the_question(seconds: float) -> None:
    with pytest.raises(UsageError, match="deadline"):
        Deadlines(memory=seconds)


# Judges.


class Scripted:
    """Does the same whatever it sees."""

    def __init__(self, *moves: object) -> None:
        self.moves = moves

    def next(self, case: Case, answered: Sequence[Answered]) -> Ruling | Ask:
        move = self.moves[min(len(answered), len(self.moves) - 1)]
        if isinstance(move, Exception):
            raise move
        return move  # pyright: ignore[reportReturnType]


ASK = Ask(of=PARTIES, what="operand")


@pytest.mark.parametrize(
    ("moves", "reason"),
    [
        ([InconclusiveError("sin differs here")], "sin differs here"),
        ([ValueError("bad")], "the judge failed: ValueError"),
        ([ASK, KeyError(1)], "the judge failed: KeyError"),
        ([ASK], "the judge asks more than 2 times"),
        ([None], "the judge failed: AttributeError"),
        ([Ask(of=(), what=1)], "the judge failed: UsageError"),
        ([Ask(of=(Role.REFEREE,), what=1)], "the judge failed: UsageError"),
        ([Ask(of=PARTIES, what=bytes(LIMITS.what_bytes))], "the judge failed: UsageError"),
        ([Ask(of=PARTIES, what=object())], "the judge failed: UsageError"),  # pyright: ignore
        ([Ruling(loser=Loser.NONE, reason="a\nb\udc80\u2026")], r"a b\udc80\u2026"),
        ([Ruling(loser=Loser.NONE, reason="")], "no reason given"),
    ],
)
def test_a_judge_that_does_not_decide_decides_nothing(moves, reason: str) -> None:
    table = Table(judge=Scripted(*moves))
    table.move(12)
    verdict = table.referee.verdict
    assert (verdict.loser, verdict.conclusion) == (Loser.NONE, Conclusion.INCONCLUSIVE)
    assert verdict.reason == reason


@pytest.mark.parametrize("loser", list(Loser))
def test_the_ruling_is_the_judge_s(loser: Loser) -> None:
    table = Table(judge=Scripted(Ruling(loser=loser, reason="so")))
    table.move(12)
    assert table.loser() is loser


def test_a_judge_may_ask_one_party_alone() -> None:
    ruling = Ruling(loser=Loser.TRAINER, reason="so")
    table = Table(judge=Scripted(Ask(of=(CHALLENGER,), what="operand"), ruling))
    table.move(5)
    assert table.referee.question(TRAINER) is None
    assert table.referee.question(CHALLENGER) is not None
    table.move(1)
    assert table.loser() is Loser.TRAINER


def test_a_ruling_is_of_the_right_types() -> None:
    with pytest.raises(UsageError):
        Ruling(loser="trainer", reason="so")  # pyright: ignore


# Challenges.


def changed_challenge(**changes: object) -> bytes:
    body = Challenge.from_value(message_in(challenge(FALSE, TRUE)).body)
    body = replace(body, **changes)  # pyright: ignore
    message = replace(
        message_in(challenge(FALSE, TRUE)), body=body.to_value(), dispute=body.dispute
    )
    return signed(message, CHALLENGER)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        changed_challenge(header=header(1).to_bytes()),
        changed_challenge(header=b""),
        changed_challenge(head=b""),
        changed_challenge(challenger=SIGNERS[TRAINER].public_key),
        changed_challenge(challenger=STRANGER.public_key),
        changed_challenge(referee=STRANGER.public_key),
        changed_challenge(size=4),
        changed_challenge(size=6),
        changed_challenge(root=bytes(32)),
        changed_challenge(entry=b""),
        changed_challenge(proof=()),
        signed(replace(message_in(challenge(FALSE, TRUE)), run=bytes(32)), CHALLENGER),
        signed(replace(message_in(challenge(FALSE, TRUE)), dispute=bytes(32)), CHALLENGER),
        signed(replace(message_in(challenge(FALSE, TRUE)), number=1), CHALLENGER),
        signed(replace(message_in(challenge(FALSE, TRUE)), sender=TRAINER), CHALLENGER),
        signed(replace(message_in(challenge(FALSE, TRUE)), kind=MessageKind.ANSWER), CHALLENGER),
        signed(replace(message_in(challenge(FALSE, TRUE)), body={}), CHALLENGER),
        bytes(LIMITS.challenge_bytes + 1),
    ],
)
def test_a_wrong_challenge_opens_nothing(data: bytes) -> None:
    with pytest.raises(VeritrainError):
        opened(data)
    referee = referee_for(ToyJudge())
    referee.receive(data, 0)
    assert referee.question(TRAINER) is None
    referee.receive(changed_challenge(nonce=bytes(16)), 0)
    assert referee.question(TRAINER) is not None


def test_a_head_of_another_run_is_no_head_of_this_one() -> None:
    other = Run(header(1), 4)
    with pytest.raises(VeritrainError, match="run of the head"):
        open_challenge(
            changed_challenge(
                head=Challenge.from_value(message_in(challenge(other, other)).body).head
            ),
            referee=SIGNERS[Role.REFEREE].public_key,
        )


@pytest.mark.parametrize(
    ("signer", "referee"),
    [(TRAINER, Role.REFEREE), (CHALLENGER, TRAINER), (CHALLENGER, CHALLENGER)],
)
def test_nobody_has_two_roles(signer: Role, referee: Role) -> None:
    with pytest.raises(VerificationError, match="a key each"):
        make_challenge(
            signer=SIGNERS[signer],
            header=JOB.to_bytes(),
            head=signed_head(FALSE),
            referee=SIGNERS[referee].public_key,
            nonce=bytes(16),
            leaves=RunClaims(TRUE).leaves,
        )


def test_only_what_a_head_covers_can_be_challenged() -> None:
    with pytest.raises(VerificationError, match="leaf 5 is not covered by a head over 5"):
        challenge(FALSE, Run(JOB, 5))


def test_only_the_trainer_s_own_head_can_be_challenged() -> None:
    head = SignedHead.from_bytes(signed_head(FALSE), where="x")
    forged = replace(head, signature=STRANGER.sign(Head.type_name, head.head.to_bytes()))
    with pytest.raises(VerificationError, match="signature of the head"):
        opened(changed_challenge(head=forged.to_bytes()))


def test_the_longest_header_fits() -> None:
    long = replace(JOB, job={**JOB.job, "sources": bytes((1 << 20) - 500)})
    referee = referee_for(ToyJudge())
    referee.receive(challenge(Run(long, 1), Run(long, 1)), 0)
    assert referee.question(TRAINER) is not None


# Sizes and restarts.


def test_what_is_larger_than_the_question_allows_is_dropped_unread() -> None:
    table = Table()
    huge = message_in(table.answer(TRAINER))
    huge = replace(huge, body={**huge.body, "more": bytes(LIMITS.leaf_bytes)})
    table.referee.receive(signed(huge, TRAINER), 0)
    assert (len(table.referee.events), table.loser()) == (1, None)


def test_nested_arrays_do_not_fill_the_memory() -> None:
    table = Table()
    table.move(5)
    answer = message_in(table.answer(TRAINER))
    bomb = replace(answer, body={**answer.body, "detail": [[]] * LIMITS.message_items})
    table.referee.receive(signed(bomb, TRAINER), 0)
    assert table.loser() is Loser.TRAINER
    assert "more than 1048576 values" in table.referee.verdict.reason


def test_a_referee_that_was_interrupted_asks_the_same_again() -> None:
    table = Table()
    for rounds in range(9):
        again = referee_for(ToyJudge())
        for event in table.referee.events:
            assert isinstance(event, bytes)
            again.receive(event, 100)
        for role in PARTIES:
            assert again.question(role) == table.referee.question(role), rounds
        assert again.verdict == table.referee.verdict
        table.move(1)
    assert table.loser() is Loser.TRAINER


def test_the_number_of_rounds_of_a_long_run() -> None:
    long_false, long_true = Run(JOB, 999, (Lie(700, 0),)), Run(JOB, 999)
    data = challenge(long_false, long_true)
    terms = opened(data)
    referee = decide(
        data,
        {
            role: cheat.honest(party(role, terms, RunClaims(run)))
            for role, run in zip(PARTIES, (long_false, long_true), strict=True)
        },
    )
    assert referee.verdict.step == 700
    assert referee.verdict.rounds <= 10 + 2 + 4
