"""An inference server behind HTTP as an ``Engine``. No torch.

Every request has a deadline, within which transient failures are retried; permanent ones raise an error with
the fix. A server that stays unreachable is :class:`EngineGone`, which makes the pool restart. An answer that
cannot be the policy's sampling of the request is :class:`BadAnswer`, and the episode runs again.

The prefix cache is salted with pool and version, so that no position of older weights is reused. Servers keep
no sessions; this client records how far each session's routes were returned.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from rollouts.engine.address import check_address, check_key
from rollouts.engine.base import Completion, Finish, Pictures, Sampling
from rollouts.engine.client import MIB, BadAnswer, Client, EngineGone, NoConnection, Patience, ServerRefused, parse
from rollouts.engine.servers.dialects import Answer, Call, Dialect

_CONNECT_S = 10.0
_GONE_S = 30.0  # without an answer for this long, the server counts as gone
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_TOKEN_BYTES = 4096  # of an answer, per token; vLLM's take about 150
_ECHO_BYTES = 64  # per token of an echoed prompt
_ROUTE_BYTES = 12  # per expert: at most 64 bits in base64
ROUNDING = 1e-4  # nats: a log-prob above 0 by at most this is rounding, and counts as 0
LEAST = -1000.0  # nats: lower is never sampled; servers write -9999 for minus infinity
CURE = "name the variable with its key in rollouts.http.api_key_env"


class HttpEngine:
    """One server that serves one model. ``layers``, ``experts``: L and K of the routes, (0, 0) for none.

    ``dense``: layers without experts before those. ``live_routes``: if the server sends no routes, use -1,
    which makes the learner choose experts; otherwise that is an error. ``longest``: the model's context.
    ``vocabulary``, ``routed``: numbers of tokens and experts, None if unknown.
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
        vocabulary: int | None = None,
        routed: int | None = None,
        api_key: str | None = None,
        key_name: str = "the key's variable",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """ValueError if ``url`` holds credentials, or the key of ``key_name`` may not be sent to it."""
        check_address(url, CURE)
        check_key(url, api_key, key_name)
        self.url, self.dialect, self.pool = url.rstrip("/"), dialect, pool
        self.policy_version = -1
        self.running = 0
        self._longest = longest
        self._shape, self._dense, self._live = (layers, experts), dense, live_routes
        self._vocabulary, self._routed = vocabulary, routed
        self._reported: dict[str, int] = {}
        self._counters = {"generated": 0, "fed": 0, "prefix_hits": 0, "prefix_asked": 0}
        self._client = Client(self.url, key=api_key, transport=transport)

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """See ``Engine``. Raises TimeoutError, EngineGone, BadAnswer, ServerRefused, ValueError (pictures)."""
        if media:
            raise ValueError(f"{self.url}: pictures cannot be sent to a server; use rollouts.engine=embedded")
        if self.policy_version < 0:
            raise RuntimeError(f"{self.url} has no weights yet")
        version, start = self.policy_version, self._reported.get(session, 0)
        room = self._longest - len(prompt)
        if room <= 0:
            return Completion(tokens=[], logprobs=[], finish=Finish.LENGTH, policy_version=version)
        asked = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        routed = self._shape[0] > 0
        call = self.dialect.generate(prompt, asked, salt=self._salt(), routes_from=start if routed else None)
        self.running += 1
        try:
            answer = await self._answer(call, prompt, asked, deadline_s)
            if answer.version != str(version):
                raise EngineGone(
                    f"{self.url} sampled with weights {answer.version!r}, expected {str(version)!r}: it was started"
                    " again, or somebody else updates it"
                )
            end = len(prompt) + len(answer.tokens) - 1
            routes = self._routes(answer, start, end) if routed else None
        finally:
            self.running -= 1
        if routes is not None:
            self._reported[session] = start + len(routes)
        self._counters["generated"] += len(answer.tokens)
        self._counters["fed"] += len(prompt)
        return Completion(
            tokens=answer.tokens,
            logprobs=[min(value, 0.0) for value in answer.logprobs],
            finish=answer.finish,
            policy_version=version,
            routes=routes,
            routes_start=start if routes is not None else 0,
        )

    async def release(self, session: str) -> None:
        """End the session."""
        self._reported.pop(session, None)

    async def score(self, tokens: list[int], *, deadline_s: float) -> list[float]:
        """Log-probs of all ``tokens`` except the first, without caches."""
        call = self.dialect.score(tokens, salt=f"probe-{time.monotonic_ns()}")
        tree = await self._object(call, deadline_s, MIB + _TOKEN_BYTES * len(tokens))
        try:
            scores = self.dialect.scores(tree, tokens)
        except BadAnswer as error:
            raise BadAnswer(f"{self.url}{call.path}: {error}") from None
        if any(score > ROUNDING for score in scores):
            raise BadAnswer(f"{self.url}{call.path}: a log-prob of the prompt is {max(scores):g}, and none is above 0")
        return scores

    async def quiet(self) -> None:
        """Before the server is paused: RuntimeError while requests run."""
        if self.running:
            raise RuntimeError(f"weight update of {self.url} while {self.running} requests run")

    async def wait_healthy(self, deadline_s: float) -> None:
        """Wait until ``/health`` answers; EngineGone at the deadline."""
        give_up = time.monotonic() + deadline_s
        while True:
            said = await self._client.status("/health", _CONNECT_S)
            if said == 200:
                return
            if time.monotonic() > give_up:
                said = said if isinstance(said, str) else f"status {said}"
                raise EngineGone(f"{self.url} is not healthy after {deadline_s:.0f} s ({said})")
            await asyncio.sleep(1.0)

    async def call(self, call: Call, deadline_s: float, *, most: int = MIB) -> dict[str, Any]:
        """The JSON object that ``call`` returns, or an empty one, with retries.

        Raises TimeoutError, EngineGone, ServerRefused (a ValueError), BadAnswer.
        """
        body = await self._bytes(call, deadline_s, most)
        try:
            tree = parse(body, f"{self.url}{call.path}", self._client.text)
        except BadAnswer:
            return {}  # the probe verifies the effect
        if tree.get("success") is False:
            raise ServerRefused(f"{self.url}{call.path} answered that it failed: {self._client.text(body)}")
        return tree

    async def _object(self, call: Call, deadline_s: float, most: int) -> dict[str, Any]:
        body = await self._bytes(call, deadline_s, most)
        return parse(body, f"{self.url}{call.path}", self._client.text)

    async def _bytes(self, call: Call, deadline_s: float, most: int) -> bytes:
        patience = Patience(unreached=lambda _, s: s > _GONE_S, pause_s=_PAUSE_S, longest_pause_s=_LONGEST_PAUSE_S)
        try:
            return await self._client.ask(call, deadline_s, most=most, patience=patience)
        except NoConnection as error:
            raise EngineGone(f"{self.url} cannot be reached: {error}") from None
        except ServerRefused as error:
            advice = self.dialect.refused(error.status, error.said)
            raise ServerRefused(f"{error}; {advice}" if advice else str(error), error.status, error.said) from None

    async def _answer(self, call: Call, prompt: list[int], asked: Sampling, deadline_s: float) -> Answer:
        layers, experts = self._shape
        positions = len(prompt) + asked.max_new_tokens
        most = MIB + _TOKEN_BYTES * asked.max_new_tokens + _ECHO_BYTES * len(prompt)
        most += _ROUTE_BYTES * positions * (layers + self._dense) * experts
        tree = await self._object(call, deadline_s, most)
        try:
            answer = self.dialect.answer(tree)
            self._check(answer, prompt, asked)
        except BadAnswer as error:
            raise BadAnswer(f"{self.url}{call.path}: {error}") from None
        return answer

    def statistics(self) -> dict[str, float]:
        """Counters since the start: sampled and sent tokens, retried requests."""
        return {**self._counters, "retries": self._client.sent_again, "streams": len(self._reported)}

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _salt(self) -> str:
        return f"{self.pool}-{self.policy_version}"

    def _check(self, answer: Answer, prompt: list[int], asked: Sampling) -> None:
        """BadAnswer unless ``answer`` can be a sampling of ``asked`` that follows ``prompt``."""
        tokens, logprobs = answer.tokens, answer.logprobs
        if not 1 <= len(tokens) <= asked.max_new_tokens:
            raise BadAnswer(f"{len(tokens)} tokens, and 1 to {asked.max_new_tokens} were asked for")
        if self._vocabulary is not None and max(tokens) >= self._vocabulary:
            raise BadAnswer(f"token {max(tokens)} is not in the vocabulary of {self._vocabulary}")
        if not all(LEAST < value <= ROUNDING for value in logprobs):
            wrong = next(value for value in logprobs if not LEAST < value <= ROUNDING)
            raise BadAnswer(f"log-prob {wrong:g} of a sampled token: must be above {LEAST:g} and not above 0")
        stops = [place for place, token in enumerate(tokens) if token in asked.stop]
        if answer.finish is Finish.STOP and stops != [len(tokens) - 1]:
            raise BadAnswer(f"it stopped at token {tokens[-1]}, and the stop tokens {list(asked.stop)} are at {stops}")
        if answer.finish is Finish.LENGTH and stops:
            raise BadAnswer(f"it went on after the stop token {tokens[stops[0]]}")
        if answer.prompt is not None and answer.prompt != prompt:
            raise BadAnswer("prompt_token_ids are not those that were sent")
        if answer.prompt_tokens is not None and answer.prompt_tokens != len(prompt):
            raise BadAnswer(f"it read {answer.prompt_tokens} tokens of the {len(prompt)} that were sent")

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
            if answer.routes.shape in ((count * total * experts,), (count, total, experts)):
                routes = answer.routes.reshape(count, total, experts)[:, skipped:]
                self._check_experts(routes)
                return routes.astype(np.int16)
        raise BadAnswer(
            f"{self.url} sent {answer.routes.size} experts for {count} positions of {layers} layers with {experts}"
            f" experts a token each, in the shape {answer.routes.shape}: router replay would be wrong"
        )

    def _check_experts(self, routes: np.ndarray) -> None:
        """Experts must exist in the layer, and be distinct for a token."""
        most = np.iinfo(np.int16).max if self._routed is None else self._routed - 1
        if routes.size and not (routes.min() >= 0 and routes.max() <= most):
            raise BadAnswer(f"{self.url}: routed_experts has {routes.min()} to {routes.max()}, not 0 to {most}")
        if self._routed is not None and (np.diff(np.sort(routes, axis=-1), axis=-1) == 0).any():
            raise BadAnswer(f"{self.url}: routed_experts gives a token the same expert twice")
