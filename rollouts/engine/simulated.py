"""An engine that answers by a plan after a set time: no model, no computing, real rendering and parsing around it.

What it says is a function of the agent and its turn, when it says so of (sampling seed, turn): episodes are the same
whatever runs beside them, and what an infinitely fast coordinator would take is known beforehand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from envs.simulated import PROBE, Latency
from model.chat.base import ChatFormat
from rollouts.engine.base import Completion, Finish, Pictures, PoolEngine, Sampling, Update
from rollouts.engine.scripted import Action, render_action
from rollouts.prompts import ASSIGN_TASK, CREATE_SUBAGENT

Plan = Callable[[str, int], Action]  # (agent id, number of its turn) -> what it says


class SimulatedEngine(PoolEngine):
    """Serves every agent of every episode. ``plan`` decides what is said, ``latency`` when.

    Failed draws raise RuntimeError: an engine has no other way to fail.
    """

    def __init__(self, chat: ChatFormat, plan: Plan, latency: Latency) -> None:
        self._chat, self._plan, self._latency = chat, plan, latency
        self._turns: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._rendered: dict[str, list[int]] = {}
        self.policy_version = 0
        self.generated = 0

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """The plan's next turn as tokens (log-probs 0). Raises TimeoutError at the deadline."""
        turn = self._turns.get(session, 0)
        tokens = self._tokens(session, self._plan(session.rpartition("#")[2], turn))
        seconds, fails = self._latency.draw(sampling.seed, turn)
        await asyncio.sleep(min(seconds, deadline_s))
        if seconds > deadline_s:
            raise TimeoutError(f"no answer within {deadline_s} s")
        if fails:
            raise RuntimeError("simulated engine failure")
        self._turns[session] = turn + 1
        self.generated += len(tokens)
        return Completion(
            tokens=tokens, logprobs=[0.0] * len(tokens), finish=Finish.STOP, policy_version=self.policy_version
        )

    async def update(self, update: Update) -> None:
        """Report its version from here on."""
        self.policy_version = update.version

    def statistics(self) -> dict[str, float]:
        """Sampled tokens."""
        return {"generated": self.generated}

    async def release(self, session: str) -> None:
        """Forget the session."""
        self._turns.pop(session, None)
        self._calls.pop(session, None)

    def _tokens(self, session: str, action: Action) -> list[int]:
        """The action in the chat format. Equal turns are rendered once: rendering stands for the model's work."""
        first = self._calls.get(session, 0)
        key = f"{first}{action}"
        if key not in self._rendered:
            self._rendered[key] = render_action(self._chat, action, first)
        if not isinstance(action, str):
            self._calls[session] = first + len(action)
        return self._rendered[key]


def fan_out(width: int, calls: int) -> Plan:
    """The orchestrator launches ``width`` sub-agents in one turn and answers; they make ``calls`` calls altogether."""
    spawn: Action = [(CREATE_SUBAGENT, {"name": "prober", "system_prompt": "Probe."})]
    spawn += [(ASSIGN_TASK, {"agent": "prober", "prompt": f"part {i}"}) for i in range(width)]

    def plan(agent_id: str, turn: int) -> Action:
        _, _, number = agent_id.partition("/")
        if not number:
            return "done" if turn else spawn
        own = calls // width + (int(number) < calls % width)
        return [(PROBE.name, {"n": turn})] if turn < own else "ok"

    return plan
