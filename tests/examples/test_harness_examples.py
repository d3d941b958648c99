"""Agent programs as environments: a loop on OpenAI's client through ``parl train`` and ``eval``, and a real package."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from outside import ROOT, Outside

from envs.harness import HarnessConfig, HarnessEnvironment
from envs.tasks_io import load_tasks
from model.chat.kimi import Call, KimiChat, assistant_pieces
from model.tokenizer.tokenizer import Tokenizer
from parl.learn.rows import step_rows
from parl.serve.gguf import Gguf
from parl.serve.pretrained import write_llama
from rollouts.config import BudgetConfig
from rollouts.engine.base import Completion, Finish, Sampling
from rollouts.episode import EpisodeStatus
from rollouts.gateway.door import Doors
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

WITH_AGENTS = "PARL_AGENTS_PYTHON"  # an interpreter that has openai-agents, whose openai is another one


@pytest.mark.slow
def test_a_loop_on_openais_client_is_trained_and_evaluated(tmp_path: Path):
    pytest.importorskip("openai", reason="openai is not installed: pip install -e .[dev]")
    llama = tmp_path / "llama"
    llama.mkdir()
    write_llama(Gguf(ROOT / "tests/data/gguf/tiny.gguf"), llama)
    shape = json.loads((llama / "config.json").read_text()) | {"max_position_embeddings": 8192}
    (llama / "config.json").write_text(json.dumps(shape))
    outside = Outside(tmp_path, "agent_loop", "town_tools")
    shutil.copy(ROOT / "examples" / "harness.yaml", outside.folder)
    shutil.copy(Path(__file__).parent / "forced.py", outside.modules)
    engine = {"policy": [[["population", {"town": "Town 4"}]], "16302"], "other": "10548"}
    settings = [
        *(f"model.init={llama}", "model.max_position_embeddings=8192", "model.chat=hermes", "root=."),
        *("rollouts.engine=forced:Forced", f"rollouts.engine_config={json.dumps(engine)}", "rollouts.concurrency=4"),
        *("rollouts.group_size=4", "rollouts.tasks_per_step=2", "trainer.steps=1", "trainer.threads=1", "eval.tasks=2"),
        *("trainer.keep_best=null", "tracking.wandb=disabled", "baseline=false"),
    ]
    outside.parl("train", "harness.yaml", *settings)
    assert "held-out tasks" in outside.parl("eval", "harness", "eval.seed=9")
    assert "bit by bit" in outside.parl("rescore", "harness")
    assert "programs' own" in outside.parl("replay", "harness", code=2)
    embedded = [setting for setting in settings if not setting.startswith("rollouts.engine")]
    assert "cannot be halted" in outside.parl("train", "harness.yaml", *embedded, "trainer.staleness=1", code=2)
    shown = outside.parl("episodes", "ls", "harness", "--kind", "train", "--json")
    rows = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
    assert len(rows) == 8 and {row["status"] for row in rows} == {"answered"}


class Team:
    """An engine that asks the clerk as the chief, looks up as the clerk, and passes on what it reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Any = ()
    ):
        text = self.tokenizer.decode(prompt)
        chief, calls = "ask_clerk" in text, text.count("<|tool_call_begin|>")
        if calls:
            said, made = "10548", []
        elif chief:
            said, made = "", [Call(id="functions.ask_clerk:0", name="ask_clerk", arguments={"input": "Town 4?"})]
        else:
            said, made = "", [Call(id="functions.population:0", name="population", arguments={"town": "Town 4"})]
        new = self.tokenizer.encode_segments(assistant_pieces(said, made, thinking=False))
        return Completion(tokens=new, logprobs=[-0.5] * len(new), finish=Finish.STOP, policy_version=0)

    async def release(self, session: str) -> None:
        pass


@pytest.mark.slow
async def test_two_agents_of_openais_sdk_are_one_episode_whose_traces_train(tokenizer: Tokenizer, monkeypatch: Any):
    python = sys.executable if importlib.util.find_spec("agents") else os.environ.get(WITH_AGENTS)
    if not python:
        pytest.skip(f"openai-agents is not installed; name an interpreter that has it in {WITH_AGENTS}")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    engine = Team(tokenizer)
    doors = Doors(lambda: engine, KimiChat(tokenizer), 16384)
    config = HarnessConfig(command=(python, "agents_team.py"), folder=ROOT / "examples")
    task = load_tasks("town_tools:tasks", "train")[1]
    settings = SwarmSettings(
        chat=KimiChat(tokenizer), pool=lambda trace: engine, budget=BudgetConfig(), doors=lambda: doors
    )
    try:
        episode = await run_episode(task, HarnessEnvironment(config), settings, index=0, seed=0, critical_budget=0)
    finally:
        await doors.close()
    assert episode.status is EpisodeStatus.ANSWERED, episode.error
    assert episode.answer == "10548" and episode.score is not None and episode.score.value == 1.0
    chief, clerk = episode.traces
    assert [turn.content for turn in chief.turns] == ["", "10548"] and [c.name for c in chief.turns[0].calls] == [
        "ask_clerk"
    ]
    assert [c.name for c in clerk.turns[0].calls] == ["population"] and clerk.turns[0].results[0].text == "10548"
    assert chief.turns[0].spawned == [clerk.agent_id]
    episode.rewards = {"total": 1.0}
    assert len(step_rows([episode])) == 2
