"""A referee's questions reach the trainer, and its answers the dispute, whatever the trainer
answers."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from veritrain.errors import TranscriptError
from veritrain.net.http_client import HttpAnswer, UnansweredError
from veritrain.parties.envelope import SignedEnvelope as Signed
from veritrain.protocols.dispute.messages import LeafAt, Message, MessageKind, Question, Role
from veritrain.service import question_forwarder
from veritrain.service.question_forwarder import QuestionForwarder, forward
from veritrain.service.running_dispute import DisputeView


class FakeDispute:
    """An open question until an answer came."""

    def __init__(self, question):
        self.view = DisputeView(questions={Role.TRAINER: question})
        self.terms = SimpleNamespace(
            dispute=bytes(32), challenge=SimpleNamespace(data=b"challenge")
        )
        self.is_over = False
        self.got = threading.Event()
        self.answer = b""

    def next_question(self, role, after, seconds):
        return self.view.questions.get(role)

    def receive(self, message):
        self.answer, self.view, self.is_over = message, DisputeView(verdict=b"verdict"), True
        self.got.set()


class FakeTrainer:
    """Gives prepared answers, then a good one for ever."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def post(self, path, body, at_most):
        self.asked.append((path, body))
        made = self.answers.pop(0) if self.answers else HttpAnswer(status=200, body=b"good")
        if isinstance(made, Exception):
            raise made
        return made

    def get(self, path, at_most):
        return self.post(path, b"", at_most)


PLACE = "/dispute/answers/" + "0" * 64


def place(text):
    return HttpAnswer(status=202, body=f'{{"answer": "{text}"}}'.encode())


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [HttpAnswer(status=422, body=b""), HttpAnswer(status=200, body=b"")],
        [place(PLACE), HttpAnswer(status=202, body=b""), HttpAnswer(status=200, body=b"good")],
        [place(PLACE), HttpAnswer(status=404, body=b"")],
        [place("http://169.254.169.254" + PLACE)],
        [place(PLACE + "?x"), place("//host" + PLACE), place("../header")],
        [UnansweredError("nobody"), TranscriptError("x", "too large"), AssertionError()],
        [HttpAnswer(status=202, body=b"not json"), HttpAnswer(status=500, body=b"")],
    ],
)
def test_a_forwarder_goes_on_until_there_is_an_answer(answers):
    data = a_question()
    dispute, trainer = FakeDispute(data), FakeTrainer(*answers)
    forward(dispute, trainer, lambda text: None)
    assert dispute.got.wait(20)
    assert dispute.answer == b"good"
    asked = [one for one in trainer.asked if one[1] != b"verdict"]
    assert {path for path, _ in asked} <= {"/dispute/questions", PLACE}
    assert {body for _, body in asked} <= {data, b"challenge", b""}


def test_a_forwarder_introduces_a_dispute_again_at_once(monkeypatch):
    """Strangers' challenges can push it out of the trainer's memory before the question comes."""
    monkeypatch.setattr(question_forwarder.time, "sleep", lambda seconds: pytest.fail("waits"))
    data = a_question()
    dispute = FakeDispute(data)
    trainer = FakeTrainer(*[HttpAnswer(status=422, body=b""), HttpAnswer(status=200, body=b"")] * 4)
    QuestionForwarder(dispute, trainer, pytest.fail)._deliver(data)
    assert [body for _, body in trainer.asked] == [data, b"challenge"] * 4 + [data]


def a_question():
    message = Message(
        run=bytes(32), dispute=bytes(32), sender=Role.REFEREE, number=1, kind=MessageKind.QUESTION,
        body=Question(of=(Role.TRAINER,), topic=LeafAt(index=1)).to_value(),
    )  # fmt: skip
    return Signed(message=message.to_bytes(), signature=bytes(64)).to_bytes()


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ([HttpAnswer(status=204, body=b"")], None),
        ([HttpAnswer(status=404, body=b"")], None),
        ([UnansweredError("nobody"), HttpAnswer(status=422, body=b""),
            HttpAnswer(status=204, body=b"")], None),
        ([UnansweredError("nobody")] * 6, "nobody"),
        ([HttpAnswer(status=422, body=b"")] * 6, "422"),
    ],
)  # fmt: skip
def test_a_forwarder_brings_the_verdict_and_gives_up_at_some_time(answers, problem, monkeypatch):
    monkeypatch.setattr(question_forwarder, "PAUSES", (0.01,) * 6)
    dispute, trainer, told = FakeDispute(b""), FakeTrainer(*answers), []
    dispute.receive(b"")
    QuestionForwarder(dispute, trainer, told.append).run()
    assert trainer.asked == [(f"/dispute/verdicts/{'00' * 32}", b"verdict")] * len(answers)
    assert [problem in text for text in told] == ([True] if problem else [])
