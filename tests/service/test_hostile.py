"""Clients that are slow, greedy or malformed, against a real server; honest ones are served
meanwhile."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.running import Running, read_all, running

QUICK = {
    "requests_per_second": 0,
    "header_seconds": 0.6,
    "body_seconds": 0.6,
    "write_seconds": 0.6,
    "idle_seconds": 1,
}
REQUEST = b"GET /header HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def quick(large):
    """Has no patience; shows a run with a large file."""
    with running(large[0].folder, limits=QUICK) as one:
        yield one


@pytest.fixture(scope="module")
def parties():
    """The fake parties of a dispute, with no patience and small bodies."""
    with running(limits={**QUICK, "question_bytes": 1000}) as one:
        yield one


def kind_of(answer: bytes) -> str:
    """The kind of the first error: bytes may hold a second request."""
    body = answer.partition(b"\r\n\r\n")[2].decode()
    return json.JSONDecoder().raw_decode(body)[0]["error"]["kind"]


def drip(service: Running, first: bytes, drop: bytes, pause: float = 0.05) -> tuple[bytes, float]:
    """Send `first` and then `drop` again and again; what came back, and how long it took."""
    start = time.monotonic()
    with service.connect() as connection:
        connection.settimeout(pause)
        connection.sendall(first)
        got = b""
        while time.monotonic() - start < 10:
            try:
                connection.send(drop)
                if not (part := connection.recv(65536)):
                    break
                got += part
            except TimeoutError:
                continue
            except OSError:
                break
        return got, time.monotonic() - start


@pytest.mark.parametrize("first", [b"", b"G", REQUEST, b"GET /header HTTP/1.1\r\nHost: x\r\n\r\nG"])
def test_a_header_that_never_ends(quick, first):
    got, took = drip(quick, first, b"X: y\r\n" if first == REQUEST else b"X" if first else b"")
    assert took < 5
    assert b"HTTP/1.1 408 " in got
    assert kind_of(got[got.index(b"HTTP/1.1 408") :]) == "late"


def test_a_body_that_never_ends(parties):
    head = b"POST /dispute/questions HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n"
    got, took = drip(parties, head, b"x")
    assert took < 5
    assert kind_of(got) == "late"


def opened(service: Running, challenge: bytes) -> str:
    """The path of a new dispute."""
    return (
        f"/disputes/{json.loads(service.get('/disputes', None, 'POST', challenge)[2])['dispute']}"
    )


def test_a_large_body_that_goes_on_is_taken(parties):
    path, part = f"{opened(parties, b'upload')}/messages", bytes(5000)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode()
    with parties.connect() as connection:
        connection.sendall(head)
        for _ in range(20):
            connection.sendall(part)
            time.sleep(0.1)
        assert connection.recv(12) == b"HTTP/1.1 202"


def test_large_evidence_is_sent_as_fast_as_it_is_read(parties):
    path, data = opened(parties, b"download"), bytes(range(256)) * 32768
    assert parties.get(f"{path}/messages", None, "POST", data)[0] == 202
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.connect(("127.0.0.1", parties.port))
        connection.sendall(f"GET {path}/evidence HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        got = bytearray()
        while not got.endswith(data[-256:]) or len(got) < len(data):
            part = connection.recv(1 << 18)
            assert part, len(got)
            got += part
            time.sleep(len(part) / 3e6)
    assert got.endswith(data)
    assert any("collected" in line for line in parties.log())


def test_evidence_that_nobody_reads_takes_no_memory(parties):
    path, data = opened(parties, b"memory"), bytes(1 << 24)
    parties.get(f"{path}/messages", None, "POST", data)
    before, readers = memory_of(parties), []
    for _ in range(8):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", parties.port))
        reader.sendall(f"GET {path}/evidence HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        readers.append(reader)
    time.sleep(0.3)
    assert memory_of(parties) - before < 3 * len(data)
    for reader in readers:
        reader.close()


def memory_of(service: Running) -> int:
    """Bytes that the process holds."""
    status = Path(f"/proc/{service.process}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def test_a_body_in_endless_chunks(parties):
    head = b"POST /dispute/questions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    got, took = drip(parties, head, b"64\r\n" + b"x" * 100 + b"\r\n")
    assert took < 5
    assert kind_of(got) == "large"


@pytest.mark.parametrize("length", [b"1001", b"99999999999", b"9" * 300])
def test_a_body_that_is_too_large_is_not_waited_for(parties, length):
    head = b"POST /dispute/questions HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n"
    start = time.monotonic()
    assert kind_of(parties.raw(head)) in ("large", "malformed")
    assert time.monotonic() - start < 0.5


def test_a_body_that_is_malformed(parties):
    head = b"POST /dispute/questions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert kind_of(parties.raw(head + b"3\r\nabc\r\nx\r\n")) == "malformed"


def test_bodies_where_none_belong(quick):
    for fields in (b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"):
        assert kind_of(quick.raw(REQUEST + fields + b"\r\n")) == "has_body"
    assert quick.get("/header", {"Content-Length": "0"})[0] == 200


def test_a_reader_who_takes_nothing(quick, large):
    """More than fits into the buffers of the system is asked for, and not read."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", quick.port))
        connection.sendall(f"GET {large[1]} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 20)
        time.sleep(2.5)
        connection.settimeout(10)
        assert len(read_all(connection)) < 20 * len(large[2])


def test_a_slow_reader_who_goes_on_is_served(quick, large):
    _, path, data = large
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.connect(("127.0.0.1", quick.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        got = b""
        while part := connection.recv(1 << 17):
            got += part
            time.sleep(0.05)
        assert got.endswith(data[-1000:])
        assert len(got) > len(data)


def test_an_idle_connection_is_closed(quick):
    with quick.connect() as connection:
        connection.sendall(REQUEST + b"\r\n")
        start = time.monotonic()
        read_all(connection)
        assert 0.5 < time.monotonic() - start < 5


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\r\n" * 10 + b"x",
        b"GET\r\n\r\n",
        b"GET /header\r\n\r\n",
        b"GET /header HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /header HTTP/1.1\r\n\r\n",
        REQUEST + b"Host: y\r\n\r\n",
        REQUEST + b"A b: c\r\n\r\n",
        REQUEST + b"A\x00: c\r\n\r\n",
        REQUEST + b"A: \x00\r\n\r\n",
        REQUEST + b"Content-Length: x\r\n\r\n",
        REQUEST + b"Content-Length: -1\r\n\r\n",
        REQUEST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        REQUEST + b"Transfer-Encoding: gzip\r\n\r\n",
        REQUEST + b"A: " + b"x" * 20_000 + b"\r\n\r\n",
        REQUEST + b"A: b\r\n" * 5000 + b"\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /hea der HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=lambda data: data[:40].hex(),
)
def test_what_is_not_http(quick, data):
    got = quick.raw(data)
    assert got.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 408 ", b"HTTP/1.1 431 "))
    assert kind_of(got) in ("malformed", "late", "header")


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_get_a_constant_error_or_nothing(quick, data):
    with quick.connect() as connection:
        connection.sendall(data + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        got = read_all(connection)
    assert got == b"" or kind_of(got) in (
        "malformed", "missing", "method", "late", "has_body",
    )  # fmt: skip


def test_an_upgrade_is_not_made(quick):
    fields = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    assert quick.raw(REQUEST + fields).startswith(b"HTTP/1.1 200 ")


def test_no_more_connections_than_allowed(home):
    limits = {"connections_per_client": 4, "requests_per_second": 0, "header_seconds": 30}
    with running(home / "run", limits=limits) as service:
        held = [service.connect() for _ in range(4)]
        time.sleep(0.2)
        assert kind_of(service.raw(b"")) == "busy"
        held[0].sendall(REQUEST + b"\r\n")
        assert held[0].recv(12) == b"HTTP/1.1 200"
        held.pop().close()
        time.sleep(0.2)
        assert service.get("/header")[0] == 200
        for one in held:
            one.close()


def test_no_more_requests_than_allowed(home):
    with running(home / "run", limits={"requests_per_second": 5, "burst": 10}) as service:
        answers = [service.get("/header") for _ in range(15)]
        assert {status for status, _, _ in answers[:10]} == {200}
        status, fields, body = answers[-1]
        assert (status, fields["retry-after"]) == (429, "1")
        assert json.loads(body)["error"]["kind"] == "rate"
        time.sleep(1.0)
        assert service.get("/header")[0] == 200


def test_what_nobody_reads_any_more_is_not_read_from_disk(home, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run")
    with (run / "checkpoints" / "000000000012.safetensors").open("r+b") as file:
        file.truncate(1 << 36)  # sparse
    with running(run) as service:
        with service.connect() as connection:
            connection.sendall(
                b"GET /checkpoints/000000000012.safetensors HTTP/1.1\r\nHost: x\r\n\r\n"
            )
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        deadline = time.monotonic() + 5
        while not service.log():
            assert time.monotonic() < deadline
        assert int(service.log()[0].split()[-1]) < 1 << 30
