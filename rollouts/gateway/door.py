"""Doors: the policy behind OpenAI's API for agent programs, one key an episode, on a socket of this worker.

A program's requests are told apart by its key alone, which any client of that API can be given. It reaches its
own conversations and its reward, nothing of other episodes. Noise depends on the run's seed, the task and the
attempt, so that an episode that is run again is sampled alike. Requests beyond the episode's budget are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from envs.base import Score
from envs.driver import Door
from model.chat.base import ChatFormat
from rollouts.config import BudgetConfig
from rollouts.engine.base import Completion, Engine
from rollouts.episode import Episode, Trace
from rollouts.gateway.app import Gateway, GatewaySettings
from rollouts.gateway.openai_errors import AsciiJSON, Refused, refusal
from rollouts.gateway.record import read_reward
from rollouts.gateway.request_body import Bodies
from rollouts.gateway.request_json import BadRequest
from rollouts.gateway.socket import server_config
from rollouts.noise import noise_key

MODEL = "policy"  # its name in the API
_NEVER = 10**12
_BODY_BYTES, _BODY_S = 1 << 16, 30.0
_HEADERS = (b"x-parl-episode", b"x-parl-task", b"authorization")
_CHAT, _REWARD = "/v1/chat/completions", "/v1/parl/reward"


@dataclass(slots=True, kw_only=True)
class Recorded:
    """An episode at its door: what it asked and earned. ``limit``: the budget that it hit; ``fault``: the engine's."""

    name: str
    gateway: Gateway
    budget: BudgetConfig
    span: tuple[float, float]
    reward: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    limit: str = ""
    faults: list[Exception] = field(default_factory=list)

    @property
    def score(self) -> Score | None:
        """The posted reward; ValueError for one outside its range."""
        low, high = self.span
        return None if self.reward is None else Score(value=self.reward, parts=self.parts, low=low, high=high)

    def traces(self) -> list[Trace]:
        """The conversations so far, the first one's first; empty if the policy was never asked."""
        if self.name not in self.gateway.recorder.open:
            return []
        return self.gateway.recorder.episode(self.name, 0.0, {}).traces

    def spent(self) -> str:
        """The budget that forbids another request; empty if none does."""
        recording = self.gateway.recorder.open.get(self.name)
        traces = [conversation.trace for conversation in recording.conversations] if recording else []
        if any(trace.steps >= self.budget.orchestrator_steps for trace in traces):
            return "steps"
        return "total_tokens" if sum(sum(trace.mask) for trace in traces) >= self.budget.total_tokens else ""


class _Watched:
    """An engine whose errors are also told: they are the machine's, whatever the program makes of them."""

    def __init__(self, engine: Engine, tell: Callable[[str, Exception], None]) -> None:
        self._engine, self._tell = engine, tell

    async def generate(self, *args: object, session: str, **given: object) -> Completion:
        try:
            return await self._engine.generate(*args, session=session, **given)  # type: ignore[arg-type]
        except Exception as error:
            self._tell(session, error)
            raise

    async def release(self, session: str) -> None:
        await self._engine.release(session)


class Doors:
    """All doors of a worker, behind one socket on loopback. Belongs to one event loop."""

    def __init__(self, engine: Callable[[], Engine], chat: ChatFormat, longest: int) -> None:
        """``engine``: the policy's now; ``longest``: positions of its context."""
        self._engine, self._chat, self._longest = engine, chat, longest
        self._open: dict[str, Recorded] = {}  # by key
        self._gateways: dict[GatewaySettings, tuple[Gateway, ASGIApp]] = {}
        self._apps: dict[str, ASGIApp] = {}
        self._bodies = Bodies(longest=_BODY_BYTES, total=64 * _BODY_BYTES, deadline_s=_BODY_S)
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    @asynccontextmanager
    async def door(
        self,
        episode: Episode,
        *,
        budget: BudgetConfig,
        temperature: float,
        top_p: float,
        span: tuple[float, float],
    ) -> AsyncIterator[tuple[Door, Recorded]]:
        """A door for ``episode``, closed at the end of the block, with what it records; ``span``: of its reward."""
        url = await self._url()
        settings = GatewaySettings(
            model=MODEL,
            longest=self._longest,
            seed=episode.seed,
            temperature=temperature,
            top_p=top_p,
            max_tokens=budget.turn_tokens,
            most_tokens=budget.turn_tokens,
            deadline_s=budget.episode_s,
            idle_s=_NEVER,
            running=_NEVER,
            conversations=_NEVER,
            tokens=_NEVER,
        )
        if settings not in self._gateways:
            gateway = Gateway(_Watched(self._engine(), self._failed), self._chat, settings, None)
            self._gateways[settings] = (gateway, gateway.app())
        gateway, app = self._gateways[settings]
        gateway.engine = _Watched(self._engine(), self._failed)
        key = f"sk-parl-{secrets.token_urlsafe(24)}"
        name = f"{noise_key(episode.task.key):016x}-{episode.index}"
        while name in gateway.recorder.open:  # a task that a step asks twice
            name += "+"
        recorded = Recorded(name=name, gateway=gateway, budget=budget, span=span)
        self._open[key], self._apps[key] = recorded, app
        try:
            yield Door(url=f"{url}/v1", key=key, model=MODEL), recorded
        finally:
            del self._open[key], self._apps[key]
            if name in gateway.recorder.open:
                conversations = gateway.recorder.open[name].conversations
                gateway.recorder.forget(name, counted=False)
                for conversation in conversations:
                    with contextlib.suppress(Exception):
                        await self._engine().release(conversation.session)

    def _failed(self, session: str, error: Exception) -> None:
        for recorded in self._open.values():
            recording = recorded.gateway.recorder.open.get(recorded.name)
            if recording and any(conversation.session == session for conversation in recording.conversations):
                recorded.faults.append(error)

    async def _url(self) -> str:
        """The server's address; starts it first."""
        async with self._starting:
            if self._server is None:
                config = server_config(self._app)
                config.host, config.port, config.lifespan, config.interface = "127.0.0.1", 0, "off", "asgi3"
                self._server = uvicorn.Server(config)
                self._serving = asyncio.create_task(self._server.serve())
                while not self._server.started:
                    if self._serving.done():
                        self._serving.result()
                        raise OSError("the policy's door could not be opened on 127.0.0.1")
                    await asyncio.sleep(0.01)
            return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Stop serving."""
        if self._server and self._serving:
            self._server.should_exit = True
            await self._serving
            self._server = None

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        key = headers.get(b"authorization", b"").decode("latin-1").removeprefix("Bearer ").strip()
        recorded = self._open.get(key)
        if recorded is None:
            response = refusal(401, None, "no episode has this API key: use the one that the run was given")
            return await response(scope, receive, send)
        path = scope["path"]
        if path == _REWARD:
            response = await self._rewarded(recorded, Request(scope, receive))
            return await response(scope, receive, send)
        if path != _CHAT and not path.startswith("/v1/models"):
            return await refusal(404, None, f"{path}: there is nothing here")(scope, receive, send)
        if path == _CHAT and (limit := recorded.spent()):
            recorded.limit = limit
            return await refusal(403, None, f"the episode's budget is used up: {limit}")(scope, receive, send)
        kept = [(name, value) for name, value in scope["headers"] if name not in _HEADERS]
        own = (b"x-parl-episode", recorded.name.encode())
        await self._apps[key]({**scope, "headers": [*kept, own]}, receive, send)

    async def _rewarded(self, recorded: Recorded, request: Request) -> ASGIApp:
        if request.method != "POST":
            return refusal(405, None, "a reward is posted")
        try:
            recorded.reward, recorded.parts = await self._bodies.read(request, read_reward)
        except BadRequest as error:
            return refusal(400, error.field, str(error))
        except Refused as error:
            return refusal(error.status, error.field, str(error))
        return AsciiJSON({"reward": recorded.reward})
