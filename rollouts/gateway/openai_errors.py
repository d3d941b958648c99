"""Errors in OpenAI's form, and ASCII JSON, so that any text can be sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

RETRY_S = 1  # Retry-After of transient errors


class AsciiJSON(JSONResponse):
    """JSON with escapes for everything beyond ASCII."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class Refused(Exception):
    """Raised to answer with an error: ``status``, and the arguments of :func:`refusal`."""

    def __init__(self, status: int, field: str | None, text: str) -> None:
        super().__init__(text)
        self.status, self.field = status, field


def refusal(
    status: int, field: str | None, text: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """``{"error": {"message", "type", "param", "code"}}``; 429 and 503 have a ``Retry-After``."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    more = {"retry-after": str(RETRY_S)} if status in (429, 503) else {}
    if status in (408, 413):
        more["connection"] = "close"  # the rest of the body is not read
    error = {"message": text, "type": kind, "param": field, "code": code}
    return AsciiJSON({"error": error}, status, headers={**more, **(headers or {})})


async def http_refusal(request: Request, error: Exception) -> Response:
    """Starlette's own errors, such as an unknown path, in this form."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = {404: f"no such path: {request.method} {ascii(request.url.path)[:200]}", 405: "method: not allowed here"}
    headers = error.headers if isinstance(error, HTTPException) else None
    return refusal(status, None, text.get(status, "the gateway made a mistake; its log says which"), headers=headers)
