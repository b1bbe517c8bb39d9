"""The answers to requests that go wrong: constant texts, which tell nothing about this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum

from starlette.responses import Response


class HttpProblem(Enum):
    """Status and text of each error that this service answers with."""

    MALFORMED = 400, "this is not a request that the service understands"
    HAS_BODY = 400, "a request of this method has no body"
    TOKEN = 401, "a valid bearer token is needed"
    MISSING = 404, "there is nothing at this path"
    METHOD = 405, "this path has no such method"
    LATE = 408, "the request took too long"
    CHANGED = 412, "the file is not the one that the condition names"
    LARGE = 413, "the body of the request is too large"
    RANGE = 416, "the file has no such bytes"
    REFUSED = 422, "this message is not one that can be answered"
    RATE = 429, "too many requests; come back later"
    HEADER = 431, "the header of the request is too large"
    FAILED = 500, "the service failed"
    BUSY = 503, "the service is busy; come back later"
    STOPPED = 503, "it stopped by an error; it goes on when the service starts again"

    @property
    def status(self) -> int:
        """The status code."""
        return self.value[0]

    @property
    def body(self) -> bytes:
        """JSON: `{"error": {"kind": ..., "message": ...}}`."""
        return json.dumps({"error": {"kind": self.name.lower(), "message": self.value[1]}}).encode()

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """The answer; `headers` are added."""
        every = {
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            **(headers or {}),
        }
        if self.status in (429, 503):
            every = {"Retry-After": "1", **every}
        if self.status == 401:
            every = {"WWW-Authenticate": 'Bearer realm="veritrain"', **every}
        return Response(self.body, self.status, every, "application/json")


class ProblemError(Exception):
    """Ends a request with an answer that says what is wrong."""

    def __init__(self, problem: HttpProblem) -> None:
        super().__init__(problem.name)
        self.problem = problem


def of_status(status: int) -> HttpProblem:
    """What a status that the framework chose means here."""
    known = {
        404: HttpProblem.MISSING,
        405: HttpProblem.METHOD,
        413: HttpProblem.LARGE,
        422: HttpProblem.MISSING,
    }
    return known.get(status, HttpProblem.MALFORMED if status < 500 else HttpProblem.FAILED)
