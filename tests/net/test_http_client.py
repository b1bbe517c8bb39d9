"""Requests to a hostile service are bounded, and a referee forwards its questions over them."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.service.conftest import TOKEN
from tests.service.faulty import faulty, says, sends
from tests.service.test_download import QUICK
from veritrain.errors import TranscriptError, UsageError
from veritrain.net.http_client import HttpAnswer, HttpClient, UnansweredError
from veritrain.net.sending import CHUNK_BYTES, bytes_response
from veritrain.parties.envelope import SignedEnvelope as Signed
from veritrain.protocols.dispute.messages import Kind, LeafAt, Message, Question, Role
from veritrain.service import question_forwarder
from veritrain.service.challenger import RefereeClient
from veritrain.service.question_forwarder import QuestionForwarder, forward
from veritrain.service.running_dispute import DisputeView

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def server():
    with faulty({"x": b"an answer"}) as one:
        yield one


def client(server, token=None):
    return HttpClient(server.url, token, QUICK)


def test_an_answer_and_none(server):
    assert client(server).get("/x", 9) == HttpAnswer(status=200, body=b"an answer")
    assert client(server).post("/x", b"", 9).body == b"an answer"
    assert client(server).get("/y", 9).status == 404
    with pytest.raises(TranscriptError):
        client(server).get("/x", 8)


def test_a_large_body_has_the_time_that_it_needs():
    """The other side takes it slowly: longer than any one time limit."""
    limits = replace(QUICK, connect_seconds=0.3, header_seconds=5)
    count, got = 20_000_000, []

    def take(listener):
        with listener.accept()[0] as connection:
            while sum(got) < count:
                got.append(len(connection.recv(1 << 16)))
                time.sleep(0.004)
            connection.sendall(HEAD + b"Content-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=take, args=[listener], daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert HttpClient(url, limits=limits).post("/x", bytes(count), 9).status == 200


def test_a_large_answer_is_sent_in_parts_without_a_copy():
    body, sent = bytes(CHUNK_BYTES * 2 + 5), []

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    asyncio.run(bytes_response(body, {})({}, receive, send))
    start, *parts = sent
    assert start["status"] == 200
    assert (b"content-length", str(len(body)).encode()) in start["headers"]
    assert [len(part["body"]) for part in parts] == [CHUNK_BYTES, CHUNK_BYTES, 5]
    assert [part["more_body"] for part in parts] == [True, True, False]
    assert all(part["body"].obj is body for part in parts)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (says(302, Location="http://127.0.0.1:1/"), UsageError),
        (says(401), UsageError),
        (says(503), UnansweredError),
        (says(429), UnansweredError),
        (sends(b""), UnansweredError),
        (sends(b"garbage\r\n\r\n"), UnansweredError),
        (sends(HEAD + b"Content-Length: 99\r\n\r\nshort"), UnansweredError),
        (sends(HEAD + b"Content-Length: 99999999999\r\n\r\n", bytes(64), endless=True), TranscriptError),
        (sends(HEAD + b"\r\n", bytes(64), endless=True), UnansweredError),
        (sends(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), UnansweredError),
        (sends(HEAD, b"x: y\r\n", endless=True, pause=0.05), UnansweredError),
        (sends(HEAD + b"Content-Length: 99\r\n\r\n", b"x", endless=True, pause=0.2), UnansweredError),
    ],
)  # fmt: skip
def test_whatever_comes_is_bounded(server, fault, error):
    server.faults["x"] = [fault]
    start = time.monotonic()
    with pytest.raises(error):
        client(server).get("/x", 100)
    assert time.monotonic() - start < 6


def test_a_token_goes_where_it_belongs(server):
    client(server, TOKEN).get("/x", 9)
    assert server.requests[-1].field("authorization") == f"Bearer {TOKEN}"
    client(server).get("/x", 9)
    assert server.requests[-1].field("authorization") is None
    with pytest.raises(UsageError, match="unencrypted"):
        HttpClient("http://example.org", TOKEN)
    for url in ("file:///etc/passwd", "runs/a", "http://user@host", "http://host/?x", ""):
        with pytest.raises(UsageError):
            HttpClient(url)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"key": 1, "run": 2}', b'{"key": "00"}'])
def test_a_referee_that_is_none(server, body):
    server.contents["referee"] = body
    with pytest.raises(TranscriptError):
        RefereeClient(client(server)).about()


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
        run=bytes(32), dispute=bytes(32), sender=Role.REFEREE, number=1, kind=Kind.QUESTION,
        body=Question(of=(Role.TRAINER,), topic=LeafAt(index=1)).to_value(),
    )  # fmt: skip
    return Signed(message=message.to_bytes(), signature=bytes(64)).to_bytes()


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ([HttpAnswer(status=204, body=b"")], None),
        ([HttpAnswer(status=404, body=b"")], None),
        ([UnansweredError("nobody"), HttpAnswer(status=422, body=b""), HttpAnswer(status=204, body=b"")], None),
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
