"""A policy behind OpenAI's chat completions: any harness written for that API can be rolled out, and trained on.

    GET  /v1/models
    POST /v1/chat/completions               also streamed, with tools, log-probs and usage
    POST /v1/parl/episodes/NAME/reward      {"reward": 0.5, "parts": {...}}: the episode is over
    GET  /v1/parl/episodes                  what is under way
    GET  /health

Each exchange is recorded token by token (``rollouts.gateway_record``), and a finished episode is a shard of its own in
the store, on disk before the reward's answer. Works over any ``Engine``.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from model.chat import prefill
from model.chat_parser import ParsedTurn, parse_assistant_ids
from model.tokenizer import Tokenizer
from rollouts.engine.base import Completion, Engine, Sampling
from rollouts.gateway_record import Conversation, Recorder
from rollouts.noise import noise_key
from rollouts.openai_format import (
    BadRequest,
    ChatRequest,
    Reply,
    assistant_message,
    normal_message,
    read_request,
)
from rollouts.store import EpisodeStore

KIND = "gateway"  # of the store's shards


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """``temperature``, ``top_p``: sample all like this, whatever requests say; None: as they say."""

    model: str  # the name that it is served under
    longest: int  # positions of the model's context
    seed: int = 1
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int = 2048  # of a turn, where the request does not say
    thinking: bool = False
    deadline_s: float = 600.0  # of one completion
    idle_s: float = 3600.0  # an episode of which nothing was heard for so long is given up


class Gateway:
    """The application's state: an engine, the episodes under way, and the store that takes finished ones."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, settings: GatewaySettings, store: EpisodeStore | None):
        self.engine, self.tokenizer, self.settings, self.store = engine, tokenizer, settings, store
        self.recorder = Recorder(tokenizer, thinking=settings.thinking)
        self._shard = max(store.steps(KIND), default=0) if store else 0
        self._versions = -1

    def app(self) -> Starlette:
        """The application; what is under way when it stops is stored as failed."""
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/parl/episodes", self._episodes),
            Route("/v1/parl/episodes/{name:path}/reward", self._reward, methods=["POST"]),
        ]

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            for name in list(self.recorder.open):
                await self._finish(name, None, {}, why="the gateway stopped before a reward was given")

        return Starlette(routes=routes, lifespan=lifespan)

    # ---------------------------------------------------------------- routes

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        model = {"id": self.settings.model, "object": "model", "created": 0, "owned_by": "parl"}
        return JSONResponse({"object": "list", "data": [model]})

    async def _chat(self, request: Request) -> Response:
        try:
            chat = self._adjusted(read_request(await request.json(), request.headers))
            reply = await self._answer(chat)
        except json.JSONDecodeError as error:
            return _refusal(400, "body", f"is not JSON: {error}")
        except BadRequest as error:
            return _refusal(400, error.field, str(error))
        except TimeoutError as error:
            return _refusal(504, None, f"no answer within {self.settings.deadline_s:.0f} s {error}")
        headers = {"x-parl-episode": reply.extra["episode"]}
        if not chat.stream:
            return JSONResponse(reply.body(), headers=headers)
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
        return JSONResponse({"episodes": rows})

    async def _reward(self, request: Request) -> Response:
        name = request.path_params["name"]
        try:
            tree = await request.json()
        except json.JSONDecodeError as error:
            return _refusal(400, "body", f"is not JSON: {error}")
        parts: dict[str, Any] = {"reward": None}  # what is not an object has no reward
        if isinstance(tree, dict) and isinstance(tree.get("parts") or {}, dict):
            parts = {**(tree.get("parts") or {}), "reward": tree.get("reward")}
        numbers = {key: float(value) for key, value in parts.items() if _is_number(value)}
        if len(numbers) < len(parts):
            return _refusal(400, "reward", 'must be {"reward": NUMBER, "parts": {NAME: NUMBER}}; parts may be left out')
        if name not in self.recorder.open:
            return _refusal(404, None, f"no episode {name!r} is under way: GET /v1/parl/episodes lists them")
        if any(conversation.busy for conversation in self.recorder.open[name].conversations):
            return _refusal(409, None, f"episode {name!r} waits for an answer: give its reward afterwards")
        shard = await self._finish(name, numbers.pop("reward"), numbers)
        return JSONResponse({"episode": name, "shard": shard})

    # ---------------------------------------------------------------- work

    def _adjusted(self, chat: ChatRequest) -> ChatRequest:
        """``chat`` with the settings that hold for all requests."""
        own = {name: getattr(self.settings, name) for name in ("temperature", "top_p")}
        given = {name: getattr(chat, name) for name in ChatRequest.__slots__}
        return ChatRequest(**{**given, **{name: value for name, value in own.items() if value is not None}})

    async def _answer(self, chat: ChatRequest) -> Reply:
        for name in self.recorder.idle(self.settings.idle_s):
            await self._finish(name, None, {}, why=f"nothing was heard of it for {self.settings.idle_s:.0f} s")
        recording, conversation = self.recorder.begin(chat)
        trace, asked = conversation.trace, len(conversation.trace.tokens)
        try:
            completion = await self._generate(chat, recording.name, conversation)
        except BaseException:  # also a caller that hangs up: what comes after it must not continue this trace
            self.recorder.failed(conversation)
            raise
        self._versions = max(self._versions, completion.policy_version)
        turn = self._parsed(chat, completion)
        known = [token for token in completion.tokens if token < self.tokenizer.vocab_size]
        message = assistant_message(turn, self.tokenizer.decode(known) if turn.malformed else "")
        self.recorder.answered(recording, conversation, completion, turn, normal_message(message, "answer"))
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
            tokenizer=self.tokenizer,
        )

    async def _generate(self, chat: ChatRequest, episode: str, conversation: Conversation) -> Completion:
        trace = conversation.trace
        if len(trace.tokens) >= self.settings.longest:
            length = f"{len(trace.tokens)} tokens, the model's context has {self.settings.longest}"
            raise BadRequest("messages", f"context_length_exceeded: {length}")
        sampling = Sampling(
            seed=noise_key(self.settings.seed if chat.seed is None else chat.seed, episode, trace.agent_id),
            temperature=chat.temperature,
            top_p=chat.top_p or 1.0,
            max_new_tokens=chat.max_tokens or self.settings.max_tokens,
            stop=(self.tokenizer.im_end_id,),
        )
        return await self.engine.generate(
            trace.tokens, sampling, session=conversation.session, deadline_s=self.settings.deadline_s
        )

    def _parsed(self, chat: ChatRequest, completion: Completion) -> ParsedTurn:
        if max(completion.tokens, default=0) >= self.tokenizer.vocab_size:
            return ParsedTurn(malformed="a token of an unused embedding row")
        names = {tool["function"]["name"] for tool in chat.tools}
        opening = prefill(thinking=self.settings.thinking)
        return parse_assistant_ids(self.tokenizer, completion.tokens, prefill=opening, tool_names=names)

    async def _finish(self, name: str, reward: float | None, parts: dict[str, float], *, why: str = "") -> str | None:
        """Store the episode ``name``; returns its shard's file name."""
        for conversation in self.recorder.open[name].conversations:
            await self.engine.release(conversation.session)
        episode = self.recorder.finish(name, reward, parts, why=why)
        if self.store is None:
            return None
        self._shard += 1
        write = self.store.write
        path = await asyncio.to_thread(write, self._shard, [episode], policy_version=self._versions, kind=KIND)
        return path.name


async def _stream(events: list[str]) -> AsyncIterator[str]:
    for event in events:
        yield event
    yield "data: [DONE]\n\n"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def _refusal(status: int, field: str | None, text: str) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = "context_length_exceeded" if "context_length" in text else None
    error = {"message": text, "type": kind, "param": field, "code": code}
    return JSONResponse({"error": error}, status)
