"""Gymnasium: ``act`` takes an action of the environment's space; observations are shown as text."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from envs.base import ErrorKind, Task, ToolCall, ToolSpec
from envs.named import extra
from envs.plugs.session import Refused
from envs.plugs.threads import OwnThread
from envs.steps.session import Opening, StepEnvironment, Stepped, StepSection

_MARKED = re.compile(r"\x1b\[\d+m(.)\x1b\[0m")  # a coloured letter, such as where one stands
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


class GymnasiumConfig(StepSection):
    """An environment of Gymnasium."""

    id: str = Field(description="its registered name, such as FrozenLake-v1, or module:name to import a module first")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of gymnasium.make")


class GymnasiumEnvironment(StepEnvironment):
    """Games of Gymnasium."""

    Config = GymnasiumConfig
    config: GymnasiumConfig
    family = "gymnasium"

    def game(self, task: Task | None) -> GymnasiumGame:
        """See :class:`StepEnvironment`."""
        return GymnasiumGame(self.config)


class GymnasiumGame:
    """One environment, used by one thread. With ``render_mode: ansi`` its picture in letters is shown, too."""

    def __init__(self, config: GymnasiumConfig) -> None:
        self._config, self._thread = config, OwnThread()
        self._env: Any = None

    async def begin(self, seed: int) -> Opening:
        """See :class:`Game`."""
        return await self._thread.run(self._begin, seed)

    async def step(self, call: ToolCall) -> Stepped:
        """See :class:`Game`."""
        return await self._thread.run(self._step, call.arguments)

    async def finish(self, episode: Any, *, done: bool) -> None:
        """Nothing more is earned."""

    async def close(self) -> None:
        """See :class:`Game`."""
        if self._env is not None:
            await self._thread.run(self._env.close)
        self._thread.end()

    def _begin(self, seed: int) -> Opening:
        package = extra("gymnasium", "parl-swarm[steps]", "envs.name=gymnasium")
        try:
            self._env = package.make(self._config.id, **self._config.options)
        except package.error.Error as error:
            raise ValueError(f"envs.config.id = {self._config.id}: {error}") from error
        observation, _ = self._env.reset(seed=seed)
        self._env.action_space.seed(seed)
        schema = {"type": "object", "properties": {"action": _schema(self._env.action_space)}, "required": ["action"]}
        tool = ToolSpec(name="act", description="Take an action; returns what is observed.", parameters=schema)
        return Opening(text=self._shown(observation), tools=(tool,))

    def _step(self, arguments: dict[str, Any]) -> Stepped:
        space = self._env.action_space
        try:
            action = _action(space, arguments["action"])
            fits = bool(space.contains(action))
        except (KeyError, TypeError, ValueError):
            fits, action = False, None
        if not fits:
            raise Refused(ErrorKind.BAD_ARGS, f"action must be of {space}")
        observation, reward, terminated, truncated, _ = self._env.step(action)
        return Stepped(text=self._shown(observation), reward=float(reward), done=bool(terminated or truncated))

    def _shown(self, observation: Any) -> str:
        picture = self._env.render() if self._env.render_mode == "ansi" else ""
        return "\n".join(filter(None, (_text(observation), _COLOUR.sub("", _MARKED.sub(r"[\1]", str(picture))))))


def _schema(space: Any) -> dict[str, Any]:
    """The JSON schema of an action."""
    kind = type(space).__name__
    if kind == "Discrete":
        first = int(space.start)
        return {"type": "integer", "minimum": first, "maximum": first + int(space.n) - 1}
    if kind == "Text":
        return {"type": "string", "maxLength": int(space.max_length)}
    return {"description": f"as JSON, of {space}"}


def _action(space: Any, given: Any) -> Any:
    """``given``, parsed from JSON, as ``space`` has it. TypeError or ValueError if it cannot be."""
    kind = type(space).__name__
    if kind == "Discrete":
        if isinstance(given, bool) or int(given) != float(given):
            raise ValueError
        return int(given)
    if kind == "Dict":
        return {name: _action(part, given[name]) for name, part in space.spaces.items()}
    if kind == "Tuple":
        return tuple(_action(part, value) for part, value in zip(space.spaces, given, strict=True))
    if getattr(space, "shape", None) is not None and kind != "Text":
        import numpy as np

        return np.asarray(given, dtype=space.dtype)
    return given


def _text(observation: Any) -> str:
    """An observation as text: arrays as nested lists."""
    if isinstance(observation, str):
        return observation
    if isinstance(observation, dict):
        return "\n".join(f"{name}: {_text(value)}" for name, value in observation.items())
    if isinstance(observation, tuple):
        return ", ".join(map(_text, observation))
    return str(observation.tolist() if hasattr(observation, "tolist") else observation)
