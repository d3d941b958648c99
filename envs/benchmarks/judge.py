"""A judge behind OpenAI's chat API."""

from __future__ import annotations

import os
from typing import Any

import httpx
from pydantic import Field
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from envs.base import Section

_BUSY = (408, 429, 500, 502, 503, 504)


class JudgeConfig(Section):
    """The model that judges."""

    url: str = Field(description="of the API, such as https://api.openai.com/v1")
    model: str = Field(description="its name there")
    key_env: str | None = Field(default=None, description="environment variable with the key")
    temperature: float | None = Field(default=None, ge=0, description="null: the server's own, as official scripts")
    tokens: int = Field(default=10_240, gt=0, description="of a reply")
    deadline_s: float = Field(default=300.0, gt=0, description="of one question, all tries together")


class Busy(Exception):
    """The server asked to come back, or could not be reached."""


class ChatJudge:
    """Asks the model. Bound to the event loop of its first question."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self._client: httpx.AsyncClient | None = None

    async def __call__(self, prompt: str) -> str:
        """The reply to ``prompt``; raises if there is none after three tries."""
        wait = wait_random_exponential(max=20)
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(3), wait=wait, retry=retry_if_exception_type(Busy), reraise=True
        ):
            with attempt:
                return await self._ask(prompt)
        raise AssertionError("the last try raises")

    async def close(self) -> None:
        """Close the client."""
        if self._client:
            await self._client.aclose()

    async def _ask(self, prompt: str) -> str:
        config = self.config
        if self._client is None:
            key = os.environ.get(config.key_env or "", "")
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            self._client = httpx.AsyncClient(timeout=config.deadline_s / 3, headers=headers, trust_env=False)
        body: dict[str, Any] = {"model": config.model, "messages": [{"role": "user", "content": prompt}]}
        body["max_tokens"] = config.tokens
        if config.temperature is not None:
            body["temperature"] = config.temperature
        try:
            reply = await self._client.post(f"{config.url.rstrip('/')}/chat/completions", json=body)
        except httpx.TransportError as error:
            raise Busy(f"the judge at {config.url} cannot be reached: {error!r}") from error
        if reply.status_code in _BUSY:
            raise Busy(f"the judge at {config.url} answered {reply.status_code}")
        reply.raise_for_status()
        return reply.json()["choices"][0]["message"]["content"] or ""
