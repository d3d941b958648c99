"""Plugs in whole episodes, with scripted agents: functions, MCP, a retriever, and step environments that end them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from envs.base import Environment, Role, Task
from envs.tasks_io import load_tasks
from envs.world.site.server import SocketServer
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from rollouts.config import BudgetConfig
from rollouts.engine.scripted import Action, ScriptedEngine
from rollouts.episode import Episode, EpisodeStatus, Trace
from rollouts.faults import MachineFault
from rollouts.swarm.partial import Flight
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

ROOT = Path(__file__).parents[3]
SWARM: list[Action] = [
    [("create_subagent", {"name": "a", "system_prompt": "Look it up."})],
    [("assign_task", {"agent": "a", "prompt": "one"}), ("assign_task", {"agent": "a", "prompt": "two"})],
]


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def play(
    environment: Environment,
    task: Task,
    orchestrator: list[Action],
    tokenizer: Tokenizer,
    subagent: list[Action] | None = None,
    flight: Flight | None = None,
) -> Episode:
    """One episode in which agents write their scripts, turn by turn."""

    def pool(trace: Trace) -> ScriptedEngine:
        script = orchestrator if trace.role is Role.ORCHESTRATOR else subagent or ["none"]
        return ScriptedEngine(trace, KimiChat(tokenizer), lambda history: script[len(history)])

    settings = SwarmSettings(chat=KimiChat(tokenizer), pool=pool, budget=BudgetConfig(episode_s=60.0))

    async def run() -> Episode:
        try:
            return await run_episode(
                task, environment, settings, index=0, seed=1, critical_budget=0, flight=flight or Flight()
            )
        finally:
            await environment.close()

    return asyncio.run(run())


def results(episode: Episode) -> list[str]:
    """What the agents' own tools answered, in order of agents."""
    found = []
    for trace in episode.traces:
        for turn in trace.turns:
            pairs = zip(turn.calls, turn.results, strict=True)
            found += [result.text for call, result in pairs if call.name not in ("create_subagent", "assign_task")]
    return found


def test_functions_of_two_roles(examples: None, tokenizer: Tokenizer):
    from envs.plugs.functions import FunctionsConfig, FunctionsEnvironment

    tools = ("town_tools:population", "town_tools:larger")
    environment = FunctionsEnvironment(FunctionsConfig(tools=tools, orchestrator=("larger",)))
    larger: list[Action] = [[("larger", {"one": "Town 1", "other": "Town 2"})], "Town 2"]
    look: list[Action] = [[("population", {"town": "Town 2"})], "10274"]
    episode = play(environment, load_tasks("town_tools:tasks", "train")[0], [*SWARM, *larger], tokenizer, look)
    assert episode.status is EpisodeStatus.ANSWERED and episode.answer == "Town 2"
    assert results(episode) == ["Town 2", "10274", "10274"] and len(episode.subagents) == 2


def test_a_class_scores_what_its_object_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer):
    from envs.plugs.functions import FunctionsConfig, FunctionsEnvironment

    module: Any = ModuleType("their_shop")
    code = "class Shop:\n def __init__(self): self.n = 0\n def add(self) -> int:\n  self.n += 1\n  return self.n\n"
    exec(code + " def score(self, episode): return self.n / 4 if episode.answer == 'done' else 0.0\n", vars(module))
    monkeypatch.setitem(sys.modules, "their_shop", module)
    environment = FunctionsEnvironment(FunctionsConfig(tools=("their_shop:Shop",)))
    task = Task.from_row({"prompt": "Buy two.", "gold": {"kind": "none"}})
    episode = play(environment, task, [*SWARM, "done"], tokenizer, [[("add", {})], "ok"])
    assert sorted(results(episode)) == ["1", "2"] and episode.score is not None and episode.score.value == 0.5


def test_an_mcp_server_in_process(examples: None, tokenizer: Tokenizer):
    pytest.importorskip("mcp", reason="the package mcp is not installed (extra mcp)")
    from envs.plugs.mcp import McpConfig, McpEnvironment

    servers = {"units": {"module": "unit_server:server", "stateless": True}}
    environment = McpEnvironment(McpConfig.model_validate({"servers": servers}))
    convert: list[Action] = [[("convert", {"amount": 2, "unit": "yard", "to": "inch"})], "72"]
    episode = play(environment, load_tasks("unit_server:tasks", "train")[0], [*SWARM, *convert], tokenizer, convert)
    assert results(episode) == ["72 inch"] * 3 and episode.answer == "72"


def test_a_retriever_and_one_that_is_gone(examples: None, tokenizer: Tokenizer):
    import retriever  # pyright: ignore[reportMissingImports]

    from envs.plugs.retrieve import RetrieveConfig, RetrieveEnvironment

    server = SocketServer(Starlette(routes=[Route("/retrieve", retriever.retrieve, methods=["POST"])]))
    environment = RetrieveEnvironment(RetrieveConfig(url=f"{server.url}/retrieve", topk=1))
    search: list[Action] = [[("search", {"queries": ["Bridge 3"]})], "1809"]
    task = load_tasks("retriever:tasks", "train")[1]
    episode = play(environment, task, search, tokenizer)
    assert results(episode) == ["[1] Bridge 3\nBridge 3 was opened in 1809."]
    server.close()
    flight = Flight()
    episode = play(environment, task, search, tokenizer, flight=flight)
    assert episode.status is EpisodeStatus.FAILED and isinstance(flight.fault, MachineFault)


def test_a_game_that_ends_ends_the_episode_and_scores_it(tokenizer: Tokenizer):
    pytest.importorskip("gymnasium")
    from envs.steps.gymnasium import GymnasiumConfig, GymnasiumEnvironment

    options = {"is_slippery": False, "render_mode": "ansi"}
    environment = GymnasiumEnvironment(GymnasiumConfig(id="FrozenLake-v1", options=options, starts=2))
    task = next(iter(environment.tasks("train")))
    way: list[Action] = [[("act", {"action": action})] for action in (1, 1, 2, 2, 1, 2)]
    episode = play(environment, task, [*way, "not asked any more"], tokenizer)
    assert episode.status is EpisodeStatus.ANSWERED and len(episode.orchestrator.turns) == 6
    assert episode.score is not None and episode.score.value == 1.0 and episode.score.solved
    lost = play(environment, task, [way[0], [("act", {"action": 2})], "no"], tokenizer)
    assert lost.score is not None and lost.score.value == 0.0 and len(lost.orchestrator.turns) == 2
    shared = play(environment, task, [*SWARM, "over"], tokenizer, [*way[:3], "left"])  # two play one game
    assert shared.score is not None and shared.score.parts == {"steps": 3.0, "finished": 1.0}
    assert "error: the episode is over" in results(shared) and shared.answer == "over"
