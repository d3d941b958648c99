"""A gateway in this process over an engine that always says the same, for tests and attacks on its HTTP side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx

from model.bpe import train_tokenizer
from model.chat import assistant_pieces
from model.tokenizer import Tokenizer
from rollouts.engine.base import Completion, Finish, Pictures, Sampling
from rollouts.gateway import Gateway, GatewaySettings
from rollouts.gateway_guard import Access
from rollouts.store import EpisodeStore

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "q"}
BODY: dict[str, Any] = {"messages": [USER], "max_tokens": 4}


@lru_cache(maxsize=1)
def small_tokenizer() -> Tokenizer:
    """All bytes, and hardly a merge."""
    return train_tokenizer(["What is the age of Kim? It is 37."], 400)


class Parrot:
    """An engine that says ``text`` whatever it is asked; ``raises``: what it does instead."""

    def __init__(self, text: str = "It is 37.", raises: Exception | None = None) -> None:
        self.text, self.raises = text, raises
        self.released: list[str] = []

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        if self.raises is not None:
            raise self.raises
        tokens = small_tokenizer().encode_segments(assistant_pieces(self.text, thinking=False))
        return Completion(tokens=tokens, logprobs=[-0.5] * len(tokens), finish=Finish.STOP, policy_version=0)

    async def release(self, session: str) -> None:
        self.released.append(session)


class Caller:
    """A client of ``gateway``, which checks the form of every refusal."""

    def __init__(self, gateway: Gateway, client: httpx.AsyncClient) -> None:
        self.gateway, self.client = gateway, client

    async def send(self, path: str, body: Any = None, method: str = "POST", **more: Any) -> httpx.Response:
        """Sends bytes as they are, anything else as JSON."""
        if isinstance(body, bytes):
            more = {"content": body, **more, "headers": {"content-type": "application/json", **more.get("headers", {})}}
        elif body is not None:
            more["json"] = body
        answer = await self.client.request(method, path, **more)
        assert answer.status_code < 500 or answer.status_code in (502, 503, 504), answer.text
        if answer.status_code >= 400 and method != "HEAD":
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"], error
            assert "Traceback" not in error["message"]
        return answer

    async def refused(self, status: int, field: str | None, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
        """The error of a request that must be refused with ``status``, and name ``field``."""
        answer = await self.send(path, body, **more)
        assert answer.status_code == status, f"{answer.status_code}: {answer.text[:500]}"
        error = answer.json()["error"]
        assert error["param"] == field, error
        if field is not None:
            assert error["message"].startswith(field.split("[")[0]), error
        return error

    async def alive(self) -> None:
        """Fails unless others are served as before: a completion, the list, a reward."""
        assert (await self.send(CHAT, {**BODY, "user": "another/1"})).status_code == 200
        listed = await self.send("/v1/parl/episodes", method="GET")
        assert "another/1" in [row["episode"] for row in listed.json()["episodes"]]
        assert (await self.send("/v1/parl/episodes/another/1/reward", {"reward": 1})).status_code == 200


@asynccontextmanager
async def gateway(
    folder: Path, engine: Any = None, *, access: Access | None = None, **settings: Any
) -> AsyncIterator[Caller]:
    """A gateway that records in ``folder``, and a client."""
    options = GatewaySettings(**{"model": "policy", "longest": 4000, **settings})
    served = Gateway(engine or Parrot(), small_tokenizer(), options, EpisodeStore(folder), access)
    app = served.app()
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            yield Caller(served, client)
