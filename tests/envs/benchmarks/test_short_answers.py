"""Exact match and F1 of short answers against three official scripts, and verdicts of judges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from envs.base import Unscored
from envs.benchmarks.scoring.short_answers import final_answer, judged, verdict_of
from parl.cli.main import app
from rewards.outcome.exact import normalise_answer

DATA = Path(__file__).parents[2] / "data" / "short_answers"
GOLDEN = [json.loads(line) for line in (DATA / "golden.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["hotpotqa", "2wiki", "musique"])
def test_every_case_has_the_official_scores(name: str):
    result = CliRunner().invoke(app, ["bench", "score", name, str(DATA / "cases.jsonl")])
    assert result.exit_code == 0, result.output
    ours = [json.loads(line) for line in result.output.splitlines()]
    assert len(ours) >= 50 and ours == [{"id": row["id"], **row[name]} for row in GOLDEN]


def test_training_and_benchmarks_normalise_alike():
    from envs.benchmarks.scoring.short_answers import normalise

    for line in (DATA / "cases.jsonl").read_text().splitlines():
        assert normalise(json.loads(line)["response"]) == normalise_answer(json.loads(line)["response"])


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Same.\n\ncorrect: yes", True),
        ("**Correct:** yes", True),
        ("> correct : NO.", False),
        ("incorrect: yes is what I would say\ncorrect: no", False),
        ("correct: yes\nOn reflection:\ncorrect: no", False),
        ("It is correct: yes", None),
        ("", None),
    ],
)
def test_a_verdict_is_the_last_line_that_gives_one(reply: str, verdict: bool | None):
    assert verdict_of(reply) is verdict


async def test_a_judge_without_a_verdict_voids_the_score_instead_of_making_it_0():
    replies = iter(["hm", "well", "correct: yes"])

    async def ask(prompt: str) -> str:
        assert "Who?" in prompt and "Ada" in prompt and "Ada Lovelace" in prompt
        return next(replies)

    assert await judged(ask, "Who?", "Ada", "Ada Lovelace", "")

    async def mumble(prompt: str) -> str:
        return "I cannot say"

    with pytest.raises(Unscored, match="no verdict"):
        await judged(mumble, "Who?", "Ada", "Ada Lovelace", "")


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Because.\nAnswer: Rome", "Rome"),
        ("Explanation: x\n**Exact Answer:** Rome\nConfidence: 90%", "Rome"),
        ("Answer: Oslo\nno, wait\nAnswer: Rome", "Rome"),
        ("Rome", "Rome"),
    ],
)
def test_the_final_answer_of_a_reply(reply: str, answer: str):
    assert final_answer(reply) == answer
