"""``parl chat``: a policy tried by hand."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from envs.world.config import WorldConfig
from envs.world.environment import WorldEnvironment
from envs.world.reference import ReferencePolicy, subagent_act
from model.chat.kimi import KimiChat
from parl.cli.chat import answered, print_answer
from parl.cli.main import app
from rollouts.config import BudgetConfig
from rollouts.engine.scripted import ScriptedEngine
from rollouts.episode import EpisodeStatus
from rollouts.swarm.settings import SwarmSettings

ROOT = Path(__file__).parents[3]
STARTER = min((ROOT / "configs/starters").iterdir())


def test_a_question_is_an_episode_whose_tree_answer_and_cost_are_shown(tokenizer):
    environment = WorldEnvironment(WorldConfig())
    task = next(task for task in environment.tasks("test") if task.oracle and task.oracle.width > 1)
    chat = KimiChat(tokenizer)
    script = ReferencePolicy("parallel", 1)

    def pool(trace):
        if trace.parent is None:
            return ScriptedEngine(trace, chat, lambda history: script.act(task, history))
        return ScriptedEngine(trace, chat, lambda history: subagent_act(trace.prompt, history))

    settings = SwarmSettings(chat=chat, pool=pool, budget=BudgetConfig())
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)

    async def asked():
        episode = await answered(task.prompt, environment, settings, 0, 1, console)
        await environment.close()
        return episode

    episode = asyncio.run(asked())
    print_answer(episode, console)
    assert episode.status is EpisodeStatus.ANSWERED and len(episode.traces) == 1 + task.oracle.width
    shown = out.getvalue()
    assert f"{task.oracle.width} sub-agents" in shown
    assert all(cell in shown for row in task.gold.rows for cell in row)


@pytest.mark.slow
def test_the_command_answers_with_the_shipped_policy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ask = ["--ask", "Show the depth within Kelesu.", "--temperature", "0"]
    done = CliRunner().invoke(app, ["chat", str(ROOT / "configs/quickstart.yaml"), "--model", str(STARTER), *ask])
    assert done.exit_code == 0, done.output
    assert re.search(r"orchestrator.*Kelesu", done.output) and "critical steps" in done.output


def test_a_folder_without_a_policy_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["chat", str(ROOT / "configs/quickstart.yaml"), "--model", str(tmp_path / "nothing"), "--ask", "Hello?"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and f"no policy in {tmp_path / 'nothing'}" in done.output
