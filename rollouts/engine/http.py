"""An inference server behind HTTP as an ``Engine``: token ids in; tokens, log-probs, routes and version out. No torch.

Every request has a deadline. What may pass - a connection that fails, a server that is busy or restarts - is tried
again within it; what will not pass is an error that says what to do. A server that stays out of reach is
:class:`EngineGone`, which rollout workers report so that the pool is started again.

The prefix cache is salted with the pool and the version, so that no position of older weights is ever reused. A server
keeps no sessions; what is kept here is how far each session's routes have been handed out.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import httpx
import numpy as np

from rollouts.engine.base import Completion, Finish, Pictures, Sampling
from rollouts.engine.http_dialects import Answer, BadAnswer, Call, Dialect

_CONNECTIONS = 32  # of one client: httpx looks through all of its connections for every request
_CONNECT_S = 10.0
_GONE_S = 30.0  # without any answer for this long, the server counts as gone
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_TRIES = 5  # of a request that the server answers with an error which may pass
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


class EngineGone(RuntimeError):
    """The server cannot be reached, or is no longer the one that was given its weights."""


class HttpEngine:
    """One server that serves one model. ``layers``, ``experts``: L and K of the routes, (0, 0) where none are wanted.

    ``dense``: layers without experts before those. ``live_routes``: where the server sends no routes, say -1, which
    makes the learner choose experts itself; else that is an error. ``longest``: positions of the model's context.
    """

    def __init__(
        self,
        url: str,
        dialect: Dialect,
        *,
        pool: str,
        longest: int,
        layers: int = 0,
        experts: int = 0,
        dense: int = 0,
        live_routes: bool = False,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, self.dialect, self.pool = url.rstrip("/"), dialect, pool
        self.policy_version = -1
        self.running = 0
        self._longest = longest
        self._shape, self._dense, self._live = (layers, experts), dense, live_routes
        self._reported: dict[str, int] = {}
        self._counters = {"generated": 0, "fed": 0, "prefix_hits": 0, "prefix_asked": 0, "retries": 0}
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._clients = _Clients(self.url, headers, transport)

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """See ``Engine``. Raises TimeoutError, EngineGone, BadAnswer, ValueError (pictures, or the server refused)."""
        if media:
            raise ValueError(f"{self.url}: pictures cannot be sent to a server; use rollouts.engine=embedded")
        if self.policy_version < 0:
            raise RuntimeError(f"{self.url} has no weights yet")
        version, start = self.policy_version, self._reported.get(session, 0)
        room = self._longest - len(prompt)
        if room <= 0:
            return Completion(tokens=[], logprobs=[], finish=Finish.LENGTH, policy_version=version)
        limited = Sampling(
            seed=sampling.seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=min(sampling.max_new_tokens, room),
            stop=sampling.stop,
        )
        routed = self._shape[0] > 0
        call = self.dialect.generate(prompt, limited, salt=self._salt(), routes_from=start if routed else None)
        self.running += 1
        try:
            answer = self.dialect.answer(await self.call(call, deadline_s))
        finally:
            self.running -= 1
        self._check(answer, version)
        routes = self._routes(answer, start, len(prompt) + len(answer.tokens) - 1) if routed else None
        if routes is not None:
            self._reported[session] = start + len(routes)
        self._counters["generated"] += len(answer.tokens)
        self._counters["fed"] += len(prompt)
        return Completion(
            tokens=answer.tokens,
            logprobs=answer.logprobs,
            finish=answer.finish,
            policy_version=version,
            routes=routes,
            routes_start=start if routes is not None else 0,
        )

    async def release(self, session: str) -> None:
        """The session is over."""
        self._reported.pop(session, None)

    async def score(self, tokens: list[int], *, deadline_s: float) -> list[float]:
        """Log-probs of all ``tokens`` but the first, past every cache."""
        call = self.dialect.score(tokens, salt=f"probe-{time.monotonic_ns()}")
        scores = self.dialect.scores(await self.call(call, deadline_s), tokens)
        if not all(_is_finite(score) for score in scores):
            raise BadAnswer(f"{self.url}: a log-prob is not finite")
        return scores

    async def wait_healthy(self, deadline_s: float) -> None:
        """Returns once ``/health`` answers; EngineGone at the deadline."""
        give_up = time.monotonic() + deadline_s
        while True:
            response = await self._clients.send(Call(path="/health", get=True), timeout_s=_CONNECT_S)
            if isinstance(response, httpx.Response) and response.status_code == 200:
                return
            if time.monotonic() > give_up:
                said = response if isinstance(response, str) else f"status {response.status_code}"
                raise EngineGone(f"{self.url} is not healthy after {deadline_s:.0f} s ({said})")
            await asyncio.sleep(1.0)

    async def call(self, call: Call, deadline_s: float) -> dict[str, Any]:
        """The JSON that ``call`` brings (an empty object where there is none), tried again while that may help."""
        began = time.monotonic()
        last_answer, tries, wait_s = began, 0, _PAUSE_S
        while True:
            left = began + deadline_s - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{self.url}{call.path}: no answer within {deadline_s:.0f} s")
            response = await self._clients.send(call, timeout_s=left)
            now = time.monotonic()
            if isinstance(response, str):
                if now - last_answer > _GONE_S and now - began < deadline_s:
                    raise EngineGone(f"{self.url} cannot be reached: {response}")
            else:
                tries, last_answer = tries + 1, now
                if response.status_code < 400:
                    return response.json() if response.content else {}
                if response.status_code not in _BUSY or tries >= _TRIES:
                    raise ValueError(self._refusal(call, response))
            self._counters["retries"] += 1
            await asyncio.sleep(min(wait_s, max(began + deadline_s - now, 0.0)))
            wait_s = min(2 * wait_s, _LONGEST_PAUSE_S)

    def statistics(self) -> dict[str, float]:
        """Counters since the start: sampled and sent tokens, requests sent again. The server knows its cache hits."""
        return {**self._counters, "streams": len(self._reported)}

    async def close(self) -> None:
        """Close all connections."""
        await self._clients.close()

    def _salt(self) -> str:
        return f"{self.pool}-{self.policy_version}"

    def _refusal(self, call: Call, response: httpx.Response) -> str:
        text = response.text[:500]
        advice = self.dialect.refused(response.status_code, text)
        return f"{self.url}{call.path} answered {response.status_code}: {text}" + (f"; {advice}" if advice else "")

    def _check(self, answer: Answer, version: int) -> None:
        if answer.version != str(version):
            raise EngineGone(
                f"{self.url} sampled with weights {answer.version!r}, expected {str(version)!r}: it was started again,"
                " or somebody else updates it"
            )
        if not answer.tokens or not all(_is_finite(value) for value in answer.logprobs):
            raise BadAnswer(f"{self.url}: {len(answer.tokens)} tokens, log-probs {answer.logprobs[:3]}...: not usable")

    def _routes(self, answer: Answer, start: int, end: int) -> np.ndarray:
        """Experts int16 [end - start, L, K] of the positions from ``start`` to ``end``."""
        layers, experts = self._shape
        if answer.routes is None:
            if self._live:
                return np.full((end - start, layers, experts), -1, np.int16)
            raise BadAnswer(
                f"{self.url} sends no experts with its tokens, but the policy is a mixture of experts: start it with"
                " --enable-return-routed-experts, or set rollouts.http.without_routes=live and read about the risk in"
                " docs/engines.md"
            )
        count = end - start
        for total, skipped in ((layers, 0), (layers + self._dense, self._dense)):
            if answer.routes.size == count * total * experts:
                return answer.routes.reshape(count, total, experts)[:, skipped:].astype(np.int16)
        raise BadAnswer(
            f"{self.url} sent {answer.routes.size} experts for {count} positions of {layers} layers with {experts}"
            " experts a token each: router replay would be wrong"
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class _Clients:
    """As many httpx clients as the requests under way need; one with more connections is slower than several."""

    def __init__(self, url: str, headers: dict[str, str], transport: httpx.AsyncBaseTransport | None) -> None:
        self._settings: dict[str, Any] = {"base_url": url, "headers": headers, "transport": transport}
        self._settings["limits"] = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
        self._all: list[httpx.AsyncClient] = []
        self._busy: list[int] = []

    async def send(self, call: Call, *, timeout_s: float) -> httpx.Response | str:
        """The response, or why there is none."""
        place = next((i for i, busy in enumerate(self._busy) if busy < _CONNECTIONS), len(self._busy))
        if place == len(self._busy):
            self._all.append(httpx.AsyncClient(**self._settings))
            self._busy.append(0)
        self._busy[place] += 1
        timeout = httpx.Timeout(max(timeout_s, 0.01), connect=min(_CONNECT_S, max(timeout_s, 0.01)))
        try:
            return await self._all[place].request(
                "GET" if call.get else "POST",
                call.path,
                params=call.query,
                timeout=timeout,
                json=call.body,
            )
        except httpx.TransportError as error:
            return f"{type(error).__name__}: {error}"
        finally:
            self._busy[place] -= 1

    async def close(self) -> None:
        for client in self._all:
            await client.aclose()
        self._all, self._busy = [], []
