"""A server that shows files over HTTP and breaks any rule that a test wants broken.

Faults are values: functions of a request that return what is sent instead of the honest answer.
Those in `faults[path]` are used up one by one, one for each request; after that the server is
honest.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256

from veritrain.net.ranges import Fields, select


@dataclass(frozen=True, kw_only=True)
class Request:
    """What came, and what an honest server would answer."""

    path: str
    query: str
    fields: Fields
    content: bytes | None
    tag: str = ""

    def field(self, name: str) -> str | None:
        return dict(self.fields).get(name.encode(), b"").decode() or None

    def honest(self) -> bytes:
        if self.content is None:
            return answer(404, b"")
        part = select("GET", self.fields, self.tag, len(self.content))
        extra = {"ETag": self.tag}
        if part.status == 206:
            extra["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{len(self.content)}"
        return answer(part.status, self.content[part.start : part.stop], extra)


Fault = Callable[[Request], Iterable[bytes]]


def answer(status: int, body: bytes, extra: dict[str, str] | None = None) -> bytes:
    fields = {"Content-Length": str(len(body)), **(extra or {})}
    lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def breaks_after(count: int) -> Fault:
    """The connection breaks after so many bytes of the body."""

    def fault(request: Request) -> Iterable[bytes]:
        head, _, body = request.honest().partition(b"\r\n\r\n")
        yield head + b"\r\n\r\n" + body[:count]

    return fault


def says(status: int, body: bytes = b"", **extra: str) -> Fault:
    """Another answer. Fields are named with _ for -."""
    named = {name.replace("_", "-"): value for name, value in extra.items()}
    return lambda request: [answer(status, body, named)]


def with_fields(**extra: str) -> Fault:
    """The honest answer with other fields."""
    named = {name.replace("_", "-"): value for name, value in extra.items()}

    def fault(request: Request) -> Iterable[bytes]:
        return [answer(200, request.content or b"", {"ETag": request.tag, **named})]

    return fault


def sends(*parts: bytes, pause: float = 0.0, endless: bool = False) -> Fault:
    """These bytes, one part after the other; `endless` for the last one again and again."""

    def fault(request: Request) -> Iterable[bytes]:
        yield from parts
        while endless:
            time.sleep(pause)
            yield parts[-1]

    return fault


@dataclass
class Faulty:
    """A running server."""

    contents: dict[str, bytes]
    port: int = 0
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    generation: int = 0  # part of each entity tag

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, path: str) -> list[str | None]:
        """The ranges that were asked for."""
        return [request.field("range") for request in self.requests if request.path == path]

    def content(self, path: str) -> bytes | None:
        if path != "files":
            return self.contents.get(path)
        files = [{"path": name, "bytes": len(data)} for name, data in sorted(self.contents.items())]
        heads = [int(name[11:]) for name in self.contents if name.startswith("signatures/")]
        return json.dumps({"head": max(heads, default=None), "files": files, "next": None}).encode()

    def handle(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    if not (part := connection.recv(65536)):
                        return
                    data += part
                head, _, data = data.partition(b"\r\n\r\n")
                request = self.parse(head)
                self.requests.append(request)
                queue = self.faults.get(request.path, [])
                if queue:
                    for part in queue.pop(0)(request):
                        connection.sendall(part)
                    return
                connection.sendall(request.honest())

    def parse(self, head: bytes) -> Request:
        first, *lines = head.split(b"\r\n")
        path, _, query = first.split()[1].decode().partition("?")
        fields = [tuple(line.split(b": ", 1)) for line in lines]
        content = self.content(path[1:])
        tag = f'"{sha256((content or b"") + bytes([self.generation])).hexdigest()[:16]}"'
        return Request(
            path=path[1:],
            query=query,
            fields=[(name.lower(), value) for name, value in fields],
            content=content,
            tag=tag,
        )


@contextmanager
def faulty(contents: dict[str, bytes]) -> Iterator[Faulty]:
    """A server of these files on a thread of this process."""
    server = Faulty(contents)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        server.port = listener.getsockname()[1]

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=server.handle, args=[connection], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)
