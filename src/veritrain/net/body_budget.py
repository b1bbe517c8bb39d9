"""Bodies of requests, each within its own bound, all together within another one."""

from __future__ import annotations

import re

from starlette.requests import ClientDisconnect, Request

from veritrain.net.problems import HttpProblem, ProblemError


class BodyBudget:
    """Reads bodies of requests, each within a limit, all that are being read within another one."""

    def __init__(self, total: int) -> None:
        self._left = total  # bytes

    async def read(self, request: Request, limit: int) -> bytes:
        """The whole body.

        Raises:
            ProblemError: it is too large, or others are being read that leave no room.
        """
        announced = request.headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,15}", announced, re.ASCII) or int(announced) > limit:
            raise ProblemError(HttpProblem.LARGE)
        body = bytearray()
        try:
            async for part in request.stream():
                if len(body) + len(part) > limit:
                    raise ProblemError(HttpProblem.LARGE)
                if len(part) > self._left:
                    raise ProblemError(HttpProblem.BUSY)
                self._left -= len(part)
                body += part
            return bytes(body)
        except ClientDisconnect:
            raise ProblemError(HttpProblem.LATE) from None
        finally:
            self._left += len(body)
