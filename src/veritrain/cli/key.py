"""`veritrain key show`: whose key a file holds."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veritrain.cli import keys, output
from veritrain.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

_HEX = re.compile("[0-9a-fA-F]{64}", re.ASCII)


@click.group(
    "key",
    short_help="Show whose key a file holds (key show).",
    epilog="""\b
Examples:
  veritrain key show
  veritrain key show trainer.key

To make a key: veritrain keygen""",
)
def command() -> None:
    """Look at keys."""


@command.command(
    "show",
    epilog="""\b
Examples:
  veritrain key show
  veritrain key show trainer.key
  veritrain key show public.pem --json

The fingerprint is what others pass to `veritrain audit --key`.""",
)
@click.argument("file", required=False)
@output.json_option
def show(file: str | None, as_json: bool) -> int:
    """Show fingerprint and public key of FILE.

    FILE is a PEM file with a private or a public key, a file with 64 hexadecimal digits, or these
    digits themselves. Without it: the key at $VERITRAIN_KEY or ~/.config/veritrain/trainer.key. Of
    a private key nothing secret is printed.
    """
    from veritrain.transcript.signing import default_key_path, fingerprint

    place = file if file is not None else str(default_key_path())
    if file is None and not os.path.lexists(place):
        raise UsageError(f"{place}: there is no key yet; `veritrain keygen` makes one")
    kind, public = _found(place)
    data = {"kind": kind, "fingerprint": fingerprint(public), "public_key": public.hex()}
    lines: list[output.Line] = [
        f"{kind:<12} {output.escape(place)}" if kind != "digits" else "",
        f"fingerprint  {fingerprint(public)}",
        f"public key   {public.hex()}",
    ]
    output.emit(data, [line for line in lines if line], as_json=as_json)
    return 0


def _found(place: str) -> tuple[str, bytes]:
    """What it is (`private key`, `public key` or `digits`), and the public key, 32 bytes."""
    from veritrain.transcript.given import read_given
    from veritrain.transcript.limits import LIMITS

    if _HEX.fullmatch(place) and not os.path.lexists(place):
        return "digits", bytes.fromhex(place)
    data = read_given(place, LIMITS.key_file_bytes)
    text = data.decode("ascii", errors="replace").strip()
    if _HEX.fullmatch(text):
        return "public key", bytes.fromhex(text)
    if "PRIVATE KEY-----" in text:
        return "private key", keys.load(Path(place)).public_key
    return "public key", _public(data, place)


def _public(data: bytes, place: str) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key: PublicKeyTypes = serialization.load_pem_public_key(data)
    except Exception:  # the library's errors on bad bytes are of many types
        raise UsageError(
            f"{place}: expected a PEM file with an Ed25519 key, private or public, or a public key "
            "of 64 hexadecimal digits"
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{place}: expected an Ed25519 key, got another kind")
    return key.public_bytes_raw()
