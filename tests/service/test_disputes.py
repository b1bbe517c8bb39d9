"""The paths where the parties of a dispute exchange messages, with fakes in the place of the
parties."""

from __future__ import annotations

import hashlib
import json
import threading
import time

import pytest

from tests.service.running import running

LIMITS = {
    "requests_per_second": 0,
    "poll_seconds": 2,
    "question_bytes": 1000,
    "message_bytes": 100_000,
    "bodies_bytes": 150_000,
    "body_seconds": 5,
}


@pytest.fixture(scope="module")
def parties():
    with running(limits=LIMITS, may_fail=True) as one:
        yield one


def kind_of(body: bytes) -> str:
    return json.loads(body)["error"]["kind"]


def open_dispute(parties, challenge: bytes) -> str:
    status, fields, body = parties.get("/disputes", method="POST", body=challenge)
    assert status == 201
    dispute = json.loads(body)["dispute"]
    assert fields["location"] == f"/disputes/{dispute}"
    return dispute


def test_a_question_is_answered_later(parties):
    status, fields, body = parties.get("/dispute/questions", method="POST", body=b"abc")
    place = f"/dispute/answers/{hashlib.sha256(b'abc').hexdigest()}"
    assert (status, fields["location"], json.loads(body)) == (202, place, {"answer": place})
    status, fields, body = parties.get(place)
    assert (status, body, fields["retry-after"]) == (202, b"", "1")
    assert parties.get("/dispute/questions", method="POST", body=b"abc")[0] == 200
    status, fields, body = parties.get(place)
    assert (status, body, fields["content-type"]) == (200, b"cba", "application/octet-stream")
    assert fields["cache-control"] == "no-store"


def test_a_question_is_answered_at_once(parties):
    status, _, body = parties.get(
        "/dispute/questions", method="POST", body=b"now" + bytes(range(200))
    )
    assert (status, body) == (200, bytes(range(199, -1, -1)) + b"won")


def test_a_verdict_is_brought_to_the_trainer(parties):
    question = b"now and then"
    parties.get("/dispute/questions", method="POST", body=question)
    place = f"/dispute/verdicts/{hashlib.sha256(question).hexdigest()}"
    assert parties.get(place, method="POST", body=b"{}")[0] == 204
    assert parties.get(f"/dispute/verdicts/{'00' * 32}", method="POST", body=b"{}")[0] == 404
    assert parties.get("/dispute/verdicts/x", method="POST", body=b"{}")[0] == 404
    assert parties.get(place, method="POST", body=bytes((1 << 16) + 1))[0] == 413


@pytest.mark.parametrize(
    "path", ["/dispute/questions", "/disputes", f"/dispute/verdicts/{'00' * 32}"]
)
def test_what_is_refused_is_not_explained(parties, path):
    status, _, body = parties.get(path, method="POST", body=b"refuse this")
    assert (status, kind_of(body)) == (422, "refused")
    assert b"secret" not in body


def test_a_failure_is_not_explained(parties):
    status, _, body = parties.get("/dispute/questions", method="POST", body=b"fail")
    assert (status, kind_of(body)) == (500, "failed")
    assert b"secret" not in body


@pytest.mark.parametrize(
    "path",
    [
        f"/dispute/answers/{'0' * 64}", f"/dispute/answers/{'0' * 63}",
        f"/dispute/answers/{'A' * 64}",
        f"/disputes/{'0' * 64}/verdict", f"/disputes/{'0' * 64}/evidence",
        f"/disputes/{'0' * 64}/questions/trainer",
        "/disputes/x/verdict", "/header", "/files",
    ],
)  # fmt: skip
def test_what_is_not_there(parties, path):
    status, _, body = parties.get(path)
    assert (status, kind_of(body)) == (404, "missing")


def test_a_referee_says_who_it_is(parties):
    status, _, body = parties.get("/referee")
    assert (status, json.loads(body)) == (200, {"key": "00" * 32, "run": bytes(range(32)).hex()})


def test_a_dispute_from_challenge_to_verdict(parties):
    dispute = open_dispute(parties, b"challenge")
    at = f"/disputes/{dispute}"
    assert open_dispute(parties, b"challenge") == dispute
    assert parties.get(f"{at}/questions/challenger")[::2] == (200, b"why")
    assert parties.get(f"{at}/questions/trainer")[::2] == (204, b"")
    assert parties.get(f"{at}/questions/referee")[0] == 404
    for name in ("verdict", "evidence"):
        assert parties.get(f"{at}/{name}")[::2] == (204, b"")
    assert parties.get(f"{at}/messages", method="POST", body=b"because")[::2] == (202, b"")
    status, fields, body = parties.get(f"{at}/verdict")
    assert (status, body, fields["content-type"]) == (200, b'{"payload":""}', "application/json")
    assert parties.get(f"{at}/evidence")[::2] == (200, b"because")
    assert parties.get(f"/disputes/{'0' * 64}/messages", method="POST", body=b"x")[0] == 404


def test_a_question_is_waited_for(parties):
    at = f"/disputes/{open_dispute(parties, b'waiting')}"
    start = time.monotonic()
    assert parties.get(f"{at}/questions/challenger?wait=30")[0] == 200
    assert time.monotonic() - start < 10
    start = time.monotonic()
    assert parties.get(f"{at}/questions/trainer?wait=1")[0] == 204
    assert 1 <= time.monotonic() - start < 10
    for wait in ("31", "-1", "x"):
        assert parties.get(f"{at}/questions/trainer?wait={wait}")[0] == 400


def test_many_wait_and_others_are_served(parties):
    at = f"/disputes/{open_dispute(parties, b'many')}"
    statuses = []

    def wait():
        statuses.append(parties.get(f"{at}/questions/trainer?wait=2")[0])

    waiting = [threading.Thread(target=wait) for _ in range(60)]
    for one in waiting:
        one.start()
    assert parties.get(f"{at}/verdict")[0] == 204
    assert statuses == []  # all of them wait still
    for one in waiting:
        one.join()
    assert statuses == [204] * 60


def test_bodies_are_bounded_one_by_one_and_together(parties):
    at = f"/disputes/{open_dispute(parties, b'large')}/messages"
    assert parties.get(at, method="POST", body=bytes(100_000))[0] == 202
    status, fields, body = parties.get(at, method="POST", body=bytes(100_001))
    assert (status, kind_of(body), fields["connection"]) == (413, "large", "close")
    head = f"POST {at} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode()
    with parties.connect() as slow:
        slow.sendall(head + bytes(99_999))
        time.sleep(0.3)
        status, _, body = parties.get(at, method="POST", body=bytes(90_000))
        assert (status, kind_of(body)) == (503, "busy")
        assert parties.get(at, method="POST", body=bytes(1000))[0] == 202
        slow.sendall(b"x")
        assert slow.recv(12) == b"HTTP/1.1 202"
    assert parties.get(at, method="POST", body=bytes(90_000))[0] == 202


def test_a_body_is_no_larger_than_what_was_asked_for(parties):
    at = f"/disputes/{open_dispute(parties, b'small')}/messages"
    head = f"POST {at} HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n".encode()
    assert b"413 " in parties.raw(head).partition(b"\r\n")[0]  # nothing is waited for
    assert parties.get(at, method="POST", body=bytes(10))[0] == 202
    unknown = f"/disputes/{'0' * 64}/messages"
    assert parties.get(unknown, method="POST", body=bytes(100_000))[0] == 404


def test_who_leaves_in_the_middle_leaves_nothing(parties):
    at = f"/disputes/{open_dispute(parties, b'leaving')}"
    head = f"POST {at}/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode()
    for _ in range(5):
        with parties.connect() as leaving:
            leaving.sendall(head + bytes(99_999))
    time.sleep(0.3)
    assert parties.get(f"{at}/verdict")[0] == 204
    assert parties.get(f"{at}/messages", method="POST", body=bytes(100_000))[0] == 202


def test_a_party_that_takes_its_time_holds_nobody_else_up(parties):
    slow = [
        threading.Thread(target=parties.get, args=["/dispute/questions", None, "POST", b"slow"])
        for _ in range(60)
    ]
    for one in slow:
        one.start()
    start = time.monotonic()
    assert parties.get("/openapi.json")[0] == 200
    assert open_dispute(parties, b"quick")
    assert time.monotonic() - start < 9  # one after the other they take 18 seconds
    for one in slow:
        one.join()
