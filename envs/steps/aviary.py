"""Aviary (the package ``fhaviary``): the environments of a data set, each with tools of its own."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from envs.base import ErrorKind, Task, ToolCall, ToolSpec
from envs.named import extra, named
from envs.plugs.session import Refused, places
from envs.steps.session import Opening, StepEnvironment, Stepped, StepSection


class AviaryConfig(StepSection):
    """A finite data set of Aviary."""

    dataset: str = Field(description="its registered name (gsm8k, hotpotqa), or package.module:Class of a TaskDataset")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the data set")


class AviaryEnvironment(StepEnvironment):
    """Environments of a data set. Of every ten, the last two are those of val and test."""

    Config = AviaryConfig
    config: AviaryConfig
    family = "aviary"

    def game(self, task: Task | None) -> AviaryGame:
        """See :class:`StepEnvironment`."""
        return AviaryGame(self.config)

    def seeds(self, split: str) -> Sequence[int]:
        """Indices of the data set."""
        return places(_size(self.config), split)[: self.config.starts]


def _dataset(config: AviaryConfig) -> Any:
    core = extra("aviary.core", "parl-swarm[steps]", "envs.name=aviary")
    if ":" in config.dataset:
        return named(config.dataset, "envs.config.dataset")(**config.options)
    try:
        return core.TaskDataset.from_name(config.dataset, **config.options)
    except (ValueError, ImportError) as error:
        hint = "; a data set of your own is written package.module:Class"
        raise ValueError(f"envs.config.dataset = {config.dataset}: {error}{hint}") from error


def _size(config: AviaryConfig) -> int:
    try:
        return len(_dataset(config))
    except TypeError:
        why = "has no length, so that no task can be asked twice"
        raise ValueError(
            f"envs.config.dataset = {config.dataset}: {why}: define __len__ and get_new_env_by_idx"
        ) from None


class AviaryGame:
    """One environment."""

    def __init__(self, config: AviaryConfig) -> None:
        self._config = config
        self._env: Any = None

    async def begin(self, seed: int) -> Opening:
        """See :class:`Game`; ``seed`` is the index."""
        self._env = _dataset(self._config).get_new_env_by_idx(seed)
        messages, tools = await self._env.reset()
        specs = []
        for tool in tools:
            schema = tool.info.parameters.model_dump(exclude_none=True) if tool.info.parameters else None
            schema = schema or {"type": "object", "properties": {}}
            specs.append(ToolSpec(name=tool.info.name, description=tool.info.description, parameters=schema))
        return Opening(text=_text(messages), tools=tuple(specs))

    async def step(self, call: ToolCall) -> Stepped:
        """See :class:`Game`."""
        core = extra("aviary.core", "parl-swarm[steps]", "envs.name=aviary")
        made = core.ToolCall(id=call.id, function={"name": call.name, "arguments": call.arguments})
        try:
            messages, reward, done, truncated = await self._env.step(core.ToolRequestMessage(tool_calls=[made]))
        except TypeError as error:  # a tool called with other arguments than it has
            raise Refused(ErrorKind.BAD_ARGS, str(error)) from error
        return Stepped(text=_text(messages), reward=float(reward), done=bool(done or truncated))

    async def finish(self, episode: Any, *, done: bool) -> None:
        """Nothing more is earned."""

    async def close(self) -> None:
        """See :class:`Game`."""
        closing = self._env.close() if self._env is not None else None
        if inspect.isawaitable(closing):
            await closing


def _text(messages: Any) -> str:
    return "\n\n".join(message.content for message in messages if message.content)
