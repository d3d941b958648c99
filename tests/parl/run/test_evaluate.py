"""The evaluation: every policy on the same held-out tasks, and the files' content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_config

from parl.collect.tasks import run_tasks
from parl.config.schema import Config
from parl.episodes.stores import final_stores
from parl.errors import UserError
from parl.evaluate.evaluation import _Shards, run_eval
from parl.track.wandb_reader import read_history
from rollouts.episode import Episode
from rollouts.store.outline import read_outlines, shard_paths
from rollouts.store.store import read_shard

NUMBERS = {
    *("item_f1", "success", "critical_steps", "total_steps", "subagents", "spawn_rate", "finish_rate", "n_tasks"),
}


@pytest.mark.slow
def test_the_summary_holds_every_number_of_every_policy(finished: Path, tiny_run: Config):
    summary = json.loads((finished / "summary.json").read_text())
    for policy in ("cold_start", "trained", "single_agent"):
        for group in ("wide", "chain", "single_fact", "all"):
            assert summary[policy][group].keys() >= NUMBERS, (policy, group)
        assert summary[policy]["all"]["n_tasks"] == tiny_run.eval.tasks
    assert summary["single_agent"]["all"]["subagents"] == 0
    assert summary["wall_s"] > 0 and summary["peak_rss_gib"] >= 0
    assert (summary["seed"], summary["version"]) == (tiny_run.seed, "0.1.0")


@pytest.mark.slow
def test_all_policies_see_the_same_tasks_and_the_report_stands_beside_them(finished: Path, tiny_run: Config):
    wanted = [task.key for task in run_tasks(tiny_run).held_out()]
    for policy in ("cold_start", "trained", "single_agent"):
        paths = shard_paths(final_stores(finished)[policy], policy)
        episodes = [episode for path in paths for episode in read_shard(path)[0]]
        assert {episode.task.key for episode in episodes} == set(wanted) and len(episodes) == len(wanted)
        assert all(episode.rewards and episode.metrics for episode in episodes)
    opening = episodes[0].orchestrator
    assert "create_subagent" not in {call.name for turn in opening.turns for call in turn.calls}
    assert (finished / "report.html").stat().st_size > 10_000
    assert 'id="episode-0"' in (finished / "report.html").read_text()


@pytest.mark.slow
def test_evaluating_again_gives_the_same_numbers_and_runs_nothing(finished: Path, tiny_run: Config, monkeypatch):
    monkeypatch.setattr("parl.evaluate.evaluation.Collector", lambda *given: pytest.fail("engines were started"))
    summary = json.loads((finished / "summary.json").read_text())
    config = tiny_run.model_copy(update={"name": "undisturbed"})
    again = json.loads(json.dumps(run_eval(config)))["policies"]
    assert {label: policy["means"] for label, policy in again.items()} == {
        label: summary[label] for label in ("trained", "single_agent")
    }


def test_a_run_without_a_policy_is_not_evaluated_as_something_else(tmp_path: Path):
    with pytest.raises(UserError, match=r"no policy in .*train it first"):
        run_eval(tiny_config(tmp_path, name="never-trained"))


@pytest.mark.slow
def test_an_evaluation_that_was_cut_short_runs_only_what_is_missing(finished: Path, tiny_run: Config, monkeypatch):
    config = tiny_run.model_copy(update={"name": "undisturbed"})
    ran: list[tuple[str, int]] = []
    add = _Shards.add

    def counting(shards: _Shards, episodes: list[Episode]) -> None:
        ran.extend((episode.task.key, episode.index) for episode in episodes)
        add(shards, episodes)

    def dying(shards: _Shards, episodes: list[Episode]) -> None:
        counting(shards, episodes)
        if len(ran) >= 4:
            raise KeyboardInterrupt

    options = {"n": 3, "policies": ["trained"]}
    run_eval(config, n=1, policies=["trained"])  # may be there already: a larger n adds to it
    monkeypatch.setattr(_Shards, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        run_eval(config, **options)
    cut = list(ran)
    monkeypatch.setattr(_Shards, "add", counting)
    result = run_eval(config, **options)
    tasks = [task.key for task in run_tasks(config).held_out()]
    assert sorted(ran) == sorted((key, k) for key in tasks for k in (1, 2)) and 4 <= len(cut) < len(ran)
    store = Path(result["policies"]["trained"]["store"])
    stored = [o.episode for o in read_outlines(shard_paths(store))]
    assert sorted((e.task.key, e.index) for e in stored) == sorted((key, k) for key in tasks for k in range(3))
    assert run_eval(config, **options) == result and len(ran) == 12  # all there: nothing is run
    everything = result["policies"]["trained"]["estimates"]["all"]
    assert (everything["tasks"], everything["attempts"]) == (6, 18)
    assert everything["avg@3"]["low"] <= everything["avg@3"]["value"] <= everything["max@3"]["value"]
    sampled = sum(sum(t.mask) for p in shard_paths(store) for e in read_shard(p)[0] for t in e.traces)
    assert result["policies"]["trained"]["account"]["sampled_tokens"] == sampled


def test_mistakes_are_named_before_anything_starts(tmp_path: Path):
    config = tiny_config(tmp_path)
    with pytest.raises(UserError, match=r"no policy is called best: --policy is one of cold_start, .*trained"):
        run_eval(config, policies=["best"])
    with pytest.raises(UserError, match="at least 1, not 0"):
        run_eval(config, n=0)


@pytest.mark.slow
def test_wandb_holds_the_evaluation_too(finished: Path):
    summary = json.loads((finished / "summary.json").read_text())
    [row] = [row for row in read_history(finished) if "eval/step" in row]
    assert row["eval/trained/all/item_f1"] == summary["trained"]["all"]["item_f1"]
    assert row["eval/single_agent/wide/critical_steps"] == summary["single_agent"]["wide"]["critical_steps"]


def test_held_out_tasks_are_distinct_and_none_is_trained_on(tmp_path: Path):
    config = tiny_config(tmp_path, eval={"tasks": 40})
    held_out = run_tasks(config).held_out()
    assert len({task.key for task in held_out}) == 40 and {task.split for task in held_out} == {"test"}
    trained = run_tasks(config).take(0, 200)
    assert not {task.prompt for task in trained} & {task.prompt for task in held_out}
    assert [task.key for task in run_tasks(config).take(7, 5)] == [task.key for task in trained[7:12]]


def test_own_tasks_are_gone_through_again_and_again(tmp_path: Path):
    row = {"prompt": "Q", "gold": json.dumps({"kind": "exact", "answers": ["x"]}), "split": "train"}
    rows = [{**row, "prompt": f"Q{i}", "split": "test" if i > 2 else "train"} for i in range(5)]
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = tiny_config(tmp_path, envs={"tasks": str(path)}, eval={"tasks": 1})
    assert [task.prompt for task in run_tasks(config).take(2, 3)] == ["Q2", "Q0", "Q1"]
    assert [task.prompt for task in run_tasks(config).held_out()] == ["Q3"]
