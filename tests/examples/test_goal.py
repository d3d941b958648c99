"""Objective, reward and engine from outside: by module and by entry point, through Ray, resume, evaluation and
re-scoring, and the mistakes in their sections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outside import ROOT, Outside
from tiny import random_weights, tiny_model

from parl.config.plugin_kinds import ENGINES, OBJECTIVES, REWARDS
from rollouts.config import RolloutsConfig
from rollouts.engine.base import Place, Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine

DRY = ("train", "run.yaml", "--dry-run")
THEIRS: dict[str, Any] = {
    "objective": {"name": "objective:Tapered", "cap": 0.8},
    "rewards": {"name": "reward:Convex", "share": 0.2},
}
ENGINE = {"engine": "engine:Plain", "engine_config": {"threads": 1}}


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path, "objective", "reward", "engine", "environment", "teacher")


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_mistakes_in_strangers_sections_are_explained_as_ours_are(outside: Outside):
    outside.config(
        objective={"name": "objective:Tapered", "capp": 1, "kl": "much"},
        rewards={"name": "reward:Convex", "share": 3.0},
        rollouts={"engine": "engine:Plain", "engine_config": {"thread": 1}},
    )
    said = outside.parl(*DRY, code=2)
    assert "unknown key objective.capp (given 1); did you mean objective.cap" in said
    assert 'objective.kl = "much": must be a number >= 0' in said
    assert "rewards.share = 3.0: must be >= 0 and <= 1" in said
    assert "unknown key rollouts.engine_config.thread (given 1); did you mean rollouts.engine_config.threads" in said


def test_names_of_engines_rewards_and_objectives_that_lead_nowhere_are_named(outside: Outside):
    outside.install("parl.engines", "plain", "engine:Plain")
    outside.config(objective={"name": "reward:Convex"}, rewards={"name": "parrl"}, rollouts={"engine": "plane"})
    said = outside.parl(*DRY, code=2)
    assert "reward:Convex is no objective: it must derive from parl.learn.objective.base.Objective" in said
    assert 'rewards.name = "parrl"' in said and "did you mean parl?" in said
    assert 'rollouts.engine = "plane"' in said and "embedded, vllm, sglang, plain" in said
    assert "did you mean plain?" in said


def test_an_engine_is_asked_for_what_the_rest_of_the_configuration_needs(outside: Outside):
    for section, named in (
        ({"trainer": {"staleness": 1}}, "rollouts.engine=engine:Plain conflicts with trainer.staleness=1"),
        ({"rollouts": {**ENGINE, "rebalance": True}}, "rollouts.rebalance=true moves engines between pools"),
        ({"rollouts": {**ENGINE, "http": {"urls": ["http://127.0.0.1:1"]}}}, "rollouts.http.urls is for servers"),
    ):
        outside.config(**{"rollouts": ENGINE, **section})
        assert named in outside.parl(*DRY, code=2)


def test_the_objective_by_hand(examples: None):
    import torch

    tapered: Any = OBJECTIVES.resolve("objective:Tapered")
    new = torch.tensor([-1.0, -2.0, -0.5, float("nan")], requires_grad=True)
    old, mask = torch.tensor([-1.5, -1.0, -1.0, 0.0]), torch.tensor([True, True, True, False])
    advantages = torch.tensor([2.0, -1.0, -1.0, 9.0])
    objective = tapered(name="objective:Tapered", cap=1.2)
    loss, stats = objective.loss(new, old, advantages, mask, denominator=4.0)
    loss.backward()
    assert new.grad is not None
    wanted = [-2.0 / 4, float(np.exp(-1.0)) / 4, 1.2 / 4, 0.0]
    torch.testing.assert_close(new.grad, torch.tensor(wanted))
    assert {name: float(stats[name]) for name in ("masked", "tapered")} == pytest.approx(
        {"masked": 1 / 3, "tapered": 1 / 3}
    )
    assert set(objective.statistics) | {"tokens"} == set(stats)


def test_the_reward_by_hand(examples: None):
    convex: Any = REWARDS.resolve("reward:Convex")
    reward = convex(name="reward:Convex", share=0.2)
    assert reward.weights(0, 5) == {"perf": 0.0, "parallel": 0.2, "solved": 0.8}
    assert reward.held_out() == reward.alone().weights(0, 5) == {"perf": 0.0, "parallel": 0.0, "solved": 1.0}
    assert reward.total({"perf": 0.5, "parallel": 0.5, "solved": 0.0}, reward.weights(0, 5)) == pytest.approx(0.1)


async def test_the_engine_says_what_ours_says(examples: None):
    plain: Any = ENGINES.resolve("engine:Plain")
    shape = tiny_model()
    rollouts = RolloutsConfig(engine="engine:Plain", engine_config=plain.Config(threads=1))
    place = Place(pool="policy", number=0, model=shape, rollouts=rollouts, tokenizer="")
    update = Update(version=3, weights=random_weights(shape))
    answers = []
    for engine in (plain.open(place), EmbeddedEngine(shape, pages=64)):
        await engine.update(update)
        greedy = Sampling(seed=1, temperature=0.0, max_new_tokens=12)
        answers.append(await engine.generate([5, 9, 2], greedy, session="s", deadline_s=60))
    mine, ours = answers
    assert (mine.tokens, mine.finish, mine.policy_version) == (ours.tokens, ours.finish, 3)


def check_run(outside: Outside, run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == [1, 2]
    for row in train:
        assert {"reward/solved", "reward/parallel", "lambda/solved", "policy/tapered", "reward/weighted/solved"} <= set(
            row
        )
        assert row["policy/engine_gap"] < 1e-5  # the engine computes what the learner does
        assert "reward/critical" not in row and "lambda/finish" not in row
    said = outside.parl("rescore", "mine")
    assert "all rewards are the stored ones, bit by bit" in said and "solved" in said
    assert "solved" in outside.parl("episodes", "show", "runs/mine/episodes", "train-000001:0")
    assert "solved" in (run / "report.html").read_text()


TOWNS = {"towns": 50, "most": 3}


@pytest.mark.slow
@pytest.mark.timeout(900)  # some ten processes in sequence
def test_a_whole_run_with_a_strangers_environment_objective_reward_and_engine_named_by_module(outside: Outside):
    outside.config(envs={"name": "teacher:TaughtTowns", "config": TOWNS}, **THEIRS, rollouts=ENGINE)
    run = outside.whole_run()
    check_run(outside, run)
    assert "towns" in (run / "summary.json").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)  # some ten processes in sequence
def test_a_whole_run_with_a_strangers_classes_named_by_entry_point(outside: Outside):
    outside.install("parl.environments", "towns", "teacher:TaughtTowns")
    outside.install("parl.objectives", "tapered", "objective:Tapered")
    outside.install("parl.rewards", "convex", "reward:Convex")
    outside.install("parl.engines", "plain", "engine:Plain")
    assert all(name in outside.parl("plugins") for name in ("towns", "tapered", "convex", "plain"))
    envs, engine = {"name": "towns", "config": TOWNS}, {"engine": "plain"}
    outside.config(envs=envs, objective={"name": "tapered"}, rewards={"name": "convex"}, rollouts=engine)
    check_run(outside, outside.whole_run())
