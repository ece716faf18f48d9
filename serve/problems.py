"""Errors as RFC 9457 problem documents: a stable type, a title a person understands, a trace id. The list is docs/errors.md."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from ugt.api import TRACE_HEADER

MEDIA_TYPE = "application/problem+json"
BASE = "urn:ugt:problem:"

# name: (HTTP status, title)
PROBLEMS: dict[str, tuple[int, str]] = {
    "malformed-json": (400, "The request body is not valid JSON"),
    "not-found": (404, "There is no such route"),
    "unknown-item": (404, "There is no such item"),
    "method-not-allowed": (405, "The route does not take this method"),
    "invalid-request": (422, "A field of the request is not valid"),
    "unknown-space": (422, "There are no vectors for this space"),
    "overloaded": (429, "The server is busy; try again"),
    "internal-error": (500, "The server failed to answer"),
    "unavailable": (503, "A part of the server does not answer; try again"),
}


@dataclass(frozen=True)
class Refusal:
    """What a deployment returns instead of an answer. A value, not an exception: the caller is wrong, not the replica, whose log stays clean."""

    name: str
    detail: str
    extra: dict[str, Any] = field(default_factory=dict)


class ProblemException(Exception):
    """Raised by a route to answer with a problem."""

    def __init__(self, refusal: Refusal):
        super().__init__(refusal)
        self.refusal = refusal


def trace_of(request: Request) -> str:
    return request.scope.get("ugt_trace_id") or uuid.uuid4().hex


def problem(request: Request, name: str, detail: str | None = None, headers: dict[str, str] | None = None, **extra: Any) -> Response:
    """The answer for a problem of PROBLEMS."""
    status, title = PROBLEMS[name]
    trace_id = trace_of(request)
    body = {"type": BASE + name, "title": title, "status": status, "trace_id": trace_id, **({"detail": detail} if detail else {}), **extra}
    return Response(json.dumps(body), status, {TRACE_HEADER: trace_id, **(headers or {})}, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Every error of `app` becomes a problem."""

    @app.exception_handler(ProblemException)
    async def known(request: Request, error: ProblemException) -> Response:
        refusal = error.refusal
        headers = {"Retry-After": "1"} if refusal.name in ("overloaded", "unavailable") else None
        return problem(request, refusal.name, refusal.detail, headers, **refusal.extra)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        errors = [{"field": _field(e["loc"]), "message": e["msg"]} for e in error.errors()]
        if any(e["type"] == "json_invalid" for e in error.errors()):
            return problem(request, "malformed-json", str(error.errors()[0].get("ctx", {}).get("error", "")) or None)
        return problem(request, "invalid-request", "; ".join(f"{e['field']}: {e['message']}" for e in errors), errors=errors)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # FastAPI's own: a body that is not JSON text at all
            return problem(request, "malformed-json", str(error.detail))
        name = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "internal-error")
        return problem(request, name, f"{request.method} {request.url.path}", dict(error.headers) if error.headers else None)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        structlog.get_logger("ugt").error("request failed", trace_id=trace_of(request), path=request.url.path, exc_info=error)
        return problem(request, "internal-error", "The log has the cause under this trace_id.")


def _field(location: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in location if part != "body") or "body"
