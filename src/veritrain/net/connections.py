"""How long a connection may take for what it does, and how many there may be.

uvicorn bounds the pause between two requests and nothing else. This module bounds each phase: the
header of a request, its body (a time, and a pace for a large one), and the time in which a client
reads each part of an answer. A slower client gets an answer that says so, or its connection is
closed.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from veritrain.net.guard import client_key
from veritrain.net.http_limits import HttpLimits
from veritrain.net.problems import HttpProblem


class ConnectionCount:
    """Counts open connections, all and those of each client."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._open: Counter[str] = Counter()

    def enter(self, client: str) -> bool:
        """Count one more and tell whether it is allowed. The caller calls `leave` in both cases."""
        self._open[client] += 1
        return (
            self._open.total() <= self._limits.connections
            and self._open[client] <= self._limits.connections_per_client
        )

    def leave(self, client: str) -> None:
        """Count one less."""
        self._open[client] -= 1
        if self._open[client] <= 0:
            del self._open[client]


def protocol(limits: HttpLimits) -> type[H11Protocol]:
    """The class of the connections of one server."""
    return type(
        "BoundedConnection",
        (_BoundedConnection,),
        {"limits": limits, "count": ConnectionCount(limits)},
    )


class GuardedLoop(asyncio.SelectorEventLoop):
    """An event loop whose servers bound the time of a TLS handshake."""

    handshake_seconds = HttpLimits.handshake_seconds

    async def create_server(self, *arguments: Any, **options: Any) -> asyncio.Server:
        """See `asyncio.loop.create_server`."""
        if isinstance(options.get("ssl"), ssl.SSLContext):
            options["ssl_handshake_timeout"] = self.handshake_seconds
        return await super().create_server(*arguments, **options)


class _BoundedConnection(H11Protocol):
    """One connection.

    `conn.their_state` says what is being received: IDLE a header, SEND_BODY a body, DONE nothing.
    """

    limits: HttpLimits
    count: ConnectionCount
    _client = ""
    _receiving: Any = None  # the state that `_reading` is for
    _reading: asyncio.TimerHandle | None = None
    _end_of_body = 0.0  # when the body that is being received comes too late, in the loop's time
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
        super().connection_made(transport)
        # The header and the body of an answer are two writes: do not hold the second one back.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = client_key(self.client[0] if self.client else "")
        if self.count.enter(self._client):
            self._watch_reading()
        else:
            self._end(HttpProblem.BUSY)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.count.leave(self._client)
        self._stop_reading()
        if self._writing is not None:
            self._writing.cancel()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch_reading()
            self._end_of_body += len(data) / self.limits.body_bytes_per_second

    def send_400_response(self, msg: str) -> None:
        self._refuse(HttpProblem.MALFORMED)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]:
            self._watch_reading()
        else:  # idle: uvicorn's own time runs
            self._stop_reading()
        if self.transport.get_write_buffer_size() > 0:
            self._watch_writing()

    @property
    def _answering(self) -> RequestResponseCycle | None:
        """The request that is being answered. uvicorn's types do not say that there may be none."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle if cycle is not None and not cycle.response_complete else None

    def _watch_reading(self) -> None:
        """Start the clock of the phase that begins now, if it is another one than before."""
        state = self.conn.their_state
        if state is self._receiving or self.transport.is_closing():
            return
        self._stop_reading()
        self._receiving = state
        if state is h11.IDLE:
            self._reading = self.loop.call_later(self.limits.header_seconds, self._too_late)
        elif state is h11.SEND_BODY:
            self._end_of_body = self.loop.time() + self.limits.body_seconds
            self._watch_body()

    def _watch_body(self) -> None:
        """Bytes that came give the rest of the body more time. Look again when that is over."""
        if self.loop.time() < self._end_of_body:
            self._reading = self.loop.call_at(self._end_of_body, self._watch_body)
        else:
            self._too_late()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self._receiving = None

    def _too_late(self) -> None:
        if not self.transport.is_closing():
            self._refuse(HttpProblem.LATE)

    def _refuse(self, problem: HttpProblem) -> None:
        """End the request that is being received, whether it is being answered already or not."""
        answering = self._answering
        if answering is not None and answering.response_started:
            self.transport.abort()
            return
        if answering is not None:  # the code that waits for the body learns that none will come
            answering.disconnected = True
            answering.message_event.set()
        self._end(problem)

    def _watch_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
        self._writing = self.loop.call_later(self.limits.write_seconds, self._still_writing)

    def _still_writing(self) -> None:
        is_over = self._answering is None
        if self.flow.write_paused or (is_over and self.transport.get_write_buffer_size()):
            self.transport.abort()

    def _end(self, problem: HttpProblem) -> None:
        """Say what is wrong, and close."""
        body = problem.body
        phrase = HTTPStatus(problem.status).phrase
        head = (
            f"HTTP/1.1 {problem.status} {phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()
        self._watch_writing()
