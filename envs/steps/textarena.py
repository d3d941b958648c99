"""TextArena: ``act`` takes the text that a player writes. Other players are functions of yours."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import Field

from envs.base import ErrorKind, Task, ToolCall, ToolSpec
from envs.named import extra, named
from envs.plugs.session import Refused
from envs.plugs.threads import OwnThread
from envs.steps.session import Opening, StepEnvironment, Stepped, StepSection

_MOST = 10_000  # turns of others in a row
_ACT = ToolSpec(
    name="act",
    description="Make your move; returns what happens until it is your turn again.",
    parameters={"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
)


class TextArenaConfig(StepSection):
    """A game of TextArena."""

    id: str = Field(description="its registered name, such as GuessTheNumber-v0")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of textarena.make")
    players: int = Field(default=1, gt=0, description="players; the agents are player 0")
    opponent: str | None = Field(
        default=None, description="package.module:function, from what another player reads to what it writes"
    )


class TextArenaEnvironment(StepEnvironment):
    """Games of TextArena."""

    Config = TextArenaConfig
    config: TextArenaConfig
    family = "textarena"

    def __init__(self, config: TextArenaConfig) -> None:
        super().__init__(config)
        if config.players > 1 and config.opponent is None:
            raise ValueError(f"envs.config.opponent: who plays the others of {config.players} players?")

    def game(self, task: Task | None) -> TextArenaGame:
        """See :class:`StepEnvironment`."""
        return TextArenaGame(self.config)


class TextArenaGame:
    """One game, used by one thread. Its reward comes at the end: that of player 0."""

    def __init__(self, config: TextArenaConfig) -> None:
        self._config, self._thread, self._seen = config, OwnThread(), ""
        self._env: Any = None
        self._opponent: Any = None

    async def begin(self, seed: int) -> Opening:
        """See :class:`Game`."""
        return await self._thread.run(self._begin, seed)

    async def step(self, call: ToolCall) -> Stepped:
        """See :class:`Game`."""
        text = call.arguments.get("text")
        if not isinstance(text, str):
            raise Refused(ErrorKind.BAD_ARGS, "text must be a text")
        return await self._thread.run(self._step, text)

    async def finish(self, episode: Any, *, done: bool) -> None:
        """A game that is not over has no reward."""

    async def close(self) -> None:
        """See :class:`Game`."""
        self._thread.end()

    def _begin(self, seed: int) -> Opening:
        package = extra("textarena", "parl-swarm[steps]", "envs.name=textarena")
        try:
            self._env = package.make(self._config.id, **self._config.options)
        except ValueError as error:
            raise ValueError(f"envs.config.id = {self._config.id}: {error}") from error
        if self._config.opponent:
            self._opponent = named(self._config.opponent, "envs.config.opponent")
            if not inspect.isroutine(self._opponent):
                raise ValueError(f"envs.config.opponent = {self._config.opponent}: is no function")
        self._env.reset(num_players=self._config.players, seed=seed)
        return Opening(text=self._others() or "", tools=(_ACT,))

    def _step(self, text: str) -> Stepped:
        done, _ = self._env.step(text)
        shown = None if done else self._others()
        if shown is not None:
            return Stepped(text=shown)
        rewards, info = self._env.close()
        reward = float((rewards or {}).get(0, 0.0))
        why = (info or {}).get(0, {}).get("reason") or "the game is over"
        return Stepped(text=f"{why}\nreward: {reward:g}", reward=reward, done=True)

    def _others(self) -> str | None:
        """Let the others play; what player 0 then reads that is new, None if the game ended."""
        for _ in range(_MOST):
            player, read = self._env.get_observation()
            if player == 0:
                new = read.removeprefix(self._seen) if read.startswith(self._seen) else read
                self._seen = read
                return new.strip()
            done, _ = self._env.step(str(self._opponent(read)))
            if done:
                return None
        raise RuntimeError(f"{_MOST} turns without player 0")
