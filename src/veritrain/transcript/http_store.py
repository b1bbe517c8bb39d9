"""A run that a server shows by HTTP: read only, fetched when it is needed, kept in a bounded cache.

The server lists the files at `files` (docs/service.md) and shows each under its own path. What was
fetched stays in a temporary folder of this process until the room is needed. Nothing of it is
believed: names and sizes are checked here, contents by those who read them, as those of a local
    folder are.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlencode

from veritrain.errors import TranscriptError, UsageError
from veritrain.transcript.download import DOWNLOAD_LIMITS, Downloader, DownloadLimits
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.record import MAX_STEP
from veritrain.transcript.store import FOLDERS, Store, check_size, checked_path, too_large

LISTING = "files"
PAGE_FILES = 1000  # in one page of the listing; every page but the last is full

_PAGE_BYTES = 1 << 20  # of one page
_CACHE_BYTES = 1 << 38  # of a process: two states of the largest size
_SPARE_BYTES = 1 << 26  # that stay free where the cache lies


class HttpStore(Store):
    """The files below an HTTP address. The files of a run are written once, so none is read
    twice."""

    is_far = True

    def __init__(
        self,
        url: str,
        *,
        limits: DownloadLimits = DOWNLOAD_LIMITS,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        """Nothing is read yet.

        Raises:
            UsageError: as `Downloader`.
        """
        self._downloader = Downloader(url, limits)
        self._cache = _Cache(cache_bytes)
        self._sizes: Mapping[str, int] | None = None
        self.location = self._downloader.url

    def list(self) -> list[str]:
        """See `Store.list`: what is committed; leftovers of interrupted commits are not shown."""
        self._sizes = self._fetch_listing()
        return sorted(self._sizes)

    def total_bytes(self) -> int:
        """See `Store.total_bytes`: as the listing that was read last states them."""
        sizes = self._sizes if self._sizes is not None else self._fetch_listing()
        return sum(sizes.values())

    def read(self, path: str, limit: int) -> bytes:
        """See `Store.read`."""
        file = self._fetched(path, limit, None)
        size = file.stat().st_size
        if size > limit:
            raise too_large(path, limit)
        return file.read_bytes()

    @contextmanager
    def open_file(self, path: str, size: int) -> Generator[BinaryIO]:
        """See `Store.open_file`."""
        copy = self._fetched(path, size, size)
        check_size(path, size, copy.stat().st_size)
        with copy.open("rb") as file:
            yield file

    def write(self, path: str, parts: Iterable[bytes | memoryview]) -> None:
        """See `Store.write`: always refused."""
        raise self._read_only()

    def delete(self, path: str) -> None:
        """See `Store.delete`: always refused."""
        raise self._read_only()

    def lock(self) -> None:
        """See `Store.lock`: always refused."""
        raise self._read_only()

    def _read_only(self) -> UsageError:
        return UsageError(f"{self.location}: a run at an HTTP address can only be read")

    def _fetched(self, path: str, at_most: int, size: int | None) -> Path:
        known = self._cache.get(checked_path(path))
        if known is not None:
            return known
        stated = (self._sizes or {}).get(path, at_most)
        self._cache.make_room(path, at_most if size is not None else min(at_most, stated))
        with self._cache.adding(path) as file:
            self._downloader.fetch(path, file, at_most, size=size)
        return cast(Path, self._cache.get(path))

    def _fetch_listing(self) -> dict[str, int]:
        """Sizes by path.

        Raises:
            TranscriptError: pages that are malformed, not in order, or too many.
        """
        sizes: dict[str, int] = {}
        query: dict[str, str | int] = {"limit": PAGE_FILES}
        while True:
            head, files, is_last = _parse_page(self._fetch_page(query), next(reversed(sizes), ""))
            sizes.update(files)
            if len(sizes) > LIMITS.files:
                raise TranscriptError(LISTING, f"expected at most {LIMITS.files} files")
            if is_last:
                return sizes
            if head is None or len(files) != PAGE_FILES:
                raise TranscriptError(
                    LISTING, f"expected {PAGE_FILES} files in a page, got {len(files)}"
                )
            query = {"head": head, "after": next(reversed(sizes)), "limit": PAGE_FILES}

    def _fetch_page(self, query: Mapping[str, str | int]) -> bytes:
        page = BytesIO()
        self._downloader.fetch(f"{LISTING}?{urlencode(query, safe='/')}", page, _PAGE_BYTES)
        return page.getvalue()


def _parse_page(data: bytes, after: str) -> tuple[int | None, dict[str, int], bool]:
    """A page of the listing: the last step it covers, sizes by path, and whether it is the last
    page.

    Raises:
        TranscriptError: it is not a page whose paths come after `after`.
    """
    try:
        page = json.loads(data)
        head, files, is_last = page["head"], page["files"], page["next"] is None
        sizes = {entry["path"]: entry["bytes"] for entry in files}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise TranscriptError(LISTING, "not a listing of the files of a run") from None
    if not (head is None or (type(head) is int and 0 <= head <= MAX_STEP)) or (
        type(files),
        len(sizes),
    ) != (list, len(files)):
        raise TranscriptError(LISTING, "not a listing of the files of a run")
    for path, size in sizes.items():
        _check_entry(path, size, after)
        after = path
    return head, sizes, is_last


def _check_entry(path: object, size: object, after: str) -> None:
    if not isinstance(path, str) or type(size) is not int or not 0 <= size < 2**63:
        raise TranscriptError(LISTING, "not a listing of the files of a run")
    try:
        folder, _, _ = checked_path(path).rpartition("/")
    except UsageError as error:
        raise TranscriptError(LISTING, str(error)) from None
    if folder and folder not in FOLDERS:
        raise TranscriptError(ascii(folder), "unexpected folder in a run folder")
    if path <= after:
        raise TranscriptError(LISTING, f"{path!a} comes after {after!a}: not in order")


class _Cache:
    """Fetched files in a temporary folder, of a bounded size together; what was not used for
    longest goes first. The folder goes with this object."""

    def __init__(self, limit: int) -> None:
        self._limit = limit  # bytes
        self._total = 0
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def _folder(self) -> Path:
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="veritrain-")  # for its owner only
        return Path(self._temporary.name)

    def get(self, path: str) -> Path | None:
        """Where the file lies, if it is here."""
        if path not in self._sizes:
            return None
        self._sizes.move_to_end(path)
        return self._place(path)

    def make_room(self, path: str, size: int) -> None:
        """Delete files until `size` bytes more are allowed and fit.

        Raises:
            UsageError: they never will.
        """
        while self._sizes and self._lacks(size):
            oldest, freed = self._sizes.popitem(last=False)
            self._total -= freed
            self._place(oldest).unlink()
        if self._lacks(size):
            free = min(self._limit, shutil.disk_usage(self._folder).free)
            raise UsageError(
                f"{path}: {size} bytes have to be stored for a while and {self._folder.parent} "
                f"has room for {free}; set TMPDIR to a folder with more"
            )

    @contextmanager
    def adding(self, path: str) -> Generator[BinaryIO]:
        """Context manager: a new file, kept if nothing is raised."""
        place = self._place(path)
        try:
            with place.open("w+b") as file:
                yield file
        except BaseException:
            place.unlink(missing_ok=True)
            raise
        self._sizes[path] = place.stat().st_size
        self._total += self._sizes[path]

    def _lacks(self, size: int) -> bool:
        free = shutil.disk_usage(self._folder).free
        return self._total + size > self._limit or size + _SPARE_BYTES > free

    def _place(self, path: str) -> Path:
        return self._folder / path.replace("/", "-")
