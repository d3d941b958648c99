"""Context management: the new context, nothing is trained twice, and rows equal the engine's contexts."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import random_weights, tiny_model

from benchmarks.simulated import Latency, SimulatedEngine, SimulatedEnvironment, fan_out, simulated_task
from envs.base import Role
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from parl.learn.rows import episode_rows
from rollouts.config import BudgetConfig, ContextConfig
from rollouts.engine.base import Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus
from rollouts.store.outline import read_outlines
from rollouts.store.store import EpisodeStore
from rollouts.swarm.context import HIDDEN
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode
from rollouts.swarm.transcript import Transcript

NOW = Latency(median_s=0.0)


class Recorder(SimulatedEngine):
    """Records the prompts of each session."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.asked: list[tuple[str, list[int], int]] = []
        self.by_agent: dict[str, int] = {}

    async def generate(self, prompt, sampling, *, session, deadline_s, media=()):
        agent = session.rpartition("#")[2]
        self._turns[session] = self.by_agent.get(agent, 0)  # the plan goes on through contexts
        self.by_agent[agent] = self._turns[session] + 1
        self.asked.append((session, list(prompt), sampling.seed))
        return await super().generate(prompt, sampling, session=session, deadline_s=deadline_s, media=media)


async def play(tokenizer: Tokenizer, calls: int, **context) -> tuple[Episode, Recorder]:
    engine = Recorder(KimiChat(tokenizer), fan_out(1, calls), NOW)
    budget = BudgetConfig(subagent_steps=100)
    settings = SwarmSettings(
        chat=KimiChat(tokenizer), pool=lambda trace: engine, budget=budget, context=ContextConfig(**context)
    )
    episode = await run_episode(
        simulated_task(0),
        SimulatedEnvironment(NOW, text="ok, and a good deal more than one word of it"),
        settings,
        index=0,
        seed=0,
        critical_budget=0,
    )
    return episode, engine


async def test_below_the_limit_nothing_changes(tokenizer: Tokenizer):
    plain, _ = await play(tokenizer, 6)
    managed, _ = await play(tokenizer, 6, policy="discard_all", subagent_tokens=10_000)
    assert [t.tokens for t in managed.traces] == [t.tokens for t in plain.traces]
    assert not any(trace.cuts for trace in managed.traces)


async def test_without_a_policy_the_agent_ends_at_its_limit(tokenizer: Tokenizer):
    plain, _ = await play(tokenizer, 6)
    limit = plain.subagents[0].turns[3].start  # what the fourth turn was asked with
    episode, _ = await play(tokenizer, 6, subagent_tokens=limit)
    (trace,) = episode.subagents
    assert trace.steps == 4
    assert (trace.status, trace.limit) == (TraceStatus.OVER_BUDGET, "context")
    assert episode.orchestrator.status is TraceStatus.FINISHED


async def test_an_agent_whose_question_alone_is_too_long_ends_at_once(tokenizer: Tokenizer):
    for policy in ("discard_all", "hide_tool_result"):
        episode, _ = await play(tokenizer, 6, policy=policy, subagent_tokens=5)
        (trace,) = episode.subagents
        assert (trace.steps, trace.status, trace.limit) == (0, TraceStatus.OVER_BUDGET, "context") and not trace.cuts


async def test_discard_all_begins_again_from_the_question_in_a_new_session_with_new_noise(tokenizer: Tokenizer):
    plain, _ = await play(tokenizer, 8)
    limit = plain.subagents[0].turns[3].start
    episode, engine = await play(tokenizer, 8, policy="discard_all", subagent_tokens=limit)
    (trace,) = episode.subagents
    assert trace.status is TraceStatus.FINISHED and trace.steps == 9 and len(trace.cuts) == 2
    opening = plain.subagents[0].tokens[: plain.subagents[0].turns[0].start]
    for start, _ in trace.contexts:
        assert trace.tokens[start : start + len(opening)] == opening
    asked = [(session, prompt, seed) for session, prompt, seed in engine.asked if session.endswith("#0/0")]
    assert [prompt for _, prompt, _ in asked].count(opening) == 3
    assert len({session for session, _, _ in asked}) == len({seed for _, _, seed in asked}) == 3
    assert max(len(prompt) for _, prompt, _ in asked) <= limit


async def test_hide_tool_result_keeps_the_words_of_the_agent_and_the_newest_results(tokenizer: Tokenizer):
    plain, _ = await play(tokenizer, 12)
    limit = plain.subagents[0].turns[8].start
    episode, _ = await play(tokenizer, 12, policy="hide_tool_result", subagent_tokens=limit)
    (trace,) = episode.subagents
    assert trace.cuts
    start = trace.cuts[0]
    before = [turn for turn in trace.turns if turn.start < start]
    text = tokenizer.decode(trace.tokens[start : trace.turns[len(before)].start])
    assert text.count(f"\n{HIDDEN}") == len(before) - 1
    assert text.count("\nok") == 1 and text.rindex("\nok") > text.rindex(f"\n{HIDDEN}")
    for turn in before:
        assert tokenizer.decode(trace.tokens[turn.start : turn.end]) in text


@pytest.mark.parametrize("policy", ["discard_all", "hide_tool_result"])
async def test_every_turn_was_asked_with_the_row_that_trains_it_and_is_trained_once(tokenizer: Tokenizer, policy: str):
    plain, _ = await play(tokenizer, 12)
    episode, engine = await play(tokenizer, 12, policy=policy, subagent_tokens=plain.subagents[0].turns[8].start)
    (trace,) = episode.subagents
    trace.trainable, episode.orchestrator.trainable = True, False
    rows = episode_rows(episode, 1.0)
    assert len(rows) == len(trace.cuts) + 1 > 1
    assert sum(row.trained for row in rows) == sum(turn.end - turn.start for turn in trace.turns)
    prompts = [prompt for session, prompt, _ in engine.asked if session.endswith("#0/0")]
    seen = [
        row.tokens[:position].tolist()
        for row in rows
        for position in np.flatnonzero(row.mask & ~np.concatenate([[False], row.mask[:-1]]))
    ]
    assert seen == prompts


async def test_routes_of_every_context_are_those_of_its_own_session(tokenizer: Tokenizer):
    config = tiny_model()
    engine = EmbeddedEngine(config, pages=512)
    await engine.update(Update(version=1, weights=random_weights(config, 3)))
    trace = Trace(agent_id="0", role=Role.ORCHESTRATOR)
    transcript = Transcript(trace, KimiChat(tokenizer))

    async def turn(session: str) -> None:
        sampling = Sampling(seed=5, max_new_tokens=7)
        completion = await engine.generate(transcript.context, sampling, session=session, deadline_s=20.0)
        transcript.sampled(completion)

    transcript.observe([("what is it", False)])
    await turn("a")
    transcript.observe([("seen this", False)])
    await turn("a")
    first = len(trace.tokens)
    transcript.restart(tokenizer.encode("what is it, again"))
    await turn("b")
    transcript.close()
    assert trace.routes is not None and trace.contexts == [(0, first), (first, len(trace.tokens))]
    for number, (start, end) in enumerate(trace.contexts):
        fed = trace.tokens[start : end - 1]  # the last sampled token of a context was never fed
        sampling = Sampling(seed=5, max_new_tokens=1)
        alone = await engine.generate(fed, sampling, session=f"c{number}", deadline_s=20.0)
        assert np.array_equal(trace.routes[start : end - 1], alone.routes)
        assert (trace.routes[end - 1] == -1).all()


def test_contexts_come_back_from_the_store(tmp_path):
    trace = Trace(agent_id="0", role=Role.ORCHESTRATOR, tokens=[1] * 9, cuts=[3, 7], limit="context")
    assert trace.contexts == [(0, 3), (3, 7), (7, 9)]
    assert [trace.context_of(position) for position in (0, 2, 3, 6, 7, 8)] == [0, 0, 3, 3, 7, 7]
    trace.mask, trace.logprobs, trace.versions = [True] * 9, [0.0] * 9, [0] * 9
    episode = Episode(task=simulated_task(0), index=0, seed=0, traces=[trace], status=EpisodeStatus.OVER_BUDGET)
    store = EpisodeStore(tmp_path)
    store.write(1, [episode], policy_version=1)
    (read,), _ = store.read(1) or ([], 0)
    (outline,) = read_outlines([store.path(1)])
    for other in (read.orchestrator, outline.episode.orchestrator):
        assert (other.cuts, other.limit) == ([3, 7], "context")


async def test_a_context_with_pictures_is_not_managed(tokenizer: Tokenizer):
    transcript = Transcript(Trace(agent_id="0", role=Role.ORCHESTRATOR, media_at=[3]), KimiChat(tokenizer))
    with pytest.raises(ValueError, match=r"context\.policy"):
        transcript.restart([1, 2])
