"""WideSearch's scores: the official script's numbers in compat, fair ones in sane."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from envs.base import Gold
from envs.benchmarks.scoring.widesearch import Recorded, Scores
from envs.benchmarks.scoring.widesearch_compat import compat
from envs.benchmarks.scoring.widesearch_sane import sane
from parl.cli.main import app
from rewards.outcome.item_f1 import item_f1

dateparser = pytest.importorskip("dateparser", reason="the extra bench: pip install 'parl-swarm[bench]'")
DATA = Path(__file__).parents[2] / "data" / "widesearch"
CASES = [json.loads(line) for line in (DATA / "cases.jsonl").read_text().splitlines()]
GOLDEN = [json.loads(line) for line in (DATA / "golden.jsonl").read_text().splitlines()]
BY_ID = {case["id"]: case for case in CASES}
RULES = {
    "unique_columns": ["city"],
    "required": ["city", "year"],
    "eval_pipeline": {name: {"preprocess": ["norm_str"], "metric": ["exact_match"]} for name in ("city", "year")},
}


@pytest.fixture(scope="module", autouse=True)
def each_date_once():
    """The parser takes milliseconds a text, and the cases repeat theirs."""
    known, real = {}, dateparser.parse

    def parse(text: str, **options: Any) -> Any:
        if not isinstance(text, str):
            return real(text, **options)
        if text not in known:
            known[text] = real(text, **options)
        return known[text]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dateparser, "parse", parse)
        yield


def run_score(case: dict[str, Any], rule: Any) -> Scores:
    rules = json.loads(case["evaluation"]) if isinstance(case["evaluation"], str) else case["evaluation"]
    judge = Recorded(case.get("key_maps"), case.get("judge"))
    return rule(rules, case["answer_csv"], case["response"], judge)


def test_compat_gives_the_official_number_for_every_case():
    assert len(CASES) == len(GOLDEN) >= 400
    ours = [{"id": case["id"]} | asdict(run_score(case, compat)) for case in CASES]
    assert ours == GOLDEN


def test_the_command_prints_a_row_for_each_case(tmp_path: Path):
    cases = tmp_path / "cases.jsonl"
    cases.write_text("".join(json.dumps(case) + "\n" for case in CASES[:30]))
    result = CliRunner().invoke(app, ["bench", "score", "widesearch", str(cases)])
    assert result.exit_code == 0, result.output
    assert [json.loads(line) for line in result.output.splitlines()] == GOLDEN[:30]


def test_sane_scores_stay_between_0_and_1():
    for case in CASES:
        try:
            scores = asdict(run_score(case, sane))
        except ValueError:
            continue  # the task is broken: the gold lacks a column
        assert all(0.0 <= value <= 1.0 for value in scores.values()), (case["id"], scores)


@pytest.mark.parametrize(
    ("case", "item_f1_compat", "item_f1_sane"),
    [
        ("two reply rows mapped to one gold key", 8 / 7, 6 / 7),
        ("two metrics on one column", 1.5, 1.0),
        ("a blank cell in a column of integers", 0.5, 5 / 6),
        ("an open quote", 0.0, 2 / 3),
        ("N/A against nan", 1.0, 0.75),
        ("a row with one cell more", 0.0, 2 / 3),
        ("date_near: no date at all against nothing either", 1.0, 0.75),
    ],
)
def test_defects_beside_their_fair_score(case: str, item_f1_compat: float, item_f1_sane: float):
    assert run_score(BY_ID[case], compat).fi == pytest.approx(item_f1_compat)
    assert run_score(BY_ID[case], sane).fi == pytest.approx(item_f1_sane)


@pytest.mark.parametrize(
    "reply",
    [
        "|City|Year|\n|-|-|\n|rome|2002|\n|Oslo|2003|",
        "|City|Year|\n|-|-|\n|Rome|2002|\n|Rome|2002|\n|Oslo|1|\n|Bonn|1|",
        "|City|Year|\n|-|-|\n|Rome|2002|\n|ROME|2002|",
        "|City|Year|\n|-|-|\n|Rome||\n|Oslo|2003|x|",
        "|City|Year|Note|\n|-|-|-|\n|Rome|2002|x|",
        "no table",
    ],
)
def test_sane_is_the_training_score_where_columns_match_exactly(reply: str):
    gold = Gold(
        kind="table", columns=("city", "year"), unique_columns=("city",), rows=(("Rome", "2002"), ("Oslo", "2003"))
    )
    ours, trained = sane(RULES, "city,year\nRome,2002\nOslo,2003\n", reply, Recorded(None, None)), item_f1(reply, gold)
    assert (ours.fi, ours.fr, bool(ours.score)) == (trained.f1, trained.row_f1, trained.success)


def test_a_broken_row_is_named(tmp_path: Path):
    file = tmp_path / "cases.jsonl"
    file.write_text('{"id": "a", "evaluation": {}, "response": ""}\n')
    result = CliRunner().invoke(app, ["bench", "score", "widesearch", str(file)])
    assert result.exit_code == 2 and "cases.jsonl:1: the row has no 'answer_csv'" in result.output
    result = CliRunner().invoke(app, ["bench", "score", "wide", str(file)])
    assert result.exit_code == 2 and "NAME = 'wide'" in result.output and "widesearch" in result.output
