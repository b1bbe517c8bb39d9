"""Files that a person names on the command line: keys, tokens, certificates, samples, bundles.

A name can lead to anything. A named pipe, a device or a folder is refused at once, without waiting
for a writer; no more than a limit is read; and a secret that others on this machine may read is
refused, as ssh refuses such a key.
"""

from __future__ import annotations

import os
import shlex
import stat
from typing import BinaryIO

from veritrain.errors import UsageError

_OTHERS = 0o077  # what the group and everybody else may do
_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)  # Windows has neither
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_given(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a plain file for reading; links are followed.

    Raises:
        UsageError: missing, unreadable, or something else than a plain file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_WAITING | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UsageError(f"{path}: cannot be read: {_reason(error)}") from None
    try:
        _require_plain(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_given(path: str | os.PathLike[str], limit: int) -> bytes:
    """The content of such a file, of at most `limit` bytes.

    Raises:
        UsageError: as `open_given`, or the file is larger.
    """
    with open_given(path) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {_reason(error)}") from None
    if len(data) > limit:
        raise UsageError(f"{path}: expected at most {limit} bytes, got more")
    return data


def require_given(path: str | os.PathLike[str]) -> None:
    """Check a file that a foreign library will open by itself.

    Raises:
        UsageError: as `open_given`.
    """
    open_given(path).close()


def require_private(path: str | os.PathLike[str]) -> None:
    """Check that a file with a secret in it is its owner's alone, where files have owners.

    Only this user's own files are looked at: for one of another user (an administrator, say) that
    user has decided who may read it.

    Raises:
        UsageError: the group or everybody may read, write or execute it; says what to type.
    """
    found = os.stat(path)
    if os.name == "posix" and found.st_uid == os.geteuid() and found.st_mode & _OTHERS:
        raise UsageError(
            f"{path}: holds a secret, and others on this machine may use it "
            f"(mode {stat.S_IMODE(found.st_mode):04o}); "
            f"type: chmod 600 {shlex.quote(os.fspath(path))}"
        )


def _require_plain(path: str | os.PathLike[str], mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "a special file")
        raise UsageError(f"{path}: expected a plain file, got {kind}")


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
