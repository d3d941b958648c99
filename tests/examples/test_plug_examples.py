"""The examples of plugs, each through ``parl train``, ``eval`` and ``replay``, with a script as the policy."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from outside import ROOT, Outside

from envs.sandbox.levels import reason_against
from parl.serve.gguf import Gguf
from parl.serve.pretrained import write_llama


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny Llama with random weights."""
    folder = tmp_path_factory.mktemp("llama")
    write_llama(Gguf(ROOT / "tests/data/gguf/tiny.gguf"), folder)
    shape = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 8192}
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


def whole(
    outside: Outside, example: str, llama: Path, *modules: str, more: tuple[str, ...] = (), **engine: Any
) -> list[dict[str, Any]]:
    """Train one step with ``example``.yaml, evaluate, replay; the calls of the run's last step's episodes."""
    for name in (f"{example}.yaml", *modules):
        shutil.copy(ROOT / "examples" / name, outside.folder)
    shutil.copy(Path(__file__).parent / "forced.py", outside.modules)
    settings = [
        *(f"model.init={llama}", "model.max_position_embeddings=8192", "model.chat=hermes", "root=."),
        *("rollouts.engine=forced:Forced", f"rollouts.engine_config={json.dumps(engine)}"),
        *("rollouts.group_size=2", "rollouts.tasks_per_step=2", "trainer.steps=1", "trainer.threads=1", "eval.tasks=2"),
        *("rollouts.concurrency=4", "trainer.keep_best=null", "tracking.wandb=disabled", "baseline=false", *more),
    ]
    outside.parl("train", f"{example}.yaml", *settings)
    outside.parl("eval", example, "eval.seed=9")
    assert "no drift" in outside.parl("replay", example)
    shown = outside.parl("episodes", "ls", example, "--json")
    return [json.loads(line) for line in shown.splitlines() if line.startswith("{")]


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path)


@pytest.mark.slow
def test_functions(outside: Outside, llama: Path):
    ask = ["assign_task", {"agent": "a", "prompt": "Population of Town 4"}]
    policy = [[["create_subagent", {"name": "a", "system_prompt": "Look up."}]], [ask, ask], "10548"]
    frozen = [[["population", {"town": "Town 4"}]], "10548"]
    rows = whole(outside, "functions", llama, "town_tools.py", policy=policy, frozen=frozen, other="1")
    assert rows


@pytest.mark.slow
def test_mcp(outside: Outside, llama: Path):
    pytest.importorskip("mcp", reason="the package mcp is not installed (extra mcp)")
    policy = [[["convert", {"amount": 2, "unit": "yard", "to": "inch"}]], "72"]
    more = (f"envs.config.servers.units.command={sys.executable}",)
    assert whole(outside, "mcp", llama, "unit_server.py", policy=policy, other="1", more=more)


@pytest.mark.slow
def test_tools(outside: Outside, llama: Path):
    if reason_against("bubblewrap") and (why := reason_against("landlock")):
        pytest.skip(why)
    code = "open('n', 'w').write(str(pow(3, 4, 10)))\nopen('n').read()"
    policy = [[["python", {"code": code}]], [["read_file", {"path": "n"}]], "1"]
    rows = whole(outside, "tools", llama, "tools_questions.jsonl", policy=policy, other="2")
    assert rows
