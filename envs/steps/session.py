"""What all step environments share: starting states as tasks, one lock a session, rewards summed into the score.

A subclass of :class:`StepEnvironment` says how a :class:`Game` is made. A game starts from a seed, which is part
of the task: all episodes of a group begin alike. Its first observation is the task's prompt.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import Field, model_validator

from envs.base import Environment, ErrorKind, Gold, Score, Task, TaskStream, ToolCall, ToolResult, ToolSpec
from envs.plugs.session import PlugSection, PlugSession, ServerLost, offered
from envs.plugs.threads import outside

_SPLITS = ("train", "val", "test")
_APART = 1_000_000  # seeds between splits
START_S = 120.0  # until a game has started, its library's import included
_OPENINGS: dict[tuple[type, str, int], Opening] = {}
_OVER = ToolResult(text="error: the episode is over", error=ErrorKind.CANCELLED, done=True)


class StepSection(PlugSection):
    """The keys that all step environments share."""

    prompt: str = Field(default="", description="text before the first observation, such as what is to be done")
    starts: int = Field(default=256, gt=0, le=_APART, description="starting states (tasks) of each split")
    low: float = Field(default=0.0, description="lowest sum of rewards that an episode can have")
    high: float = Field(default=1.0, description="highest sum of rewards; an episode that reaches it is a success")

    @model_validator(mode="after")
    def _check(self) -> StepSection:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A started game: what agents read, and the tools to act with."""

    text: str
    tools: tuple[ToolSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """The effect of an action. ``success``: whether the game was won, where it says so."""

    text: str
    reward: float = 0.0
    done: bool = False
    success: bool | None = None
    images: tuple[bytes, ...] = ()


class Game(Protocol):
    """A running step environment; never used by two calls at once."""

    async def begin(self, seed: int) -> Opening:
        """Start it. ServerLost if its server is gone."""
        ...

    async def step(self, call: ToolCall) -> Stepped:
        """Act. Refused for an action that it does not take, which changes nothing."""
        ...

    async def finish(self, episode: Any, *, done: bool) -> Stepped | None:
        """What is still earned when the agents have ended: by the answer, for example. None: nothing."""
        ...

    async def close(self) -> None:
        """Release it."""
        ...


class StepEnvironment(Environment):
    """Derive with ``Config`` and :meth:`game`."""

    Config = StepSection
    repeatable: ClassVar[bool] = False  # its state may depend on more than the calls
    own_tasks: ClassVar[bool] = False  # takes tasks that a user brings
    family: ClassVar[str] = "steps"  # of its tasks, in tables

    def game(self, task: Task | None) -> Game:
        """A game that has not begun; ``task`` is None to see its tools."""
        raise NotImplementedError(f"{type(self).__name__} has no method game")

    def seeds(self, split: str) -> Sequence[int]:
        """Seeds of the starting states of ``split``."""
        return range(_SPLITS.index(split) * _APART, _SPLITS.index(split) * _APART + self.config.starts)

    def tools(self) -> tuple[ToolSpec, ...]:
        """Those of the first starting state of ``train``."""
        return self.start(self.seeds("train")[0]).tools

    def start(self, seed: int) -> Opening:
        """The starting state of ``seed``, made once in a process, in a thread."""
        key = type(self), self.config.model_dump_json(), seed
        if key not in _OPENINGS:
            _OPENINGS[key] = outside(self._begun(seed))
        return _OPENINGS[key]

    async def _begun(self, seed: int) -> Opening:
        game = self.game(None)
        try:
            async with asyncio.timeout(START_S):
                return await game.begin(seed)
        except ServerLost as lost:
            raise ValueError(f"envs.config: {lost}") from lost
        finally:
            await game.close()

    def tasks(self, split: str) -> Iterator[Task]:
        """The starting states of ``split``, one after another."""
        if split not in _SPLITS:
            raise ValueError(f"unknown split {split!r}: it must be one of {', '.join(_SPLITS)}")
        return map(self.task, [split] * len(self.seeds(split)), self.seeds(split))

    def task(self, split: str, seed: int) -> Task:
        """The task of one starting state."""
        prompt = "\n\n".join(filter(None, (self.config.prompt, self.start(seed).text))) or "Begin."
        return Task(
            key=f"{split}-{seed}",
            family=self.family,
            split=split,
            prompt=prompt,
            gold=Gold(kind="none"),
            plan={"seed": seed},
        )

    def task_stream(self, split: str, seed: int) -> TaskStream:
        """Starting states, made when they are asked for."""
        return _Starts(self, split)

    def notes(self) -> Iterator[str]:
        """ValueError for a name of a tool that does not exist, or a game that does not start."""
        offered(self.config, self.tools())
        yield from ()

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> StepSession:
        """A started game; tasks that a user brings start from the group's ``seed``."""
        if "seed" not in task.plan and not self.own_tasks:
            raise ValueError("envs.tasks: this environment's tasks are its starting states: leave envs.tasks out")
        game = self.game(task)
        try:
            async with asyncio.timeout(START_S):
                opening = await game.begin(int(task.plan.get("seed", seed)))
            return StepSession(game, opening, self.config)
        except BaseException:
            await game.close()
            raise


@dataclass(frozen=True, slots=True)
class _Starts:
    environment: StepEnvironment
    split: str

    def __getitem__(self, index: int) -> Task:
        seeds = self.environment.seeds(self.split)
        return self.environment.task(self.split, seeds[index % len(seeds)])


class StepSession(PlugSession):
    """One episode's game. Calls of all agents wait for each other."""

    def __init__(self, game: Game, opening: Opening, config: StepSection) -> None:
        super().__init__(offered(config, opening.tools), config.result_chars)
        self._game, self._config, self._lock = game, config, asyncio.Lock()
        self.total, self.steps, self.done = 0.0, 0, False
        self._success: bool | None = None

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        """See :class:`PlugSession`."""
        async with self._lock:
            if self.done:
                return _OVER
            try:
                stepped = await self._game.step(call)
            except (TimeoutError, asyncio.CancelledError):  # nobody knows what the action did
                self.done = True
                raise
            self._count(stepped)
        return ToolResult(text=stepped.text or ("done" if stepped.done else ""), images=stepped.images, done=self.done)

    async def score(self, episode: Any) -> Score:
        """The sum of all rewards, in the range that the section declares."""
        async with self._lock:
            steps, done = self.steps, self.done
            if (last := await self._game.finish(episode, done=done)) is not None:
                self._count(last)
        parts = {"steps": float(steps), "finished": float(done)}
        return Score(value=self.total, success=self._success, parts=parts, low=self._config.low, high=self._config.high)

    async def close(self) -> None:
        """Close the game."""
        if not self.closed:
            self.closed = True
            await self._game.close()

    def _count(self, stepped: Stepped) -> None:
        self.total, self.steps, self.done = self.total + stepped.reward, self.steps + 1, stepped.done
        self._success = stepped.success if stepped.success is not None else self._success


def transcript(episode: Any) -> list[dict[str, Any]]:
    """The orchestrator's conversation as messages in OpenAI's form."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": episode.task.prompt}]
    for turn in episode.traces[0].turns:
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in turn.calls
        ]
        messages.append({"role": "assistant", "content": turn.content} | ({"tool_calls": calls} if calls else {}))
        pairs = zip(turn.calls, turn.results, strict=False)
        messages += [{"role": "tool", "tool_call_id": call.id, "content": result.text} for call, result in pairs]
    return messages
