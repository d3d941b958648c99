"""A session that scores its episode, tools that end an agent, and seeds of sessions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from stored import make_episode, wide_task

from envs.base import Environment, Gold, Role, Score, Scorer, Session, Task, ToolCall, ToolResult, ToolSpec
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from rewards.parl_reward import Parl
from rewards.score import score_episode
from rollouts.config import BudgetConfig
from rollouts.engine.scripted import Action, ScriptedEngine
from rollouts.episode import Episode, EpisodeStatus, TraceStatus
from rollouts.store.lookup import read_episodes
from rollouts.store.outline import read_outlines
from rollouts.store.store import EpisodeStore
from rollouts.swarm.partial import Flight
from rollouts.swarm.scoring import ScoringFailed
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

TASK = Task(key="t", family="game", split="test", prompt="Play.", gold=Gold(kind="none"))
MOVE = ToolSpec(name="move", description="Move.", parameters={"type": "object", "properties": {}})
WEIGHTS = Parl().held_out()


class Game(Environment):
    """Ends after three moves; ``judged`` is what its session's ``score`` returns, or raises."""

    def __init__(self, judged: Any = None) -> None:
        self.judged, self.log, self.opened = judged, [], []

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> Session:
        self.opened.append((seed, attempt))
        return Played(self)


class Played:
    def __init__(self, game: Game) -> None:
        self.game, self.moves = game, 0

    def tools(self, role: Role) -> list[ToolSpec]:
        return [MOVE]

    async def call(self, agent_id: str, call: ToolCall, *, deadline_s: float) -> ToolResult:
        self.moves += 1
        return ToolResult(text=f"move {self.moves}", done=self.moves == 3)

    async def score(self, episode: Episode) -> Score:
        self.game.log.append(("score", episode.status, episode.answer))
        await asyncio.sleep(0)
        return await self.game.judged() if callable(self.game.judged) else self.game.judged

    async def close(self) -> None:
        self.game.log.append("close")


async def play(
    tokenizer: Tokenizer, game: Game, *plan: Action, flight: Flight | None = None, index: int = 0, **more: Any
) -> Episode:
    chat = KimiChat(tokenizer)

    def pool(trace):
        return ScriptedEngine(trace, chat, lambda history: plan[len(history)])

    settings = SwarmSettings(chat=chat, pool=pool, budget=BudgetConfig(episode_s=5.0), **more)
    return await run_episode(TASK, game, settings, index=index, seed=1, critical_budget=0, flight=flight)


async def test_a_session_scores_once_after_the_last_agent_and_before_it_is_closed(tokenizer: Tokenizer):
    game = Game(Score(value=0.25, parts={"moves": 1.0}))
    episode = await play(tokenizer, game, [("move", {})], "done")
    assert isinstance(await game.open(TASK), Scorer)
    assert game.log == [("score", EpisodeStatus.ANSWERED, "done"), "close"]
    assert episode.score == Score(value=0.25, parts={"moves": 1.0})
    score_episode(episode, Parl(), WEIGHTS)
    assert episode.rewards["perf"] == 0.25 and episode.metrics["success"] == 0
    assert episode.metrics["score/moves"] == 1.0 and "item_f1" not in episode.metrics


async def test_a_tool_that_is_done_ends_its_agent_with_its_text_as_the_answer(tokenizer: Tokenizer):
    game = Game(Score(value=1.0))
    episode = await play(tokenizer, game, *[[("move", {})]] * 9)
    assert (episode.status, episode.answer, episode.orchestrator.steps) == (EpisodeStatus.ANSWERED, "move 3", 3)
    assert episode.orchestrator.status is TraceStatus.FINISHED and episode.orchestrator.turns[-1].results[0].done


async def _raises() -> Score:
    raise KeyError("no such rubric")


async def _hangs() -> Score:
    await asyncio.sleep(60)
    return Score(value=1.0)


async def _answers_zero() -> Any:
    return 0.0


async def _out_of_range() -> Score:
    return Score(value=2.0)


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        (_raises, "no such rubric"),
        (_hangs, "score_deadline_s=0.1"),
        (_answers_zero, "not an envs.base.Score"),
        (_out_of_range, "outside [0.0, 1.0]"),
    ],
)
async def test_an_episode_that_cannot_be_scored_is_void_and_not_scored_zero(
    tokenizer: Tokenizer, judged: Any, said: str
):
    game, flight = Game(judged), Flight()
    episode = await play(tokenizer, game, "done", flight=flight, score_deadline_s=0.1)
    assert isinstance(flight.fault, ScoringFailed) and said in str(flight.fault)
    assert episode.void and episode.score is None and said in episode.error
    assert game.log[-1] == "close"
    if judged is _raises:
        assert "raise KeyError" in str(flight.fault) and __file__ in str(flight.fault)


async def test_without_a_scorer_there_is_no_score_and_no_metric_of_one(tokenizer: Tokenizer):
    episode = await play(tokenizer, Game(), "done", score=None)
    score_episode(episode, Parl(), WEIGHTS)
    assert episode.score is None and episode.status is EpisodeStatus.ANSWERED
    assert "perf" not in episode.rewards and not {"success", "item_f1", "row_f1"} & episode.metrics.keys()
    assert episode.rewards["total"] == 0.0


async def test_sessions_of_a_group_share_a_seed_and_attempts_differ(tokenizer: Tokenizer):
    game = Game(Score(value=1.0))
    for index in (0, 1):
        await play(tokenizer, game, "done", index=index)
    (first, one), (second, other) = game.opened
    assert first == second and 0 <= first < 2**31 and (one, other) == (0, 1)


def test_scores_are_stored_and_read_back_and_scored_again(tmp_path: Path):
    episodes = [make_episode(wide_task(1), index, spawning=True) for index in range(3)]
    episodes[0].score = Score(value=-2.0, success=False, parts={"a": 1.5}, low=-3.0, high=3.0)
    episodes[1].score = Score(value=1.0)
    path = EpisodeStore(tmp_path).write(1, episodes, policy_version=0)
    for read in (read_episodes(path, range(3)), [outline.episode for outline in read_outlines([path])]):
        assert [episode.score for episode in read] == [episode.score for episode in episodes]
        for episode in read:
            score_episode(episode, Parl(), WEIGHTS)
        assert [read[0].rewards["perf"], read[1].rewards["perf"]] == [-2.0, 1.0]
        assert read[2].rewards["perf"] == read[2].metrics["item_f1"]


def test_a_damaged_score_is_named(tmp_path: Path):
    from rollouts.store.store import score_of

    with pytest.raises(ValueError, match="outside"):
        score_of('{"value": 7.0}')
    with pytest.raises(ValueError, match="damaged"):
        score_of('{"points": 7.0}')


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"value": float("nan")}, "no finite number"),
        ({"value": "1"}, "no finite number"),
        ({"value": 1.5}, "declare its low and high"),
        ({"value": -0.1}, "declare its low and high"),
        ({"value": 0.0, "low": 1.0}, "must be below"),
        ({"value": 0.5, "parts": {"style": float("inf")}}, "style"),
    ],
)
def test_a_score_that_is_none_says_why(given: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        Score(**given)


def test_a_sum_of_rewards_is_the_highest_score_in_spite_of_its_rounding():
    assert sum([0.1] * 10) != 1.0 and Score(value=sum([0.1] * 10)).solved
    assert Score(value=sum([0.1] * 3), high=0.3).solved and not Score(value=0.9999).solved
    assert Score(value=sum([-0.1] * 3), low=-0.3).value == -0.3


def test_success_is_the_highest_score_unless_it_is_said():
    assert Score(value=1.0).solved and not Score(value=0.99).solved
    assert Score(value=0.5, success=True).solved and not Score(value=1.0, success=False).solved
    assert Score(value=2.0, low=-2.0, high=2.0).solved
