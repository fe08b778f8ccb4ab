"""One shape for everything that goes wrong: `{"error": {"code", "message", "request_id"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from serving.api import logs
from serving.filters import KINDS
from serving.query import MissingError, TakenError
from storage.errors import StoreError, UserError

RETRY_AFTER = 1  # seconds
MOST_MISTAKES = 5  # that a message names; a list of a thousand wrong ids has as many


class ErrorBody(BaseModel):
    """What went wrong: a stable code, a sentence, and the id under which the log has it."""

    code: str
    message: str
    request_id: str


class Problem(BaseModel):
    """The answer to a request that failed."""

    error: ErrorBody


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "no JSON"},
    401: {"model": Problem, "description": "no key, or one that is not known"},
    403: {"model": Problem, "description": "the key's role may not"},
    413: {"model": Problem, "description": "too large"},
    422: {"model": Problem, "description": "a mistake in the request, in one sentence"},
    503: {"model": Problem, "description": "overloaded, too slow or without its store; try again after Retry-After"},
}


class ApiError(HTTPException):
    """A request that is refused: a status, a stable code, and one sentence that says what to do."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.code = code


def unavailable(code: str, message: str) -> ApiError:
    """Returns the answer for now, with a time after which to try again."""
    return ApiError(503, code, message, {"Retry-After": str(RETRY_AFTER)})


def passes(error: Exception) -> bool:
    """Tells whether what went wrong may go well in a moment, as it was asked."""
    return isinstance(error, StoreError) or (isinstance(error, ApiError) and error.status_code == 503)


def as_response(error: HTTPException, request_id: str) -> JSONResponse:
    """Returns the answer for an error."""
    code = getattr(error, "code", None) or HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    body = {"code": code, "message": printable(str(error.detail)), "request_id": request_id}
    return JSONResponse({"error": body}, status_code=error.status_code, headers=error.headers)


def printable(text: str) -> str:
    """Returns a text without what UTF-8 cannot hold: JSON may name half a surrogate pair as a key."""
    return text.encode("utf-8", "replace").decode()


def handle(api: FastAPI) -> None:
    """Gives the errors that routes raise their shape; what they did not foresee is the guard's."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, StoreError):  # whose sentence says where it is, which no client has to know
            logs.line(logging.ERROR, request_id=request.state.request_id, store=str(error))
        return as_response(_refusal(error), request.state.request_id)

    for kind in (HTTPException, RequestValidationError, UserError):
        api.add_exception_handler(kind, refused)


def _refusal(error: Exception) -> HTTPException:
    if isinstance(error, HTTPException):
        return error
    if isinstance(error, RequestValidationError):
        mistakes = error.errors()
        more = [f"and {len(mistakes) - MOST_MISTAKES} more"] if len(mistakes) > MOST_MISTAKES else []
        return ApiError(422, "invalid", "; ".join([*map(_mistake, mistakes[:MOST_MISTAKES]), *more]) + ".")
    if isinstance(error, StoreError):
        return unavailable("unavailable", "The store does not answer: try again.")
    if isinstance(error, TakenError):
        return ApiError(409, "taken", str(error))
    if isinstance(error, MissingError):
        return ApiError(404, "not_found", str(error))
    return ApiError(422, "unanswerable", str(error))  # this run cannot, and says why


def _mistake(mistake: dict[str, Any]) -> str:
    if mistake["type"] == "json_invalid":
        return f"the body is no JSON from character {mistake['loc'][-1]} on"
    where = ".".join(str(part)[:100] for part in mistake["loc"] if part not in ("body", "query", "path", *KINDS))
    what = str(mistake["msg"]).removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
