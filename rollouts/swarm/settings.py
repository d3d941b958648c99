"""Settings that all episodes of a call share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from envs.base import Role
from model.chat.base import ChatFormat
from model.family import Pictures
from rollouts.config import BudgetConfig, ContextConfig, LimitsConfig, RolloutsConfig
from rollouts.engine.base import Engine
from rollouts.episode import Trace
from rollouts.prompts import PromptsConfig
from rollouts.swarm.driven import OpensDoors
from rollouts.swarm.limits import Slots, StopSwitch
from rollouts.swarm.placement import Placement
from rollouts.swarm.scoring import ScoreEpisode, by_session


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmSettings:
    """Settings that all episodes of a run share.

    ``chat``: the policies' chat format; ``subagent_chat``: that of sub-agents where it is another. ``pool``
    picks the engine of a trace. ``media``: how pictures are cut, None without vision. ``score`` scores a finished
    episode; None: it is not scored.
    """

    chat: ChatFormat
    subagent_chat: ChatFormat | None = None
    pool: Callable[[Trace], Engine]
    budget: BudgetConfig
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    spawning: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    subagent_temperature: float = 1.0
    subagent_top_p: float = 1.0
    train_subagents: bool = False  # whether their traces are trained
    media: Pictures | None = None
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    slots: Slots = field(default_factory=Slots)
    switch: StopSwitch = field(default_factory=StopSwitch)
    score: ScoreEpisode | None = by_session
    score_deadline_s: float = 60.0
    doors: Callable[[], OpensDoors] | None = None  # for agent programs; None: there is no policy of ours
    placement: Placement | None = None  # None: sub-agents run where their episode does
    stalled: Callable[[float], str] = lambda since: ""  # why worker or engines stood still after a time of the loop

    def chat_of(self, role: Role) -> ChatFormat:
        """The chat format of agents of ``role``."""
        return self.chat if role is Role.ORCHESTRATOR or self.subagent_chat is None else self.subagent_chat

    @classmethod
    def of(cls, rollouts: RolloutsConfig, **own: Any) -> SwarmSettings:
        """The settings of ``rollouts``; ``own`` adds the others, or replaces some."""
        names = ("budget", "prompts", "subagent_temperature", "limits", "context", "score_deadline_s")
        return cls(**{name: getattr(rollouts, name) for name in names} | own)
