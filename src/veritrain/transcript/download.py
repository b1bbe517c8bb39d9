"""Fetching a file from an HTTP server that is not trusted, and going on where a connection broke.

The server is believed in nothing. Bodies are counted as they come, whatever was announced; memory
is taken for a chunk at a time; each answer has a time by which its header, and a pace at which its
body, must come. A download that breaks off goes on with a range request for the rest (RFC 9110
section 14), on the condition (`If-Range`) that the file is still the same. Redirects and compressed
bodies are refused. Whether the bytes are the right ones is for their digests to say.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError
from urllib3.exceptions import SSLError as TlsError
from urllib3.exceptions import TimeoutError as TooLateError

from veritrain import __version__
from veritrain.errors import TranscriptError, UsageError
from veritrain.transcript.given import read_given, require_given, require_private
from veritrain.transcript.store import too_large

TOKEN_VARIABLE = "VERITRAIN_TOKEN"  # noqa: S105 - the name of a variable
CA_VARIABLE = "VERITRAIN_CA"

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,4096}=*", re.ASCII)  # RFC 6750 section 2.1
_TOKEN_CHARACTERS = 20  # at least, of one in a file
_TOKEN_FILE_BYTES = 8192
_STRONG_TAG = re.compile(r'"[\x21\x23-\x7e]{0,256}"', re.ASCII)  # RFC 9110 section 8.8.3
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", re.ASCII)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CHUNK_BYTES = 1 << 18
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})  # statuses that may pass


@dataclass(frozen=True, kw_only=True)
class DownloadLimits:
    """How long a server may take, and how often it is asked again."""

    connect_seconds: float = 10  # for a connection; for a TLS handshake too
    header_seconds: float = 30  # from the request to the last byte of the answer's header
    silence_seconds: float = 30  # without a byte of the body
    grace_seconds: float = 120  # for a whole file, retries included, and beside that:
    bytes_per_second: int = 16_384  # the slowest pace at which a file may come
    attempts: int = 6  # one after the other that bring less than `progress_bytes`
    progress_bytes: int = 1 << 16
    pause_seconds: float = 0.25  # before asking again; doubled each time
    longest_pause_seconds: float = 15


DOWNLOAD_LIMITS = DownloadLimits()


def read_token(path: Path) -> str:
    """The bearer token in a file.

    Raises:
        UsageError: not a plain file, unreadable or too large, not a token, too short to be
            secret, or others on this machine may read the file.
    """
    data = read_given(path, _TOKEN_FILE_BYTES)
    text = data.decode("ascii", errors="replace").strip()
    if len(text) < _TOKEN_CHARACTERS:
        raise UsageError(
            f"{path}: expected a token of {_TOKEN_CHARACTERS} characters or more, got {len(text)}; "
            "make one by: (umask 077; openssl rand -hex 32 > token)"
        )
    token = _checked_token(text, str(path))
    require_private(path)
    return token


def _checked_token(token: str, source: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise UsageError(
            f"{source}: not a bearer token: expected at most 4096 letters, digits and -._~+/, "
            f"got {len(token)} characters"
        )
    return token


class _Broken(Exception):  # noqa: N818 - passed inside of this file only
    """A try that may succeed if it is made again."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause  # seconds that the server asked for


@contextmanager
def within(seconds: float, give_up: Callable[[], object]) -> Generator[None]:
    """Call `give_up` on another thread, if this context is still there after `seconds`."""
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _GivingUp:
    """A connection that gives up when its handshake, or the header of an answer, takes too long:
    the time limits of sockets start anew with each byte."""

    limits = DOWNLOAD_LIMITS
    sock: socket.socket | None

    def _give_up(self) -> None:
        if self.sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def connect(self) -> None:
        with within(2 * self.limits.connect_seconds, self._give_up):
            super().connect()  # pyright: ignore

    def getresponse(self) -> urllib3.HTTPResponse:
        with within(self.limits.header_seconds, self._give_up):
            return super().getresponse()  # pyright: ignore


class _PlainConnection(_GivingUp, HTTPConnection):  # pyright: ignore
    pass


class _TlsConnection(_GivingUp, HTTPSConnection):  # pyright: ignore
    pass


class Downloader:
    """Gets files below one address; not to be shared by threads."""

    def __init__(self, url: str, limits: DownloadLimits = DOWNLOAD_LIMITS) -> None:
        """Nothing is connected to yet.

        The bearer token is $VERITRAIN_TOKEN, if it is set. Certificates are checked against
        $VERITRAIN_CA, a PEM file, or the system's authorities. No other variable counts.

        Raises:
            UsageError: an address that cannot be used, a token that would go out unencrypted, or
                a file of authorities that cannot be read.
        """
        self.url = checked_url(url)
        self._limits = limits
        self._headers = {
            "Accept-Encoding": "identity",
            "User-Agent": f"veritrain/{__version__}",
            **authorization(self.url, os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE),
        }
        self._pool = connection_pool(self.url, limits)
        self._reached = False  # a server that never answered is not asked for long

    def fetch(self, path: str, into: BinaryIO, at_most: int, *, size: int | None = None) -> None:
        """Write the file `path` (with a query, if it has one) into the empty file `into`.

        Args:
            path: relative to the address.
            into: opened for writing and seeking.
            at_most: bytes; nothing more is read.
            size: bytes that it must have, if that is known; an announcement of another size ends
                the download before it begins.

        Raises:
            TranscriptError: missing, larger than `at_most`, not of `size`, too slow, an answer
                that HTTP does not allow, or a download that broke off again and again.
            UsageError: the server cannot be reached, is not who it says, wants a token, or sends
                elsewhere; or there is no room on this machine.
        """
        allowed = self._limits.grace_seconds + at_most / self._limits.bytes_per_second
        download = _Download(path, into, at_most, size, time.monotonic() + allowed)
        fruitless = 0
        while True:
            before = download.highest
            try:
                return self._attempt(download)
            except _Broken as error:
                progress = download.highest - before >= self._limits.progress_bytes
                fruitless = 1 if progress else fruitless + 1
                if fruitless >= self._limits.attempts:
                    problem = f"cannot be read: {error}, {fruitless} times in a row"
                    raise TranscriptError(path, problem) from None
                self._pause(fruitless, error.pause)

    def _pause(self, fruitless: int, asked: float) -> None:
        own = self._limits.pause_seconds * 2 ** (fruitless - 1) * (1 + random.random())  # noqa: S311
        time.sleep(min(max(own, asked), self._limits.longest_pause_seconds))

    def _attempt(self, download: _Download) -> None:
        """One request, for what is missing.

        Raises:
            _Broken: not everything came.
        """
        with self._response(download) as response:
            download.begin(response)
            with within(download.seconds_left(), response.shutdown):
                while part := _read(response):
                    download.add(part)
            download.end()

    @contextmanager
    def _response(self, download: _Download) -> Generator[urllib3.BaseHTTPResponse]:
        response = None
        try:
            response = self._pool.urlopen(
                "GET",
                f"{urlsplit(self.url).path}/{download.path}",
                headers={**self._headers, **download.headers()},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
            self._reached = True
            _check_status(response, download.path, self.url)
            yield response
        except (HTTPError, http.client.HTTPException, ssl.SSLError) as error:
            raise self._translated(error) from None
        except OSError as error:
            raise UsageError(f"{self.url}: {error.strerror or 'cannot be reached'}") from None
        finally:
            if response is not None:
                _put_back(response)

    def _translated(self, error: Exception) -> Exception:
        """What an error of the transport means: `_Broken` if another try may help."""
        reason = reason_of(error)
        if isinstance(error, TlsError | ssl.SSLError) and "CERTIFICATE" in str(error).upper():
            return UsageError(
                f"{self.url}: {reason}; name the authority that signed it with --ca or "
                f"{CA_VARIABLE}, if you trust it"
            )
        if not self._reached and isinstance(error, NewConnectionError):
            return UsageError(f"{self.url}: {reason}")
        return _Broken(reason)


class _Download:
    """One file as far as it came."""

    def __init__(
        self, path: str, into: BinaryIO, at_most: int, size: int | None, deadline: float
    ) -> None:
        self.path = path
        self.highest = 0  # bytes that have ever been there
        self._into = into
        self._at_most = at_most
        self._size = size
        self._deadline = deadline
        self._got = 0
        self._total: int | None = None  # as announced; believed in nothing but when to go on
        self._tag: str | None = None  # strong entity tag of what was got

    def headers(self) -> dict[str, str]:
        """The range to ask for: nothing but what is missing, if that can be told."""
        if self._tag is None or self._got == 0:
            return {}
        return {"Range": f"bytes={self._got}-", "If-Range": self._tag}

    def seconds_left(self) -> float:
        """Time that is left for all of it.

        Raises:
            TranscriptError: none.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TranscriptError(self.path, "cannot be read: it comes too slowly")
        return left

    def begin(self, response: urllib3.BaseHTTPResponse) -> None:
        """Take an answer's header: does it go on, or begin anew?

        Raises:
            TranscriptError: a header that no honest server sends, or a size that is not allowed.
            _Broken: the rest of another file.
        """
        tag = response.headers.get("ETag", "")
        if response.status == 206:
            self._go_on(response, tag)
            return
        self._got, self._total = 0, _content_length(response, self.path)
        self._into.seek(0)
        self._into.truncate()
        self._tag = tag if _STRONG_TAG.fullmatch(tag) else None
        self._check_announced()

    def add(self, part: bytes) -> None:
        """Take a part of the body.

        Raises:
            TranscriptError: it is one byte too much, or too slow.
            UsageError: there is no room for it.
        """
        self._got += len(part)
        if self._got > self._at_most:
            raise self._too_large()
        self.seconds_left()
        try:
            self._into.write(part)
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be stored in the temporary folder: {error.strerror}; "
                "set TMPDIR to one with more room"
            ) from None
        self.highest = max(self.highest, self._got)

    def end(self) -> None:
        """The body is over.

        Raises:
            _Broken: before its end.
            TranscriptError: it is not of the size that it must have.
        """
        if self._total is not None and self._got < self._total:
            raise _Broken("the connection broke")
        if self._size is not None and self._got != self._size:
            raise TranscriptError(self.path, f"expected {self._size} bytes, got {self._got}")

    def _go_on(self, response: urllib3.BaseHTTPResponse, tag: str) -> None:
        if self._tag is None or self._got == 0 or tag not in ("", self._tag):
            self._got, self._tag, self._total = 0, None, None
            raise _Broken("it sent a part of another file")
        text = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(text)
        first, last, total = map(int, match.groups()) if match is not None else (-1, -1, -1)
        if first != self._got or last != total - 1 or self._total not in (None, total):
            problem = (
                f"the server was asked for the bytes from {self._got} on and sent {text[:80]!a}"
            )
            raise TranscriptError(self.path, problem)
        self._total = total
        self._check_announced()

    def _check_announced(self) -> None:
        if self._total is None:
            return
        if self._size is not None and self._total != self._size:
            raise TranscriptError(self.path, f"expected {self._size} bytes, got {self._total}")
        if self._total > self._at_most:
            raise self._too_large()

    def _too_large(self) -> TranscriptError:
        if self._size is not None:
            return TranscriptError(self.path, f"expected {self._size} bytes, got more")
        return too_large(self.path, self._at_most)


def checked_url(url: str) -> str:
    """The address without the slash at its end.

    Raises:
        UsageError: it holds a user name, a query or anything else but scheme, host and path.
    """
    try:
        parts = urlsplit(url)
        is_plain = parts.hostname is not None and parts.port != 0 and parts.username is None
    except ValueError:
        raise UsageError(f"{url!a}: not an address") from None
    if not is_plain or parts.query or parts.fragment or "?" in url or "#" in url:
        raise UsageError(f"{url!a}: expected an address like https://host/run, nothing more")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise UsageError(f"{url!a}: an address holds printable ASCII characters only")
    return url.rstrip("/")


def authorization(url: str, token: str | None, source: str) -> dict[str, str]:
    """The field of a request that shows a bearer token; none without one. `source` names it in
    errors.

    Raises:
        UsageError: not a token, or one that would go over the network unencrypted.
    """
    if not token:
        return {}
    _checked_token(token, source)
    parts = urlsplit(url)
    if parts.scheme.lower() != "https" and parts.hostname not in _LOOPBACK:
        raise UsageError(
            f"{url}: {source} is set and would go over the network unencrypted; "
            "use https, or unset it"
        )
    return {"Authorization": f"Bearer {token}"}


def connection_pool(url: str, limits: DownloadLimits) -> HTTPConnectionPool:
    """Connections to the host of an address, which give up on a server that is too slow.

    Raises:
        UsageError: $VERITRAIN_CA is not a file with certificates.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    timeout = urllib3.Timeout(connect=limits.connect_seconds, read=limits.silence_seconds)
    if parts.scheme.lower() != "https":
        pool = HTTPConnectionPool(host, parts.port, timeout=timeout)
        pool.ConnectionCls = type("_Plain", (_PlainConnection,), {"limits": limits})  # pyright: ignore
        return pool
    pool = HTTPSConnectionPool(host, parts.port, timeout=timeout, ssl_context=_tls())
    pool.ConnectionCls = type("_Tls", (_TlsConnection,), {"limits": limits})  # pyright: ignore
    return pool


def _tls() -> ssl.SSLContext:
    file = os.environ.get(CA_VARIABLE) or None
    if file is not None:
        require_given(file)
    try:
        return ssl.create_default_context(cafile=file)
    except (OSError, ssl.SSLError):
        raise UsageError(f"{file}: not a readable PEM file with certificates") from None


def _check_status(response: urllib3.BaseHTTPResponse, path: str, url: str) -> None:
    """Check that an answer holds the file or a part of it.

    Raises:
        _Broken: the server may do better later.
        TranscriptError, UsageError: it will not.
    """
    status = response.status
    if status in _AGAIN:
        raise _Broken(f"the server answers with status {status}", _retry_after(response))
    if status == 416:
        raise _Broken("the file became shorter")
    if status in (404, 410):
        raise TranscriptError(path, "missing")
    if status in (401, 403):
        raise UsageError(
            f"{url}: the server refuses (status {status}); does it want another token? "
            f"Set {TOKEN_VARIABLE}, or use --token-file"
        )
    if 300 <= status < 400:
        raise UsageError(
            f"{url}: the server redirects (status {status}), which is not followed; "
            "name the address where the run is"
        )
    if status not in (200, 206):
        raise TranscriptError(path, f"the server answers with status {status}")
    coding = response.headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise TranscriptError(path, f"the server sends it encoded as {coding[:40]!a}")


def _content_length(response: urllib3.BaseHTTPResponse, path: str) -> int | None:
    """The length of a body as announced; None for one in chunks.

    Raises:
        _Broken: nothing says where the body ends. That is how a header looks which was cut off.
        TranscriptError: the length is no number.
    """
    if response.headers.get("Transfer-Encoding", "").lower() == "chunked":
        return None
    text = response.headers.get("Content-Length")
    if text is None:
        raise _Broken("the answer does not say how long it is")
    if not re.fullmatch("[0-9]{1,18}", text, re.ASCII):
        raise TranscriptError(path, f"the server announces {text[:40]!a} bytes")
    return int(text)


def _retry_after(response: urllib3.BaseHTTPResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if re.fullmatch("[0-9]{1,4}", text, re.ASCII) else 0.0


def _read(response: urllib3.BaseHTTPResponse) -> bytes:
    """What has come, at most a chunk; nothing at the end.

    A foreign library parses hostile bytes here: whatever it raises is about the connection.
    """
    try:
        return response.read1(_CHUNK_BYTES) or b""
    except (ValueError, AttributeError) as error:
        raise _Broken(f"a malformed body ({type(error).__name__})") from None


def _put_back(response: urllib3.BaseHTTPResponse) -> None:
    """Keep the connection, if the answer was read to its end."""
    if response.length_remaining == 0:
        response.release_conn()
    else:
        response.close()


def reason_of(error: Exception) -> str:
    """An error of the transport in words that are the same on every machine."""
    if isinstance(error, NameResolutionError):
        return "the name of the host is not known"
    if isinstance(error, NewConnectionError):
        return "no connection: nobody listens there, or the network does not reach it"
    if isinstance(error, TooLateError):
        return "no answer in time"
    if isinstance(error, TlsError | ssl.SSLError):
        return "no TLS connection, or the certificate is not one to trust"
    return "the connection broke"
