"""OpenEnv: a running server of an environment, or a factory of resource sessions.

With ``url``, ``act`` takes the fields of the server's action. With ``factory``, agents have the session's own
tools, and its ``verify`` gives the reward.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import httpx
from pydantic import Field, model_validator

from envs.base import ErrorKind, Task, ToolCall, ToolSpec
from envs.named import extra, named
from envs.plugs.session import Refused, ServerLost
from envs.plugs.threads import OwnThread
from envs.steps.session import START_S, Game, Opening, StepEnvironment, Stepped, StepSection, transcript

_HIDDEN = ("metadata",)  # fields of every action and observation that are not for agents


class OpenEnvConfig(StepSection):
    """An environment of OpenEnv: exactly one of ``url`` and ``factory``."""

    url: str | None = Field(default=None, description="address of a running server, such as http://127.0.0.1:8000")
    factory: str | None = Field(default=None, description="package.module:name of a ResourceSessionFactory")

    @model_validator(mode="after")
    def _one(self) -> OpenEnvConfig:
        if (self.url is None) == (self.factory is None):
            raise ValueError("give exactly one of url and factory")
        return self


class OpenEnvEnvironment(StepEnvironment):
    """Environments of OpenEnv."""

    Config = OpenEnvConfig
    config: OpenEnvConfig
    family = "openenv"
    neutral = frozenset({"url"})
    own_tasks = True  # of factories, which are given the question

    def game(self, task: Task | None) -> Game:
        """See :class:`StepEnvironment`."""
        if self.config.url is None:
            return ResourceGame(self.config, task)
        return ServerGame(self.config.url)


class ServerGame:
    """One session of a server."""

    def __init__(self, url: str) -> None:
        self._url, self._client, self._lost = url.rstrip("/"), None, ""

    async def begin(self, seed: int) -> Opening:
        """See :class:`Game`."""
        core = extra("openenv.core.generic_client", "parl-swarm[openenv]", "envs.name=openenv")
        try:
            async with httpx.AsyncClient(timeout=START_S, trust_env=False) as http:
                schema = (await http.get(f"{self._url}/schema")).raise_for_status().json()["action"]
            self._client = core.GenericEnvClient(base_url=self._url, message_timeout_s=START_S)
            await self._client.connect()
            result = await self._client.reset(seed=seed)
        except (httpx.HTTPError, OSError, RuntimeError, KeyError, ValueError) as error:
            raise ServerLost(f"{self._url}: {type(error).__name__}: {error}") from error
        fields = {name: field for name, field in schema.get("properties", {}).items() if name not in _HIDDEN}
        about = schema.get("description") or "Act; returns what is observed."
        tool = ToolSpec(name="act", description=about, parameters=schema | {"properties": fields})
        return Opening(text=_shown(result.observation), tools=(tool,))

    async def step(self, call: ToolCall) -> Stepped:
        """See :class:`Game`. A server that is lost, or did not answer in time, has forgotten the session."""
        if self._lost or self._client is None:
            raise ServerLost(self._lost)
        self._lost = f"{self._url}: the session was lost"
        try:
            result = await self._client.step(call.arguments)
        except RuntimeError as error:  # how the client reports the server's messages
            self._lost = ""
            kind = ErrorKind.BAD_ARGS if "VALIDATION" in str(error) else ErrorKind.SERVER
            raise Refused(kind, str(error)) from error
        except Exception as error:
            raise ServerLost(f"{self._url}: {type(error).__name__}: {error}") from error
        self._lost = ""
        return Stepped(text=_shown(result.observation), reward=float(result.reward or 0.0), done=bool(result.done))

    async def finish(self, episode: Any, *, done: bool) -> None:
        """Nothing more is earned."""

    async def close(self) -> None:
        """See :class:`Game`."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                await client.close()


class ResourceGame:
    """One resource session, used by one thread."""

    def __init__(self, config: OpenEnvConfig, task: Task | None) -> None:
        self._factory, self._task, self._thread = config.factory or "", task, OwnThread()
        self._session: Any = None

    async def begin(self, seed: int) -> Opening:
        """See :class:`Game`."""
        return await self._thread.run(self._begin, seed)

    async def step(self, call: ToolCall) -> Stepped:
        """See :class:`Game`."""
        result = await self._thread.run(self._session.call_tool, call.name, call.arguments)
        if result.error:
            raise Refused(ErrorKind.SERVER, str(result.error))
        return Stepped(text=_shown(result.data), done=bool(result.done))

    async def finish(self, episode: Any, *, done: bool) -> Stepped:
        """The reward that the session's ``verify`` forwards."""
        verdict = await self._thread.run(self._session.verify, transcript(episode))
        if verdict.env_reward is None:
            raise ValueError(f"envs.config.factory = {self._factory}: verify gave no env_reward")
        return Stepped(text="", reward=float(verdict.env_reward), done=done)

    async def close(self) -> None:
        """See :class:`Game`."""
        if self._session is not None:
            with suppress(Exception):
                await self._thread.run(self._session.close)
        self._thread.end()

    def _begin(self, seed: int) -> Opening:
        found = named(self._factory, "envs.config.factory")
        factory = found() if isinstance(found, type) else found
        given = None if self._task is None or "seed" in self._task.plan else self._task.plan or self._task.prompt
        self._session = factory.create(task=given, seed=seed)
        told = "\n\n".join(str(message["content"]) for message in self._session.initial_messages())
        tools = []
        for tool in self._session.list_tools():
            schema = tool.input_schema or {"type": "object", "properties": {}}
            tools.append(ToolSpec(name=tool.name, description=tool.description or "", parameters=schema))
        return Opening(text=told, tools=tuple(tools))


def _shown(observation: Any) -> str:
    """An observation as text: its only field, or JSON."""
    if hasattr(observation, "model_dump"):
        observation = observation.model_dump(mode="json")
    if isinstance(observation, dict):
        fields = {name: value for name, value in observation.items() if name not in _HIDDEN and value is not None}
        observation = next(iter(fields.values())) if len(fields) == 1 else fields
    return observation if isinstance(observation, str) else json.dumps(observation, ensure_ascii=False, default=str)
