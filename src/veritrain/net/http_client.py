"""Requests of one party to the service of another one, which is not trusted.

A client talks to one address and no other; it refuses redirects. It counts the bytes of a body as
they come, whatever was announced. Each request has a time by which it is over.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from veritrain import __version__
from veritrain.errors import TranscriptError, UsageError
from veritrain.transcript.download import (
    DOWNLOAD_LIMITS,
    DownloadLimits,
    authorization,
    checked_url,
    connection_pool,
    read_token,
    reason_of,
    within,
)
from veritrain.transcript.store import too_large

_KIND = {"Content-Type": "application/octet-stream"}
_PART_BYTES = 1 << 17
_LENGTHS = ("Content-Length", "Transfer-Encoding")
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})  # statuses that may pass
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between tries; the last one again and again


class UnansweredError(UsageError):
    """The other side gave no answer that can be used; it may do better later."""


@dataclass(frozen=True, kw_only=True)
class HttpAnswer:
    """What came back."""

    status: int
    body: bytes

    def expect(self, status: int, who: str = "it") -> bytes:
        """The body of an answer that has this status; `who` names the other side for people.

        Raises:
            UnansweredError: the answer has another one.
        """
        if self.status != status:
            raise UnansweredError(f"{who} answers with status {self.status}")
        return self.body

    def text(self, name: str, form: re.Pattern[str]) -> str:
        """The text `name` of an answer that is a JSON object.

        Raises:
            TranscriptError: there is none, or it is not of this form.
        """
        try:
            found = json.loads(self.body)[name]
        except (ValueError, TypeError, KeyError, RecursionError):
            found = None
        if not isinstance(found, str) or not form.fullmatch(found):
            raise TranscriptError("answer", f"expected an object with {name} like {form.pattern}")
        return found


class HttpClient:
    """Sends requests to one address; not to be shared by threads."""

    def __init__(
        self, url: str, token: str | None = None, limits: DownloadLimits = DOWNLOAD_LIMITS
    ) -> None:
        """Nothing is connected to yet.

        Args:
            url: what paths are relative to.
            token: bearer token that the other side wants.
            limits: on the time that it may take.

        Raises:
            UsageError: not an HTTP address, or a token that would go out unencrypted.
        """
        self.url = checked_url(url)
        if urlsplit(self.url).scheme.lower() not in ("http", "https"):
            raise UsageError(f"{url!a}: expected an HTTP address like https://host:8470")
        self._limits = limits
        self._headers = {
            "Accept-Encoding": "identity",
            "User-Agent": f"veritrain/{__version__}",
            **authorization(self.url, token, "the token"),
        }
        self._pool = connection_pool(self.url, limits)

    def get(self, path: str, at_most: int) -> HttpAnswer:
        """Ask for what is at `path`, of at most `at_most` bytes.

        Raises:
            UnansweredError: no answer, or none that can be used yet.
            UsageError: this side is refused, or sent elsewhere.
            TranscriptError: the answer is larger.
        """
        return self._request("GET", path, None, at_most)

    def post(self, path: str, body: bytes, at_most: int) -> HttpAnswer:
        """Bring `body` to `path`; errors are those of `get`."""
        return self._request("POST", path, body, at_most)

    def _request(self, method: str, path: str, body: bytes | None, at_most: int) -> HttpAnswer:
        about = {} if body is None else {"Content-Length": str(len(body)), **_KIND}
        response = None
        try:
            response = self._pool.urlopen(
                method,
                f"{urlsplit(self.url).path}{path}",
                body=None if body is None else _parts(body),
                headers={**self._headers, **about},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
            self._require_usable(response)
            read = self._read(response, path, at_most)
            response.release_conn()
            return HttpAnswer(status=response.status, body=read)
        except (HTTPError, http.client.HTTPException, ssl.SSLError) as error:
            raise UnansweredError(f"{self.url}: {reason_of(error)}") from None
        except (OSError, ValueError, AttributeError) as error:  # of the parser of hostile bytes
            raise UnansweredError(f"{self.url}: the connection broke ({error})") from None
        finally:
            if response is not None and response.length_remaining != 0:
                response.close()

    def _require_usable(self, response: urllib3.BaseHTTPResponse) -> None:
        status = response.status
        if status in _AGAIN:
            raise UnansweredError(f"{self.url}: it answers with status {status}")
        if status in (401, 403):
            raise UsageError(f"{self.url}: it refuses (status {status}); does it want a token?")
        if 300 <= status < 400:
            raise UsageError(f"{self.url}: it redirects (status {status}), which is not followed")
        if status != 204 and not any(name in response.headers for name in _LENGTHS):
            raise UnansweredError(f"{self.url}: the answer does not say how long it is")  # cut off

    def _read(self, response: urllib3.BaseHTTPResponse, path: str, at_most: int) -> bytes:
        seconds = self._limits.grace_seconds + at_most / self._limits.bytes_per_second
        got = bytearray()
        with within(seconds, response.shutdown):
            while part := response.read1(1 << 18):
                got += part
                if len(got) > at_most:
                    raise too_large(path, at_most)
        return bytes(got)


def _parts(body: bytes) -> Iterator[bytes]:
    """The body in parts. urllib3 gives each part `connect_seconds` to leave; it would give a whole
    body no more."""
    for start in range(0, len(body), _PART_BYTES):
        yield body[start : start + _PART_BYTES]


def pause(attempt: int) -> float:
    """Seconds to wait after try number `attempt`, counted from 0, before the next one."""
    return PAUSES[min(attempt, len(PAUSES) - 1)]


def token_in(path: Path | None) -> str | None:
    """The bearer token in a file, if there is one.

    Raises:
        UsageError: see `read_token`.
    """
    return None if path is None else read_token(path)
