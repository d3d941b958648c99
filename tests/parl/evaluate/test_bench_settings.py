"""What ``parl bench run`` keeps of a configuration, and stored episodes about which the judge says nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from stored import make_episode, wide_task
from typer.testing import CliRunner

from envs.base import Unscored
from envs.benchmarks.base import write_prepared
from envs.benchmarks.frames import Frames
from envs.benchmarks.multihop import HotpotQA
from parl.cli.main import app
from parl.config.schema import Config
from parl.errors import UserError
from parl.evaluate.bench import prepare

TOOLS = {"name": "functions", "config": {"tools": ["town_tools:population"], "result_chars": 300}}
JUDGE = {"url": "http://127.0.0.1:9/v1", "model": "strict", "tokens": 77}


@pytest.fixture
def hops(tmp_path: Path) -> Path:
    row = {"_id": "q", "question": "Where?", "answer": "Rome", "context": [["Rome", ["A town."]]]}
    (tmp_path / "dev.json").write_text(json.dumps([row]))
    (folder := tmp_path / "hops").mkdir()
    write_prepared(HotpotQA(folder), tmp_path / "dev.json", folder)
    return folder


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    (tmp_path / "test.tsv").write_text("\tPrompt\tAnswer\n0\tWhere?\tRome\n1\tWho?\tAda\n")
    (folder := tmp_path / "frames").mkdir()
    write_prepared(Frames(folder), tmp_path / "test.tsv", folder)
    return folder


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs ``parl bench run`` up to the evaluation; returns its configuration."""
    monkeypatch.chdir(tmp_path)
    found: list[Config] = []

    def run_eval(config: Config, **options: Any) -> dict[str, Any]:
        found.append(config)
        return {}

    monkeypatch.setattr("parl.evaluate.evaluation.run_eval", run_eval)

    def run(folder: Path, written: dict[str, Any], *more: str) -> Config:
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(written))
        done = CliRunner().invoke(app, ["bench", "run", str(folder), "mine.yaml", *more, "--json"])
        assert done.exit_code == 0, done.output
        return found[-1]

    return run


def test_a_benchmarks_tools_judge_and_settings_stay(resolved: Any, hops: Path):
    config = {"folder": "elsewhere", "tools": TOOLS, "judge": JUDGE, "settings": {"mode": "compat"}}
    envs = {"name": "benchmark", "config": config}
    kept = resolved(hops, {"envs": envs}).envs.config
    assert kept.folder == hops.resolve() and kept.tools.model_dump() == TOOLS and kept.settings == {"mode": "compat"}
    assert (kept.judge.model, kept.judge.tokens) == ("strict", 77)
    other = resolved(hops, {"envs": envs}, "--judge-url=http://127.0.0.1:8/v1", "--judge-model=mild").envs.config
    assert (other.judge.model, other.judge.tokens, other.tools.name) == ("mild", 10_240, "functions")
    given = resolved(hops, {"envs": envs}, "envs.config.settings={mode: sane}").envs.config
    assert given.settings == {"mode": "sane"} and given.tools.name == "functions"


def test_the_section_of_another_environment_is_replaced_and_overrides_come_last(resolved: Any, hops: Path):
    more = f"envs.config.tools={json.dumps(TOOLS)}"
    config = resolved(hops, {"envs": {"name": "functions", "config": {"tools": ["town_tools:population"]}}}, more)
    assert config.envs.name == "benchmark" and config.envs.config.tools.model_dump() == TOOLS
    assert config.envs.config.judge is None and config.eval.tasks == 1
    assert resolved(hops, {}, more).envs.config.tools.name == "functions"


def test_scoring_has_the_time_that_the_benchmark_names_or_more(resolved: Any, hops: Path, frames: Path):
    judge = ("--judge-url=http://127.0.0.1:9/v1", "--judge-model=m")
    assert resolved(hops, {}).rollouts.score_deadline_s == 60.0
    assert resolved(frames, {}, *judge).rollouts.score_deadline_s == 600.0
    given = {"rollouts": {"score_deadline_s": 900.0}}
    assert resolved(frames, given, *judge).rollouts.score_deadline_s == 900.0
    assert resolved(frames, {}, *judge, "rollouts.score_deadline_s=7").rollouts.score_deadline_s == 7.0


def test_an_episode_without_a_verdict_is_void_and_the_others_are_scored(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def judged(ask: Any, question: str, *rest: Any) -> bool:
        if question == "Where?":
            raise Unscored("the judge gives no verdict")
        return True

    monkeypatch.setattr("envs.benchmarks.frames.judged", judged)
    episodes = []
    for number, key in enumerate(("frames-001", "frames-002")):
        episode = make_episode(wide_task(number), spawning=False)
        episode.task = replace(episode.task, key=key)
        episodes.append(episode)
    listed = [(None, type("Outline", (), {"episode": episode})) for episode in episodes]
    monkeypatch.setattr(prepare, "list_episodes", lambda *given, **more: listed)
    rows = list(prepare.score_store(frames, tmp_path, None, "sane", JUDGE))
    assert [(row["id"], row["score"], row.get("void")) for row in rows] == [
        ("frames-001", None, "the judge gives no verdict"),
        ("frames-002", 1.0, None),
    ]
    with pytest.raises(UserError, match="scored by a judge"):
        list(prepare.score_store(frames, tmp_path, None, "sane", None))
