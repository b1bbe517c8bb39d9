from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from veritrain.errors import UsageError, VerificationError
from veritrain.transcript.signing import Signer, fingerprint, verify_dsse, verify_signature

SIGNER = Signer.generate()
PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
PLAIN = serialization.NoEncryption()


def test_a_signature_verifies_for_its_key_domain_and_data_only() -> None:
    signature = SIGNER.sign("head", b"data")
    assert len(signature) == 64
    verify_signature(SIGNER.public_key, "head", b"data", signature)
    other = Signer.generate().public_key
    for key, domain, data, given_signature in [
        (other, "head", b"data", signature),
        (SIGNER.public_key, "leaf", b"data", signature),
        (SIGNER.public_key, "head", b"other", signature),
        (SIGNER.public_key, "head", b"data", bytes(64)),
        (SIGNER.public_key, "head", b"data", signature[:63]),
        (SIGNER.public_key, "head", b"data", b""),
        (b"short", "head", b"data", signature),
        (b"\xff" * 32, "head", b"data", signature),
    ]:
        with pytest.raises(
            VerificationError, match=f"signature of the {domain}: expected one by key"
        ):
            verify_signature(key, domain, data, given_signature)


def test_an_envelope_is_signed_as_dsse_says() -> None:
    """The bytes are those of the protocol's own example."""
    kind, payload = "http://example.com/HelloWorld", b"hello world"
    signature = SIGNER.sign_dsse(kind, payload)
    verify_dsse(SIGNER.public_key, kind, payload, signature)
    signed = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    Ed25519PublicKey.from_public_bytes(SIGNER.public_key).verify(signature, signed)
    for key, other_kind, other, given_signature in [
        (Signer.generate().public_key, kind, payload, signature),
        (SIGNER.public_key, "text/plain", payload, signature),
        (SIGNER.public_key, kind, b"hello", signature),
        (SIGNER.public_key, kind, payload, SIGNER.sign(kind, payload)),
    ]:
        with pytest.raises(VerificationError, match=f"signature of the {other_kind}"):
            verify_dsse(key, other_kind, other, given_signature)


@given(st.integers(0, 511))
@settings(max_examples=60, deadline=None)
def test_every_bit_of_a_signature_counts(bit: int) -> None:
    signature = bytearray(SIGNER.sign("head", b"data"))
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(VerificationError):
        verify_signature(SIGNER.public_key, "head", b"data", bytes(signature))


@pytest.mark.parametrize("password", [None, b"correct horse"])
def test_a_saved_key_loads_again(tmp_path: Path, password: bytes | None) -> None:
    path = tmp_path / "new" / "trainer.key"
    SIGNER.save(path, password)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (b"ENCRYPTED" in path.read_bytes()) == (password is not None)
    again = Signer.load(path, password)
    assert again.public_key == SIGNER.public_key
    assert again.sign("head", b"x") == SIGNER.sign("head", b"x")


def test_a_key_is_never_overwritten_not_even_through_a_link(tmp_path: Path) -> None:
    path = tmp_path / "trainer.key"
    path.write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (path, tmp_path / "link"):
        with pytest.raises(UsageError, match="exists already"):
            SIGNER.save(taken)
    assert path.read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


def test_passwords_that_do_not_fit_are_told_apart(tmp_path: Path) -> None:
    SIGNER.save(tmp_path / "plain")
    SIGNER.save(tmp_path / "locked", b"secret")
    with pytest.raises(UsageError, match="needs a password"):
        Signer.load(tmp_path / "locked")
    with pytest.raises(UsageError, match="the password is wrong"):
        Signer.load(tmp_path / "locked", b"guess")
    with pytest.raises(UsageError, match="has no password; leave it out"):
        Signer.load(tmp_path / "plain", b"secret")
    with pytest.raises(UsageError, match="empty password"):
        SIGNER.save(tmp_path / "empty", b"")


@pytest.mark.parametrize("data", [b"", b"hello", os.urandom(200), b"-----BEGIN PRIVATE KEY-----\n"])
def test_files_that_are_no_keys_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="not a PEM file with a private key"):
        Signer.load(path)


def test_other_kinds_of_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for key in (ec.generate_private_key(ec.SECP256R1()), x25519.X25519PrivateKey.generate()):
        path.write_bytes(key.private_bytes(PEM, PKCS8, PLAIN))
        with pytest.raises(UsageError, match="expected an Ed25519 private key"):
            Signer.load(path)


def test_a_huge_a_missing_and_an_unwritable_file_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(bytes(1 << 20))
    with pytest.raises(UsageError, match="at most 16384 bytes"):
        Signer.load(tmp_path / "huge")
    with pytest.raises(UsageError, match="cannot be read"):
        Signer.load(tmp_path / "missing")
    with pytest.raises(UsageError, match="expected a plain file, got a folder"):
        Signer.load(tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        SIGNER.save(tmp_path / "huge" / "key")


def test_a_signer_shows_its_fingerprint_and_nothing_else() -> None:
    assert SIGNER.fingerprint == fingerprint(SIGNER.public_key)
    assert len(SIGNER.fingerprint) == 32
    assert repr(SIGNER) == f"Signer({SIGNER.fingerprint})"
