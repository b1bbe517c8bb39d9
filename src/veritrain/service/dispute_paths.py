"""The HTTP paths on which the parties of a dispute exchange messages.

A trainer's service takes questions, and shows the signed answers once they are computed. At a
referee's service both parties fetch their questions and bring their answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial
from os import SEEK_END
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from veritrain.errors import VeritrainError
from veritrain.net.body_budget import BodyBudget
from veritrain.net.problems import HttpProblem, ProblemError
from veritrain.net.sending import BYTES, FileStream, bytes_response
from veritrain.service.backends import RefereeBackend, StoppedError, TrainerBackend
from veritrain.service.service_limits import SERVICE_LIMITS, ServiceLimits

_Result = TypeVar("_Result")
_LOOK_SECONDS = 0.2  # between two looks for a question that is waited for
_PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class _Threads:
    """Calls a party on threads of its own: a slow one does not hold up the files."""

    def __init__(self, limits: ServiceLimits) -> None:
        self._limiter = CapacityLimiter(limits.party_threads)

    async def __call__(self, function: Callable[..., _Result], *arguments: bytes | str) -> _Result:
        return await run_sync(partial(function, *arguments), limiter=self._limiter)


class Submitted(BaseModel):
    """Where to fetch an answer."""

    model_config = ConfigDict(extra="forbid")
    answer: str  # path


class About(BaseModel):
    """The referee's key, and the run that it decides disputes about: 64 digits each."""

    model_config = ConfigDict(extra="forbid")
    key: str
    run: str


class OpenedDispute(BaseModel):
    """The dispute that a challenge opened."""

    model_config = ConfigDict(extra="forbid")
    dispute: str  # 64 hexadecimal digits


_Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="64 hexadecimal digits")]
_Wait = Annotated[int, Query(ge=0, le=SERVICE_LIMITS.poll_seconds, description="seconds")]
_Role = Annotated[str, Path(pattern="^(challenger|trainer)$")]


def trainer_router(trainer: TrainerBackend, limits: ServiceLimits, budget: BodyBudget) -> APIRouter:
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
        """Bring a signed question, or the challenge before it. The answer comes at once, or later
        at the path that is named. The answer to a challenge is empty."""
        question = await budget.read(request, limits.question_bytes)
        with _refusals():
            digest = await ask(trainer.submit, question)
        answer = await ask(trainer.get, digest)
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
            found = await ask(trainer.get, bytes.fromhex(digest))
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
            await ask(trainer.conclude, bytes.fromhex(dispute), verdict)
        return Response(status_code=204, headers=_PRIVATE)

    return router


def referee_router(referee: RefereeBackend, limits: ServiceLimits, budget: BodyBudget) -> APIRouter:
    """The paths of a referee's service."""
    router = APIRouter(tags=["referee"])
    ask = _Threads(limits)

    @router.get("/referee", response_model=About)
    async def about() -> About:
        """Learn who the referee is. Trust the key only if you know it from elsewhere."""
        key, run = await ask(referee.about)
        return About(key=key.hex(), run=run.hex())

    @router.post(
        "/disputes",
        status_code=201,
        response_model=OpenedDispute,
        openapi_extra=_body(limits.challenge_bytes),
        responses=_responses({}, 413, 422),
    )
    async def open_dispute(request: Request) -> Response:
        """Open a dispute by a signed challenge."""
        challenge = await budget.read(request, limits.challenge_bytes)
        with _refusals():
            dispute = (await ask(referee.open, challenge)).hex()
        headers = {**_PRIVATE, "Location": f"/disputes/{dispute}"}
        return Response(
            OpenedDispute(dispute=dispute).model_dump_json(), 201, headers, "application/json"
        )

    @router.get(
        "/disputes/{dispute}/questions/{role}",
        response_class=Response,
        responses=_responses(_bytes(200, "the signed question"), _none(204, "no question now")),
    )
    async def question(
        request: Request, dispute: _Digest, role: _Role, wait: _Wait = 0
    ) -> Response:
        """Fetch the question that a party has to answer next. Waits `wait` seconds for one."""
        seconds = min(wait, limits.poll_seconds)
        look = partial(referee.question, bytes.fromhex(dispute), role)
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
            at_most = await ask(referee.at_most, bytes.fromhex(dispute))
        message = await budget.read(request, min(limits.message_bytes, at_most))
        with _refusals():
            await ask(referee.receive, bytes.fromhex(dispute), message)
        return _empty(202)

    @router.get(
        "/disputes/{dispute}/verdict",
        response_class=Response,
        responses=_responses(_json(200, "DSSE envelope"), _none(204, "not yet")),
    )
    async def verdict(dispute: _Digest) -> Response:
        """Fetch the referee's verdict."""
        with _refusals():
            found = await ask(referee.verdict, bytes.fromhex(dispute))
        return _found(found, "application/json") if found is not None else _empty(204)

    @router.get(
        "/disputes/{dispute}/evidence",
        response_class=Response,
        responses=_responses(_bytes(200, "the evidence"), _none(204, "not yet")),
    )
    async def evidence(dispute: _Digest) -> Response:
        """Fetch what the verdict rests on."""
        with _refusals():
            found = await ask(referee.evidence, bytes.fromhex(dispute))
        if found is None:
            return _empty(204)
        size, on_sent = found.seek(0, SEEK_END), partial(referee.collected, bytes.fromhex(dispute))
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
        raise ProblemError(HttpProblem.REFUSED) from None
    except LookupError:
        raise ProblemError(HttpProblem.MISSING) from None
    except StoppedError:
        raise ProblemError(HttpProblem.STOPPED) from None


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
