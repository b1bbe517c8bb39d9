"""Every bound on what a client can make this process do, in one place, with its unit."""

from __future__ import annotations

from dataclasses import dataclass

from veritrain.protocols.dispute.limits import LIMITS


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """Bounds of one server. A client is an IPv4 address, or 64 bits of an IPv6 address."""

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
    question_bytes: int = LIMITS.challenge_bytes  # body of `POST /dispute/questions`
    verdict_bytes: int = LIMITS.verdict_bytes  # body of `POST /dispute/verdicts/{id}`
    challenge_bytes: int = LIMITS.challenge_bytes  # body of `POST /disputes`
    message_bytes: int = LIMITS.detail_bytes  # body of `POST /disputes/{id}/messages`
    bodies_bytes: int = 1 << 28  # of all bodies that are being received
    party_threads: int = 16  # that call a trainer's or referee's methods
    poll_seconds: int = 30  # that a question of the referee is waited for


SERVICE_LIMITS = ServiceLimits()
