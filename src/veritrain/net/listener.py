"""The process around an HTTP service: its address, TLS, and an orderly end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from veritrain.errors import UsageError
from veritrain.net.connections import GuardedLoop, protocol
from veritrain.net.http_limits import HTTP_LIMITS, HttpLimits
from veritrain.transcript.given import require_given, require_private

_BACKLOG = 1024  # connections that wait to be accepted
_SHUTDOWN_SECONDS = 5  # for answers that are being sent
_OTHER_FILES = 128  # descriptors beside those of connections and of the files they read


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """PEM files for TLS."""

    chain: Path
    key: Path


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at this address; port 0 stands for any that is free.

    Raises:
        UsageError: there is no such address here, or it is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)  # pyright: ignore
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise UsageError(f"cannot listen at {host}, port {port}: {reason}") from None


def require_protection(
    host: str, *, token: str | None, certificate: Certificate | None, public: bool
) -> None:
    """Check that a service which other machines can reach has a token or TLS.

    Raises:
        UsageError: it has neither, and nobody said that this is meant.
    """
    if token is None and certificate is None and not public and not _is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines: give --token-file or --certificate and "
            "--certificate-key, or say --public if everyone may read the run, unencrypted"
        )


def serve(
    app: ASGIApp,
    listener: socket.socket,
    *,
    certificate: Certificate | None = None,
    limits: HttpLimits = HTTP_LIMITS,
    on_start: Callable[[], None] | None = None,
    is_over: Callable[[], bool] | None = None,
) -> None:
    """Answer requests until SIGINT or SIGTERM; then finish what is being answered.

    Args:
        app: the service.
        listener: made by `listen`; is closed.
        certificate: for TLS; None for none.
        limits: bounds on connections.
        on_start: is called when requests are answered.
        is_over: is asked ten times a second; ends it too.

    Raises:
        UsageError: the certificate or its key cannot be used.
    """
    tls = None if certificate is None else _tls(certificate)
    _allow_files(limits)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # malformed requests are no news
    config = uvicorn.Config(
        app,
        http=protocol(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # any client could claim to be another one
        h11_max_incomplete_event_size=limits.header_bytes,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    config.load()
    config.ssl = tls
    server = _BoundedServer(config, on_start, is_over)
    with asyncio.Runner(loop_factory=lambda: _loop(limits)) as runner, suppress(KeyboardInterrupt):
        runner.run(server.serve(sockets=[listener]))


class _BoundedServer(uvicorn.Server):
    """Tells when it is ready, and asks whether it is still needed."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_start: Callable[[], None] | None,
        is_over: Callable[[], bool] | None,
    ) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._is_over = is_over

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self._is_over is not None and self._is_over())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_start is not None:
            self._on_start()


def _loop(limits: HttpLimits) -> GuardedLoop:
    loop = GuardedLoop()
    loop.handshake_seconds = limits.handshake_seconds
    return loop


def _tls(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    require_given(certificate.chain)
    require_given(certificate.key)
    try:
        context.load_cert_chain(certificate.chain, certificate.key, password=_no_password)
    except (OSError, ssl.SSLError):
        raise UsageError(
            f"{certificate.chain} and {certificate.key}: expected readable PEM files with a "
            "certificate and the key that belongs to it, without a password"
        ) from None
    require_private(certificate.key)
    return context


def _no_password() -> str:
    return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _allow_files(limits: HttpLimits) -> None:
    """Let this process have as many open files as its connections may need, if the system does."""
    wanted = 2 * limits.connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
