"""Files as answers: a small part in one piece, a large one in chunks as fast as the client takes them."""

from __future__ import annotations

import asyncio
from typing import BinaryIO

from anyio.to_thread import run_sync
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from veritrain.service.problems import Problem
from veritrain.service.ranges import Fields, select
from veritrain.service.served import OpenFile

CHUNK_BYTES = 1 << 18
_YEAR = 365 * 24 * 3600  # seconds; the longest time that caches are told, RFC 9111 section 5.2.2.1
_TYPE = "application/octet-stream"


def for_ever(*, private: bool) -> str:
    """Cache-Control of what never changes; caches that people share must not keep what needs a token."""
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
        return _Stream(opened.file, selection.start, length, selection.status, headers)
    with opened.file as file:
        if selection.status == 416:
            return Problem.RANGE.response({"Content-Range": f"bytes */{opened.size}"})
        if selection.status == 412:
            return Problem.CHANGED.response()
        if selection.status == 304:
            return Response(status_code=304, headers=headers)
        if method == "HEAD":
            return Response(b"", 200, {**headers, "Content-Length": str(length)}, _TYPE)
        file.seek(selection.start)
        return Response(file.read(length), selection.status, headers, _TYPE)


class _Stream(Response):
    """A part of a file, read and sent by chunks. Where the file ends too early the connection breaks:
    a client must not take what came for the whole."""

    def __init__(
        self, file: BinaryIO, start: int, length: int, status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(None, status, {**headers, "Content-Length": str(length)}, _TYPE)
        self._file = file
        self._start = start
        self._length = length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            with self._file as file:
                file.seek(self._start)
                await send(start)
                left = self._length
                while not gone.done() and (
                    part := await run_sync(file.read, min(left, CHUNK_BYTES))
                ):
                    left -= len(part)
                    await send({"type": "http.response.body", "body": part, "more_body": left > 0})
        finally:
            gone.cancel()


async def _disconnected(receive: Receive) -> None:
    """Return when the client is gone. Sending to it is no error: without this, all of a file would be
    read for nobody."""
    while (await receive())["type"] != "http.disconnect":
        pass
