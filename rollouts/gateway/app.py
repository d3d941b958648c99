"""A policy behind OpenAI's chat completions: harnesses for that API can be rolled out and trained on.

    GET  /v1/models                         and /v1/models/NAME
    POST /v1/chat/completions               also streamed, with tools, log-probs and usage
    POST /v1/parl/episodes/NAME/reward      {"reward": 0.5, "parts": {...}}: ends the episode
    GET  /v1/parl/episodes                  running episodes
    GET  /health

Each exchange is recorded token by token (``rollouts.gateway.record``), and a finished episode is a shard of
its own in the store, on disk before the response to its reward. Works over any ``Engine``.

No request may cause a 500: what cannot be read, served or stored is refused in OpenAI's form without
affecting other episodes. Memory is bounded.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from model.chat.base import ChatFormat, ParsedTurn
from rollouts.engine.base import Completion, Engine, EngineFull, Sampling
from rollouts.gateway.guard import Access
from rollouts.gateway.openai_errors import AsciiJSON, Refused, http_refusal, refusal
from rollouts.gateway.openai_format import ChatRequest, Reply, assistant_message, normal_message, read_request
from rollouts.gateway.record import Conversation, Recorder, Recording, read_reward
from rollouts.gateway.request_body import Bodies
from rollouts.gateway.request_json import BadRequest, not_carried, short
from rollouts.noise import noise_key
from rollouts.store.store import EpisodeStore

KIND = "gateway"  # of the store's shards
_SWEEP_S = 60.0  # longest time between two checks for idle episodes
_LOG = logging.getLogger("parl.serve.gateway")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """``temperature``, ``top_p``: used for all requests; None: those of the request."""

    model: str  # its name in the API
    longest: int  # positions of the model's context
    seed: int = 1
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int = 2048  # of a turn, by default
    most_tokens: int | None = None  # of a turn, whatever a request asks
    deadline_s: float = 600.0  # of one completion
    idle_s: float = 3600.0  # an episode without requests for so long is ended
    body_bytes: int = 4_194_304
    body_s: float = 30.0  # deadline for a request's body
    running: int = 256  # completions at once; more are refused
    conversations: int = 1024  # kept in memory; beyond, the longest idle episodes are ended
    tokens: int = 4_000_000  # of all these conversations; likewise


class Gateway:
    """The application's state: an engine, running episodes, and the store for finished ones."""

    def __init__(
        self,
        engine: Engine,
        chat: ChatFormat,
        settings: GatewaySettings,
        store: EpisodeStore | None,
        access: Access | None = None,
    ):
        self.engine, self.chat, self.settings, self.store = engine, chat, settings, store
        self.access = access or Access()
        self._bodies = Bodies(longest=settings.body_bytes, total=16 * settings.body_bytes, deadline_s=settings.body_s)
        self._running = 0
        self._shard = max(store.steps(KIND), default=0) if store else 0
        self.recorder = Recorder(chat, longest=settings.longest, recorded=self._shard)
        self._versions = -1
        self._shown = {"id": settings.model, "object": "model", "created": 0, "owned_by": "parl"}

    def app(self) -> Starlette:
        """The application; episodes under way when it stops are stored as failed."""
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/parl/episodes", self._episodes),
            Route("/v1/parl/episodes/{name:path}/reward", self._reward, methods=["POST"]),
        ]

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            sweeper = asyncio.create_task(self._sweep())
            yield
            sweeper.cancel()
            for name in list(self.recorder.open):
                await self._given_up(name, "the gateway stopped before a reward was given")

        answers: dict[Any, Any] = {HTTPException: http_refusal, BadRequest: _bad, Refused: _refused}
        answers |= {ClientDisconnect: _gone, Exception: http_refusal}
        app = Starlette(
            routes=routes, lifespan=lifespan, middleware=self.access.middleware(), exception_handlers=answers
        )
        app.router.redirect_slashes = False  # a redirect would repeat the caller's Host
        return app

    # ---------------------------------------------------------------- routes

    async def _health(self, request: Request) -> Response:
        return AsciiJSON({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        return AsciiJSON({"object": "list", "data": [self._shown]})

    async def _model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self.settings.model:
            raise Refused(404, "model", f"model: no {short(name)} is served, {short(self.settings.model)} is")
        return AsciiJSON(self._shown)

    async def _chat(self, request: Request) -> Response:
        chat = await self._bodies.read(request, lambda tree: read_request(tree, request.headers))
        reply = await _while_heard(request, self._answer(self._adjusted(chat)))
        # the name as UTF-8: headers are latin-1 to Starlette
        headers = {"x-parl-episode": reply.extra["episode"].encode().decode("latin-1")}
        if not chat.stream:
            return AsciiJSON(reply.body(), headers=headers)
        events = (_event(chunk) for chunk in reply.chunks(chat.with_usage))
        return StreamingResponse(_stream(list(events)), media_type="text/event-stream", headers=headers)

    async def _episodes(self, request: Request) -> Response:
        rows = [
            {
                "episode": name,
                "task": recording.task,
                "traces": len(recording.conversations),
                "sampled_tokens": sum(sum(conversation.trace.mask) for conversation in recording.conversations),
            }
            for name, recording in self.recorder.open.items()
        ]
        return AsciiJSON({"episodes": rows})

    async def _reward(self, request: Request) -> Response:
        name = request.path_params["name"]
        reward, parts = await self._bodies.read(request, read_reward)
        if name not in self.recorder.open:
            text = "is under way, or it has its reward already: GET /v1/parl/episodes lists them"
            raise Refused(404, None, f"no episode {short(name)} {text}")
        if self.recorder.open[name].closing:
            raise Refused(409, None, f"episode {short(name)} has its reward already and is being stored")
        if self.recorder.open[name].busy:
            raise Refused(409, None, f"episode {short(name)} waits for an answer: give its reward afterwards")
        return AsciiJSON({"episode": name, "shard": await self._finish(name, reward, parts)})

    # ---------------------------------------------------------------- completions

    def _adjusted(self, chat: ChatRequest) -> ChatRequest:
        """``chat`` with the settings for all requests."""
        own = {name: getattr(self.settings, name) for name in ("temperature", "top_p")}
        return replace(chat, **{name: value for name, value in own.items() if value is not None})

    async def _answer(self, chat: ChatRequest) -> Reply:
        if self._running >= self.settings.running:
            raise Refused(429, None, f"{self._running} completions are under way, more are not served at once")
        self._running += 1
        try:
            await self._make_room(chat)
            return await self._exchange(chat)
        finally:
            self._running -= 1

    async def _exchange(self, chat: ChatRequest) -> Reply:
        recording, conversation = self.recorder.begin(chat)
        trace, asked = conversation.trace, len(conversation.trace.tokens)
        try:
            completion = await self._generate(chat, recording, conversation)
            if not all(map(math.isfinite, completion.logprobs)):
                raise ValueError("a log-prob is not finite")
            turn = self._parsed(chat, completion, conversation.trace.tool_calls)
            known = [token for token in completion.tokens if token < self.chat.tokenizer.vocab_size]
            message = assistant_message(turn, self.chat.tokenizer.decode(known) if turn.malformed else "")
            self.recorder.answered(recording, conversation, completion, turn, normal_message(message, "answer"))
        except BaseException as error:  # also if the caller disconnects: later requests must not continue this trace
            self.recorder.failed(recording, conversation)
            await self.engine.release(conversation.session)
            if isinstance(error, TimeoutError):
                raise Refused(504, None, f"no answer within {self.settings.deadline_s:.0f} s {error}") from None
            if isinstance(error, EngineFull):
                raise Refused(503, None, f"the engine is full: {error}") from None
            if isinstance(error, Exception):  # an engine's error is never the caller's
                _LOG.error("the engine failed: %s: %s", type(error).__name__, error)
                raise Refused(502, None, f"the engine failed: {type(error).__name__}: {error}") from None
            raise
        self._versions = max(self._versions, completion.policy_version)
        extra = {"episode": recording.name, "agent": trace.agent_id, "policy_version": completion.policy_version}
        return Reply(
            identifier=f"chatcmpl-{secrets.token_hex(12)}",
            model=self.settings.model,
            message=message,
            reasoning=turn.reasoning,
            completion=completion,
            prompt_tokens=asked,
            logprobs=chat.logprobs,
            extra=extra | ({"malformed": turn.malformed} if turn.malformed else {}),
            tokenizer=self.chat.tokenizer,
        )

    async def _generate(self, chat: ChatRequest, recording: Recording, conversation: Conversation) -> Completion:
        trace, name = conversation.trace, recording.name
        # a request's seed gives the same noise each time; otherwise each use of a name has its own
        drawn = (self.settings.seed, recording.use) if chat.seed is None else (chat.seed,)
        asked = chat.max_tokens or self.settings.max_tokens
        sampling = Sampling(
            seed=noise_key(*drawn, len(name), name, trace.agent_id),  # its length: names may look like agents'
            temperature=chat.temperature,
            top_p=chat.top_p,
            max_new_tokens=min(asked, self.settings.most_tokens or asked),
            stop=self.chat.stop_ids,
        )
        return await self.engine.generate(
            trace.tokens, sampling, session=conversation.session, deadline_s=self.settings.deadline_s
        )

    def _parsed(self, chat: ChatRequest, completion: Completion, first: int) -> ParsedTurn:
        names = {tool["function"]["name"] for tool in chat.tools}
        turn = self.chat.parse(completion.tokens, tools=names, first=first)
        wrong = next((said for call in turn.tool_calls if (said := not_carried(call.arguments))), "")
        return (
            replace(turn, tool_calls=(), malformed=f"arguments that no request can carry: {wrong}") if wrong else turn
        )

    # ---------------------------------------------------------------- ends of episodes

    async def _make_room(self, chat: ChatRequest) -> None:
        """End episodes idle for too long, and the longest idle ones if there are too many."""
        for name in self.recorder.idle(self.settings.idle_s):
            await self._given_up(name, f"nothing was heard of it for {self.settings.idle_s:.0f} s")
        while True:
            conversations, tokens = self.recorder.held()
            if conversations < self.settings.conversations and tokens < self.settings.tokens:
                return
            name = self.recorder.oldest(but=chat.episode)
            if name is None:
                raise Refused(503, None, f"{conversations} conversations are under way, all of them in use")
            if not await self._given_up(name, f"more than {self.settings.conversations} conversations were under way"):
                raise Refused(503, None, f"{conversations} conversations are under way, and none can be stored")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(max(1.0, min(self.settings.idle_s, _SWEEP_S)))
            for name in self.recorder.idle(self.settings.idle_s):
                await self._given_up(name, f"nothing was heard of it for {self.settings.idle_s:.0f} s")

    async def _given_up(self, name: str, why: str) -> bool:
        """Store the episode ``name`` as failed; returns whether that succeeded."""
        try:
            await self._finish(name, None, {}, why=why)
        except Refused as error:
            _LOG.error("%s", error)
            return False
        return True

    async def _finish(self, name: str, reward: float | None, parts: dict[str, float], *, why: str = "") -> str | None:
        """Store the episode ``name`` and return its shard's name; Refused on failure, and it stays under way."""
        if (recording := self.recorder.open.get(name)) is None or recording.closing:
            return None
        recording.closing = True
        try:
            shard = await self._stored(self.recorder.episode(name, reward, parts, why=why))
        finally:
            recording.closing = False
        self.recorder.forget(name)
        for conversation in recording.conversations:
            await self.engine.release(conversation.session)
        return shard

    async def _stored(self, episode: Any) -> str | None:
        if self.store is None:
            return None
        self._shard += 1
        write = self.store.write
        try:
            path = await asyncio.to_thread(write, self._shard, [episode], policy_version=self._versions, kind=KIND)
        except Exception as error:  # disk errors; for a bad row an error of Arrow's
            name = short(episode.metrics["gateway/episode"])
            text = f"episode {name} is not stored ({type(error).__name__}: {error}), and stays under way"
            raise Refused(503, None, text) from error
        return path.name


async def _while_heard(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, cancelled if the caller disconnects; then raises ClientDisconnect."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for other in (task, gone):
            other.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await other


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(events: list[str]) -> AsyncIterator[str]:
    for event in events:
        yield event
    yield "data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, allow_nan=False)}\n\n"


async def _bad(request: Request, error: Any) -> Response:
    code = "context_length_exceeded" if "context_length_exceeded" in str(error) else None
    return refusal(400, error.field, str(error), code=code)


async def _refused(request: Request, error: Any) -> Response:
    return refusal(error.status, error.field, str(error))


async def _gone(request: Request, error: Any) -> Response:
    return Response(status_code=499)  # nobody reads it
