"""An environment from outside: by module and by entry point, through Ray, resume and evaluation."""

from __future__ import annotations

import json
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


def test_an_installed_environment_is_listed_with_its_keys_and_found_by_its_name(outside: Outside):
    outside.install("parl.environments", "towns", "teacher:TaughtTowns")
    outside.config(envs={"name": "towns", "config": {"towns": 50}})
    rows = json.loads(outside.parl("plugins", "--json"))
    (row,) = [row for row in rows if row["name"] == "towns"]
    assert (row["kind"], row["origin"], row["keys"]) == ("environment", "theirs 1.0", ["towns", "most"])
    assert "towns: 50" in outside.parl("train", "run.yaml", "--dry-run")
