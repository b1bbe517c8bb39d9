"""Evidence leads everyone to the verdict that the referee signed, or it is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.protocols.dispute.simulator import decide
from tests.protocols.dispute.toy import (
    SIGNERS,
    STRANGER,
    Absent,
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
from veritrain.errors import InconclusiveError, TranscriptError, VerificationError, VeritrainError
from veritrain.parties.equivocation import check_equivocation
from veritrain.protocols.dispute.dispute_evidence import Bundle
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Judge, Loser, Ruling
from veritrain.protocols.dispute.messages import PARTIES, Message, Role
from veritrain.protocols.dispute.offline_check import check_bundle, check_forked_heads
from veritrain.protocols.dispute.verdict import PAYLOAD_TYPE, Conclusion, DisputeVerdict, unseal
from veritrain.transcript.records import SignedHead
from veritrain.transcript.signing import verify_dsse

TRAINER, CHALLENGER = PARTIES
REFEREE = SIGNERS[Role.REFEREE]
FALSE, TRUE = Run(header(), 4, (Lie(2, 0),)), Run(header(), 4)


def play(behaviour: str = "honest", judge: Judge | None = None) -> bytes:
    """The bundle of a dispute in which the challenger is right."""
    data = challenge(FALSE, TRUE)
    terms = opened(data)
    trainer, challenger = (
        party(role, terms, RunClaims(run)) for role, run in zip(PARTIES, (FALSE, TRUE), strict=True)
    )
    cheats = {
        "honest": cheat.honest(trainer),
        "silent": cheat.silent,
        "resigning": cheat.resigning(trainer),
        "garbage": cheat.signed_garbage(SIGNERS[TRAINER], b"\xff"),
        "equivocating": cheat.Altered(trainer, SIGNERS[TRAINER], cheat.wrong_size, also=True),
    }
    disputants = {
        TRAINER: cheat.from_question(3, cheat.honest(trainer), cheats[behaviour]),
        CHALLENGER: cheat.honest(challenger),
    }
    return decide(data, disputants, judge=judge).bundle()


HONEST = play()


def checked(data: bytes) -> DisputeVerdict:
    return check_bundle(data, judge=ToyJudge(), referees=[REFEREE.public_key])


@pytest.mark.parametrize(
    ("behaviour", "timed_out"),
    [
        ("honest", False),
        ("silent", True),
        ("resigning", False),
        ("garbage", False),
        ("equivocating", False),
    ],
)
def test_everyone_comes_to_the_same_verdict(behaviour: str, timed_out: bool) -> None:
    data = play(behaviour)
    verdict = checked(data)
    assert (verdict.loser, verdict.timed_out) == (Loser.TRAINER, timed_out)
    assert verdict.conclusion is Conclusion.REJECTED
    bundle = Bundle.from_bytes(data, where="x")
    assert unseal(bundle.verdict, REFEREE.public_key) == verdict


def test_every_changed_byte_is_refused() -> None:
    for place in range(len(HONEST)):
        changed = bytearray(HONEST)
        changed[place] ^= 1 << place % 8
        with pytest.raises((TranscriptError, VerificationError)):
            checked(bytes(changed))


def resigned(bundle: Bundle, **changes: object) -> bytes:
    """What a referee that lies would hand out: other evidence, under a verdict that names it."""
    evidence = replace(bundle.evidence, **changes)  # pyright: ignore
    verdict = unseal(bundle.verdict, REFEREE.public_key)
    sealed = replace(verdict, evidence=evidence.digest).seal(REFEREE)
    return Bundle(evidence=evidence, verdict=sealed).to_bytes()


def test_a_referee_cannot_drop_add_or_reorder() -> None:
    bundle = Bundle.from_bytes(HONEST, where="x")
    events, questions = bundle.evidence.events, bundle.evidence.questions
    assert checked(resigned(bundle)).loser is Loser.TRAINER
    stranger = message_in(events[1]).signed(STRANGER).to_bytes()
    lies = [
        {"events": ()},
        {"events": (1,)},
        {"questions": ()},
        {"questions": (*questions, bytes(64))},
        {"questions": (questions[1], questions[0], *questions[2:])},
        {"events": (*events, events[-1])},
        {"events": (*events, 1)},
        {"events": (events[0], stranger, *events[1:])},
        {"events": (events[0], 2, *events[1:])},
        *({"events": events[:place] + events[place + 1 :]} for place in range(len(events))),
        *({"events": events[:place]} for place in range(len(events))),
        *(
            {"events": (*events[:place], events[place], *events[place:])}
            for place in range(len(events))
        ),
    ]
    for lie in lies:
        with pytest.raises((TranscriptError, VerificationError)):
            checked(resigned(bundle, **lie))


@pytest.mark.parametrize(
    "change",
    [
        {"loser": Loser.CHALLENGER},
        {"loser": Loser.NONE},
        {"timed_out": True},
        {"step": 1},
        {"index": None},
        {"rounds": 1},
        {"root": bytes(32)},
    ],
)
def test_a_referee_cannot_sign_another_verdict(change) -> None:
    bundle = Bundle.from_bytes(HONEST, where="x")
    verdict = unseal(bundle.verdict, REFEREE.public_key)
    lie = replace(bundle, verdict=replace(verdict, **change).seal(REFEREE)).to_bytes()
    with pytest.raises(VerificationError, match=next(iter(change))):
        checked(lie)


def test_the_reason_is_the_referees_words() -> None:
    bundle = Bundle.from_bytes(HONEST, where="x")
    verdict = unseal(bundle.verdict, REFEREE.public_key)
    reworded = replace(verdict, reason="as an earlier version said it").seal(REFEREE)
    assert checked(replace(bundle, verdict=reworded).to_bytes()) == verdict


def test_only_trusted_referees_and_the_meant_run_count() -> None:
    with pytest.raises(VerificationError, match="trusted"):
        check_bundle(HONEST, judge=ToyJudge(), referees=[])
    with pytest.raises(VerificationError, match="run"):
        check_bundle(HONEST, judge=ToyJudge(), referees=[REFEREE.public_key], run=bytes(32))


class Other(ToyJudge):
    """Asks as it should, and then does something else."""

    def __init__(self, decision: Ruling | Exception) -> None:
        self._decision = decision

    def next(self, case: Case, answered: Sequence[Answered]) -> Ruling | Ask:
        decision = super().next(case, answered)
        if isinstance(decision, Ask):
            return decision
        if isinstance(self._decision, Exception):
            raise self._decision
        return self._decision


ABSTAINING = [
    Other(InconclusiveError("no such operator here")),
    Other(MemoryError()),
    Other(Ruling(loser=Loser.NONE, reason="honest machines differ")),
]


def test_another_judge_disagrees_or_abstains() -> None:
    referees = [REFEREE.public_key]
    for loser in (Loser.CHALLENGER, Loser.BOTH, Loser.NONE):
        with pytest.raises(VerificationError, match="loser"):
            check_bundle(HONEST, judge=Other(Ruling(loser=loser, reason="so")), referees=referees)
    with pytest.raises(InconclusiveError, match="no such operator here"):
        check_bundle(HONEST, judge=ABSTAINING[0], referees=referees)
    with pytest.raises(InconclusiveError, match="MemoryError"):
        check_bundle(HONEST, judge=ABSTAINING[1], referees=referees)
    with pytest.raises(InconclusiveError, match="not recomputed"):
        check_bundle(HONEST, judge=Absent(), referees=referees)


@pytest.mark.parametrize("judge", [*ABSTAINING[:2], Absent()])
def test_a_judge_that_says_nothing_shows_nothing(judge: Judge) -> None:
    """A referee hides what its judge found; whoever has no judge cannot tell, and so does not
    confirm it."""
    hidden = play(judge=judge)
    referees = [REFEREE.public_key]
    assert unseal(Bundle.from_bytes(hidden, where="x").verdict, *referees).loser is Loser.NONE
    with pytest.raises(VerificationError, match="loser|a question is missing"):
        checked(hidden)
    with pytest.raises(InconclusiveError):
        check_bundle(hidden, judge=judge, referees=referees)
    with pytest.raises(InconclusiveError, match="not recomputed"):
        check_bundle(hidden, judge=Absent(), referees=referees)


def test_a_ruling_that_nobody_loses_is_confirmed() -> None:
    hidden = play(judge=ABSTAINING[2])
    verdict = check_bundle(hidden, judge=ABSTAINING[2], referees=[REFEREE.public_key])
    assert verdict.conclusion is Conclusion.INCONCLUSIVE


@pytest.mark.parametrize("behaviour", ["silent", "resigning", "garbage", "equivocating"])
def test_what_needs_no_judge_is_checked_without(behaviour: str) -> None:
    data = play(behaviour)
    assert check_bundle(data, judge=Absent(), referees=[REFEREE.public_key]) == checked(data)


@pytest.mark.parametrize("change", [{"step": 1}, {"index": None}, {"root": bytes(32)}])
def test_what_a_verdict_is_about_needs_no_judge(change) -> None:
    bundle = Bundle.from_bytes(HONEST, where="x")
    verdict = unseal(bundle.verdict, REFEREE.public_key)
    lie = replace(bundle, verdict=replace(verdict, **change).seal(REFEREE)).to_bytes()
    with pytest.raises(VerificationError, match=next(iter(change))):
        check_bundle(lie, judge=Absent(), referees=[REFEREE.public_key])


def test_messages_that_are_not_replayed_are_of_a_party_all_the_same() -> None:
    bundle = Bundle.from_bytes(HONEST, where="x")
    events = bundle.evidence.events
    forged = message_in(events[-1]).signed(STRANGER).to_bytes()
    with pytest.raises(VerificationError, match="not signed by a party"):
        check_bundle(
            resigned(bundle, events=(*events[:-1], forged)),
            judge=Absent(),
            referees=[REFEREE.public_key],
        )


# The verdict as a statement.


def test_the_envelope_is_what_other_tools_read() -> None:
    envelope = json.loads(Bundle.from_bytes(HONEST, where="x").verdict)
    payload = base64.b64decode(envelope["payload"])
    (signature,) = envelope["signatures"]
    assert envelope["payloadType"] == PAYLOAD_TYPE == "application/vnd.in-toto+json"
    verify_dsse(REFEREE.public_key, PAYLOAD_TYPE, payload, base64.b64decode(signature["sig"]))
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert [one["name"] for one in statement["subject"]] == ["run", "leaves"]
    assert statement["predicate"]["conclusion"] == "rejected"
    verdict = checked(HONEST)
    assert statement["subject"][0]["digest"] == {"veritrainHeader": verdict.run.hex()}
    assert statement["predicate"]["step"] == 2
    assert DisputeVerdict.from_json(payload) == verdict


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"rounds":7', b'"rounds":7.0'),
        (b'"rounds":7', b'"rounds":true'),
        (b'"rounds":7', b'"rounds":-1'),
        (b'"rounds":7', b'"rounds":1e3'),
        (b'"rounds":7', b'"rounds":NaN'),
        (b'"rounds":7', b'"rounds":' + b"9" * 5000),
        (b'"rounds":7', b'"rounds": 7'),
        (b'"rounds":7', b'"rounds":7,"rounds":7'),
        (b'"rounds":7', b'"rounds":7,"more":1'),
        (b'"rounds":7', b'"turns":7'),
        (b'"loser":"trainer"', b'"loser":"challenger"'),
        (b'"conclusion":"rejected"', b'"conclusion":"inconclusive"'),
        (b'"timedOut":false', b'"timedOut":0'),
        (b"Statement/v1", b"Statement/v2"),
        (b"dispute-verdict:v1", b"dispute-verdict:v2"),
        (b'"subject":[', b'"subject":[[],'),
        (b'"predicate":{', b'"predicate":[],"other":{'),
        (b"{", b"[" * 50000 + b"{"),
        (b"}", b""),
        (b"trainer", b"tr\xc3\xa4iner"),
    ],
)
def test_only_the_one_form_of_a_statement_is_read(old: bytes, new: bytes) -> None:
    payload = checked(HONEST).to_json()
    assert old in payload
    with pytest.raises(TranscriptError):
        DisputeVerdict.from_json(payload.replace(old, new, 1))


@pytest.mark.parametrize(
    "envelope",
    [b"", b"[]", b"{}", b"null", b'{"payload":1,"signatures":[]}', b"{" * 70000, b"\xff"],
)
def test_what_is_no_envelope_is_refused(envelope: bytes) -> None:
    with pytest.raises(TranscriptError):
        unseal(envelope, REFEREE.public_key)


def test_the_envelope_has_one_form_too() -> None:
    envelope = Bundle.from_bytes(HONEST, where="x").verdict
    value = json.loads(envelope)
    signature = value["signatures"][0]
    for other in (
        {**value, "more": 1},
        {**value, "payloadType": "text/plain"},
        {**value, "signatures": [signature, signature]},
        {**value, "signatures": [{**signature, "keyid": "me"}]},
    ):
        with pytest.raises(TranscriptError):
            unseal(json.dumps(other, separators=(",", ":")).encode(), REFEREE.public_key)
    with pytest.raises(TranscriptError):
        unseal(envelope.replace(b",", b", "), REFEREE.public_key)
    with pytest.raises(VerificationError):
        unseal(envelope, STRANGER.public_key)


@pytest.mark.parametrize(
    ("loser", "conclusion"),
    [
        (Loser.TRAINER, Conclusion.REJECTED),
        (Loser.BOTH, Conclusion.REJECTED),
        (Loser.CHALLENGER, Conclusion.REFUTED),
        (Loser.NONE, Conclusion.INCONCLUSIVE),
    ],
)
def test_what_a_dispute_says_of_the_run(loser: Loser, conclusion: Conclusion) -> None:
    verdict = replace(checked(HONEST), loser=loser)
    assert verdict.conclusion is conclusion
    assert "accepted" not in verdict.to_json().decode()
    with pytest.raises(TypeError, match="no truth value"):
        bool(verdict)


# Proofs of double-dealing.


def test_two_messages_of_one_number_convict_whoever_signed_them() -> None:
    first = Bundle.from_bytes(HONEST, where="x").evidence.events[1]
    signer = SIGNERS[TRAINER]
    second = cheat.wrong_size(message_in(first)).signed(signer).to_bytes()
    proof = check_equivocation(first, second, key=signer.public_key, of=Message)
    assert (proof.sender, proof.number) == (TRAINER.value, 1)
    other_number = cheat.wrong_number(message_in(first)).signed(signer).to_bytes()
    other_dispute = cheat.other_dispute(message_in(first)).signed(signer).to_bytes()
    for pair in (
        (first, first),
        (first, other_number),
        (first, other_dispute),
        (first, message_in(second).signed(STRANGER).to_bytes()),
        (first, b""),
        (first, cheat.signed_garbage(signer, b"")(b"")[0]),
    ):
        with pytest.raises(VeritrainError):
            check_equivocation(*pair, key=signer.public_key, of=Message)
        with pytest.raises(VeritrainError):
            check_equivocation(*pair[::-1], key=signer.public_key, of=Message)


def test_two_heads_of_one_length_convict_the_trainer() -> None:
    first, second, longer = (signed_head(run) for run in (FALSE, TRUE, Run(header(), 5)))
    data = header().to_bytes()
    assert check_forked_heads(first, second, data) == 5
    forged = SignedHead.from_bytes(second, where="x")
    forged = replace(forged, signature=bytes(64)).to_bytes()
    for pair in ((first, first), (first, longer), (first, forged), (first, b"")):
        with pytest.raises(VeritrainError):
            check_forked_heads(*pair, data)
    with pytest.raises(VerificationError):
        check_forked_heads(first, second, header(1).to_bytes())
