"""Which key signs, and which key an auditor trusts."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veritrain.errors import UsageError

if TYPE_CHECKING:
    from veritrain.transcript import Signer

PASSWORD_VARIABLE = "VERITRAIN_KEY_PASSWORD"  # noqa: S105 - the name of a variable
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"  # RFC 7468 section 11


def load(path: Path | None) -> Signer:
    """A key to sign with; without a path the one at the default place, made on first use.

    Raises:
        UsageError: not a key, or its password is missing or wrong.
    """
    from veritrain.transcript.signing import Signer, default_key_path, default_signer

    place = path if path is not None else default_key_path()
    if path is None and not os.path.lexists(place):
        return default_signer()
    return Signer.load(place, _password(place) if _is_encrypted(place) else None)


def new_password() -> bytes:
    """A password for a new key: $VERITRAIN_KEY_PASSWORD, or asked for twice."""
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is None:
        given = _ask("Password for the new key", twice=True)
    return given.encode()


def trusted(text: str, option: str = "--key") -> bytes | str:
    """A key that somebody trusts: a public key of 64 hexadecimal digits, or a fingerprint of 32.
    `option` names it in errors.

    Raises:
        UsageError: neither of the two.
    """
    digits = text.lower()
    if re.fullmatch("[0-9a-f]{64}", digits, re.ASCII):
        return bytes.fromhex(digits)
    if not re.fullmatch("[0-9a-f]{32}", digits, re.ASCII):
        raise UsageError(
            f"{option}: expected a public key (64 hexadecimal digits) or a fingerprint (32), "
            f"got {len(text)} characters; `veritrain keygen` and `veritrain show` print both"
        )
    return digits


def _is_encrypted(path: Path) -> bool:
    from veritrain.transcript.given import open_given

    try:
        with open_given(path) as file:
            return file.read(len(_ENCRYPTED)) == _ENCRYPTED
    except (OSError, UsageError):
        return False  # loading it says why it cannot be read


def _password(path: Path) -> bytes:
    given = os.environ.get(PASSWORD_VARIABLE)
    return (_ask(f"Password of {path}", twice=False) if given is None else given).encode()


def _ask(prompt: str, *, twice: bool) -> str:
    if not sys.stdin.isatty():
        raise UsageError(
            f"a password is needed: set {PASSWORD_VARIABLE}, or run this on a terminal"
        )
    answer: str = click.prompt(prompt, hide_input=True, confirmation_prompt=twice, err=True)
    return answer
