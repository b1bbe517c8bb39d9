"""The guard is the first code that sees a request. It knows nothing of what the request asks for.

It checks in this order: the client's rate (429), the size of the header (431), the version (400),
the bearer token (401), and a body where none belongs (400). An error of the code behind it becomes
a constant answer. Each request becomes one line for the log.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from veritrain.net.http_limits import HttpLimits
from veritrain.net.problems import HttpProblem

_BODYLESS = ("GET", "HEAD")
_VERSIONS = ("1.0", "1.1")
_SHOWN_PATH = 200  # characters in the log


@dataclass(frozen=True, kw_only=True)
class Access:
    """One answered request, for the log."""

    client: str
    method: str
    path: str  # as it came, cut and escaped
    range: str | None
    status: int  # 0 where the connection broke before an answer
    sent: int  # bytes of the body

    def __str__(self) -> str:
        part = f" [{self.range}]" if self.range else ""
        return f"{self.client} {self.method} {self.path}{part} {self.status} {self.sent}"


class Rates:
    """A token bucket for each client. Clients not seen for longest are forgotten."""

    def __init__(self, limits: HttpLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, when

    def admit(self, client: str) -> bool:
        """May this client ask once more now?"""
        rate, burst = self._limits.requests_per_second, self._limits.burst
        if rate == 0:
            return True
        now = self._clock()
        left, then = self._buckets.pop(client, (float(burst), now))
        left = min(burst, left + (now - then) * rate)
        admitted = left >= 1
        self._buckets[client] = (left - admitted, now)
        if len(self._buckets) > self._limits.clients:
            self._buckets.popitem(last=False)
        return admitted


class Guard:
    """ASGI middleware around the whole service."""

    def __init__(
        self,
        app: ASGIApp,
        limits: HttpLimits,
        token: str | None,
        log: Callable[[Access], None] | None = None,
    ) -> None:
        self._app = app
        self._limits = limits
        self._rates = Rates(limits)
        self._token = None if token is None else _fingerprint(token.encode())
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        seen = _Watched(send)
        try:
            problem = self._problem(scope)
            if problem is None:
                await self._app(scope, receive, seen.send)
            else:
                closing = {"Connection": "close"} if problem.status in (400, 431) else {}
                await problem.response(closing)(scope, receive, seen.send)
        finally:
            if self._log is not None:
                self._log(_access(scope, seen))

    def _problem(self, scope: Scope) -> HttpProblem | None:
        if not self._rates.admit(client_of(scope)):
            return HttpProblem.RATE
        if _header_bytes(scope) > self._limits.header_bytes:
            return HttpProblem.HEADER
        if scope["http_version"] not in _VERSIONS:
            return HttpProblem.MALFORMED
        if self._token is not None and not self._knows(scope):
            return HttpProblem.TOKEN
        if scope["method"] in _BODYLESS and _has_body(scope):
            return HttpProblem.HAS_BODY
        return None

    def _knows(self, scope: Scope) -> bool:
        """Does the request show the token? Takes the same time, however much of it is right."""
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        is_right = hmac.compare_digest(_fingerprint(token.strip(b" ")), self._token or b"")
        return is_right and scheme.lower() == b"bearer"


class _Watched:
    """Counts the bytes that are sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.count = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.count += len(message.get("body", b""))
        await self._send(message)


def client_of(scope: Scope) -> str:
    """The client for which a request counts: an IPv4 address, or half of an IPv6 one."""
    host = (scope.get("client") or ("unknown", 0))[0]
    return client_key(host)


def client_key(host: str) -> str:
    """The same for an address as text."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "unknown"
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def _header_bytes(scope: Scope) -> int:
    fields = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return fields + len(scope.get("raw_path") or b"") + len(scope["query_string"])


def _has_body(scope: Scope) -> bool:
    fields = dict(scope["headers"])
    return b"transfer-encoding" in fields or fields.get(b"content-length", b"0").strip(b"0") != b""


def _fingerprint(token: bytes) -> bytes:
    """A digest: tokens of different lengths compare in the same time."""
    return hashlib.sha256(token).digest()


def _access(scope: Scope, seen: _Watched) -> Access:
    raw = scope.get("raw_path") or b""
    ranges = [value for name, value in scope["headers"] if name == b"range"]
    return Access(
        client=client_of(scope),
        method=ascii(scope["method"])[1:-1][:20],
        path=_shown(raw),
        range=_shown(ranges[0]) if ranges else None,
        status=seen.status,
        sent=seen.count if scope["method"] != "HEAD" else 0,
    )


def _shown(raw: bytes) -> str:
    return ascii(raw[:_SHOWN_PATH].decode("latin-1"))[1:-1]
