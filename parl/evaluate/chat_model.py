"""``parl eval --model URL``: episodes whose agents are a model behind OpenAI's chat completions. No Ray.

Orchestrator and sub-agents are the same model. The usage of each episode is a line of ``usage.jsonl`` in the
policy's store, written when the episode ends in any way, so that repeated episodes count too.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from envs.base import Environment, Role, Task
from model.chat.base import ChatFormat
from parl.config.schema import EvalConfig
from parl.errors import UserError
from rollouts.config import RolloutsConfig
from rollouts.engine.address import check_key, host_of, shown
from rollouts.engine.chat.client import KEY, ChatServer, ServerGone, Usage, api_root
from rollouts.engine.chat.engine import ChatEngine, ChatModel
from rollouts.episode import Episode, Trace
from rollouts.swarm.budget import critical_budget
from rollouts.swarm.limits import Slots, StopSwitch
from rollouts.swarm.scoring import ScoreEpisode
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

_USAGE = "usage.jsonl"
_BASE = "OPENAI_BASE_URL"  # the server of the key, if set
_MODELS_S = 30.0
Arrived = Callable[[list[Episode]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model on a server: the API's root and the model's name."""

    url: str
    name: str


def is_url(model: Path | str | None) -> bool:
    """Whether ``--model`` names a server rather than a folder."""
    return isinstance(model, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", model) is not None


def key_for(url: str) -> str | None:
    """OPENAI_API_KEY, if it may go to the server at ``url``: that of OPENAI_BASE_URL, or any without it."""
    base = os.environ.get(_BASE)
    return os.environ.get(KEY) if not base or host_of(base) == host_of(url) else None


def find_model(url: str, name: str | None, *, pictures: bool = False) -> Served:
    """The model ``name`` at ``url``, by default the first that the server lists. UserError for mistakes.

    ``pictures``: the environment's tasks have some.
    """
    if pictures:
        raise UserError(f"envs.config asks for pictures, and pictures cannot be sent to {shown(url)}; leave them out")
    try:
        root = api_root(url)
        check_key(root, key_for(root), KEY)
        if name:
            return Served(url=root, name=name)
        names = asyncio.run(_models(root))
    except ValueError as error:
        raise UserError(f"--model {shown(url)}: {error}") from None
    except ServerGone as error:
        raise UserError(f"--model {error}") from None
    except TimeoutError:
        raise UserError(f"--model {url}: no answer within {_MODELS_S:.0f} s; is it the right address?") from None
    if not names:
        raise UserError(f"--model {url}: the server lists no model; name one with --model-name")
    return Served(url=root, name=names[0])


async def _models(url: str) -> list[str]:
    server = ChatServer(url, api_key=key_for(url))
    try:
        return await server.models(_MODELS_S)
    finally:
        await server.close()


class ChatCollector:
    """Runs episodes with ``served``, in an event loop of its own; usage goes to ``store``. Context manager.

    ``chat``: the format whose tokens are counted. ``score``: scores ended episodes.
    """

    def __init__(
        self,
        served: Served,
        store: Path,
        environment: Environment,
        chat: ChatFormat,
        rollouts: RolloutsConfig,
        evaluation: EvalConfig,
        *,
        spawning: bool,
        score: ScoreEpisode,
    ) -> None:
        self._store, self._environment, self._chat, self._spawning = store, environment, chat, spawning
        self._rollouts, self._evaluation, self._score = rollouts, evaluation, score
        self._runner = asyncio.Runner()
        self._model = ChatModel(server=ChatServer(served.url, api_key=key_for(served.url)), name=served.name)
        own = [tool.to_openai() for tool in self._environment.tools()]
        spawn = [tool.to_openai() for tool in rollouts.prompts.spawning] if spawning else []
        self._tools = {Role.ORCHESTRATOR: own + spawn, Role.SUBAGENT: own}
        limits = rollouts.limits
        self._slots, self._switch = Slots(limits.subagents, limits.tool_calls), StopSwitch()
        self._gate = asyncio.Semaphore(rollouts.concurrency)

    def __enter__(self) -> ChatCollector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._close())
        self._runner.close()

    def collect(self, tasks: Sequence[Task], attempts: Sequence[Sequence[int]], arrived: Arrived) -> None:
        """Run these attempts at each task; ``arrived`` gets each episode as it ends.

        UserError if the server stops answering; episodes that arrived before are kept.
        """
        self._runner.run(self._collect(tasks, attempts, arrived))
        if self._model.server.gone:
            raise UserError(f"--model {self._model.server.gone}")

    async def _collect(self, tasks: Sequence[Task], attempts: Sequence[Sequence[int]], arrived: Arrived) -> None:
        async with asyncio.TaskGroup() as group:  # each episode has its own deadline
            for task, indices in zip(tasks, attempts, strict=True):
                for index in indices:
                    group.create_task(self._one(task, index, arrived))

    async def _one(self, task: Task, index: int, arrived: Arrived) -> None:
        async with self._gate:
            if self._model.server.gone:
                return
            usage, status = Usage(), "interrupted"
            budget = critical_budget(task, self._rollouts.budget)
            seed = self._evaluation.seed
            try:
                episode = await run_episode(
                    task, self._environment, self._settings(usage), index=index, seed=seed, critical_budget=budget
                )
                status = str(episode.status)
            finally:
                self._count(task, index, status, usage)
            if self._model.server.gone and episode.void:
                self._switch.stop()
            else:
                arrived([episode])

    def _settings(self, usage: Usage) -> SwarmSettings:
        def pool(trace: Trace) -> ChatEngine:
            return ChatEngine(trace, self._chat, self._model, self._tools[trace.role], usage)

        return SwarmSettings.of(
            self._rollouts,
            chat=self._chat,
            pool=pool,
            spawning=self._spawning,
            temperature=self._evaluation.temperature,
            top_p=self._evaluation.top_p,
            score=self._score,
            slots=self._slots,
            switch=self._switch,
        )

    def _count(self, task: Task, index: int, status: str, usage: Usage) -> None:
        line = {"task": task.key, "index": index, "status": status} | asdict(usage)
        with (self._store / _USAGE).open("a") as file:
            file.write(json.dumps(line) + "\n")

    async def _close(self) -> None:
        await self._environment.close()
        await self._model.server.close()


def used(store: Path, tasks: Sequence[Task], n: int) -> dict[str, int]:
    """Usage of the first ``n`` attempts at ``tasks``, by ``Usage``'s fields, repeated ones included."""
    sums = {field.name: 0 for field in fields(Usage)}
    wanted = {task.key for task in tasks}
    path = store / _USAGE
    for text in filter(None, path.read_text(encoding="utf-8").split("\n") if path.exists() else ()):
        line: dict[str, Any] = json.loads(text)
        if line["task"] in wanted and line["index"] < n:
            sums = {name: total + line[name] for name, total in sums.items()}
    return sums
