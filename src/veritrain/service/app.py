"""The paths of the service and their description (OpenAPI 3.1, at `/openapi.json`).

A run is shown as static resources: the paths are those of its files. A client that has the token
may read the run. It can change nothing.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from veritrain import __version__
from veritrain.net.body_budget import BodyBudget
from veritrain.net.guard import Access, Guard
from veritrain.net.problems import HttpProblem, ProblemError, of_status
from veritrain.net.ranges import select
from veritrain.net.sending import file_response, for_ever
from veritrain.service.backends import RefereeBackend, TrainerBackend
from veritrain.service.dispute_paths import referee_router, trainer_router
from veritrain.service.served import Page, ServedRun
from veritrain.service.service_limits import SERVICE_LIMITS, ServiceLimits
from veritrain.transcript.http_store import PAGE_FILES

_METHODS = ["GET", "HEAD"]
_LAST_STEP = 10**12 - 1
_Endpoint = Callable[..., Coroutine[Any, Any, Response]]
_Head = Annotated[int | None, Query(ge=0, le=_LAST_STEP, description="step of a commit")]
_After = Annotated[str, Query(max_length=100, description="path to go on after")]
_Limit = Annotated[int, Query(ge=1, le=PAGE_FILES, description="most files in the page")]


class Entry(BaseModel):
    """One file of the list."""

    model_config = ConfigDict(extra="forbid")
    path: str
    bytes: int = Field(ge=0)


class Listing(BaseModel):
    """A page of the list of files, sorted by path."""

    model_config = ConfigDict(extra="forbid")
    head: int | None = Field(description="step of the last commit that the list covers")
    files: list[Entry] = Field(max_length=PAGE_FILES)
    next: str | None = Field(description="ask for what comes `after` this; null on the last page")


class ErrorBody(BaseModel):
    """What is wrong: a word for programs and a sentence for people."""

    kind: str
    message: str


class ErrorAnswer(BaseModel):
    """The body of each answer with a status of 400 or more."""

    error: ErrorBody


def make_app(
    run: ServedRun | None = None,
    *,
    trainer: TrainerBackend | None = None,
    referee: RefereeBackend | None = None,
    token: str | None = None,
    limits: ServiceLimits = SERVICE_LIMITS,
    log: Callable[[Access], None] | None = None,
) -> ASGIApp:
    """The service as an ASGI application.

    Args:
        run: to show.
        trainer: answers a referee's questions.
        referee: decides disputes.
        token: bearer token that every request must carry; None for none.
        limits: bounds on clients; those of connections are for `net.listener.serve` to keep.
        log: is called with each answered request.
    """
    app = FastAPI(
        title="Veritrain",
        version=__version__,
        description="Transcripts of training runs as immutable files, and messages of disputes.",
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses=_common_responses(token),
        generate_unique_id_function=lambda route: f"{route.name}",
    )
    budget = BodyBudget(limits.bodies_bytes)
    if run is not None:
        app.include_router(_run_router(run, private=token is not None))
    if trainer is not None:
        app.include_router(trainer_router(trainer, limits, budget))
    if referee is not None:
        app.include_router(referee_router(referee, limits, budget))
    _explain_errors(app)
    _describe(app, token)
    return Guard(app, limits, token, log)


def _run_router(run: ServedRun, *, private: bool) -> APIRouter:
    router = APIRouter(tags=["run"])
    caching = for_ever(private=private)
    for name, (path, summary) in _FILES.items():
        router.add_api_route(
            path,
            _show_file(run, path.removeprefix("/"), caching),
            name=name,
            methods=_METHODS,
            summary=summary,
            response_class=Response,
            responses=_FILE_RESPONSES,
            openapi_extra={"parameters": ([_STEP] if "{step}" in path else []) + _CONDITIONS},
        )
    router.add_api_route(
        "/files",
        _show_list(run, caching),
        name="files",
        methods=_METHODS,
        summary="The files of the run, sorted by path",
        response_model=Listing,
        responses={304: {"description": "not changed"}, 412: {"description": "problem"}},
    )
    return router


def _show_file(run: ServedRun, path: str, caching: str) -> _Endpoint:
    async def show(request: Request) -> Response:
        def answer() -> Response:
            opened = run.open(path.format(**request.path_params))
            return file_response(opened, request.method, request.scope["headers"], caching)

        try:
            return await run_sync(answer)
        except LookupError:
            raise ProblemError(HttpProblem.MISSING) from None

    return show


def _show_list(run: ServedRun, caching: str) -> _Endpoint:
    async def show(
        request: Request, head: _Head = None, after: _After = "", limit: _Limit = PAGE_FILES
    ) -> Response:
        """With `head` the list never changes. A client that reads several pages takes `head` from
        the first one."""
        try:
            page = await run_sync(lambda: run.page(head=head, after=after, limit=limit))
        except LookupError:
            raise ProblemError(HttpProblem.MISSING) from None
        return _listing(request, page, "no-cache" if head is None else caching)

    return show


def _listing(request: Request, page: Page, caching: str) -> Response:
    entries = [Entry(path=path, bytes=size) for path, size in page.entries]
    body = Listing(head=page.head, files=entries, next=page.next).model_dump_json().encode()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": caching, "X-Content-Type-Options": "nosniff"}
    status = select("HEAD", request.scope["headers"], tag, len(body)).status  # has no ranges
    if status == 412:
        raise ProblemError(HttpProblem.CHANGED)
    if status == 304:
        return Response(status_code=304, headers=headers)
    return Response(body, 200, headers, "application/json")


def _explain_errors(app: FastAPI) -> None:
    """Let every error become a `HttpProblem`: it tells nothing about a request or this machine."""

    async def on_problem(request: Request, error: Exception) -> Response:
        problem = error.problem if isinstance(error, ProblemError) else HttpProblem.FAILED
        closing = (
            {"Connection": "close"} if problem in (HttpProblem.LARGE, HttpProblem.BUSY) else {}
        )
        return problem.response(closing)

    async def on_status(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = error.headers if isinstance(error, HTTPException) else None
        return of_status(status).response(headers)

    async def on_invalid(request: Request, error: Exception) -> Response:
        in_path = isinstance(error, RequestValidationError) and any(
            one["loc"][0] == "path" for one in error.errors()
        )
        return (HttpProblem.MISSING if in_path else HttpProblem.MALFORMED).response()

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(HTTPException, on_status)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_problem)


def _common_responses(token: str | None) -> dict[int | str, dict[str, Any]]:
    statuses = [400, 404, 405, 408, 429, 431, 500, 503] + ([401] if token is not None else [])
    return {status: {"model": ErrorAnswer, "description": "problem"} for status in sorted(statuses)}


def _describe(app: FastAPI, token: str | None) -> None:
    """Complete the description: the framework does not know of HEAD, tokens and statuses."""
    made = app.openapi

    def description() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the names of operations are made different below
            schema = made()
        for methods in schema["paths"].values():
            for method in methods.keys() & {"get", "head"}:
                methods[method]["responses"].pop(
                    "422", None
                )  # of the framework, not of this service
            if "head" in methods:
                methods["head"]["operationId"] += "_head"
        if token is not None:
            scheme = {"type": "http", "scheme": "bearer"}
            schema.setdefault("components", {})["securitySchemes"] = {"bearer": scheme}
            schema["security"] = [{"bearer": []}]
        return schema

    app.openapi = description


def _condition(name: str, what: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": what,
        "schema": {"type": "string"},
    }


_FILES = {  # name of the operation: path and what is there
    "header": ("/header", "The header of the run"),
    "sources": ("/sources", "The job's source files, where the run carries them"),
    "records": ("/records", "Digests and forms of the records, where the run carries them"),
    "leaves": ("/leaves/{step}", "The leaves of a commit"),
    "signature": ("/signatures/{step}", "The signed head of a commit"),
    "rounding": ("/rounding/{step}", "The rounding log of a step"),
    "manifest": ("/checkpoints/{step}.manifest", "What a checkpoint holds"),
    "pack": ("/checkpoints/{step}.safetensors", "The tensors that a commit added"),
}
_STEP: dict[str, Any] = {
    "name": "step",
    "in": "path",
    "required": True,
    "description": "number of a step, 12 digits",
    "schema": {"type": "string", "pattern": "^[0-9]{12}$"},
}
_CONDITIONS = [
    _condition("Range", "RFC 9110 section 14.2; of several ranges the whole file is sent"),
    _condition("If-Range", "RFC 9110 section 13.1.5"),
    _condition("If-Match", "RFC 9110 section 13.1.1"),
    _condition("If-None-Match", "RFC 9110 section 13.1.2"),
]
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "the file", "content": _BINARY},
    206: {"description": "a part of the file", "content": _BINARY},
    304: {"description": "not changed"},
    412: {"description": "problem", "model": ErrorAnswer},
    416: {"description": "problem", "model": ErrorAnswer},
}
