"""`veritrain serve`: show a run to others over HTTP."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veritrain.cli import output
from veritrain.errors import UsageError

if TYPE_CHECKING:
    from veritrain.service.guard import Access
    from veritrain.service.server import Certificate

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(
    "serve",
    epilog="""\b
Examples:
  veritrain serve runs/a
  veritrain serve runs/a --host 0.0.0.0 --certificate c.pem --key k.pem
  veritrain serve runs/a --token-file token

Others then: veritrain audit https://host:8470 --job job.py""",
)
@click.argument("run", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8470, show_default=True, help="0 for any."
)
@click.option("--certificate", type=_FILE, help="PEM file with the certificate (chain) for TLS.")
@click.option("--key", type=_FILE, help="PEM file with the key of the certificate.")
@click.option("--token-file", type=_FILE, help="File with the bearer token that requests need.")
@click.option("--public", is_flag=True, help="Listen beyond this machine without token and TLS.")
@click.option(
    "--rate",
    type=click.FloatRange(0),
    metavar="N",
    help="Requests per second of one client; 0 for any number. [default: 200]",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 65536),
    metavar="N",
    help="Connections at one time. [default: 512]",
)
@click.option("--log/--no-log", default=True, help="Write a line to stderr for each request.")
@output.json_option
def command(
    run: Path,
    host: str,
    port: int,
    certificate: Path | None,
    key: Path | None,
    token_file: Path | None,
    public: bool,
    rate: float | None,
    connections: int | None,
    log: bool,
    as_json: bool,
) -> int:
    """Show RUN, a local folder, to others over HTTP, until Ctrl-C. Nothing can be changed through it.

    The files have the paths that they have in the folder; a run that is still being trained grows
    as it is shown. Prints its address when it is ready. Needs the extra `service`.
    """
    _require_extra()
    from veritrain.service import server
    from veritrain.service.app import make_app
    from veritrain.service.limits import SERVICE_LIMITS
    from veritrain.service.served import ServedRun
    from veritrain.transcript.download import read_token

    tls = _certificate(certificate, key)
    token = None if token_file is None else read_token(token_file)
    server.require_protection(host, token=token, certificate=tls, public=public)
    limits = SERVICE_LIMITS
    if rate is not None:
        limits = replace(limits, requests_per_second=rate)
    if connections is not None:
        limits = replace(limits, connections=connections)
    app = make_app(ServedRun(run), token=token, limits=limits, log=_log if log else None)
    listener = server.listen(host, port)
    scheme = "http" if tls is None else "https"
    shown = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{shown}:{listener.getsockname()[1]}"

    def on_start() -> None:
        data = {"url": url, "run": str(run)}
        output.emit(data, [f"serving {output.escape(str(run))} at {url}"], as_json=as_json)
        sys.stdout.flush()

    server.serve(app, listener, certificate=tls, limits=limits, on_start=on_start)
    return 0


def _certificate(chain: Path | None, key: Path | None) -> Certificate | None:
    from veritrain.service.server import Certificate

    if (chain is None) != (key is None):
        raise UsageError("--certificate and --key belong together: give both or neither")
    return None if chain is None or key is None else Certificate(chain=chain, key=key)


def _log(access: Access) -> None:
    print(access, file=sys.stderr)


def _require_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} not installed; the service is an extra: "
            "pip install 'veritrain[service]'"
        )
