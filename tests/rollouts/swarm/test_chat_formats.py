"""Swarms in the chat formats of pretrained models: calls, parallel results and answers through a whole episode."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from chat_families import DEEPSEEK, GLM, MISTRAL, QWEN2_5, QWEN3, QWEN3_6, SMOLLM, Family, written

from benchmarks.simulated import Latency, SimulatedEngine, SimulatedEnvironment, fan_out, simulated_task
from model.chat.choose import chat_format
from model.tokenizer.tokenizer import load_tokenizer
from rollouts.config import BudgetConfig
from rollouts.episode import EpisodeStatus
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

NOW = Latency(median_s=0.0)


@pytest.mark.parametrize("family", [QWEN2_5, QWEN3, QWEN3_6, SMOLLM, GLM, MISTRAL, DEEPSEEK], ids=lambda one: one.name)
def test_a_swarm_speaks_the_models_format(family: Family, tmp_path: Path):
    tokenizer = load_tokenizer(written(family, tmp_path))
    chat = chat_format("auto", tokenizer, thinking=family is DEEPSEEK)
    engine = SimulatedEngine(chat, fan_out(3, 4), NOW)
    given = SwarmSettings(chat=chat, pool=lambda trace: engine, budget=BudgetConfig(turn_tokens=4096))
    run = run_episode(simulated_task(0), SimulatedEnvironment(NOW), given, index=0, seed=0, critical_budget=0)
    episode = asyncio.run(run)
    assert episode.status is EpisodeStatus.ANSWERED and len(episode.subagents) == 3
    for trace in episode.traces:
        ids = [call.id for turn in trace.turns for call in turn.calls]
        assert len(set(ids)) == len(ids) and not any(turn.malformed for turn in trace.turns)
        for turn in trace.turns:
            assert trace.tokens[turn.end - 1] in chat.stop_ids
        text = tokenizer.decode(trace.tokens)
        assert trace.prompt in text and all(r.text in text for turn in trace.turns for r in turn.results if r.text)
        ends = [place for place, mine in enumerate(trace.mask) if mine and not [*trace.mask, False][place + 1]]
        assert [turn.end - 1 for turn in trace.turns] == ends
