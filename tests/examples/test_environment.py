"""An environment from outside: by module and by entry point, through Ray, resume and evaluation, and its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from outside import Outside


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path, "environment", "teacher")


def test_a_mistake_in_a_strangers_section_is_explained_as_ours_are(outside: Outside):
    outside.config(envs={"name": "teacher:TaughtTowns", "config": {"town": 3, "most": "six"}})
    said = outside.parl("train", "run.yaml", "--dry-run", code=2)
    assert "unknown key envs.config.town (given 3); did you mean envs.config.towns" in said
    assert 'envs.config.most = "six": must be a whole number > 1' in said
    outside.config(envs={"name": "teacher:TaughtTown"})
    said = outside.parl("train", "run.yaml", "--dry-run", code=2)
    assert 'envs.name = "teacher:TaughtTown": teacher has no TaughtTown; did you mean TaughtTowns?' in said
    outside.config(envs={"name": "environment:Lookup"})
    assert "is no environment: derive it from envs.base.Environment" in outside.parl(
        "train", "run.yaml", "--dry-run", code=2
    )


def test_an_environment_without_a_teacher_needs_a_pretrained_policy(outside: Outside):
    outside.config(envs={"name": "environment:Towns"})
    said = outside.parl("train", "run.yaml", code=2)
    assert "envs.name = environment:Towns: this environment has no teacher" in said and "model.init" in said


@pytest.mark.slow
def test_a_whole_run_in_an_environment_named_by_its_module(outside: Outside):
    outside.config(envs={"name": "teacher:TaughtTowns", "config": {"towns": 50, "most": 3}})
    outside.parl("train", "run.yaml", "--dry-run")
    run = outside.whole_run()
    said = outside.parl("episodes", "ls", "mine")
    assert "towns" in said
    assert "towns" in (run / "summary.json").read_text()
    outside.parl("report", "mine")


@pytest.mark.slow
def test_a_whole_run_in_an_environment_named_by_its_entry_point(outside: Outside):
    outside.install("parl.environments", "towns", "teacher:TaughtTowns")
    outside.config(envs={"name": "towns", "config": {"towns": 50, "most": 3}})
    assert "towns" in outside.parl("plugins")
    assert (outside.whole_run() / "policy" / "model.safetensors").is_file()
