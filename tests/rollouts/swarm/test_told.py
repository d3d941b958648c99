"""Settings of prompts: system prompts, descriptions of the spawning tools, reasoning."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks.simulated import Latency, SimulatedEngine, SimulatedEnvironment, fan_out, simulated_task
from envs.base import Role
from model.chat.kimi import END_THINK, THINK, KimiChat
from model.tokenizer.tokenizer import Tokenizer
from parl.episodes.formats.common import system_prompt
from rollouts.config import BudgetConfig, ContextConfig, RolloutsConfig
from rollouts.episode import Episode, EpisodeStatus
from rollouts.prompts import PromptsConfig
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

NOW = Latency(median_s=0.0)


def episode_of(chat: KimiChat, **settings: Any) -> Episode:
    engine = SimulatedEngine(chat, fan_out(2, 4), NOW)
    given = SwarmSettings(chat=chat, pool=lambda trace: engine, budget=BudgetConfig(), **settings)
    run = run_episode(simulated_task(0), SimulatedEnvironment(NOW), given, index=0, seed=0, critical_budget=0)
    return asyncio.run(run)


def test_the_orchestrator_reads_the_prompts_that_are_set(tokenizer: Tokenizer):
    prompts = PromptsConfig(orchestrator="Be brief.", create_subagent="Hire.", assign_task="Send off.")
    episode = episode_of(KimiChat(tokenizer), prompts=prompts)
    assert episode.status is EpisodeStatus.ANSWERED
    opening = tokenizer.decode(episode.orchestrator.tokens)
    assert all(text in opening for text in ("Be brief.", "// Hire.", "// Send off."))
    assert PromptsConfig().orchestrator not in opening
    assert system_prompt(episode, episode.orchestrator) == "Be brief."
    plain = episode_of(KimiChat(tokenizer))
    assert system_prompt(plain, plain.orchestrator) == PromptsConfig().orchestrator


@pytest.mark.parametrize("thinking", [False, True])
def test_turns_are_written_and_read_with_reasoning_where_it_is_on(tokenizer: Tokenizer, thinking: bool):
    context = ContextConfig(policy="hide_tool_result", orchestrator_tokens=4000)
    episode = episode_of(KimiChat(tokenizer, thinking=thinking), context=context)
    assert episode.status is EpisodeStatus.ANSWERED and len(episode.subagents) == 2
    for trace in episode.traces:
        for turn in trace.turns:
            prompt, sampled = trace.tokens[: turn.start], trace.tokens[turn.start : turn.end]
            ends = (THINK,) if thinking else (THINK, END_THINK)
            assert prompt[-len(ends) :] == [tokenizer.special[name] for name in ends]
            assert sampled.count(tokenizer.special[END_THINK]) == thinking


def test_one_role_alone_may_reason(tokenizer: Tokenizer):
    thinks, plain = KimiChat(tokenizer, thinking=True), KimiChat(tokenizer)
    engines = {
        role: SimulatedEngine(chat, fan_out(2, 4), NOW) for role, chat in zip(Role, (thinks, plain), strict=True)
    }
    given = SwarmSettings(
        chat=thinks, subagent_chat=plain, pool=lambda trace: engines[trace.role], budget=BudgetConfig()
    )
    run = run_episode(simulated_task(0), SimulatedEnvironment(NOW), given, index=0, seed=0, critical_budget=0)
    episode = asyncio.run(run)
    assert episode.status is EpisodeStatus.ANSWERED and len(episode.subagents) == 2
    for trace in episode.traces:
        sampled = [token for token, mine in zip(trace.tokens, trace.mask, strict=True) if mine]
        assert (tokenizer.special[END_THINK] in sampled) == (trace.role is Role.ORCHESTRATOR)
    given = [RolloutsConfig(thinking=one, subagent_thinking=other) for one, other in ((True, None), (True, False))]
    assert [[config.thinks(role) for role in Role] for config in given] == [[True, True], [True, False]]


def test_a_format_without_a_tokenizer_renders_and_says_that_it_cannot_encode():
    chat = KimiChat()
    pieces = chat.user("hello")
    assert ("hello", False) in pieces
    with pytest.raises(ValueError, match="made without a tokenizer"):
        chat.encode(pieces)
