"""Errors as clients of the OpenAI interface expect them: {"error": {message, type, param, code}}, and a status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteError

WRONG = "invalid_request_error"
GONE = 499
"""The client hung up before its answer: nobody reads this status, it is what is logged and counted."""


class ErrorBody(BaseModel):
    """What went wrong: for people, its kind, the field of the request that it is about, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorBody


class ApiError(HTTPException):
    """An answer that says no."""

    def __init__(
        self, status: int, message: str, *, kind: str = WRONG, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, _cut(message, 2000), dict(headers or {}))
        self.kind, self.param, self.code = kind, param and _cut(param, 200), code

    def value(self) -> dict[str, Any]:
        error = {"message": self.detail, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.value(), self.status_code, headers=self.headers)


def _cut(text: str, most: int) -> str:
    """Errors quote what was sent, but not all of it."""
    return text if len(text) <= most else f"{text[:most]} …"


def wrong(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request is to be changed."""
    return ApiError(400, message, param=param, code=code)


def busy(what: str, seconds: int = 1) -> ApiError:
    """429: the same request is welcome later."""
    message = f"{what}: try again in {seconds} s"
    headers = {"Retry-After": str(seconds)}
    return ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", headers=headers)


def leaving() -> ApiError:
    """503: this server takes nothing new, or no longer finishes what it had."""
    headers = {"Retry-After": "5"}
    return ApiError(
        503, "the server is shutting down: ask again shortly", kind="server_error", code="shutting_down",
        headers=headers,
    )  # fmt: skip


def too_slow(seconds: float) -> ApiError:
    """504: the whole request took too long."""
    message = f"the request was not finished within {seconds:g} s: ask for fewer tokens, or when there is less to do"
    return ApiError(504, message, kind="server_error", code="timeout")


def failed() -> ApiError:
    """500: a failure of the program; what it was is in the log."""
    return ApiError(500, "the server failed on this request", kind="server_error", code="internal_error")


# ---- what FastAPI raises, in the same shape

NAMES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_type"}


def install(app: FastAPI) -> None:
    """Every error of the app is answered in one shape; pydantic's 422 becomes 400."""

    @app.exception_handler(StarletteError)
    async def http_error(request: Request, error: StarletteError) -> JSONResponse:
        if isinstance(error, ApiError):
            return noted(request, error)
        code = NAMES.get(error.status_code)
        return noted(request, ApiError(error.status_code, str(error.detail), code=code, headers=error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return noted(request, of_validation(error.errors(), error.body))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return noted(request, failed())


def noted(request: Request, error: ApiError) -> JSONResponse:
    """The answer; what it is about also stands in the log and in the numbers."""
    request.scope["sensorium"].code = error.code or ""
    return error.response()


def of_validation(errors: Sequence[Any], body: Any) -> ApiError:
    """The most precise of several findings: of a value that may have several forms, that of the form it is nearest."""
    chosen = max(errors, key=lambda one: len(one["loc"]))
    param = _path(list(chosen["loc"])[1:], body, missing=chosen["type"] == "missing")
    message = str(chosen["msg"])
    return wrong(f"{param}: {message}" if param else message, param or None, "invalid_value")


def _path(loc: list[Any], value: Any, missing: bool) -> str:
    """messages[0].content, of a location that also names the forms that were tried. missing: its last step is."""
    path = ""
    for place, step in enumerate(loc):
        last = place == len(loc) - 1
        if isinstance(value, dict) and isinstance(step, str) and (step in value or (last and missing)):
            path += f".{step}" if path else step
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int):
            path += f"[{step}]"
            value = value[step] if step < len(value) else None
    return path
