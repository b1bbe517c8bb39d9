"""Where a run's files lie: a local folder, an HTTP address or any fsspec URL.

Files are written once and never changed, so that object stores without append or rename will do.
Locally a file appears under its name only when its bytes are on disk (temporary file, fsync,
rename, fsync of the folder). The writer of the folder is not trusted: reads are bounded, nothing
but plain files in the folder and in `FOLDERS` is accepted, and links are never followed.
A folder at a remote store is as bounded as the listing that its fsspec driver makes of it; runs at
HTTP addresses are read by `http_store`, within bounds of its own.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from veritrain.errors import StorageError, TranscriptError, UsageError, VeritrainError
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.locks import FolderLock

TEMPORARY_PREFIX = ".tmp-"  # followed by hexadecimal digits
FOLDERS = ("checkpoints", "leaves", "rounding", "signatures")  # in a run; any may be missing

_COPY_BYTES = 1 << 20
_PATH = re.compile(r"[A-Za-z0-9_.-]{1,255}(/[A-Za-z0-9_.-]{1,255})?", re.ASCII)


class AlreadyWrittenError(UsageError):
    """The file to write exists, by someone else or an earlier writer; it was not touched."""


class Store(ABC):
    """The files of one folder, named by relative paths with at most one folder: `leaves/0001`."""

    location: str
    is_far = False  # whether each read takes a request over a network

    @abstractmethod
    def list(self) -> list[str]:
        """All files, sorted; a folder that does not exist has none.

        Raises:
            TranscriptError: a link, a special file, a folder that no run has, or too many files.
        """

    @abstractmethod
    def read(self, path: str, limit: int) -> bytes:
        """The whole file.

        Raises:
            TranscriptError: missing, not a plain file, unreadable, or larger than `limit` bytes.
        """

    @abstractmethod
    def write(self, path: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write a new file made of `parts`; it appears when it is complete and durable.

        Raises:
            AlreadyWrittenError: the file exists.
            UsageError: it cannot be written.
        """

    @abstractmethod
    def open_file(self, path: str, size: int) -> AbstractContextManager[BinaryIO]:
        """Context manager: the file opened for reading at any place, after a check of its size.

        Raises:
            TranscriptError: missing, not a plain file, unreadable, or not of `size` bytes.
        """

    @abstractmethod
    def total_bytes(self) -> int:
        """The sizes of all files together, as the place where they lie states them.

        Raises:
            TranscriptError: as `list`.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Delete one file.

        Raises:
            UsageError: it cannot be deleted.
        """

    def lock(self) -> None:  # noqa: B027
        """Make this the only writer until `unlock` or the end of the process.

        A local folder is made if it does not exist. Remote stores have no locks: there the caller
        sees to it that a run has one writer.

        Raises:
            UsageError: another writer has the lock, or the folder cannot be made.
        """

    def unlock(self) -> None:  # noqa: B027
        """Let others write; may be called at any time."""

    def require_writable(self) -> None:  # noqa: B027
        """Check, as far as that can be told without making anything, that a run can be written
        here.

        Raises:
            UsageError: someone is writing one, or the folder cannot be made or written.
        """


class LocalStore(Store):
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock: FolderLock | None = None
        self.location = str(root)

    def list(self) -> list[str]:
        """See `Store.list`."""
        found: list[str] = []
        try:
            if self._root.exists():
                self._scan("", found)
        except OSError as error:
            raise TranscriptError(ascii(self.location), _problem("listed", error)) from error
        return sorted(found)

    def read(self, path: str, limit: int) -> bytes:
        """See `Store.read`."""
        with _translated(path), self._plain_file(path) as (file, size):
            if size > limit:
                raise too_large(path, limit)
            return file.read(size)

    def write(self, path: str, parts: Iterable[bytes | memoryview]) -> None:
        """See `Store.write`."""
        target = self._root / checked_path(path)
        temporary = target.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        try:
            _make_folder(target.parent)
            if os.path.lexists(target):
                raise _exists(path)
            try:
                _write_durably(temporary, parts)
                temporary.rename(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(target.parent)
        except OSError as error:
            raise StorageError(f"{target}: {_problem('written', error)}") from error

    @contextmanager
    def open_file(self, path: str, size: int) -> Generator[BinaryIO]:
        """See `Store.open_file`."""
        with _translated(path), self._plain_file(path) as (file, got):
            check_size(path, size, got)
            yield file

    def open_plain(self, path: str) -> BinaryIO:
        """The file opened for reading, if it is a plain one; links are not followed.

        Raises:
            TranscriptError: missing, not a plain file, or unreadable.
        """
        with _translated(path):
            return self._open(path)

    def total_bytes(self) -> int:
        """See `Store.total_bytes`."""
        with _translated(self.location):
            return sum((self._root / path).lstat().st_size for path in self.list())

    def delete(self, path: str) -> None:
        """See `Store.delete`."""
        target = self._root / checked_path(path)
        try:
            target.unlink()
            _sync_folder(target.parent)
        except OSError as error:
            raise StorageError(f"{target}: {_problem('deleted', error)}") from error

    def lock(self) -> None:
        """See `Store.lock`."""
        try:
            _make_folder(self._root)
            self._lock = FolderLock(self._root)
        except OSError as error:
            raise StorageError(f"{self._root}: {_problem('written', error)}") from error

    def unlock(self) -> None:
        """See `Store.unlock`."""
        if self._lock is not None:
            self._lock.release()

    def require_writable(self) -> None:
        """See `Store.require_writable`."""
        try:
            if self._root.exists():
                self.lock()
                self.unlock()
            place = self._root.absolute()
            while not place.exists():
                place = place.parent
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise StorageError(f"{self._root}: {_problem('written', error)}") from error

    def _scan(self, folder: str, found: list[str]) -> None:
        with os.scandir(self._root / folder) as entries:
            for item in entries:
                path = f"{folder}/{item.name}" if folder else item.name
                if item.is_symlink():
                    raise TranscriptError(ascii(path), "a symbolic link; links are not followed")
                if item.is_dir(follow_symlinks=False):
                    _check_folder(folder, path)
                    self._scan(path, found)
                elif item.is_file(follow_symlinks=False):
                    found.append(path)
                else:
                    raise TranscriptError(ascii(path), "a special file, expected a plain one")
                if len(found) > LIMITS.files:
                    raise TranscriptError(ascii(path), f"expected at most {LIMITS.files} files")

    @contextmanager
    def _plain_file(self, path: str) -> Generator[tuple[BinaryIO, int]]:
        with self._open(path) as file:
            yield file, os.fstat(file.fileno()).st_size

    def _open(self, path: str) -> BinaryIO:
        folder, _, name = checked_path(path).rpartition("/")
        no_follow = os.O_NOFOLLOW if folder else 0  # the run's own folder may be given by a link
        parent = os.open(self._root / folder, os.O_RDONLY | os.O_DIRECTORY | no_follow)
        try:
            # O_NONBLOCK: a named pipe must not hold the reader up.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(name, flags, dir_fd=parent)
        finally:
            os.close(parent)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise TranscriptError(path, "a special file, expected a plain one")
        return os.fdopen(descriptor, "rb")


class RemoteStore(Store):
    """A folder behind an fsspec driver.

    Drivers raise errors of many libraries; all are translated at this boundary.
    """

    def __init__(self, location: str, system: Any, root: str) -> None:
        self.location = location
        self._system = system
        self._root = root

    def list(self) -> list[str]:
        """See `Store.list`."""
        found: list[str] = []
        with _translated(self.location, Exception):
            self._system.invalidate_cache()
            if self._system.isdir(self._root):
                self._scan("", found)
        return sorted(found)

    def read(self, path: str, limit: int) -> bytes:
        """See `Store.read`."""
        with _translated(path, Exception), self._system.open(self._full(path), "rb") as file:
            data = cast(bytes, file.read(limit + 1))
        if len(data) > limit:
            raise too_large(path, limit)
        return data

    def write(self, path: str, parts: Iterable[bytes | memoryview]) -> None:
        """See `Store.write`; drivers of object stores show an object when it is complete."""
        full = self._full(path)

        def write() -> None:
            if self._system.exists(full):
                raise _exists(path)
            self._system.makedirs(full.rpartition("/")[0], exist_ok=True)
            with self._system.open(full, "wb") as file:
                for part in parts:
                    file.write(part)

        self._change("written", path, write)

    @contextmanager
    def open_file(self, path: str, size: int) -> Generator[BinaryIO]:
        """See `Store.open_file`; the file is copied to this machine's temporary folder."""
        with tempfile.TemporaryFile() as copy:
            with _translated(path, Exception), self._system.open(self._full(path), "rb") as file:
                while copy.tell() <= size and (part := file.read(_COPY_BYTES)):
                    copy.write(part)
            check_size(path, size, copy.tell())
            copy.seek(0)
            yield cast(BinaryIO, copy)

    def total_bytes(self) -> int:
        """See `Store.total_bytes`."""
        with _translated(self.location, Exception):
            return int(self._system.du(self._root))

    def delete(self, path: str) -> None:
        """See `Store.delete`."""
        self._change("deleted", path, lambda: self._system.rm_file(self._full(path)))

    def _scan(self, folder: str, found: list[str]) -> None:
        prefix = f"{folder}/" if folder else ""
        for item in self._system.ls(f"{self._root}/{folder}".rstrip("/"), detail=True):
            path = prefix + str(item["name"]).rstrip("/").rpartition("/")[2]
            if item["type"] == "directory":
                _check_folder(folder, path)
                self._scan(path, found)
            elif item["type"] == "file":
                found.append(path)
            else:
                raise TranscriptError(ascii(path), f"a {item['type']!a}, expected a file")
            if len(found) > LIMITS.files:
                raise TranscriptError(ascii(path), f"expected at most {LIMITS.files} files")

    def _full(self, path: str) -> str:
        return f"{self._root}/{checked_path(path)}"

    def _change(self, verb: str, path: str, action: Callable[[], None]) -> None:
        try:
            action()
        except UsageError:
            raise
        except Exception as error:
            raise StorageError(f"{self.location}/{path}: {_problem(verb, error)}") from error


@contextmanager
def _translated(path: str, errors: type[Exception] = OSError) -> Generator[None]:
    """Errors of the system or of a driver while reading become errors about that file."""
    try:
        yield
    except VeritrainError:
        raise
    except FileNotFoundError:
        raise TranscriptError(path, "missing") from None
    except errors as error:
        raise TranscriptError(path, _problem("read", error)) from error


def _problem(verb: str, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
    return f"cannot be {verb}: {reason}"


def _check_folder(parent: str, path: str) -> None:
    if parent:
        raise TranscriptError(ascii(path), "a folder, expected a file")
    if path not in FOLDERS:
        raise TranscriptError(ascii(path), "unexpected folder in a run folder")


def is_http(url: str) -> bool:
    """Is it the address of a run that a server shows by HTTP?"""
    return url.lower().startswith(("http://", "https://"))


def checked_path(path: str) -> str:
    """`path`, if a file of a run can have that path at all.

    Raises:
        UsageError: it cannot, or it leads out of the run.
    """
    if not _PATH.fullmatch(path) or any(part in (".", "..") for part in path.split("/")):
        raise UsageError(f"{path!a} is not the path of a file of a run")
    return path


def check_size(path: str, expected: int, got: int) -> None:
    """Check that a file has the size that it must have, in bytes.

    Raises:
        TranscriptError: it does not.
    """
    if got != expected:
        qualifier = "more" if got > expected else str(got)
        raise TranscriptError(path, f"expected {expected} bytes, got {qualifier}")


def too_large(path: str, limit: int) -> TranscriptError:
    """The error about a file of more than `limit` bytes."""
    return TranscriptError(path, f"expected at most {limit} bytes, got more")


def _exists(path: str) -> AlreadyWrittenError:
    return AlreadyWrittenError(f"{path}: exists already; the files of a run are written once")


def _write_durably(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
