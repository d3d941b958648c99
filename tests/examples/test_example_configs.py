"""The examples' stanzas in whole episodes with scripted agents: scored, and every call repeated without drift.

A package that cannot be installed beside the rest is tested by running this file with an interpreter that has it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from counting import free_port, listening, stand_in
from outside import ROOT

from envs.base import Environment, Task
from envs.tasks_io import load_tasks
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from parl.cli.env_check import environment_alone
from parl.episodes.tool_replay import replay_episode
from rewards.score import score_of
from rollouts.config import BudgetConfig
from rollouts.engine.scripted import Action, ScriptedEngine
from rollouts.episode import EpisodeStatus
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

FRESH: list[Action] = [[("act", {"text": f"[{number}]"})] for number in (10, 5, 15, 2, 7, 12, 17, 19)]


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of examples, which is the working directory."""
    folder = ROOT / "examples"
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def told(name: str, script: list[Action], tokenizer: Tokenizer, *overrides: str) -> float:
    """The score of one episode of ``name``.yaml's first training task; its calls are made again and compared."""
    config = environment_alone(Path(f"{name}.yaml"), overrides)
    environment = config.envs.build()
    list(environment.notes())
    own = config.envs.tasks
    task = load_tasks(own, "train")[0] if own else environment.task_stream("train", 0)[0]
    return asyncio.run(_told(environment, task, script, tokenizer))


async def _told(environment: Environment, task: Task, script: list[Action], tokenizer: Tokenizer) -> float:
    chat = KimiChat(tokenizer)
    settings = SwarmSettings(
        chat=chat,
        pool=lambda trace: ScriptedEngine(trace, chat, lambda history: script[len(history)]),
        budget=BudgetConfig(episode_s=200.0),
    )
    try:
        episode = await run_episode(task, environment, settings, index=0, seed=1, critical_budget=0)
        assert episode.status is EpisodeStatus.ANSWERED, episode.error
        again = await replay_episode(episode, environment)
        assert again.calls > 0 and not again.drift
        score = score_of(episode)
        assert score is not None
        return score.value
    finally:
        await environment.close()


@pytest.mark.parametrize(
    ("name", "package", "good", "bad"),
    [
        ("gymnasium", "gymnasium", [[("act", {"action": a})] for a in (1, 1, 2, 2, 1, 2)], [("act", {"action": 0})]),
        ("aviary", "aviary.core", [[("climb", {"rungs": 2})]], [("climb", {"rungs": 3})]),
        ("skyrl", "skyrl_gym", [[("act", {"text": "#### 6"})]], [("act", {"text": "#### 5"})]),
        ("verifiers", "verifiers.v1", [[("adder_add", {"a": 0, "b": 411})], "411"], [("adder_add", {"a": 1, "b": 1})]),
    ],
)
def test_a_package_in_this_interpreter(
    examples: Path, tokenizer: Tokenizer, name: str, package: str, good: list[Action], bad: Any
):
    extra = "verifiers" if name == "verifiers" else "steps"
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[{extra}]'")
    assert told(name, good, tokenizer) == 1.0
    assert told(name, [bad, "I give up"], tokenizer) == 0.0


def test_a_game_of_textarena(examples: Path, tokenizer: Tokenizer):
    pytest.importorskip("textarena", reason="textarena is not installed: pip install -e '.[steps]'")
    assert 0.0 <= told("textarena", [*FRESH, "I give up"], tokenizer) <= 1.0


def test_a_server_of_openenv(examples: Path, tokenizer: Tokenizer):
    pytest.importorskip("openenv.core", reason="openenv is not installed: pip install -e '.[openenv]'")
    port = free_port()
    with listening(subprocess.Popen([sys.executable, "openenv_game.py", str(port)]), port):
        url = f"envs.config.url=http://127.0.0.1:{port}"
        right: list[Action] = [[("act", {"number": 7})], [("act", {"number": 0})]]  # the first seed is 0
        assert told("openenv", right, tokenizer, url) == 1.0
        assert told("openenv", [*right[:1], "7"], tokenizer, url) == 0.0


def test_a_server_of_nemo_gym(examples: Path, tokenizer: Tokenizer):
    add: list[Action] = [[("increment_counter", {"count": count})] for count in (1, 2)]
    with stand_in() as url:
        assert told("nemo_gym", [*add, "done"], tokenizer, f"envs.config.url={url}") == 1.0
        assert told("nemo_gym", [*add[:1], "done"], tokenizer, f"envs.config.url={url}") == 0.0


def test_a_retriever(examples: Path, tokenizer: Tokenizer):
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "retriever:app", "--port", str(port), "--log-level=error"]
    with listening(subprocess.Popen(command), port):
        url = f"envs.config.url=http://127.0.0.1:{port}/retrieve"
        search: Action = [("search", {"queries": ["Bridge 0"]})]
        assert told("retrieve", [search, "1800"], tokenizer, url) == 1.0
        assert told("retrieve", [search, "1801"], tokenizer, url) == 0.0


def test_a_benchmark_of_ones_own(examples: Path, tokenizer: Tokenizer, tmp_path: Path):
    from envs.benchmarks.base import write_prepared
    from envs.benchmarks.registry import benchmark_class

    kind = benchmark_class("quiz:Quiz")
    assert write_prepared(kind(tmp_path), Path("quiz.csv"), tmp_path) == 20
    look: list[Action] = [[("population", {"town": "Town 0"}), ("population", {"town": "Town 39"})]]
    folder = f"envs.config.folder={tmp_path}"
    assert told("quiz", [*look, "Answer: 25,300"], tokenizer, folder) == 1.0
    assert told("quiz", [*look, "Answer: 20,000"], tokenizer, folder) == 0.0
