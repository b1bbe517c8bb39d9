"""Reading from servers that break off, lie, stall or send without end."""

from __future__ import annotations

import random
import re
import tempfile
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service.faulty import Faulty, breaks_after, faulty, says, sends, with_fields
from veritrain.errors import TranscriptError, UsageError, VeritrainError
from veritrain.transcript import http_store
from veritrain.transcript.download import DownloadLimits
from veritrain.transcript.http_store import HttpStore
from veritrain.transcript.limits import Limits
from veritrain.transcript.stores import open_store

QUICK = DownloadLimits(
    connect_seconds=1,
    header_seconds=0.4,
    silence_seconds=0.4,
    grace_seconds=3,
    bytes_per_second=1 << 20,
    attempts=4,
    progress_bytes=1000,
    pause_seconds=0.01,
    longest_pause_seconds=0.05,
)
PACK = "checkpoints/000000000002.safetensors"
DATA = random.Random(0).randbytes(700_001)
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def server():
    with faulty({"header": b"the header", PACK: DATA}) as one:
        yield one


def store(server: Faulty, **changes) -> HttpStore:
    return HttpStore(server.url, limits=replace(QUICK, **changes))


def pack(server: Faulty, size: int = len(DATA), **changes) -> bytes:
    with store(server, **changes).open_file(PACK, size) as file:
        return file.read()


def test_an_http_address_is_read_by_our_own_store(server):
    for url in (server.url, server.url + "/", server.url.replace("http", "HTTP")):
        opened = open_store(url)
        assert isinstance(opened, HttpStore)
        assert opened.list() == [PACK, "header"]
        assert opened.read("header", 100) == b"the header"
        assert opened.total_bytes() == 10 + len(DATA)


def test_a_path_before_the_files(server):
    server.contents["runs/a/header"] = b"x"
    assert HttpStore(server.url + "/runs/a/").read("header", 1) == b"x"


def test_nothing_is_fetched_twice(server):
    opened = store(server)
    for _ in range(3):
        assert opened.read("header", 100) == b"the header"
        with opened.open_file(PACK, len(DATA)) as file:
            assert file.read() == DATA
    assert [request.path for request in server.requests] == ["header", PACK]


# going on


def test_a_broken_download_goes_on_where_it_broke(server):
    server.faults[PACK] = [breaks_after(100_000), breaks_after(1), breaks_after(500_000)]
    assert pack(server) == DATA
    assert server.asked(PACK) == [None, "bytes=100000-", "bytes=100001-", "bytes=600001-"]
    assert {request.field("if-range") for request in server.requests[1:]} == {
        server.requests[0].tag
    }


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(0, len(DATA)), max_size=12))
def test_wherever_it_breaks(server, cuts):
    """Enough tries, as long as each brings something."""
    server.faults[PACK] = [breaks_after(cut) for cut in cuts]
    try:
        assert pack(server, attempts=13) == DATA
    except TranscriptError as error:
        pytest.fail(str(error))


def test_without_any_progress_it_gives_up(server):
    server.faults[PACK] = [breaks_after(5000), *[breaks_after(10)] * 10]
    with pytest.raises(TranscriptError, match="the connection broke, 4 times in a row"):
        pack(server)
    assert len(server.faults[PACK]) == 6 + 1


def test_a_file_that_changed_is_fetched_anew(server):
    """The digests of its contents are for the reader to check."""

    def change(request):
        server.generation += 1
        server.contents[PACK] = DATA[::-1]
        return breaks_after(5000)(request)

    server.faults[PACK] = [change]
    assert pack(server) == DATA[::-1]
    assert server.asked(PACK) == [None, "bytes=5000-"]


def test_a_server_without_ranges_or_tags(server):
    server.faults[PACK] = [
        lambda request: [answer_without_tag(request)[:20_000]],
        lambda request: [answer_without_tag(request)],
    ]
    assert pack(server) == DATA
    assert server.asked(PACK) == [None, None]


def answer_without_tag(request):
    return re.sub(rb"ETag: [^\r]*\r\n", b"", request.honest())


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server, status):
    server.faults[PACK] = [says(status, Retry_After="1"), says(status), says(status, b"busy")]
    assert pack(server) == DATA


def test_a_server_that_stays_busy(server):
    server.faults[PACK] = [says(503)] * 10
    with pytest.raises(TranscriptError, match="status 503, 4 times in a row"):
        pack(server)


# lies


@pytest.mark.parametrize(
    ("faults", "problem"),
    [
        ([with_fields(Content_Length="700000")], "expected 700001 bytes, got 700000"),
        ([with_fields(Content_Length="99999999999999")],
            "expected 700001 bytes, got 99999999999999"),
        ([with_fields(Content_Length="x")], "announces 'x' bytes|connection broke"),
        ([says(200, DATA + b"x")], "expected 700001 bytes, got 700002"),
        ([sends(HEAD + b"\r\n" + DATA)] * 4, "does not say how long it is, 4 times"),
        ([sends(HEAD)] * 4, "does not say how long it is, 4 times"),
        ([sends(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"FFFF\r\n" + bytes(0xFFFF) + b"\r\n",
            endless=True)], "got more"),
        ([with_fields(Content_Encoding="gzip")], "encoded as 'gzip'"),
        ([says(206, DATA, Content_Range="bytes 0-700000/700001")] * 4, "part of another file"),
        ([breaks_after(5000), says(206, DATA[4000:], Content_Range="bytes 4000-700000/700001")],
            "sent 'bytes 4000-"),
        ([breaks_after(5000), says(206, DATA[5000:6000], Content_Range="bytes 5000-5999/700001")],
            "sent 'bytes 5000-5999"),
        ([breaks_after(5000), says(206, DATA[5000:], Content_Range="bytes 5000-700001/700002")],
            "sent 'bytes 5000-700001"),
        ([breaks_after(5000), says(206, DATA[5000:], Content_Range="x" * 300)], "sent 'x{80}'$"),
        ([breaks_after(5000),
            *[says(206, DATA[5000:], ETag='"other"',
                Content_Range="bytes 5000-700000/700001")] * 9], "."),
        ([says(416)] * 4, "became shorter"),
        ([says(404)], "missing"),
        ([says(418)], "status 418"),
        ([says(204)], "status 204"),
    ],
)  # fmt: skip
def test_lies_are_errors(server, faults, problem):
    server.faults[PACK] = list(faults)
    if problem == ".":  # of which it is one of several
        try:
            assert pack(server) == DATA
        except TranscriptError:
            return
        return
    with pytest.raises(TranscriptError, match=problem) as caught:
        pack(server)
    assert caught.value.where == PACK


def test_a_body_that_is_no_chunk_is_a_broken_connection(server):
    server.faults[PACK] = [sends(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzzzz\r\n")] * 9
    with pytest.raises(TranscriptError, match="4 times in a row"):
        pack(server)


@pytest.mark.parametrize(
    "head",
    [
        b"", b"\x00" * 100, b"HTTP/1.1 99999 x\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500,
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\xff\xfe: x\r\n\r\n", b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + DATA,
    ],
    ids=lambda head: head[:30].hex(),
)  # fmt: skip
def test_answers_that_are_not_http(server, head):
    server.faults[PACK] = [sends(head)] * 9
    with pytest.raises(VeritrainError):
        pack(server)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_redirects_are_not_followed(server, status):
    with faulty({"header": b"elsewhere"}) as other:
        server.faults["header"] = [says(status, Location=f"{other.url}/header")]
        with pytest.raises(UsageError, match=f"redirects \\(status {status}\\)") as caught:
            store(server).read("header", 100)
        assert other.requests == []
        assert other.url not in str(caught.value)


# slowness


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"", b""),
        (b"", b"H"),
        (HEAD, b"A: b\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (HEAD + b"Content-Length: 700001\r\n\r\n", b""),
        (HEAD + b"Content-Length: 700001\r\n\r\n", b"x"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 100),
    ],
)
def test_a_server_that_drips(server, first, drop):
    server.faults[PACK] = [sends(first, drop, pause=0.02, endless=True)] * 20
    start = time.monotonic()
    with pytest.raises(TranscriptError, match="4 times in a row|too slowly"):
        pack(server, grace_seconds=1.5)
    assert time.monotonic() - start < 6


def test_nobody_listens():
    with faulty({}) as server:
        pass
    start = time.monotonic()
    with pytest.raises(UsageError, match="nobody listens there"):
        store(server).list()
    assert time.monotonic() - start < 2


# sizes


def test_small_files_are_bounded(server):
    server.contents["header"] = b"x" * 1001
    with pytest.raises(TranscriptError, match="expected at most 1000 bytes, got more"):
        store(server).read("header", 1000)
    chunks = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    server.faults["header"] = [sends(chunks, b"100\r\n" + b"x" * 256 + b"\r\n", endless=True)]
    with pytest.raises(TranscriptError, match="expected at most 1000 bytes, got more"):
        store(server).read("header", 1000)


def test_no_memory_is_taken_for_what_is_announced(server):
    server.faults["header"] = [sends(HEAD + b"Content-Length: 99999999999\r\n\r\nx")] * 9
    tracemalloc.start()
    with pytest.raises(TranscriptError, match="expected at most"):
        store(server).read("header", 10**10)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_the_cache_is_bounded(server, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for step in range(5):
        server.contents[f"rounding/{step:012d}"] = bytes([step]) * 1000
    opened = HttpStore(server.url, limits=QUICK, cache_bytes=2500)
    for step in (0, 1, 0, 2, 0):
        assert opened.read(f"rounding/{step:012d}", 1000) == bytes([step]) * 1000
        assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 2500
    assert [request.path[-1] for request in server.requests] == ["0", "1", "2"]
    assert opened.read(f"rounding/{1:012d}", 1000) == b"\1" * 1000
    assert [request.path[-1] for request in server.requests] == ["0", "1", "2", "1"]
    with (
        pytest.raises(UsageError, match="3000 bytes have to be stored for a while"),
        opened.open_file(PACK, 3000),
    ):
        pass
    del opened
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error(server, monkeypatch):
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(http_store.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(UsageError, match="has room for 1048576; set TMPDIR"):
        pack(server)


# the listing


def test_pages_are_joined(server, monkeypatch):
    monkeypatch.setattr(http_store, "PAGE_FILES", 2)
    pages = {
        "limit=2": (
            '{"head": 4, "files": [{"path": "a", "bytes": 1}, {"path": "b", "bytes": 2}], "next":'
            ' "b"}'
        ),
        "head=4&after=b&limit=2": (
            '{"head": 4, "files": [{"path": "leaves/1", "bytes": 3}], "next": null}'
        ),
    }
    server.faults["files"] = [lambda request: [answer_page(pages[request.query])]] * 2
    opened = store(server)
    assert opened.list() == ["a", "b", "leaves/1"]
    assert opened.total_bytes() == 6


def answer_page(text):
    return HEAD + f"Content-Length: {len(text)}\r\n\r\n{text}".encode()


A = '{"path": "a", "bytes": 1}'


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("", "not a listing"),
        ("[]", "not a listing"),
        ("[" * 100_000, "not a listing"),
        ("9" * 10_000, "not a listing"),
        ("NaN", "not a listing"),
        ('{"head": 1, "files": {}}', "not a listing"),
        ('{"head": "1", "files": [], "next": null}', "not a listing"),
        ('{"head": true, "files": [], "next": null}', "not a listing"),
        ('{"head": -1, "files": [], "next": null}', "not a listing"),
        ('{"head": 1, "files": [1], "next": null}', "not a listing"),
        ('{"head": 1, "files": [{"path": 1, "bytes": 1}], "next": null}', "not a listing"),
        ('{"head": 1, "files": [{"path": [], "bytes": 1}], "next": null}', "not a listing"),
        ('{"head": 1, "files": [{"path": "a", "bytes": -1}], "next": null}', "not a listing"),
        ('{"head": 1, "files": [{"path": "a", "bytes": 1.5}], "next": null}', "not a listing"),
        ('{"head": 1, "files": [{"path": "a", "bytes": true}], "next": null}', "not a listing"),
        (f'{{"head": 1, "files": [{A}, {A}], "next": null}}', "not a listing"),
        ('{"head": 1, "files": [{"path": "b", "bytes": 1}, {"path": "a", "bytes": 1}], "next": null}', "not in order"),  # noqa: E501
        ('{"head": 1, "files": [{"path": "../a", "bytes": 1}], "next": null}',
            "not the path of a file"),
        ('{"head": 1, "files": [{"path": "/a", "bytes": 1}], "next": null}',
            "not the path of a file"),
        ('{"head": 1, "files": [{"path": "x/a", "bytes": 1}], "next": null}', "unexpected folder"),
        ('{"head": 1, "files": [], "next": "a"}', "expected 1000 files in a page, got 0"),
        (f'{{"head": 1, "files": [{A}], "next": "a"}}', "expected 1000 files in a page, got 1"),
        ('{"head": 1, "files": [' + " " * (1 << 20) + '], "next": null}',
            "expected at most 1048576 bytes"),
    ],
    ids=lambda text: text[:60],
)  # fmt: skip
def test_listings_that_are_malformed(server, page, problem):
    server.faults["files"] = [lambda request: [answer_page(page)]]
    with pytest.raises(TranscriptError, match=problem):
        store(server).list()


def test_a_listing_without_end(server, monkeypatch):
    monkeypatch.setattr(http_store, "PAGE_FILES", 1)
    monkeypatch.setattr(http_store, "LIMITS", Limits(files=5))

    def page(request):
        number = int((re.search("after=a([0-9]+)", request.query) or [0, "0"])[1]) + 1
        text = f'{{"head": 1, "files": [{{"path": "a{number:09d}", "bytes": 1}}], "next": "x"}}'
        return [answer_page(text)]

    server.faults["files"] = [page] * 100
    with pytest.raises(TranscriptError, match="expected at most 5 files"):
        store(server).list()


# addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://", "https:///run", "http://user@host/", "http://user:password@host/",
        "http://host/?a", "http://host/run?",
        "http://host/#a", "http://host:x/", "http://host:0/", "http://host:99999/", "http://[::1",
        "http://ho st/",
        "http://host/a\\b", "http://host/\n", "http://höst/",
    ],
)  # fmt: skip
def test_addresses_that_cannot_be_used(url):
    with pytest.raises(UsageError):
        open_store(url)


def test_such_a_run_can_only_be_read(server):
    opened = store(server)
    for action in (
        lambda: opened.write("header", [b""]),
        lambda: opened.delete("header"),
        opened.lock,
    ):
        with pytest.raises(UsageError, match="can only be read"):
            action()
    with pytest.raises(UsageError, match="not the path of a file"):
        opened.read("../header", 1)
    assert server.requests == []


def test_the_environment_has_no_say_in_where_requests_go(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert store(server).read("header", 100) == b"the header"
