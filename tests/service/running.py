"""The service in a process of its own, with limits and parties of a test's choosing.

`python -m tests.service.running OPTIONS` is that process; tests use `running`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from veritrain.errors import TranscriptError

ROOT = Path(__file__).resolve().parents[2]


class FakeTrainer:
    """Answers a question with itself backwards, when it is asked for the second time."""

    def __init__(self) -> None:
        self.asked: dict[bytes, list[bytes]] = {}

    def submit(self, question: bytes) -> bytes:
        if question.startswith(b"refuse"):
            raise TranscriptError("question", "secret reason")
        if question.startswith(b"fail"):
            raise RuntimeError("secret reason")
        if question.startswith(b"slow"):
            time.sleep(0.3)
        digest = hashlib.sha256(question).digest()
        self.asked.setdefault(digest, []).append(question)
        return digest

    def get(self, digest: bytes) -> bytes | None:
        asked = self.asked[digest]
        return asked[0][::-1] if len(asked) > 1 or asked[0].startswith(b"now") else None

    def conclude(self, dispute: bytes, verdict: bytes) -> None:
        if verdict.startswith(b"refuse"):
            raise TranscriptError("verdict", "secret reason")
        if dispute not in self.asked:
            raise LookupError(dispute)


class FakeReferee:
    """A referee who asks the challenger "why" once, the trainer never, and decides after an
    answer."""

    def __init__(self) -> None:
        self.disputes: dict[bytes, list[bytes]] = {}

    def about(self) -> tuple[bytes, bytes]:
        return bytes(32), bytes(range(32))

    def open(self, challenge: bytes) -> bytes:
        if challenge.startswith(b"refuse"):
            raise TranscriptError("challenge", "secret reason")
        dispute = hashlib.sha256(challenge).digest()
        self.disputes.setdefault(dispute, [])
        return dispute

    def question(self, dispute: bytes, role: str) -> bytes | None:
        messages = self.disputes[dispute]
        return b"why" if role == "challenger" and not messages else None

    def at_most(self, dispute: bytes) -> int:
        self.disputes[dispute]  # raises LookupError
        return 10 if dispute == hashlib.sha256(b"small").digest() else 1 << 30

    def receive(self, dispute: bytes, message: bytes) -> None:
        self.disputes[dispute].append(message)

    def verdict(self, dispute: bytes) -> bytes | None:
        return b'{"payload":""}' if self.disputes[dispute] else None

    def evidence(self, dispute: bytes) -> BinaryIO | None:
        if not self.disputes[dispute]:
            return None
        file = tempfile.TemporaryFile()  # noqa: SIM115 - whoever gets it closes it
        file.writelines(self.disputes[dispute])
        return file

    def collected(self, dispute: bytes) -> None:
        print("collected", dispute.hex(), file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A service that answers."""

    port: int
    process: int  # its number
    log_file: Path
    folder: Path | None = None
    scheme: str = "http"
    ca: Path | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}"

    def log(self) -> list[str]:
        """The lines of the log so far: client, method, path, status, bytes."""
        time.sleep(0.05)
        return self.log_file.read_text().splitlines()

    def connect(self) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        if self.ca is None:
            return plain
        return ssl.create_default_context(cafile=self.ca).wrap_socket(
            plain, server_hostname="localhost"
        )

    def get(
        self,
        path: str,
        headers: dict[str, str] | None = None,
        method: str = "GET",
        body: Any = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, fields in lower case, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.sock = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return response.status, fields, response.read()
        finally:
            connection.close()

    def raw(self, data: bytes) -> bytes:
        """What comes back for these bytes until the server closes; to be used where it does."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, in whatever way."""
    got = b""
    try:
        while part := connection.recv(65536):
            got += part
    except ConnectionError:
        pass
    return got


@contextmanager
def running(folder: Path | None = None, **options: Any) -> Iterator[Running]:
    """The service in a process of its own: of a run, or with the fake parties."""
    words = {"folder": str(folder) if folder else None, **options}
    certificate = options.get("certificate")
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.service.running", json.dumps(words)],
                stdout=subprocess.PIPE, stderr=file, cwd=ROOT, text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            )  # fmt: skip
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, log.read_text()
            yield Running(
                port=int(line),
                process=process.pid,
                log_file=log,
                folder=folder,
                scheme="https" if certificate else "http",
                ca=Path(certificate[0]) if certificate else None,
            )
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait(20)
            process.stdout.close()
        assert "Traceback" not in log.read_text() or options.get("may_fail"), log.read_text()


def main() -> None:
    from veritrain.net.listener import Certificate, listen, serve
    from veritrain.service.app import make_app
    from veritrain.service.served import ServedRun
    from veritrain.service.service_limits import ServiceLimits

    options = json.loads(sys.argv[1])
    limits = ServiceLimits(**options.get("limits", {"requests_per_second": 0}))
    folder, certificate = options["folder"], options.get("certificate")
    app = make_app(
        ServedRun(folder) if folder else None,
        trainer=None if folder else FakeTrainer(),
        referee=None if folder else FakeReferee(),
        token=options.get("token"),
        limits=limits,
        log=lambda access: print(access, file=sys.stderr),
    )
    listener = listen("127.0.0.1", 0)
    serve(
        app,
        listener,
        certificate=(
            Certificate(chain=Path(certificate[0]), key=Path(certificate[1]))
            if certificate
            else None
        ),
        limits=limits,
        on_start=lambda: print(listener.getsockname()[1], flush=True),
    )


if __name__ == "__main__":
    main()
