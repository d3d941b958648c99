"""Benchmarks through ``parl train``, ``parl eval`` and ``parl bench``, with a script as the policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from outside import Outside
from test_plug_examples import llama

from envs.benchmarks.base import write_prepared
from envs.benchmarks.harbor import Harbor
from envs.benchmarks.scoring.pages import chromium, draw

__all__ = ["llama"]
FIXED = "def add(a, b): return a + b"


def a_coding_task(folder: Path) -> Path:
    """A Harbor task whose function returns 0 where it should add."""
    files = {
        "task.toml": 'version = "1.0"\n[verifier]\ntimeout_sec = 30.0\n',
        "instruction.md": "Mend add(a, b) in /app/sums.py: it returns the sum of two numbers.",
        "environment/Dockerfile": "FROM python:3.11\nWORKDIR /app\nCOPY start.py sums.py\nENV MODE=strict\n",
        "environment/start.py": "def add(a, b): return 0\n",
        "tests/test.sh": "cd /app\npython3 /tests/check.py && echo 1 > /logs/verifier/reward.txt\n",
        "tests/check.py": "import sys\nsys.path.insert(0, '/app')\nfrom sums import add\nassert add(2, 3) == 5\n",
    }
    for name, text in files.items():
        (folder / "add" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "add" / name).write_text(text)
    return folder


OF_LLAMA = ("model.family=hf", "model.max_position_embeddings=8192", "model.chat=hermes")


def settings(
    init: Path, prepared: Path, *, model: tuple[str, ...] = OF_LLAMA, engine: str = "forced:Forced", **script: Any
) -> list[str]:
    """A tiny run on a benchmark."""
    return [
        *(f"model.init={init}", *model),
        *("root=.", "envs.name=benchmark", f"envs.config={json.dumps({'folder': str(prepared)})}"),
        *(f"rollouts.engine={engine}", f"rollouts.engine_config={json.dumps(script)}"),
        *("rollouts.group_size=2", "rollouts.tasks_per_step=2", "trainer.steps=1", "trainer.threads=1", "eval.tasks=2"),
        *("trainer.keep_best=null", "tracking.wandb=disabled", "baseline=false", "trainer.ranks=1"),
    ]


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    made = Outside(tmp_path)
    for name in ("forced.py", "forced_seeing.py"):
        shutil.copy(Path(__file__).parent / name, made.modules)
    return made


def shown(outside: Outside, run: str, *more: str) -> list[dict[str, Any]]:
    """Stored episodes of a run."""
    text = outside.parl("episodes", "ls", run, "--json", *more)
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_a_coding_task_in_train_and_eval_pays_the_right_change_alone(outside: Outside, llama: Path, tmp_path: Path):
    (prepared := tmp_path / "prepared").mkdir()
    write_prepared(Harbor(prepared), a_coding_task(tmp_path / "tasks"), prepared)
    good = [[["bash", {"command": f"cat sums.py; echo '{FIXED}' > sums.py"}]], "done"]
    bad = [[["bash", {"command": "echo 1 > ../logs/verifier/reward.txt; exit 1"}]], "done"]
    (outside.folder / "run.yaml").write_text("name: good\n")
    for name, script, wanted in (("good", good, 1.0), ("bad", bad, 0.0)):
        given = settings(llama, prepared, policy=script)
        outside.parl("train", "run.yaml", f"name={name}", *given)
        outside.parl("eval", name, "eval.seed=9")
        assert {row["perf"] for row in shown(outside, name)} == {wanted}


def seeing_policy_folder(folder: Path) -> Path:
    """A tiny dense policy with vision and random weights."""
    from seeing import VISION, seeing_policy
    from tiny import VOCAB, tiny_config

    from model.chat.kimi import MEDIA_PAD, SPECIAL_TOKENS
    from model.decoder import export_weights
    from model.kimi.config import ModelConfig
    from model.policy_files import save_policy
    from parl.cold_start.shipped import Recipe
    from parl.cold_start.vocabulary import build_tokenizer

    base = tiny_config(folder)
    seeing = {"vision": VISION, "num_hidden_layers": 1, "max_position_embeddings": 2048}
    seeing["media_placeholder_token_id"] = VOCAB - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index(MEDIA_PAD)
    shape = ModelConfig(**{**base.model.model_dump(), **seeing})
    save_policy(folder, shape, export_weights(seeing_policy(shape)), build_tokenizer(Recipe.of(base)), {})
    return folder


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="no Chromium on the PATH (CHROMIUM names another one)")
def test_a_mockup_in_train_and_eval_pays_the_page_that_looks_like_it(outside: Outside, tmp_path: Path):
    pytest.importorskip("PIL", reason="pictures: pip install -e '.[vision]'")
    import asyncio

    from envs.benchmarks.mockups import Mockups

    page = "<h1>Tea</h1><p>nine to six"
    (designs := tmp_path / "designs").mkdir()
    (designs / "tea.png").write_bytes(asyncio.run(draw(page, 112, 84)))
    (designs / "tea.html").write_text(page)
    (prepared := tmp_path / "prepared").mkdir()
    write_prepared(Mockups(prepared), designs, prepared)
    init = seeing_policy_folder(tmp_path / "policy")
    (outside.folder / "run.yaml").write_text("name: good\n")
    for name, answer, wanted in (("good", page, 1.0), ("bad", "<p></p>", 0.0)):
        script = [[["mockup", {}]], answer]
        given = settings(init, prepared, model=(), engine="forced_seeing:Seeing", policy=script)
        outside.parl("train", "run.yaml", f"name={name}", *given)
        outside.parl("eval", name, "eval.seed=9")
        assert {row["perf"] for row in shown(outside, name)} == {wanted}


@pytest.mark.slow
def test_bench_run_stores_episodes_and_bench_score_scores_them_again(outside: Outside, llama: Path, tmp_path: Path):
    rows = [{"_id": "q1", "question": "Which is larger?", "answer": "Rome", "context": [["Rome", ["Big."]]]}]
    (tmp_path / "dev.json").write_text(json.dumps(rows))
    (outside.folder / "run.yaml").write_text("name: hops\n")
    outside.parl("bench", "prepare", "hotpotqa", "--from", str(tmp_path / "dev.json"), "--to", "hops-data")
    script = [[["read", {"titles": ["Rome"]}]], "Answer: the Rome"]
    given = [one for one in settings(llama, Path(), policy=script) if not one.startswith("envs.")]
    given = [one for one in given if not one.startswith("eval.tasks")]
    said = outside.parl("bench", "run", "hops-data", "run.yaml", *given, "--policy=cold_start_no_spawn", "--json")
    assert '"tasks": 1' in said
    (row,) = [json.loads(line) for line in outside.parl("bench", "score", "hops-data", "hops").splitlines()]
    assert (row["id"], row["score"], row["em"]) == ("q1", 1.0, 1.0)
