"""Every bound on what a client can make an HTTP service do, in one place, with its unit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """Bounds of one service. A client is an IPv4 address, or 64 bits of an IPv6 address."""

    requests_per_second: float = 200  # of one client, in the long run; 0 for any number
    burst: int = 1000  # requests of one client that may come at once
    connections: int = 512  # at one time
    connections_per_client: int = 256
    clients: int = 65_536  # that are remembered, to count their requests
    header_bytes: int = 16_384  # of a request: its first line and all fields
    header_seconds: float = 10  # from the first byte of a request to the end of its header
    handshake_seconds: float = 10  # of TLS
    idle_seconds: int = 5  # between two requests on a connection
    body_seconds: float = 60  # from the end of the header to the end of the body, and beside that:
    body_bytes_per_second: int = 16_384  # the slowest pace at which a body may come
    write_seconds: float = 30  # for a client to take what is being written, 256 KiB at most
    bodies_bytes: int = 1 << 28  # of all bodies that are being received


HTTP_LIMITS = HttpLimits()
