"""`veritrain keygen`: make the key that a trainer signs with."""

from __future__ import annotations

from pathlib import Path

import click

from veritrain.cli import keys, output


@click.command(
    "keygen",
    short_help="Make a signing key.",
    epilog="""\b
Examples:
  veritrain keygen
  veritrain keygen trainer.key --password

Give the fingerprint to those who audit your runs:
they pass it to `veritrain audit --key`.""",
)
@click.argument("path", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--password", "with_password", is_flag=True, help="Encrypt the file; asks for it.")
@output.json_option
def command(path: Path | None, with_password: bool, as_json: bool) -> int:
    """Make a signing key (Ed25519, a PEM file that only you can read).

    PATH is $VERITRAIN_KEY or ~/.config/veritrain/trainer.key if it is left out. `veritrain train`
    makes a key there by itself when it needs one. A key is never overwritten. The password may
    also stand in $VERITRAIN_KEY_PASSWORD.
    """
    from veritrain.transcript.signing import Signer, default_key_path

    place = path if path is not None else default_key_path()
    signer = Signer.generate()
    signer.save(place, keys.new_password() if with_password else None)
    data = {
        "path": str(place),
        "fingerprint": signer.fingerprint,
        "public_key": signer.public_key.hex(),
    }
    lines = [
        f"key          {output.escape(str(place))}",
        f"fingerprint  {signer.fingerprint}",
        f"public key   {signer.public_key.hex()}",
    ]
    output.emit(data, lines, as_json=as_json)
    return 0
