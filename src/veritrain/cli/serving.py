"""Options of commands that answer over HTTP, and the server around what they show."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from veritrain.errors import UsageError
from veritrain.runtime.progress import shown

if TYPE_CHECKING:
    import socket

    from starlette.types import ASGIApp

    from veritrain.net.guard import Access
    from veritrain.net.listener import Certificate
    from veritrain.service.service_limits import ServiceLimits

_FAILURE = 500  # statuses from here on are faults of the server
_FILE = click.Path(path_type=Path, dir_okay=False)
_OPTIONS = (
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at."),
    click.option(
        "--port", type=click.IntRange(0, 65535), default=8470, show_default=True, help="0 for any."
    ),
    click.option(
        "--certificate", type=_FILE, help="PEM file with the certificate (chain) for TLS."
    ),
    click.option("--certificate-key", type=_FILE, help="PEM file with the key of the certificate."),
    click.option("--token-file", type=_FILE, help="File with the bearer token that requests need."),
    click.option(
        "--public", is_flag=True, help="Listen beyond this machine without token and TLS."
    ),
    click.option(
        "--rate",
        type=click.FloatRange(0),
        metavar="N",
        help="Requests per second of one client; 0 for any number. [default: 200]",
    ),
    click.option(
        "--connections",
        type=click.IntRange(1, 65536),
        metavar="N",
        help="Connections at one time. [default: 512]",
    ),
    click.option("--verbose", "-v", is_flag=True, help="Write a line to stderr for each request."),
)


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The values of these options."""

    host: str
    port: int
    certificate: Path | None
    certificate_key: Path | None
    token_file: Path | None
    public: bool
    rate: float | None
    connections: int | None
    verbose: bool

    def prepared(self) -> Prepared:
        """Read the files and check what would be open to whom; nothing listens yet.

        Raises:
            UsageError: options that do not fit together, or the extra is not installed.
        """
        require_extra()
        from veritrain.net import listener
        from veritrain.transcript.download import read_token

        tls = self._tls()
        token = None if self.token_file is None else read_token(self.token_file)
        listener.require_protection(self.host, token=token, certificate=tls, public=self.public)
        return Prepared(options=self, token=token, limits=self._limits(), certificate=tls)

    def _tls(self) -> Certificate | None:
        from veritrain.net.listener import Certificate

        chain, key = self.certificate, self.certificate_key
        if (chain is None) != (key is None):
            raise UsageError(
                "--certificate and --certificate-key belong together: give both or neither"
            )
        return None if chain is None or key is None else Certificate(chain=chain, key=key)

    def _limits(self) -> ServiceLimits:
        from veritrain.service.service_limits import SERVICE_LIMITS

        limits = SERVICE_LIMITS
        if self.rate is not None:
            limits = replace(limits, requests_per_second=self.rate)
        if self.connections is not None:
            limits = replace(limits, connections=self.connections)
        return limits


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a server needs to know."""

    options: Serving
    token: str | None
    limits: ServiceLimits
    certificate: Certificate | None

    @property
    def log(self) -> Callable[[Access], None]:
        """Writes a line for a request: for all, or for those alone that the server failed at."""
        return _log if self.options.verbose else _log_failure

    def serve(
        self,
        app: ASGIApp,
        on_start: Callable[[str], None],
        is_over: Callable[[], bool] | None = None,
    ) -> None:
        """Answer requests until Ctrl-C, or until `is_over`; `on_start` is called with the address.

        Raises:
            UsageError: the address or the certificate cannot be used.
        """
        from veritrain.net import listener

        opened = listener.listen(self.options.host, self.options.port)
        url = self._url(opened)
        with shown():  # disputes that are opened
            listener.serve(
                app,
                opened,
                certificate=self.certificate,
                limits=self.limits,
                on_start=lambda: on_start(url),
                is_over=is_over,
            )

    def _url(self, listener: socket.socket) -> str:
        scheme = "http" if self.certificate is None else "https"
        host = self.options.host
        shown = f"[{host}]" if ":" in host else host
        return f"{scheme}://{shown}:{listener.getsockname()[1]}"


def options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options; the command gets them as `serving`."""

    @functools.wraps(command)
    def gathered(**values: Any) -> int:
        own = {field.name: values.pop(field.name) for field in fields(Serving)}
        return command(serving=Serving(**own), **values)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def require_extra() -> None:
    """Check that what a server needs is installed.

    Raises:
        UsageError: it is not.
    """
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} not installed; the service is an extra: "
            "pip install 'veritrain[service]'"
        )


def _log(access: Access) -> None:
    print(access, file=sys.stderr)


def _log_failure(access: Access) -> None:
    if access.status >= _FAILURE:
        _log(access)
