"""Messages are read as strictly as they are written."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocols.dispute.toy import SIGNERS, STRANGER, Lie, Run, challenge, header
from veritrain.adversaries.disputants import message_in
from veritrain.encoding import encode
from veritrain.errors import FieldError, TranscriptError, UsageError, VerificationError
from veritrain.parties.envelope import SignedEnvelope
from veritrain.protocols.dispute.bisection import Search
from veritrain.protocols.dispute.challenge import Challenge
from veritrain.protocols.dispute.claims import Commitment, Entries
from veritrain.protocols.dispute.dispute_evidence import Bundle, DisputeEvidence
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.messages import (
    PARTIES,
    Detail,
    DetailOf,
    LeafAt,
    Message,
    MessageKind,
    Opening,
    OperatorAt,
    Question,
    Resignation,
    Role,
    TraceClaim,
    TraceOf,
    read_reply,
    reply_body,
)
from veritrain.replay.trace.entry import MAX_ENTRIES, TraceEntry
from veritrain.transcript.record import Record

CHALLENGE = challenge(Run(header(), 2), Run(header(), 2, (Lie(1, 0),)))
MESSAGE = Message(
    run=bytes(32),
    dispute=bytes(32),
    sender=Role.TRAINER,
    number=3,
    kind=MessageKind.ANSWER,
    body={"question": bytes(32), "detail": [1, "a", None]},
)
OPENING = Opening(entry=b"entry", proof=(bytes(32), bytes(32)))
CLAIM = TraceClaim(size=2, root=bytes(32), entry=b"entry", proof=())
TOPICS = [
    LeafAt(index=3),
    TraceOf(step=0),
    OperatorAt(step=1, index=2),
    DetailOf(step=1, index=2, what={"tensor": 3}),
]


def test_a_signed_message_comes_back() -> None:
    data = MESSAGE.signed(SIGNERS[Role.TRAINER]).to_bytes()
    signed = SignedEnvelope.read(data, limit=len(data), where="x")
    signed.verify(SIGNERS[Role.TRAINER].public_key, Message.type_name)
    assert signed.opened(Message, where="x") == MESSAGE
    with pytest.raises(VerificationError):
        signed.verify(STRANGER.public_key, Message.type_name)
    with pytest.raises(TranscriptError, match="at most"):
        SignedEnvelope.read(data, limit=len(data) - 1, where="x")


@pytest.mark.parametrize(
    "change",
    [
        {"run": b""},
        {"dispute": None},
        {"sender": "nobody"},
        {"sender": None},
        {"number": -1},
        {"number": True},
        {"number": LIMITS.number + 1},
        {"kind": "guess"},
        {"kind": ["answer"]},
        {"body": []},
        {"type": "message"},
        {"more": 1},
    ],
)
def test_a_wrong_field_of_a_message_is_refused(change) -> None:
    with pytest.raises(TranscriptError):
        Message.from_bytes(encode({**MESSAGE.to_value(), **change}), where="x")


@pytest.mark.parametrize("of", [PARTIES, PARTIES[:1], PARTIES[1:]])
@pytest.mark.parametrize("topic", TOPICS)
def test_questions_come_back(of, topic) -> None:
    question = Question(of=of, topic=topic)
    assert Question.from_value(question.to_value()) == question


@pytest.mark.parametrize(
    "change",
    [
        {"ask": "loss"},
        {"ask": ["leaf"]},
        {"of": []},
        {"of": ["referee"]},
        {"of": ["trainer", "trainer"]},
        {"of": ["challenger", "trainer"]},
        {"of": "trainer"},
        {"of": ["trainer"] * 1000},
        {"step": -1},
        {"index": MAX_ENTRIES},
        {"what": 3},
    ],
)
def test_a_wrong_question_is_refused(change) -> None:
    question = Question(of=PARTIES, topic=OperatorAt(step=1, index=2)).to_value()
    with pytest.raises(FieldError):
        Question.from_value({**question, **change})


@pytest.mark.parametrize("content", [OPENING, CLAIM, Detail(detail={"a": [1.5]}), Resignation()])
def test_replies_come_back(content) -> None:
    body = reply_body(b"\x07" * 32, content)
    assert read_reply(body, type(content)) == (b"\x07" * 32, content)
    with pytest.raises(FieldError):
        read_reply({**body, "question": b""}, type(content))
    with pytest.raises(FieldError):
        read_reply({**body, "more": 1}, type(content))
    del body["question"]
    with pytest.raises(FieldError):
        read_reply(body, type(content))


@pytest.mark.parametrize(
    ("content", "change"),
    [
        (OPENING, {"entry": bytes(TraceEntry.max_bytes + 1)}),
        (OPENING, {"entry": "text"}),
        (OPENING, {"proof": None}),
        (OPENING, {"proof": [bytes(31)]}),
        (OPENING, {"proof": [bytes(32)] * (LIMITS.proof_nodes + 1)}),
        (CLAIM, {"size": 0}),
        (CLAIM, {"size": MAX_ENTRIES + 1}),
        (CLAIM, {"root": b""}),
        *(
            (Challenge.from_value(message_in(CHALLENGE).body), change)
            for change in (
                {"header": None},
                {"head": "text"},
                {"challenger": b""},
                {"referee": b""},
                {"nonce": b""},
                {"size": 0},
                {"root": b""},
                {"entry": None},
                {"proof": [b""]},
            )
        ),
    ],
)
def test_a_wrong_field_of_a_body_is_refused(content, change) -> None:
    with pytest.raises(FieldError):
        type(content).from_value({**content.to_value(), **change})


READERS = [
    (Message, MESSAGE.to_bytes()),
    (SignedEnvelope, CHALLENGE),
    (
        DisputeEvidence,
        DisputeEvidence(referee=bytes(32), questions=(bytes(64),), events=(b"a", 1)).to_bytes(),
    ),
    (
        Bundle,
        Bundle(
            evidence=DisputeEvidence(referee=bytes(32), questions=(), events=()), verdict=b"{}"
        ).to_bytes(),
    ),
    (TraceEntry, TraceEntry(index=0, previous=bytes(32), final=True, body={"a": 1}).to_bytes()),
]


@pytest.mark.parametrize(
    ("record", "data"), READERS, ids=lambda item: getattr(item, "__name__", "")
)
@given(noise=st.data())
@settings(max_examples=120, deadline=None)
def test_no_bytes_do_more_than_be_refused(record, data: bytes, noise: st.DataObject) -> None:
    """Each reader takes a value's one form or raises its one error."""
    assert record.from_bytes(data, where="x").to_bytes() == data
    place = noise.draw(st.integers(0, len(data)))
    length = noise.draw(st.integers(0, 4))
    changed = data[:place] + noise.draw(st.binary(max_size=4)) + data[place + length :]
    for hostile in (changed, noise.draw(st.binary(max_size=60))):
        try:
            assert record.from_bytes(hostile, where="x").to_bytes() == hostile
        except TranscriptError:
            continue


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3) | st.binary(max_size=33),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
BODIES = [
    OPENING,
    CLAIM,
    Detail(detail=1),
    Resignation(),
    Challenge.from_value(message_in(CHALLENGE).body),
    MESSAGE,
    *(Question(of=PARTIES, topic=topic) for topic in TOPICS),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
@given(noise=st.data())
@settings(max_examples=60, deadline=None)
def test_no_value_of_a_field_does_more_than_be_refused(body, noise: st.DataObject) -> None:
    value = body.to_value()
    name = noise.draw(st.sampled_from([*value, "more"]))
    changed = {**value, name: noise.draw(values)}
    if noise.draw(st.booleans()):
        changed.pop(name)
    refusal = UsageError if isinstance(body, Record) else FieldError  # of records: see from_bytes
    for hostile in (changed, noise.draw(values)):
        try:
            assert type(body).from_value(hostile).to_value() == hostile
        except refusal:
            continue


@pytest.mark.parametrize(
    "change",
    [
        {"index": -1},
        {"index": MAX_ENTRIES},
        {"previous": b""},
        {"final": 1},
        {"body": []},
        {"body": {"a": bytes(TraceEntry.max_bytes)}},
        {"body": {"a": object()}},
        {"body": {"a": float("nan")}},
    ],
)
def test_a_wrong_trace_entry_cannot_be_made(change) -> None:
    entry = TraceEntry(index=0, previous=bytes(32), final=True, body={})
    with pytest.raises(UsageError):
        replace(entry, **change)


@pytest.mark.parametrize("event", [0, -1, True, LIMITS.number + 1, None, "a"])
def test_events_are_messages_or_numbers(event) -> None:
    with pytest.raises(UsageError):
        DisputeEvidence(referee=bytes(32), questions=(), events=(event,))


def test_no_proof_opens_what_was_not_committed_to() -> None:
    entries = [
        TraceEntry(index=i, previous=bytes(32), final=i == 2, body={}).to_bytes() for i in range(3)
    ]
    claim = Entries(entries).claim()
    commitment = Commitment(size=claim.size, root=claim.root)
    assert commitment.entry(2, claim).to_bytes() == entries[2]
    for index in (0, 1, 3, -1):
        with pytest.raises(VerificationError):
            commitment.entry(index, claim)
    with pytest.raises(TranscriptError):
        commitment.leaf(2, claim)
    with pytest.raises(UsageError):
        Entries([]).claim()


@pytest.mark.parametrize("size", range(1, 40))
def test_the_search_finds_every_first_difference_in_time(size: int) -> None:
    def entry(index: int, value: int) -> TraceEntry:
        return TraceEntry(index=index, previous=bytes(32), final=False, body={"value": value})

    for first in range(size):
        pairs = [(entry(i, 0), entry(i, int(i >= first))) for i in range(size)]
        search = Search(low=-1, high=size - 1, agreed=None, differing=pairs[-1])
        rounds = 0
        while (middle := search.middle) is not None:
            search = search.narrowed(middle, pairs[middle])
            rounds += 1
        assert (search.low, search.high, search.differing) == (first - 1, first, pairs[first])
        assert search.agreed == (pairs[first - 1][0] if first else None)
        assert rounds <= (size - 1).bit_length()


def test_equal_to_python_is_not_equal_to_the_search() -> None:
    one, true = (
        TraceEntry(index=0, previous=bytes(32), final=False, body={"value": value})
        for value in (1, True)
    )
    assert one == true
    search = Search(low=-1, high=5, agreed=None, differing=None)
    assert search.narrowed(0, (one, true)).high == 0
