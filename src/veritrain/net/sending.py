"""Answers: a small one in one piece, a large one in chunks as fast as the client takes them."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from anyio.to_thread import run_sync
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from veritrain.net.problems import HttpProblem
from veritrain.net.ranges import Fields, select

CHUNK_BYTES = 1 << 18
_YEAR = 365 * 24 * 3600  # seconds; the longest time that caches are told, RFC 9111 section 5.2.2.1
BYTES = "application/octet-stream"


@dataclass(frozen=True, kw_only=True)
class OpenFile:
    """A file that is shown. The caller that gets it closes it."""

    file: BinaryIO = field(repr=False)
    size: int  # bytes
    tag: str  # strong entity tag, RFC 9110 section 8.8.3


def for_ever(*, private: bool) -> str:
    """Cache-Control of a file that never changes. A shared cache must not keep a private one."""
    return f"{'private' if private else 'public'}, max-age={_YEAR}, immutable"


def file_response(opened: OpenFile, method: str, fields: Fields, caching: str) -> Response:
    """The answer to a GET or HEAD request for this file, which it closes. Blocks while it reads."""
    selection = select(method, fields, opened.tag, opened.size)
    headers = {
        "ETag": opened.tag,
        "Cache-Control": caching,
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
    }
    length = selection.stop - selection.start
    if selection.status == 206:
        headers["Content-Range"] = f"bytes {selection.start}-{selection.stop - 1}/{opened.size}"
    if selection.status in (200, 206) and method == "GET" and length > CHUNK_BYTES:
        return FileStream(opened.file, selection.start, length, selection.status, headers)
    with opened.file as file:
        if selection.status == 416:
            return HttpProblem.RANGE.response({"Content-Range": f"bytes */{opened.size}"})
        if selection.status == 412:
            return HttpProblem.CHANGED.response()
        if selection.status == 304:
            return Response(status_code=304, headers=headers)
        if method == "HEAD":
            return Response(b"", 200, {**headers, "Content-Length": str(length)}, BYTES)
        file.seek(selection.start)
        return Response(file.read(length), selection.status, headers, BYTES)


def bytes_response(body: bytes, headers: Mapping[str, str], kind: str = BYTES) -> Response:
    """The answer that has this body. Many readers share the bytes: none gets a copy."""
    if len(body) <= CHUNK_BYTES:
        return Response(body, 200, headers, kind)
    return _BytesStream(body, headers, kind)


class _Stream(Response):
    """A body that is read and sent by chunks.

    A body that ends too early breaks the connection: a client must not take a part for the whole.
    """

    def __init__(self, length: int, status: int, headers: Mapping[str, str], kind: str) -> None:
        super().__init__(None, status, {**headers, "Content-Length": str(length)}, kind)
        self._length = length

    @abstractmethod
    async def _part(self, start: int, count: int) -> bytes | memoryview:
        """The next part of the body, from `start` on; called in order."""

    async def _send(self, receive: Receive, send: Send) -> None:
        start: Message = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await send(start)
            sent = 0
            while not gone.done() and (
                part := await self._part(sent, min(self._length - sent, CHUNK_BYTES))
            ):
                sent += len(part)
                more = sent < self._length
                await send({"type": "http.response.body", "body": part, "more_body": more})
        finally:
            gone.cancel()


class FileStream(_Stream):
    """A part of a file, which is closed in the end."""

    def __init__(
        self,
        file: BinaryIO,
        start: int,
        length: int,
        status: int,
        headers: Mapping[str, str],
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """`on_sent` is called when all of it is on its way."""
        super().__init__(length, status, headers, BYTES)
        self._file = file
        self._start = start
        self._on_sent = on_sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file as file:
            file.seek(self._start)
            await self._send(receive, send)
            if self._on_sent is not None and file.tell() == self._start + self._length:
                self._on_sent()

    async def _part(self, start: int, count: int) -> bytes | memoryview:
        return await run_sync(self._file.read, count)


class _BytesStream(_Stream):
    """A body in memory, which many readers share."""

    def __init__(self, body: bytes, headers: Mapping[str, str], kind: str) -> None:
        super().__init__(len(body), 200, headers, kind)
        self._body = memoryview(body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._send(receive, send)

    async def _part(self, start: int, count: int) -> bytes | memoryview:
        return self._body[start : start + count]


async def _disconnected(receive: Receive) -> None:
    """Return when the client is gone. Sending to a client that is gone is no error, so without this
    all of a file would be read for nobody."""
    while (await receive())["type"] != "http.disconnect":
        pass
