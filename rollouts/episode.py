"""Episodes: the result of a rollout, and the only input of rewards, learner, store and report.

An ``Episode`` is one attempt at a task: a tree of ``Trace`` objects, the orchestrator's first. A ``Trace`` is
one agent's append-only token stream, divided into ``Turn`` records. Sampled tokens are stored as sampled. No
torch.

Shapes: a trace with T tokens holds ``tokens``, ``mask``, ``logprobs`` and ``versions`` of length T, and
``routes`` [T, L, K] (L mixture-of-experts layers, K experts per token), or None for a dense policy or
scripted agent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from envs.base import Role, Score, Task, ToolCall, ToolResult

CUT = "the turn did not end within its tokens"  # Turn.malformed of a truncated turn
MACHINE = "machine"  # Episode.limit after a machine fault: the episode is run again


class EpisodeStatus(StrEnum):
    """How an episode ended; exactly one of these."""

    ANSWERED = "answered"  # the orchestrator gave a final answer
    OVER_BUDGET = "over_budget"  # a step, token or sub-agent budget was hit (Episode.limit names it)
    MALFORMED = "malformed"  # the orchestrator wrote neither a valid call nor an answer
    FAILED = "failed"  # an exception or deadline that is not the policy's fault (Episode.error)
    CANCELLED = "cancelled"  # the run was stopped; turns so far are kept


class TraceStatus(StrEnum):
    """How one agent ended."""

    RUNNING = "running"
    FINISHED = "finished"  # returned a valid message
    OVER_BUDGET = "over_budget"
    MALFORMED = "malformed"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(slots=True, kw_only=True)
class Turn:
    """One model call and the tool results that answer it: one step.

    ``start:end`` are the sampled tokens' positions in the trace. ``spawned`` are the ids of the traces
    launched by this turn, in parallel; together they are a stage. Times: seconds since the start of the
    episode.
    """

    start: int
    end: int
    content: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    results: list[ToolResult] = field(default_factory=list)
    spawned: list[str] = field(default_factory=list)
    malformed: str = ""  # the parser's error, empty if none
    t_start: float = 0.0  # the model was asked
    t_model: float = 0.0  # the model had answered
    t_end: float = 0.0  # all tool results were in
    deadline: str = ""  # the deadline that a tool call of this turn exceeded

    @property
    def cut(self) -> bool:
        """Whether it was truncated by length; it is malformed then."""
        return self.malformed == CUT

    @property
    def unread(self) -> bool:
        """Whether it ended by itself and the parser refused it."""
        return bool(self.malformed) and not self.cut


@dataclass(slots=True, kw_only=True)
class Trace:
    """One agent's token stream. ``agent_id``: ``0`` for the orchestrator, ``0/3`` for its fourth spawn."""

    agent_id: str
    role: Role
    name: str = ""  # the sub-agent's configuration
    parent: str | None = None
    parent_turn: int | None = None  # index of the parent's turn that launched it
    prompt: str = ""
    status: TraceStatus = TraceStatus.RUNNING
    message: str = ""  # its message to the parent, or the final answer
    tokens: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)  # True where the token was sampled by this agent's policy
    logprobs: list[float] = field(default_factory=list)  # 0.0 where mask is False
    versions: list[int] = field(default_factory=list)  # policy version of the token, -1 where mask is False
    routes: np.ndarray | None = None  # int16 [T, L, K]
    turns: list[Turn] = field(default_factory=list)
    media_at: list[int] = field(default_factory=list)  # first position of each picture of the tool results, in order
    trainable: bool = False
    limit: str = ""  # the budget or deadline that ended it, e.g. "steps", "agent_s"
    cuts: list[int] = field(default_factory=list)  # positions where a new context starts (rollouts.context)

    @property
    def contexts(self) -> list[tuple[int, int]]:
        """Spans of ``tokens`` that the policy saw as one context: one more than ``cuts``."""
        ends = [*self.cuts, len(self.tokens)]
        return list(zip([0, *self.cuts], ends, strict=True))

    def context_of(self, position: int) -> int:
        """The start of the context of ``position``."""
        return max((cut for cut in self.cuts if cut <= position), default=0)

    @property
    def media(self) -> list[tuple[int, bytes]]:
        """The pictures in ``tokens``: (position of the first placeholder, PNG file)."""
        if not self.media_at:
            return []
        shown = [image for turn in self.turns for result in turn.results for image in result.images]
        return list(zip(self.media_at, shown, strict=False))  # a turn's results are added just before they are read

    @property
    def steps(self) -> int:
        """Number of turns: K2.5's step."""
        return len(self.turns)

    @property
    def tool_calls(self) -> int:
        """Tool invocations, the other count of a step (K2.5 report E.8)."""
        return sum(len(turn.calls) for turn in self.turns)


@dataclass(slots=True, kw_only=True)
class Episode:
    """One attempt at ``task``. ``traces[0]`` is the orchestrator's; the others follow in order of agent ids."""

    task: Task
    index: int  # number of the attempt in its group
    seed: int
    traces: list[Trace]
    status: EpisodeStatus
    answer: str = ""
    limit: str = ""  # the budget that ended it, e.g. "critical_steps"
    error: str = ""
    critical_budget: int = 0  # critical steps allowed, 0 = unlimited
    wall_s: float = 0.0
    score: Score | None = None  # what the session or another scorer gave it when it ended
    rewards: dict[str, float] = field(default_factory=dict)  # filled by scoring: parts and their weighted sum "total"
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def void(self) -> bool:
        """Whether the machine or the run ended it, so that it says nothing about the policy."""
        return self.status in (EpisodeStatus.FAILED, EpisodeStatus.CANCELLED)

    @property
    def orchestrator(self) -> Trace:
        """The root trace."""
        return self.traces[0]

    @property
    def subagents(self) -> list[Trace]:
        """All traces except the root."""
        return self.traces[1:]

    def trace(self, agent_id: str) -> Trace:
        """The trace of ``agent_id``; KeyError if there is none."""
        for trace in self.traces:
            if trace.agent_id == agent_id:
                return trace
        raise KeyError(f"episode {self.task.key}#{self.index} has no agent {agent_id!r}")

    def launched(self, turn: Turn) -> list[str | None]:
        """For each call of ``turn`` the agent that it launched, or None."""
        if not turn.spawned:
            return [None] * len(turn.calls)
        by_id = {trace.agent_id: trace for trace in self.traces}
        waiting = list(turn.spawned)
        found: list[str | None] = []
        for call in turn.calls:
            asked = (call.arguments.get("agent"), call.arguments.get("prompt"))
            launched = bool(waiting) and asked == (by_id[waiting[0]].name, by_id[waiting[0]].prompt)
            found.append(waiting.pop(0) if launched else None)
        return found

    def stages(self) -> Iterator[tuple[Turn, list[Trace]]]:
        """The orchestrator's turns, each with the sub-agents that it launched."""
        by_id = {trace.agent_id: trace for trace in self.traces}
        for turn in self.orchestrator.turns:
            yield turn, [by_id[agent_id] for agent_id in turn.spawned]
