"""Ed25519 keys (RFC 8032): kept as PEM files, used to sign digests in separate domains.

What is signed is a fixed prefix and the domain-separated digest of the data, so that a signature
can neither be moved to another kind of record nor stem from another protocol that uses the key. The
one exception is DSSE (github.com/secure-systems-lab/dsse), whose own prefix keeps it apart.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from veritrain.encoding import digest
from veritrain.errors import UsageError, VerificationError
from veritrain.transcript.given import read_given, require_private
from veritrain.transcript.limits import LIMITS

_PREFIX = b"veritrain v1 signature\x00"
_FINGERPRINT_BYTES = 16

KEY_VARIABLE = "VERITRAIN_KEY"  # path of the trainer's key; not a setting of any run
DEFAULT_KEY = Path("~/.config/veritrain/trainer.key")


class Signer:
    """A private key. Its text form shows the fingerprint only."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()  # 32 bytes

    def __repr__(self) -> str:
        return f"Signer({self.fingerprint})"

    @classmethod
    def generate(cls) -> Signer:
        """A new key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: str | os.PathLike[str], password: bytes | None = None) -> Signer:
        """Read a PEM file.

        Raises:
            UsageError: not a plain file, unreadable or too large, not a PEM with an Ed25519
                private key, the password is missing, wrong or not needed, or others on this
                machine may read the file.
        """
        data = read_given(path, LIMITS.key_file_bytes)
        try:
            key = serialization.load_pem_private_key(data, password)
        except TypeError:
            problem = "needs a password" if password is None else "has no password; leave it out"
            raise UsageError(f"{path}: the key {problem}") from None
        except Exception as error:  # the library's errors on bad bytes are of many types
            hint = "" if password is None else ", or the password is wrong"
            raise UsageError(f"{path}: not a PEM file with a private key{hint}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"{path}: expected an Ed25519 private key, got another kind")
        require_private(path)
        return cls(key)

    def save(self, path: str | os.PathLike[str], password: bytes | None = None) -> None:
        """Write a PEM file (PKCS8, readable by its owner only), encrypted if there is a password.

        Raises:
            UsageError: the file exists already (a key is never overwritten), cannot be written, or
                the password is empty.
        """
        if password == b"":
            raise UsageError("an empty password protects nothing; give one or leave it out")
        data = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            (
                serialization.NoEncryption()
                if password is None
                else serialization.BestAvailableEncryption(password)
            ),
        )
        try:
            _make_folder(Path(path).parent)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise UsageError(f"{path}: exists already; a key is never overwritten") from None
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror}") from error

    @property
    def fingerprint(self) -> str:
        """See `fingerprint`."""
        return fingerprint(self.public_key)

    def sign(self, domain: str, data: bytes) -> bytes:
        """The 64-byte signature of `data` in `domain`."""
        return self._key.sign(_message(domain, data))

    def sign_dsse(self, payload_type: str, payload: bytes) -> bytes:
        """The 64-byte signature of a DSSE envelope, for readers outside of Veritrain."""
        return self._key.sign(_pre_authentication(payload_type, payload))


def fingerprint(public_key: bytes) -> str:
    """Short name of a public key for people: 32 hexadecimal digits of its digest."""
    return digest("public key", public_key)[:_FINGERPRINT_BYTES].hex()


def is_trusted(public_key: bytes, trusted: Collection[bytes | str]) -> bool:
    """Whether a key is among these public keys and fingerprints."""
    return public_key in trusted or fingerprint(public_key) in trusted


def default_key_path() -> Path:
    """Where the trainer's own key is kept: $VERITRAIN_KEY or ~/.config/veritrain/trainer.key."""
    return Path(os.environ.get(KEY_VARIABLE) or DEFAULT_KEY).expanduser()


def default_signer() -> Signer:
    """The trainer's own key, made on first use.

    Raises:
        UsageError: the file is not a key, or needs a password.
    """
    path = default_key_path()
    if os.path.lexists(path):
        return Signer.load(path)
    signer = Signer.generate()
    signer.save(path)
    return signer


def verify_signature(public_key: bytes, domain: str, data: bytes, signature: bytes) -> None:
    """Check a signature that `Signer.sign` made.

    Raises:
        VerificationError: the key is not valid, or the signature is not its signature of this.
    """
    _verify(public_key, domain, _message(domain, data), signature)


def verify_dsse(public_key: bytes, payload_type: str, payload: bytes, signature: bytes) -> None:
    """Check a signature that `Signer.sign_dsse` made.

    Raises:
        VerificationError: the key is not valid, or the signature is not its signature of this.
    """
    _verify(public_key, payload_type, _pre_authentication(payload_type, payload), signature)


def _verify(public_key: bytes, what: str, message: bytes, signature: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise VerificationError(
            f"signature of the {what}: expected one by key {fingerprint(public_key)}, "
            f"got {signature[:8].hex()}…, which is not"
        ) from None


def _pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """PAE of the DSSE protocol, version 1; it never begins like `_PREFIX`."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _message(domain: str, data: bytes) -> bytes:
    return _PREFIX + digest(f"signature of {domain}", data)


def _make_folder(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
