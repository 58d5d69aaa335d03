"""Errors in OpenAI's form, {"error": {message, type, param, code}}, which its clients raise by status."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tuner.config.knobs import ConfigError
from tuner.redact import redact
from tuner.text.lookup import tr

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
RETRY_AFTER = "1"
"""Seconds after which a client that was sent away may ask again."""


class ApiError(Exception):
    """What a caller did wrong or cannot have now; `param` names the field, `code` is for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def response(self) -> Response:
        headers = {"Retry-After": RETRY_AFTER} if self.status == 429 else None
        return JSONResponse(body(self.status, str(self), self.param, self.code), self.status, headers)


def body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The object that clients read."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": redact(message), "type": kind, "param": param, "code": code}}


def of(error: BaseException) -> ApiError:
    """An error met while answering, as callers are told."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ConfigError):
        return ApiError(400, str(error), "model")
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return ApiError(
            500, tr("Out of memory; ask for less at once, or serve with fewer rows."), code="out_of_memory"
        )
    return ApiError(500, f"{type(error).__name__}: {error}")


def install(app: FastAPI) -> None:
    """Let an app answer every error in this form."""

    @app.exception_handler(ApiError)
    async def own(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _invalid(error).response()

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        said = (
            f"There is no {request.method} {request.url.path} here."
            if error.status_code == 404
            else error.detail
        )
        return JSONResponse(body(error.status_code, str(said)), error.status_code)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return of(error).response()


def _invalid(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is no JSON.", code="invalid_json")
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return ApiError(422, f"{where or 'body'}: {first['msg']}", where or None, first["type"])
