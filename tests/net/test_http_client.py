"""Requests to a hostile service are bounded, whatever it answers."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from dataclasses import replace

import pytest

from tests.service.conftest import TOKEN
from tests.service.faulty import faulty, says, sends
from tests.service.test_download import QUICK
from veritrain.errors import TranscriptError, UsageError
from veritrain.net.http_client import HttpAnswer, HttpClient, UnansweredError
from veritrain.net.sending import CHUNK_BYTES, bytes_response
from veritrain.service.challenger import RefereeClient

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
        (sends(HEAD + b"Content-Length: 99999999999\r\n\r\n", bytes(64), endless=True),
            TranscriptError),
        (sends(HEAD + b"\r\n", bytes(64), endless=True), UnansweredError),
        (sends(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), UnansweredError),
        (sends(HEAD, b"x: y\r\n", endless=True, pause=0.05), UnansweredError),
        (sends(HEAD + b"Content-Length: 99\r\n\r\n", b"x", endless=True, pause=0.2),
            UnansweredError),
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
