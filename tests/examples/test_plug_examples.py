"""The examples of plugs, each through ``parl train``, ``eval`` and ``replay``, with a script as the policy.

What cannot be installed beside the rest runs with an interpreter that PARL_EXTRA_PYTHON names, such as
PARL_VERIFIERS_PYTHON; the server of NeMo-Gym with PARL_TEST_NEMO_GYM (counting.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from counting import NAMED, free_port, listening, packages_own, stand_in
from outside import ROOT, Outside

from envs.sandbox.levels import reason_against
from parl.serve.gguf import Gguf
from parl.serve.pretrained import write_llama

pytestmark = pytest.mark.timeout(3000)  # each starts four commands, three of them with Ray


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
) -> set[float]:
    """Train one step with ``example``.yaml, evaluate, replay; the different scores of all episodes, which answered."""
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
    assert "held-out tasks" in outside.parl("eval", example, "eval.seed=9")
    repeated = rows_of(outside.parl("replay", example, "--json"))
    assert sum(row["calls"] for row in repeated) > 0 and not any(row["drift"] for row in repeated)
    rows = rows_of(outside.parl("episodes", "ls", example, "--json"))
    assert {row["status"] for row in rows} == {"answered"}
    return {row["perf"] for row in rows}


def rows_of(shown: str) -> list[dict[str, Any]]:
    """What a command printed with --json."""
    return [json.loads(line) for line in shown.splitlines() if line.startswith("{")]


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path)


@pytest.mark.slow
def test_functions(outside: Outside, llama: Path):
    ask = ["assign_task", {"agent": "a", "prompt": "Population of Town 4"}]
    policy = [[["create_subagent", {"name": "a", "system_prompt": "Look up."}]], [ask, ask], "10548"]
    frozen = [[["population", {"town": "Town 4"}]], "10548"]
    scores = whole(outside, "functions", llama, "town_tools.py", policy=policy, frozen=frozen, other="1")
    assert min(scores) == 0.0 and max(scores) > 0.0  # right or nearly so, and wrong


@pytest.mark.slow
def test_mcp(outside: Outside, llama: Path):
    pytest.importorskip("mcp", reason="the package mcp is not installed (extra mcp)")
    policy = [[["convert", {"amount": 2, "unit": "yard", "to": "inch"}]], "72"]
    more = (f"envs.config.servers.units.command={sys.executable}",)
    assert whole(outside, "mcp", llama, "unit_server.py", policy=policy, other="1", more=more) <= {0.0, 1.0}


@pytest.mark.slow
def test_tools(outside: Outside, llama: Path):
    if reason_against("bubblewrap") and (why := reason_against("landlock")):
        pytest.skip(why)
    code = "open('n', 'w').write(str(pow(3, 4, 10)))\nopen('n').read()"
    policy = [[["python", {"code": code}]], [["read_file", {"path": "n"}]], "1"]
    assert whole(outside, "tools", llama, "tools_questions.jsonl", policy=policy, other="2") <= {0.0, 1.0}


def one_question(outside: Outside, prompt: str, answer: str) -> str:
    """The override that asks nothing else."""
    (outside.folder / "one.jsonl").write_text(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
    return "envs.tasks=one.jsonl"


@pytest.mark.slow
def test_table(outside: Outside, llama: Path):
    policy = [[["search", {"query": "Iceland"}]], "Iceland"]
    more = (f"envs.config.source={ROOT / 'configs/tables/countries.csv'}",)
    assert whole(outside, "table", llama, policy=policy, other="1", more=more)


@pytest.mark.slow
def test_folder(outside: Outside, llama: Path):
    outside.parl("env", "build", "folder", str(ROOT / "docs"), "--to", "corpora/docs")
    more = (one_question(outside, "Which key of the configuration names the environment?", "envs.name"),)
    policy = [[["search", {"queries": ["key that names the environment"]}]], "`envs.name`"]
    assert whole(outside, "folder", llama, policy=policy, other="model.init", more=more) == {0.0, 1.0}


@pytest.mark.slow
def test_retrieve(outside: Outside, llama: Path):
    port = free_port()
    policy = [[["search", {"queries": ["Bridge 3"]}]], "1809"]
    asked = one_question(outside, "In which year was Bridge 3 opened?", "1809")
    more = (f"envs.config.url=http://127.0.0.1:{port}/retrieve", asked)
    command = [sys.executable, "-m", "uvicorn", "retriever:app", "--port", str(port), "--log-level=error"]
    with listening(subprocess.Popen(command, cwd=ROOT / "examples"), port):
        assert whole(outside, "retrieve", llama, policy=policy, other="1", more=more) == {0.0, 1.0}


@pytest.mark.slow
def test_gymnasium(outside: Outside, llama: Path):
    outside.needs("gymnasium", "steps")
    moves = [[["act", {"action": action}]] for action in (1, 1, 2, 2, 1, 2)]
    assert whole(outside, "gymnasium", llama, policy=moves, other="I give up") == {0.0, 1.0}


@pytest.mark.slow
def test_textarena(outside: Outside, llama: Path):
    outside.needs("textarena", "steps")
    guesses = [[["act", {"text": f"[{number}]"}]] for number in (3, 6, 10, 14, 18)]
    assert whole(outside, "textarena", llama, policy=[*guesses, "I give up"]) <= {0.0, 1.0}


@pytest.mark.slow
def test_aviary(outside: Outside, llama: Path):
    outside.needs("aviary", "steps")
    more = ("envs.config.starts=1",)
    climb = [[["climb", {"rungs": 2}]], [["climb", {"rungs": 2}]], [["climb", {"rungs": 2}]]]
    assert whole(outside, "aviary", llama, "aviary_ladder.py", policy=climb, more=more) == {0.0, 1.0}


@pytest.mark.slow
def test_skyrl(outside: Outside, llama: Path):
    outside.needs("skyrl_gym", "steps")
    more = (one_question(outside, "2 + 2? End with ####.", "4"),)
    act = [["act", {"text": "#### 4"}]]
    assert whole(outside, "skyrl", llama, policy=[act], other="#### 5", more=more) == {0.0, 1.0}


@pytest.mark.slow
def test_openenv(outside: Outside, llama: Path):
    outside.needs("openenv", "openenv")
    port = free_port()
    more = (f"envs.config.url=http://127.0.0.1:{port}", "envs.config.starts=1")  # the number is 0
    guess = [[["act", {"number": 7}]], [["act", {"number": 0}]]]
    command = [outside.python, "openenv_game.py", str(port)]
    with listening(subprocess.Popen(command, cwd=ROOT / "examples"), port):
        assert whole(outside, "openenv", llama, policy=guess, other="I give up", more=more) == {0.0, 1.0}


@pytest.mark.slow
def test_verifiers(outside: Outside, llama: Path):
    outside.needs("verifiers", "verifiers")
    policy, more = [[["adder_add", {"a": 0, "b": 411}]], "411"], ("envs.config.options={size: 1}",)
    assert whole(outside, "verifiers", llama, "verifiers_sums.py", policy=policy, other="1", more=more) == {0.0, 1.0}


@pytest.mark.slow
def test_nemo_gym(outside: Outside, llama: Path):
    """With its own server where that is installed, else with one that keeps its contract."""
    (first, *_) = (ROOT / "examples" / "nemo_gym_rows.jsonl").read_text().splitlines()
    (outside.folder / "one.jsonl").write_text(first + "\n")
    policy = [[["increment_counter", {"count": 1}]], [["increment_counter", {"count": 2}]], "done"]
    with packages_own(outside.folder) if NAMED in os.environ else stand_in() as url:
        more = (f"envs.config.url={url}", "envs.config.rows=one.jsonl")
        assert whole(outside, "nemo_gym", llama, policy=policy, more=more) == {1.0}


ODD_ANSWERS = ("10\u00b2", "\u2460", "1" * 400, "9" * 5000, "-1", "1e999", "nan", "", "Town 4")


@pytest.mark.parametrize("said", ODD_ANSWERS)
async def test_scores_of_the_examples_survive_answers_that_look_like_numbers(
    said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import quiz  # pyright: ignore[reportMissingImports]
    import town_tools  # pyright: ignore[reportMissingImports]

    task = SimpleNamespace(gold=SimpleNamespace(answers=("10548",)))
    assert town_tools.score(SimpleNamespace(task=task, answer=said)) == 0.0
    assert town_tools.score(SimpleNamespace(task=task, answer="10,548")) == 1.0
    scored = quiz.Quiz(tmp_path)
    assert (await scored.score({"number": "300"}, f"Answer: {said}", None)).value == 0.0
    assert (await scored.score({"number": "300"}, "Answer: 301", None)).value == 1.0
