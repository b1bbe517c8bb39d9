"""Where a party keeps what it signed, so that a crash never makes it say two different things.

The folder of a party has a folder for each context (a dispute, for example), named by its digest. A
file is written once, is on the disk when writing returns, and is read back strictly. One process at
a time uses the folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

from veritrain.encoding import Digest
from veritrain.errors import TranscriptError, UsageError
from veritrain.parties.envelope import ENVELOPE_BYTES
from veritrain.parties.journal import JournalEntry
from veritrain.transcript.store import TEMPORARY_PREFIX, AlreadyWrittenError, LocalStore

_NUMBERED = re.compile(r"(reply|message)-([0-9]{4,18})", re.ASCII)
_PROOF = ("equivocation-1", "equivocation-2")
_CONTEXT = re.compile("[0-9a-f]{64}", re.ASCII)


class PartyFolder:
    """The folder of a party. It belongs to this process alone as long as the object lives."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, if it is not there.

        Raises:
            UsageError: another process has it, or it cannot be written.
        """
        self.folder = folder
        self._store = LocalStore(folder)
        self._store.lock()

    def contexts(self) -> list[Digest]:
        """Those that have a folder, sorted."""
        names = sorted(entry.name for entry in self.folder.iterdir() if entry.is_dir())
        return [bytes.fromhex(name) for name in names if _CONTEXT.fullmatch(name)]

    def has(self, name: str) -> bool:
        """Is this file beside the contexts?"""
        return (self.folder / name).exists()

    def write(self, name: str, data: bytes) -> bool:
        """Keep a file beside the contexts, and tell whether it is new. The same file may be there.

        Raises:
            UsageError: it cannot be written, or is there and differs.
        """
        return _write(self._store, name, data)

    def read(self, name: str, limit: int) -> bytes | None:
        """A file beside the contexts; None if there is none.

        Raises:
            TranscriptError: unreadable or too large.
        """
        return self._store.read(name, limit) if self.has(name) else None

    def open(self, name: str) -> BinaryIO | None:
        """A file beside the contexts, for reading; None if there is none.

        Raises:
            TranscriptError: unreadable.
        """
        return self._store.open_plain(name) if self.has(name) else None


class ContextFolder:
    """What a party keeps of one context. The folder need not be there yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._store = LocalStore(folder)

    def entries(self) -> KeptEntries:
        """The entries of the party's journal."""
        return KeptEntries(self._store, self._numbers("reply"))

    def messages(self) -> list[bytes]:
        """The messages of others that counted, in their order.

        Raises:
            TranscriptError: one is missing, or unreadable.
        """
        count = len(self._numbers("message"))
        return [
            self._store.read(_name("message", number), ENVELOPE_BYTES)
            for number in range(1, count + 1)
        ]

    def add_message(self, number: int, message: bytes) -> None:
        """Keep message `number`, counted from 1.

        Raises:
            UsageError: it cannot be written.
        """
        _write(self._store, _name("message", number), message)

    def keep_equivocation(self, pair: tuple[bytes, bytes]) -> Path:
        """Keep two envelopes that convict the party that signed both, and tell where.

        Raises:
            UsageError: they cannot be written.
        """
        for name, message in zip(_PROOF, pair, strict=True):
            with suppress(AlreadyWrittenError):  # one pair proves it
                self._store.write(name, (message,))
        return self.folder

    def clear(self) -> None:
        """Delete all but a proof against another party, which is of use after the end too.

        Raises:
            UsageError: it cannot be deleted.
        """
        for path in self._store.list():
            if path not in _PROOF:
                self._store.delete(path)
        with suppress(OSError):
            self.folder.rmdir()

    def _keep(self, name: str, data: bytes) -> bool:
        """As `PartyFolder.write`, in this folder."""
        return _write(self._store, name, data)

    def _numbers(self, kind: str) -> list[int]:
        """Numbers of the files of a kind. Leftovers of an interrupted write are deleted."""
        found: list[int] = []
        for path in self._store.list():
            match = _NUMBERED.fullmatch(path)
            if match is not None and path == _name(kind, int(match[2])):
                found.append(int(match[2]))
            elif path.startswith(TEMPORARY_PREFIX):
                self._store.delete(path)
        return found


class KeptEntries(MutableMapping[int, JournalEntry]):
    """Entries of a journal. Each is durable when its assignment returns, and is kept for ever."""

    def __init__(self, store: LocalStore, numbers: list[int]) -> None:
        self._store = store
        self._numbers = set(numbers)

    def __getitem__(self, number: int) -> JournalEntry:
        if number not in self._numbers:
            raise KeyError(number)
        name = _name("reply", number)
        return JournalEntry.from_bytes(self._store.read(name, JournalEntry.max_bytes), where=name)

    def __setitem__(self, number: int, entry: JournalEntry) -> None:
        self._store.write(_name("reply", number), (entry.to_bytes(),))
        self._numbers.add(number)

    def __delitem__(self, number: int) -> NoReturn:
        raise UsageError("an entry of a journal is kept for ever")

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._numbers))

    def __len__(self) -> int:
        return len(self._numbers)


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:04d}"


def _write(store: LocalStore, name: str, data: bytes) -> bool:
    try:
        store.write(name, (data,))
    except AlreadyWrittenError:
        try:
            is_same = store.read(name, len(data)) == data
        except TranscriptError:  # longer, for example
            is_same = False
        if not is_same:
            raise
        return False
    return True
