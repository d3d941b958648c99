"""A request's body: JSON only, with limits on size and time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request

from rollouts.gateway.openai_errors import Refused
from rollouts.gateway.request_json import BadRequest, parse_body, short

_JSON = re.compile(r'application/json([ \t]*;[ \t]*charset=("utf-8"|utf-8))?', re.IGNORECASE)
_LONG = 65_536
T = TypeVar("T")


class Bodies:
    """Reads bodies of at most ``longest`` bytes within ``deadline_s``, all current ones at most ``total``."""

    def __init__(self, *, longest: int, total: int, deadline_s: float) -> None:
        self._longest, self._total, self._deadline_s = longest, total, deadline_s
        self._held = 0

    async def read(self, request: Request, reader: Callable[[Any], T]) -> T:
        """``reader`` applied to the body's JSON. Raises Refused, BadRequest, ClientDisconnect.

        Reports a wrong field before a wrong content type.
        """
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        if coding != "identity":
            raise Refused(415, "content-encoding", f"content-encoding: {short(coding)} is not read; send it plain")
        kinds = request.headers.getlist("content-type")
        known = len(kinds) == 1 and _JSON.fullmatch(kinds[0].strip(" \t")) is not None
        wrong = Refused(415, "content-type", f"content-type: {short(', '.join(kinds))} must be application/json, once")
        body = await self._bytes(request)
        try:
            if len(body) > _LONG:  # other requests are served meanwhile
                read = await asyncio.to_thread(lambda: reader(parse_body(body)))
            else:
                read = reader(parse_body(body))
        except BadRequest as error:
            if error.field == "body" and not known:
                raise wrong from None
            raise
        if not known:
            raise wrong
        return read

    async def _bytes(self, request: Request) -> bytes:
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and (len(announced) > 19 or int(announced) > self._longest):
            raise self._too_long("longer")
        body = bytearray()
        try:
            async with asyncio.timeout(self._deadline_s):
                async for chunk in request.stream():
                    self._held += len(chunk)
                    body += chunk
                    if len(body) > self._longest:
                        raise self._too_long("longer")
                    if self._held > self._total:
                        raise Refused(503, None, "too many bodies are under way")
        except TimeoutError:
            raise Refused(408, "body", f"body: not complete within {self._deadline_s:g} s") from None
        finally:
            self._held -= len(body)
        return bytes(body)

    def _too_long(self, found: str) -> Refused:
        return Refused(413, "body", f"body: {found} than can be read, {self._longest} bytes are the most")
