"""Where the parties of a dispute exchange messages; what they mean is not this module's business.

A trainer shows `Answers`: questions come in, signed answers are computed in their own time and fetched.
A referee shows `Court`: both parties fetch their questions there and bring their answers. All messages are
opaque bytes here, signed by their senders (docs/disputes.md); a digest names what is fetched later.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial
from os import SEEK_END
from typing import Annotated, Any, BinaryIO, Protocol, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from veritrain.errors import VeritrainError
from veritrain.service.limits import SERVICE_LIMITS, ServiceLimits
from veritrain.service.problems import Problem, ProblemError, StoppedError
from veritrain.service.sending import BYTES, FileStream, bytes_response

_Result = TypeVar("_Result")
_LOOK_SECONDS = 0.2  # between two looks for a question that is waited for
_PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Answers(Protocol):
    """A trainer who answers the questions of referees. Called from several threads; may block."""

    def submit(self, question: bytes) -> bytes:
        """Take a signed question; again, if it was taken before.

        Returns:
            The digest, 32 bytes, under which its answer will be found.

        Raises:
            VeritrainError: not a question to this trainer.
        """
        ...

    def get(self, digest: bytes) -> bytes | None:
        """The signed answer, or None while it is being computed.

        Raises:
            LookupError: no such question was taken.
        """
        ...

    def conclude(self, dispute: bytes, verdict: bytes) -> None:
        """Take the verdict of a dispute, a DSSE envelope in JSON; again, if it was taken before.

        Raises:
            LookupError: no question of that dispute was taken.
            VeritrainError: not its verdict.
        """
        ...


class Court(Protocol):
    """A referee. Called from several threads; may block. Each method with a dispute raises `LookupError`
    where there is no such one, and `StoppedError` where an error stopped it."""

    def about(self) -> tuple[bytes, bytes]:
        """The referee's public key, and the digest of the header of the run that it hears disputes about."""
        ...

    def open(self, challenge: bytes) -> bytes:
        """Take a signed challenge; again, if it was taken before.

        Returns:
            The digest, 32 bytes, that identifies the dispute.

        Raises:
            VeritrainError: not a challenge that this referee takes.
        """
        ...

    def question(self, dispute: bytes, role: str) -> bytes | None:
        """The signed question that "challenger" or "trainer" has to answer next, if there is one."""
        ...

    def at_most(self, dispute: bytes) -> int:
        """The most bytes that a message of a party may have now."""
        ...

    def receive(self, dispute: bytes, message: bytes) -> None:
        """Take a signed message of a party.

        Raises:
            VeritrainError: not a message of this dispute.
        """
        ...

    def verdict(self, dispute: bytes) -> bytes | None:
        """The verdict, a DSSE envelope in JSON, once there is one."""
        ...

    def evidence(self, dispute: bytes) -> BinaryIO | None:
        """What anybody needs to check the verdict, once there is one; whoever gets it closes it."""
        ...

    def collected(self, dispute: bytes) -> None:
        """Somebody was sent all of the evidence."""
        ...


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
            raise ProblemError(Problem.LARGE)
        body = bytearray()
        try:
            async for part in request.stream():
                if len(body) + len(part) > limit:
                    raise ProblemError(Problem.LARGE)
                if len(part) > self._left:
                    raise ProblemError(Problem.BUSY)
                self._left -= len(part)
                body += part
            return bytes(body)
        except ClientDisconnect:
            raise ProblemError(Problem.LATE) from None
        finally:
            self._left += len(body)


class _Threads:
    """Calls a party on threads of its own: one that takes its time does not hold up the files."""

    def __init__(self, limits: ServiceLimits) -> None:
        self._limiter = CapacityLimiter(limits.party_threads)

    async def __call__(self, function: Callable[..., _Result], *arguments: bytes | str) -> _Result:
        return await run_sync(partial(function, *arguments), limiter=self._limiter)


class Submitted(BaseModel):
    """Where to fetch an answer."""

    model_config = ConfigDict(extra="forbid")
    answer: str  # path


class About(BaseModel):
    """Who the referee is, and which run it hears disputes about: 64 hexadecimal digits each."""

    model_config = ConfigDict(extra="forbid")
    key: str
    run: str


class Opened(BaseModel):
    """The dispute that a challenge opened."""

    model_config = ConfigDict(extra="forbid")
    dispute: str  # 64 hexadecimal digits


_Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="64 hexadecimal digits")]
_Wait = Annotated[int, Query(ge=0, le=SERVICE_LIMITS.poll_seconds, description="seconds")]
_Role = Annotated[str, Path(pattern="^(challenger|trainer)$")]


def answers_router(answers: Answers, limits: ServiceLimits, budget: BodyBudget) -> APIRouter:
    """The paths of a trainer's service."""
    router = APIRouter(tags=["dispute"])
    ask = _Threads(limits)

    @router.post(
        "/dispute/questions",
        status_code=202,
        response_model=Submitted,
        openapi_extra=_body(limits.question_bytes),
        responses=_responses(_bytes(200, "the signed answer"), 413, 422),
    )
    async def submit(request: Request) -> Response:
        """Bring a signed question, or first the challenge. The answer (to a challenge an empty one) comes
        at once, or later at the path that is named."""
        question = await budget.read(request, limits.question_bytes)
        with _refusals():
            digest = await ask(answers.submit, question)
        answer = await ask(answers.get, digest)
        if answer is not None:
            return _found(answer)
        place = f"/dispute/answers/{digest.hex()}"
        headers = {**_PRIVATE, "Location": place, "Retry-After": "1"}
        text = Submitted(answer=place).model_dump_json()
        return Response(text, 202, headers, "application/json")

    @router.get(
        "/dispute/answers/{digest}",
        response_class=Response,
        responses=_responses(_bytes(200, "the signed answer"), _none(202, "not yet")),
    )
    async def answer(digest: _Digest) -> Response:
        """Fetch the answer to a question."""
        with _refusals():
            found = await ask(answers.get, bytes.fromhex(digest))
        return _found(found) if found is not None else _empty(202)

    @router.post(
        "/dispute/verdicts/{dispute}",
        status_code=204,
        response_class=Response,
        openapi_extra=_body(limits.verdict_bytes, "application/json"),
        responses=_responses(_none(204, "taken"), 413, 422),
    )
    async def conclude(request: Request, dispute: _Digest) -> Response:
        """Bring the referee's verdict, a DSSE envelope: the dispute is over."""
        verdict = await budget.read(request, limits.verdict_bytes)
        with _refusals():
            await ask(answers.conclude, bytes.fromhex(dispute), verdict)
        return Response(status_code=204, headers=_PRIVATE)

    return router


def court_router(court: Court, limits: ServiceLimits, budget: BodyBudget) -> APIRouter:
    """The paths of a referee's service."""
    router = APIRouter(tags=["referee"])
    ask = _Threads(limits)

    @router.get("/referee", response_model=About)
    async def about() -> About:
        """Learn who the referee is. Trust the key only if you know it from elsewhere."""
        key, run = await ask(court.about)
        return About(key=key.hex(), run=run.hex())

    @router.post(
        "/disputes",
        status_code=201,
        response_model=Opened,
        openapi_extra=_body(limits.challenge_bytes),
        responses=_responses({}, 413, 422),
    )
    async def open_dispute(request: Request) -> Response:
        """Open a dispute by a signed challenge."""
        challenge = await budget.read(request, limits.challenge_bytes)
        with _refusals():
            dispute = (await ask(court.open, challenge)).hex()
        headers = {**_PRIVATE, "Location": f"/disputes/{dispute}"}
        return Response(Opened(dispute=dispute).model_dump_json(), 201, headers, "application/json")

    @router.get(
        "/disputes/{dispute}/questions/{role}",
        response_class=Response,
        responses=_responses(_bytes(200, "the signed question"), _none(204, "no question now")),
    )
    async def question(
        request: Request, dispute: _Digest, role: _Role, wait: _Wait = 0
    ) -> Response:
        """Fetch the question that a party has to answer next; `wait` seconds for one, if need be."""
        seconds = min(wait, limits.poll_seconds)
        look = partial(court.question, bytes.fromhex(dispute), role)
        found = await _wait_for(request, lambda: ask(look), seconds)
        return _found(found) if found is not None else _empty(204)

    @router.post(
        "/disputes/{dispute}/messages",
        status_code=202,
        response_class=Response,
        openapi_extra=_body(limits.message_bytes),
        responses=_responses(_none(202, "taken"), 413, 422),
    )
    async def receive(request: Request, dispute: _Digest) -> Response:
        """Bring a signed message. It may be as large as an answer to the open question can be."""
        with _refusals():
            at_most = await ask(court.at_most, bytes.fromhex(dispute))
        message = await budget.read(request, min(limits.message_bytes, at_most))
        with _refusals():
            await ask(court.receive, bytes.fromhex(dispute), message)
        return _empty(202)

    @router.get(
        "/disputes/{dispute}/verdict",
        response_class=Response,
        responses=_responses(_json(200, "DSSE envelope"), _none(204, "not yet")),
    )
    async def verdict(dispute: _Digest) -> Response:
        """Fetch the referee's verdict."""
        with _refusals():
            found = await ask(court.verdict, bytes.fromhex(dispute))
        return _found(found, "application/json") if found is not None else _empty(204)

    @router.get(
        "/disputes/{dispute}/evidence",
        response_class=Response,
        responses=_responses(_bytes(200, "the evidence"), _none(204, "not yet")),
    )
    async def evidence(dispute: _Digest) -> Response:
        """Fetch what the verdict rests on."""
        with _refusals():
            found = await ask(court.evidence, bytes.fromhex(dispute))
        if found is None:
            return _empty(204)
        size, on_sent = found.seek(0, SEEK_END), partial(court.collected, bytes.fromhex(dispute))
        return FileStream(found, 0, size, 200, _PRIVATE, on_sent)

    return router


async def _wait_for(
    request: Request, look: Callable[[], Awaitable[bytes | None]], seconds: float
) -> bytes | None:
    end = time.monotonic() + seconds
    while True:
        with _refusals():
            found = await look()
        if found is not None or time.monotonic() >= end or await request.is_disconnected():
            return found
        await asyncio.sleep(min(_LOOK_SECONDS, max(0.0, end - time.monotonic())))


@contextmanager
def _refusals() -> Generator[None]:
    try:
        yield
    except VeritrainError:
        raise ProblemError(Problem.REFUSED) from None
    except LookupError:
        raise ProblemError(Problem.MISSING) from None
    except StoppedError:
        raise ProblemError(Problem.STOPPED) from None


def _found(body: bytes, kind: str = BYTES) -> Response:
    return bytes_response(body, _PRIVATE, kind)


def _empty(status: int) -> Response:
    return Response(status_code=status, headers={**_PRIVATE, "Retry-After": "1"})


def _responses(described: dict[int | str, Any], *more: Any) -> dict[int | str, Any]:
    for item in more:
        described = {**described, **(_problem(item) if isinstance(item, int) else item)}
    return described


def _problem(status: int) -> dict[int | str, Any]:
    return {status: {"description": "problem"}}


def _bytes(status: int, what: str) -> dict[int | str, Any]:
    schema = {"type": "string", "format": "binary"}
    return {status: {"description": what, "content": {BYTES: {"schema": schema}}}}


def _json(status: int, what: str) -> dict[int | str, Any]:
    return {status: {"description": what, "content": {"application/json": {"schema": {}}}}}


def _none(status: int, what: str) -> dict[int | str, Any]:
    return {status: {"description": what}}


def _body(limit: int, kind: str = BYTES) -> dict[str, Any]:
    schema = {"type": "string", "format": "binary", "maxLength": limit}
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}
