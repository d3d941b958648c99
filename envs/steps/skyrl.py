"""SkyRL-Gym: ``act`` takes the text that its policies write. If the agents end before it does, their answer is the
last action, so that a single-turn environment needs no tool.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from envs.base import ErrorKind, Task, ToolCall, ToolSpec
from envs.named import extra
from envs.plugs.session import Refused, no_tasks
from envs.plugs.threads import OwnThread
from envs.steps.session import Opening, StepEnvironment, Stepped, StepSection

_ACT = ToolSpec(
    name="act",
    description="Write to the environment, in the form that the task asks for; returns what it answers.",
    parameters={"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
)


class SkyRlConfig(StepSection):
    """An environment of SkyRL-Gym."""

    id: str = Field(description="its registered name: gsm8k, aime, search, text2sql, lcb, ...")
    options: dict[str, Any] = Field(default_factory=dict, description="its env_config, such as search_url of search")
    max_turns: int | None = Field(default=None, gt=0, description="its extras.max_turns")


class SkyRlEnvironment(StepEnvironment):
    """Environments of SkyRL-Gym over the user's rows: prompts and answers, from which ``reward_spec`` is made."""

    Config = SkyRlConfig
    config: SkyRlConfig
    own_tasks = True

    def tools(self) -> tuple[ToolSpec, ...]:
        """``act``."""
        return (_ACT,)

    def task(self, split: str, seed: int) -> Task:
        """ValueError: the environment judges answers, the user brings the questions."""
        raise no_tasks()

    def game(self, task: Task | None) -> SkyRlGame:
        """See :class:`StepEnvironment`."""
        assert task is not None
        return SkyRlGame(self.config, task)


class SkyRlGame:
    """One environment, used by one thread."""

    def __init__(self, config: SkyRlConfig, task: Task) -> None:
        self._config, self._task, self._thread = config, task, OwnThread()
        self._env: Any = None

    async def begin(self, seed: int) -> Opening:
        """See :class:`Game`."""
        await self._thread.run(self._begin)
        return Opening(text="", tools=(_ACT,))

    async def step(self, call: ToolCall) -> Stepped:
        """See :class:`Game`."""
        text = call.arguments.get("text")
        if not isinstance(text, str):
            raise Refused(ErrorKind.BAD_ARGS, "text must be a text")
        return await self._thread.run(self._step, text)

    async def finish(self, episode: Any, *, done: bool) -> Stepped | None:
        """The answer as the last action."""
        return await self._thread.run(self._step, episode.answer) if episode.answer and not done else None

    async def close(self) -> None:
        """See :class:`Game`."""
        if self._env is not None:
            await self._thread.run(self._env.close)
        self._thread.end()

    def _begin(self) -> None:
        package = extra("skyrl_gym", "parl-swarm[steps]", "envs.name=skyrl")
        config = extra("omegaconf", "parl-swarm[steps]", "envs.name=skyrl").OmegaConf.create(self._config.options)
        gold, plan = self._task.gold, self._task.plan
        truth = gold.answers[0] if len(gold.answers) == 1 else {"target": list(gold.answers)}
        extras = {"reward_spec": {"method": "rule", "ground_truth": truth}} | plan
        if self._config.max_turns is not None:
            extras["max_turns"] = self._config.max_turns
        self._env = package.make(self._config.id, env_config=config, extras=extras)
        self._env.init([{"role": "user", "content": self._task.prompt}])

    def _step(self, text: str) -> Stepped:
        out = self._env.step(text)
        said = "\n".join(str(message["content"]) for message in out["observations"])
        return Stepped(text=said, reward=float(out["reward"]), done=bool(out["done"]))
