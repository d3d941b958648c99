"""Comparisons by hand: differences, changes by task, trade-offs, and which episodes a path means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stored import make_episode, make_run, wide_task
from tiny import tiny_config
from typer.testing import CliRunner

from parl.cli.main import app
from parl.errors import UserError
from parl.evaluate.compare import compare, compare_pair, load_samples, pareto
from parl.evaluate.compare_table import verdict
from parl.evaluate.measures import Attempt, Sample, estimates, groups, latest, width_group
from parl.evaluate.statistics import Interval
from rollouts.episode import EpisodeStatus
from rollouts.store.outline import read_outlines
from rollouts.store.store import EpisodeStore, read_shard


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tiny_config(tmp_path_factory.mktemp("runs"), trainer={"steps": 4}), tasks=30)


def one(task: str, score: float, steps: int = 10, *, index: int = 0, tokens: int = 100, width: int = 4) -> Attempt:
    family = "wide" if width > 1 else "chain"
    return Attempt(
        task=task,
        family=family,
        width=width,
        index=index,
        ref=f"x-000000:{index}",
        status="answered",
        score=score,
        success=float(score == 1),
        spawned=0.0,
        critical_steps=steps,
        total_steps=steps,
        path_tokens=tokens,
        makespan_s=float(steps),
        makespan_capped_s=float(steps),
        subagents=0,
        sampled_tokens=tokens,
        prompt_tokens=5 * tokens,
        new_prompt_tokens=2 * tokens,
    )


def test_differences_by_hand():
    order = ("wide", "chain")
    a = Sample("a", [one("t1", 0.5, 20), one("t2", 1.0, 10), one("t3", 0.0, 30, width=1), one("only a", 1.0)], order)
    b = Sample("b", [one("t1", 1.0, 10), one("t2", 0.8, 10), one("t3", 0.0, 10, width=1), one("only b", 0.0)])
    pair = compare_pair(a, b)
    assert pair["tasks"] == 3
    score, steps = pair["groups"]["all"]["score"], pair["groups"]["all"]["critical_steps"]
    assert (score["a"].value, score["b"].value) == (pytest.approx(0.5), pytest.approx(0.6))
    assert score["difference"].value == pytest.approx(0.1)
    assert steps["difference"].value == pytest.approx(-10) and steps["ratio"].value == pytest.approx(2.0)
    assert [(row["task"], pytest.approx(row["difference"])) for row in pair["improvements"]] == [("t1", 0.5)]
    assert [(row["task"], pytest.approx(row["difference"])) for row in pair["regressions"]] == [("t2", -0.2)]
    assert list(pair["groups"]) == ["all", "wide", "chain", "width 4-7"]
    assert pair["groups"]["wide"]["tasks"] == 2


def test_attempts_are_averaged_within_their_task_first():
    tries = [one("t1", 1.0, index=0), one("t1", 0.0, index=1), one("t1", 0.0, index=2), one("t2", 1.0)]
    sample = Sample("x", tries)
    assert sample.means("score") == [pytest.approx(1 / 3), 1.0] and sample.attempts == 1
    both = Sample("x", [one("t", 0.2, index=0), one("t", 0.6, index=1), one("u", 1.0, index=0), one("u", 1.0, index=1)])
    numbers = estimates(both, 2)
    assert numbers["avg@2"].value == pytest.approx(0.7) and numbers["max@2"].value == pytest.approx(0.8)
    assert numbers["pass@2"].value == pytest.approx(0.5) and (numbers["tasks"], numbers["attempts"]) == (2, 4)


def test_the_pareto_front_is_what_nothing_beats():
    good = Sample("good", [one("t", 0.9, 10, tokens=300)])
    cheap = Sample("cheap", [one("t", 0.5, 10, tokens=100)])
    bad = Sample("bad", [one("t", 0.5, 12, tokens=100)])
    twin = Sample("twin", [one("t", 0.9, 10, tokens=300)])
    rows = {row["policy"]: row["front"] for row in pareto([good, cheap, bad, twin])}
    assert rows == {"good": True, "cheap": True, "bad": False, "twin": True}


def test_widths_are_grouped_by_powers_of_two_and_families_keep_their_order():
    assert [width_group(width) for width in (1, 2, 3, 4, 15, 16)] == [
        *("width 1", "width 2-3", "width 2-3", "width 4-7", "width 8-15", "width 16-31")
    ]
    sample = Sample("x", [one("a", 1, width=1), one("b", 1, width=9), one("c", 1, width=2)], ["wide", "chain"])
    found = groups([sample])
    assert list(found) == ["all", "wide", "chain", "width 2-3", "width 8-15"]
    assert [list(sample.of(belongs).by_task) for belongs in found.values()] == [
        ["a", "b", "c"],
        ["b", "c"],
        ["a"],
        ["c"],
        ["b"],
    ]


def test_a_run_stands_for_its_evaluation_and_a_label_picks_one(run: Path):
    assert [sample.label for sample in load_samples([str(run)])] == ["cold_start", "single_agent", "trained"]
    picked = load_samples([f"{run}:single_agent", f"{run}:trained"])
    assert [sample.label for sample in picked] == ["single_agent", "trained"]
    stored, _ = read_shard(run / "eval" / "trained-000000.parquet")
    assert picked[1].means("score") == [episode.rewards["perf"] for episode in stored]
    assert picked[1].means("critical_steps") == [episode.metrics["critical_steps"] for episode in stored]
    twice = load_samples([f"{run}:trained", f"{run}/eval:trained"])
    assert [sample.label for sample in twice] == ["tiny:trained", "tiny:trained (2)"]
    with pytest.raises(UserError, match=r"no episodes of 'best'.*there are: cold_start, single_agent, trained"):
        load_samples([f"{run}:best"])


def test_the_last_parl_eval_comes_before_the_evaluation_at_the_end(tmp_path: Path):
    run = make_run(tiny_config(tmp_path, trainer={"steps": 4}))
    folder = run / "evals" / "trained-0123456789ab"
    task = wide_task(1)
    failed = make_episode(task, 0, spawning=True)
    failed.status = EpisodeStatus.FAILED
    again = make_episode(task, 0, spawning=True)
    again.status = EpisodeStatus.ANSWERED
    EpisodeStore(folder).write(0, [failed, make_episode(task, 1, spawning=True)], policy_version=0, kind="trained")
    EpisodeStore(folder).write(1, [again], policy_version=0, kind="trained")
    (run / "evals" / "summary.json").write_text(json.dumps({"policies": {"trained": {"store": str(folder)}}}))
    [sample] = load_samples([str(run)])
    first = sample.by_task["wide-1"][0]
    assert (first.index, first.status) == (0, "answered")
    assert sample.attempts == 2
    kept = latest(read_outlines([folder / "trained-000001.parquet", folder / "trained-000000.parquet"]))
    assert kept["wide-1", 0].episode.status is EpisodeStatus.ANSWERED  # in whatever order they are met


def test_policies_without_a_common_task_cannot_be_compared():
    with pytest.raises(UserError, match=r"no task is common to all \(a 1, b 1\)"):
        compare([Sample("a", [one("t", 1)]), Sample("b", [one("u", 1)])])
    with pytest.raises(UserError, match="needs two policies, there is only a"):
        compare([Sample("a", [one("t", 1)])])


def test_the_command_prints_tables_json_and_a_page(run: Path, tmp_path: Path):
    args = ["compare", f"{run}:single_agent", f"{run}:trained"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "trained against single_agent: 30 tasks" in done.stdout and "on the Pareto front" in done.stdout
    page = tmp_path / "compare.html"
    done = CliRunner().invoke(app, [*args, "--json", "-o", str(page)])
    result = json.loads(done.stdout)
    assert result["pairs"][0]["groups"]["wide"]["critical_steps"]["ratio"]["low"] > 1
    html = page.read_text()
    assert html.count("<svg") == 3 and "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert CliRunner().invoke(app, ["compare", f"{run}:trained"]).exit_code == 2


def test_a_verdict_needs_an_interval_without_zero():
    assert verdict(Interval(0.1, -0.1, 0.3), better=1) == "-"
    assert verdict(Interval(0.2, 0.1, 0.3), better=1) == "better"
    assert verdict(Interval(-3, -5, -1), better=-1) == "better"
    assert verdict(Interval(3, 1, 5), better=-1) == "worse"


def test_one_run_shows_trained_against_single_agent_and_cold_start(run: Path):
    said = CliRunner().invoke(app, ["compare", str(run)])
    assert said.exit_code == 0
    assert "trained against single_agent: 30 tasks" in said.stdout
    assert "trained against cold_start: 30 tasks" in said.stdout
    assert "single_agent against" not in said.stdout
    result = compare(load_samples([str(run)], of_one_run=True), of_one_run=True)
    assert result["reference"] == "trained"
    turned = compare(load_samples([f"{run}:single_agent", f"{run}:trained"]))
    assert result["pairs"][0] == turned["pairs"][0]


def test_one_run_whose_last_evaluation_has_one_policy_falls_back_to_that_of_its_end(tmp_path: Path):
    run = make_run(tiny_config(tmp_path, trainer={"steps": 4}))
    folder = run / "evals" / "trained-0123456789ab"
    EpisodeStore(folder).write(0, [make_episode(wide_task(1), spawning=True)], policy_version=0, kind="trained")
    (run / "evals" / "summary.json").write_text(json.dumps({"policies": {"trained": {"store": str(folder)}}}))
    assert len(load_samples([str(run)], of_one_run=True)) == 3
    assert len(load_samples([str(run)])) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"policies": 3}', '{"policies": {"a": {}}}', "\x00"])
def test_a_damaged_summary_is_named_with_its_cure(tmp_path: Path, text: str):
    run = make_run(tiny_config(tmp_path, trainer={"steps": 4}))
    (run / "evals").mkdir()
    (run / "evals" / "summary.json").write_text(text)
    said = CliRunner().invoke(app, ["compare", str(run)])
    assert said.exit_code == 2
    assert "summary.json is damaged" in said.stderr
    assert "delete it, and the same parl eval writes it again" in " ".join(said.stderr.split())
