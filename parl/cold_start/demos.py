"""Demonstrations: an environment's teacher solving its tasks through the same swarm code as any rollout.

Each demonstration is an episode, so its tokens are exactly those that a rollout would have; its sub-agents' traces
teach the sub-agents' part.
"""

from __future__ import annotations

from envs.base import Role
from model.tokenizer.tokenizer import Tokenizer
from parl.cold_start.shipped import Recipe
from parl.cold_start.vocabulary import teacher_of
from parl.config.family import chat_format
from rollouts.config import BudgetConfig
from rollouts.engine.scripted import ScriptedEngine
from rollouts.episode import Episode, Trace
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

_ROOMY = BudgetConfig(orchestrator_steps=200, subagents=64, direct_calls=64, total_tokens=10**9, turn_tokens=10**6)


class Demonstrator:
    """Makes demonstration ``i`` of a run: a pure function of (recipe, i)."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.recipe, self.chat = recipe, chat_format(recipe.model, recipe.rollouts, tokenizer)
        self._subagent_chat = chat_format(recipe.model, recipe.rollouts, tokenizer, role=Role.SUBAGENT)
        self.environment = recipe.envs.build()
        self._teacher = teacher_of(recipe, self.environment)

    async def episode(self, index: int) -> Episode:
        """The ``index``-th demonstration."""
        sft = self.recipe.sft
        shown = self._teacher.demonstration(index, seed=sft.seed, parallel=sft.parallel, wrong=sft.wrong)

        def pool(trace: Trace) -> ScriptedEngine:
            if trace.role is Role.ORCHESTRATOR:
                return ScriptedEngine(trace, self.chat, lambda history: shown.orchestrator(history, trace.media))
            return ScriptedEngine(trace, self._subagent_chat, lambda history: shown.subagent(trace.prompt, history))

        media = self.recipe.model.pictures
        settings = SwarmSettings(
            chat=self.chat,
            subagent_chat=self._subagent_chat,
            pool=pool,
            budget=_ROOMY,
            prompts=self.recipe.rollouts.prompts,
            spawning=shown.spawning,
            media=media,
            score=None,
        )
        return await run_episode(shown.task, self.environment, settings, index=0, seed=0, critical_budget=0)
