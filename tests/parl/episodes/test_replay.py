"""Replay: an unchanged world gives the same answers, a changed one is detected."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from envs.base import ErrorKind, Role, ToolCall, ToolResult
from envs.world.config import WorldConfig
from envs.world.environment import WorldEnvironment
from parl.cli.main import app
from parl.config.load import to_yaml
from parl.config.schema import Config
from parl.episodes.tool_replay import replay_episode
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.store.store import EpisodeStore


@pytest.fixture(scope="module")
def episode() -> Episode:
    """Two agents that really search the world, with one call cut off by its deadline."""
    environment = WorldEnvironment(WorldConfig())
    task = environment.tasks("test")[0]

    async def make() -> Episode:
        session = await environment.open(task)
        traces = []
        for agent, role in (("0", Role.ORCHESTRATOR), ("0/0", Role.SUBAGENT)):
            queries = (task.prompt, "age")
            calls = [
                ToolCall(id=f"functions.search:{i}", name="search", arguments={"query": query})
                for i, query in enumerate(queries)
            ]
            calls.append(ToolCall(id="functions.nothing:2", name="nothing", arguments={}))
            results = [await session.call(agent, call, deadline_s=10) for call in calls]
            trace = Trace(agent_id=agent, role=role, prompt=task.prompt, status=TraceStatus.FINISHED)
            trace.turns = [Turn(start=0, end=0, calls=calls, results=results)]
            traces.append(trace)
        late = ToolResult(text="error: timeout", error=ErrorKind.TIMEOUT)
        traces[1].turns.append(Turn(start=0, end=0, calls=calls[:1], results=[late]))
        traces[1].parent, traces[1].parent_turn = "0", 0
        traces[0].turns[0].spawned = ["0/0"]
        await session.close()
        await environment.close()
        return Episode(task=task, index=0, seed=1, traces=traces, status=EpisodeStatus.ANSWERED)

    return asyncio.run(make())


@pytest.fixture
def run_dir(episode, tmp_path):
    EpisodeStore(tmp_path / "run" / "episodes").write(1, [episode], policy_version=0)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(Config()))
    return tmp_path / "run"


def test_the_same_world_answers_the_same(episode):
    done = asyncio.run(replay_episode(episode, WorldEnvironment(WorldConfig())))
    assert (done.calls, done.skipped, done.drift) == (6, 1, [])


def test_a_changed_answer_is_named_by_agent_turn_and_call(episode):
    turns = [*episode.traces[1].turns]
    changed = [turns[0].results[0], ToolResult(text="once it said this"), turns[0].results[2]]
    turns[0] = replace(turns[0], results=changed)
    other = replace(episode, traces=[episode.traces[0], replace(episode.traces[1], turns=turns)])
    [drift] = asyncio.run(replay_episode(other, WorldEnvironment(WorldConfig()))).drift
    assert (drift.agent, drift.turn, drift.call, drift.name) == ("0/0", 0, 1, "search")
    assert "-once it said this" in drift.lines()


def test_the_command_says_no_drift_and_exits_with_0(run_dir):
    done = CliRunner().invoke(app, ["replay", str(run_dir)])
    assert done.exit_code == 0 and "no drift in 1 episodes: 6 calls made again, 1 left out" in done.output


def test_against_another_world_the_command_exits_with_1_and_shows_where(run_dir, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("envs: {config: {seed: 99}}\n")
    done = CliRunner().invoke(app, ["replay", str(run_dir), "--config", str(other)])
    assert (
        done.exit_code == 1
        and "agent 0, turn 0, call 0: search" in done.output
        and "1 of 1 episodes drifted" in done.output
    )
    lines = CliRunner().invoke(app, ["replay", str(run_dir), "--config", str(other), "--json"])
    assert lines.exit_code == 1 and json.loads(lines.stdout.splitlines()[0])["drift"]


def test_a_store_without_a_run_needs_a_configuration(episode, tmp_path):
    EpisodeStore(tmp_path / "alone").write(1, [episode], policy_version=0)
    done = CliRunner().invoke(app, ["replay", str(tmp_path / "alone")])
    assert done.exit_code == 2 and "--config" in done.output
