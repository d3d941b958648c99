"""Re-scoring stored episodes: bit-equal stored rewards, other rewards by hand, and damage reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from stored import make_run
from tiny import tiny_config
from typer.testing import CliRunner

from parl.cli.main import app
from parl.episodes.stores import find_stores
from parl.errors import UserError
from parl.evaluate.rescore import rescore
from rollouts.store.outline import read_outlines
from rollouts.store.store import EpisodeStore, StoreError, read_shard


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tiny_config(tmp_path, trainer={"steps": 4}))


def _run(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def _other(folder: Path, text: str) -> Path:
    path = folder / "other.yaml"
    path.write_text(text)
    return path


def test_the_runs_own_configuration_gives_the_stored_rewards_to_the_bit(run: Path):
    results = list(rescore(run))
    assert len(results) == 2 * 4 * 12 + 3 * 6
    assert {result.store for result in results} == {"episodes", "single_agent/episodes", "eval"}
    for result in results:
        assert result.same and result.stored == result.rewards, result.row()
    lambdas = {r.outline.step: r.weights["parallel"] for r in results if r.store == "episodes"}
    assert lambdas == {1: 0.3, 2: 0.15, 3: 0.0, 4: 0.0}
    assert {r.weights["parallel"] for r in results if r.store != "episodes"} == {0.0}


@pytest.mark.slow
def test_a_real_run_is_rescored_to_the_bit_with_all_its_metrics(finished: Path):
    results = list(rescore(finished))
    stores = {result.store for result in results}
    assert stores >= {"episodes", "single_agent/episodes"} and any(store.startswith("evals/") for store in stores)
    assert len({result.weights["parallel"] for result in results}) > 1  # λ fell meanwhile
    assert all(result.same for result in results)
    for store in find_stores(finished):
        for path in store.shards:
            episodes, _ = read_shard(path)
            again = [result.metrics for result in results if result.outline.path == path]
            assert [episode.metrics for episode in episodes] == again


def test_a_rewritten_shard_is_noticed(run: Path):
    store = EpisodeStore(run / "episodes")
    episodes, version = store.read(2) or pytest.fail("no step 2")
    episodes[3].rewards["total"] += 1e-16 + 2**-52
    store.write(2, episodes, policy_version=version)
    changed = [r for r in rescore(run) if not r.same]
    assert [(r.store, r.outline.ref) for r in changed] == [("episodes", "train-000002:3")]


def test_another_configuration_changes_the_weights_and_keeps_the_parts(run: Path, tmp_path: Path):
    other = _other(tmp_path, "rewards: {lambda_parallel: 0.0, lambda_finish: 0.0, critical_penalty: 0.0}\n")
    done = _run("rescore", run, "--rewards", other, "--json", "--kind", "train")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 96
    for row in rows:
        assert row["reward/total"] == row["reward/perf"] == row["stored/perf"]
        assert row["reward/critical"] == row["stored/critical"] and row["lambda/critical"] == 0.0
    assert any(row["reward/total"] != row["stored/total"] for row in rows)


def test_a_schedule_runs_over_the_steps_that_the_configuration_names_else_over_the_runs(run: Path, tmp_path: Path):
    def lambdas(text: str) -> list[float]:
        done = _run("rescore", run / "episodes", "--rewards", _other(tmp_path, text), "--json")
        rows = {row["step"]: row for row in map(json.loads, done.stdout.splitlines())}
        return [rows[step]["lambda/parallel"] for step in (1, 2, 3, 4)]

    assert lambdas("rewards: {lambda_parallel: 0.4}") == pytest.approx([0.4, 0.2, 0, 0])
    assert lambdas("rewards: {lambda_parallel: 0.4}\ntrainer: {steps: 16}") == pytest.approx([0.4, 0.35, 0.3, 0.25])


def test_overrides_are_laid_over_the_runs_own_rewards(run: Path):
    done = _run("rescore", run, "rewards.parallel_cap=4", "rewards.validity=any", "--json", "--kind", "trained")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["reward/parallel"] for row in rows] == [min(row["subagents"], 4) / 4 for row in rows]
    assert _run("rescore", run, "rewards.parallel_kap=4").exit_code == 2


def test_the_table_says_whether_anything_changed(run: Path):
    assert "114 episodes: all rewards are the stored ones, bit by bit" in _run("rescore", run).stdout
    changed = _run("rescore", run, "rewards.critical_penalty=0").stdout
    assert "with other rewards than stored" in changed and "wide" in changed


def test_outlines_hold_what_whole_episodes_do(run: Path):
    path = run / "episodes" / "train-000001.parquet"
    episodes, _ = read_shard(path)
    outlines = list(read_outlines([path]))
    assert [o.lengths for o in outlines] == [[len(t.tokens) for t in e.traces] for e in episodes]
    for episode, outline in zip(episodes, outlines, strict=True):
        for trace in episode.traces:
            trace.tokens, trace.mask, trace.logprobs, trace.versions = [], [], [], []
        assert outline.episode == episode


def test_what_is_no_store_is_named_with_its_fix(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no run, store or shard"):
        find_stores(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no episodes: no KIND-STEP\.parquet"):
        find_stores(tmp_path / "empty")
    with pytest.raises(UserError, match="a shard is named KIND-STEP"):
        find_stores(run / "config.yaml")
    (run / "config.yaml").rename(run / "gone.yaml")
    assert _run("rescore", run).exit_code == 2
    assert "belongs to no run" in _run("rescore", run / "episodes").stderr


def test_damage_is_named_with_episodes_column_and_bytes(run: Path):
    path = run / "episodes" / "train-000003.parquet"
    whole, group = path.read_bytes(), pq.ParquetFile(path).metadata.row_group(0)
    for chunk in (group.column(i) for i in range(group.num_columns)):
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        end = start + chunk.total_compressed_size
        path.write_bytes(whole[: end - 1] + bytes([whole[end - 1] ^ 255]) + whole[end:])  # a byte of its last page
        name = chunk.path_in_schema
        where = rf"train-000003\.parquet: episodes 0 to 11, column '{name}', bytes {start} to {end}: damaged"
        with pytest.raises(StoreError, match=where):
            read_shard(path)
    path.write_bytes(whole[:1000])
    done = _run("rescore", run)
    assert done.exit_code == 2 and "Traceback" not in done.stderr
    assert "train-000003.parquet: not a readable Parquet shard (1000 bytes" in done.stderr


def test_rescoring_needs_neither_torch_nor_ray(run: Path):
    code = (
        "import sys\nfrom parl.cli.main import app\n"
        f"try: app(['rescore', {str(run)!r}])\nexcept SystemExit as error: assert not error.code\n"
        "print('LOADED', *[m for m in ('torch', 'ray', 'deepspeed', 'datasets', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "LOADED", done.stderr


def test_a_run_may_be_named_by_a_relative_path(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run.parent)
    stores = find_stores(Path(run.name))
    assert {store.name for store in stores} == {store.name for store in find_stores(run)}
    assert all(store.run == run.absolute() for store in stores)
