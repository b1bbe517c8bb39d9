"""Which files of a run are shown: those that are committed, each once and for ever.

A file is shown when a signed head covers its step. So a shown file never changes, and neither does
the list of all files up to one head. Names are checked against the format before a file is opened.
Links are not followed.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from veritrain.encoding import Value, digest_value
from veritrain.errors import TranscriptError, UsageError, VeritrainError
from veritrain.net.sending import OpenFile
from veritrain.transcript import files
from veritrain.transcript.store import LocalStore

_LOOK_SECONDS = 1.0  # between two looks for new commits
_SETTLED_SECONDS = 2.0  # a folder that changed so recently may change without another time stamp
_REMEMBERED_PAGES = 64  # of at most 1000 files, 150 bytes each
_TRIES = 3  # a commit that is made during a look can seem to lack a file
_PLACES = sorted(
    (files.HEADER, *files.CARRIED, "checkpoints/", "leaves/", "rounding/", "signatures/")
)


@dataclass(frozen=True, kw_only=True)
class Page:
    """A part of the list of files: paths and sizes in bytes, sorted by path."""

    head: int | None  # the files are those of commits up to the one of this step
    entries: tuple[tuple[str, int], ...]
    next: str | None  # ask for what comes after this path; None on the last page


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the last look at the folder found."""

    paths: tuple[str, ...] = ()  # committed; sorted
    heads: frozenset[int] = frozenset()
    newest: int | None = None
    looked: float = float("-inf")  # monotonic seconds
    changed: int = -1  # time stamp of the folder of signatures, nanoseconds


class ServedRun:
    """The run in a local folder, possibly still being written. May be used by many threads."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """
        Raises:
            UsageError: the folder does not hold a run, or holds something else too.
        """
        self._store = LocalStore(Path(folder))
        self._signatures = Path(folder) / "signatures"
        self._looking = threading.Lock()
        self._page = lru_cache(maxsize=_REMEMBERED_PAGES)(self._make_page)
        self._seen = _Seen()
        try:
            self._look()
            self.open(files.HEADER).file.close()
        except (VeritrainError, LookupError) as error:
            problem = "it has no header" if isinstance(error, LookupError) else str(error)
            raise UsageError(
                f"{os.fspath(folder)}: not a run that can be shown: {problem}"
            ) from None

    def open(self, path: str) -> OpenFile:
        """A committed file.

        Raises:
            LookupError: there is none with this path.
        """
        try:
            step = files.step_of(path)
            if step is not None and not self._covers(step):
                raise LookupError(path)
            file = self._store.open_plain(path)
        except VeritrainError:
            raise LookupError(path) from None
        try:
            status = os.fstat(file.fileno())
            tag = _tag(path, status)
        except BaseException:
            file.close()
            raise
        return OpenFile(file=file, size=status.st_size, tag=tag)

    def page(self, *, head: int | None, after: str, limit: int) -> Page:
        """At most `limit` files of the commits up to the one of step `head` (None: the newest),
        from the first path after `after` on.

        Raises:
            LookupError: no commit has this step.
            TranscriptError: the folder is not a run any more.
        """
        seen = self._fresh()
        if head is not None and head not in seen.heads:
            raise LookupError(head)
        return self._page(seen.newest if head is None else head, after, limit)

    def _make_page(self, head: int | None, after: str, limit: int) -> Page:
        """A page never changes once its head is there; `_page` remembers some."""
        paths: list[str] = []
        for path in _up_to(self._seen.paths, head, after):
            if len(paths) == limit:
                return Page(head=head, entries=self._sized(paths), next=paths[-1])
            paths.append(path)
        return Page(head=head, entries=self._sized(paths), next=None)

    def _sized(self, paths: list[str]) -> tuple[tuple[str, int], ...]:
        found: list[tuple[str, int]] = []
        for path in paths:
            with closing(self._store.open_plain(path)) as file:
                found.append((path, os.fstat(file.fileno()).st_size))
        return tuple(found)

    def _covers(self, step: int) -> bool:
        newest = self._seen.newest
        if newest is None or step > newest:
            newest = self._fresh().newest
        return newest is not None and step <= newest

    def _fresh(self) -> _Seen:
        """The last look at the folder, or a new one where something can have changed since."""
        seen, now = self._seen, time.monotonic()
        if now - seen.looked < _LOOK_SECONDS:
            return seen
        changed = self._time_stamp()
        is_settled = changed >= 0 and time.time() - changed / 1e9 > _SETTLED_SECONDS
        return seen if is_settled and changed == seen.changed else self._look()

    def _look(self) -> _Seen:
        with self._looking:
            if time.monotonic() - self._seen.looked < _LOOK_SECONDS:
                return self._seen
            changed, looked = self._time_stamp(), time.monotonic()
            listed, found = self._survey()
            hidden = set(found.leftovers)
            self._seen = _Seen(
                paths=tuple(path for path in listed if path not in hidden),
                heads=frozenset(found.head_steps),
                newest=found.head_steps[-1] if found.head_steps else None,
                looked=looked,
                changed=changed,
            )
            return self._seen

    def _survey(self) -> tuple[list[str], files.Survey]:
        for _ in range(_TRIES - 1):
            with suppress(TranscriptError):
                listed = self._store.list()
                return listed, files.survey(listed)
        listed = self._store.list()
        return listed, files.survey(listed)

    def _time_stamp(self) -> int:
        with suppress(OSError):
            return self._signatures.lstat().st_mtime_ns
        return -1


def _up_to(paths: tuple[str, ...], head: int | None, after: str) -> Iterator[str]:
    """The header, what is carried and the paths of steps up to `head`, that come after `after`."""
    for place in _PLACES:
        first = max(bisect_left(paths, place), bisect_right(paths, after))
        last = bisect_right(paths, place)
        if place in files.CARRIED and head is None:
            continue  # they are shown from the first commit on, as all but the header
        if place.endswith("/"):
            stop = -1 if head is None else head
            last = bisect_left(paths, f"{place}{stop + 1:012d}")
        yield from paths[first:last]


def _tag(path: str, status: os.stat_result) -> str:
    """A strong entity tag. Place, size and times of a local file show each change."""
    seen: list[Value] = [
        path,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    ]
    return f'"{digest_value("entity tag", seen).hex()[:32]}"'
